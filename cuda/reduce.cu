/* reduce.cu: sums over many numbers, and the sums of partial gradients that other kernels leave.
 *
 * Bound by memory where they are large. Each is cut into parts whose number depends on the array's length only, each part is
 * summed by one block, and the parts' sums are added in order by a second, small kernel: no atomics, so the bits are always the
 * same. */
#include "cuda/device.cuh"

/* ---- sums in double ---- */

constexpr int THREADS = block_threads(256);
constexpr int64_t PART = 16384;      /* numbers in a part ... */
constexpr int64_t MOST_PARTS = 1024; /* ... unless that makes more parts than keep every device busy */

size_t cuda_reduce_scratch(void) { return MOST_PARTS * sizeof(double); }

/* parts[i] = the sum of part i. A thread adds every THREADS-th pack of its part; the last pack may be cut off. */
template <typename A, bool SQUARES>
__global__ void __launch_bounds__(THREADS)
    sum_parts(double *__restrict__ parts, const float *__restrict__ values, int64_t n, int64_t part) {
    int64_t first = blockIdx.x * part, end = first + part < n ? first + part : n;
    double total = 0;
#pragma unroll 4
    for (int64_t at = first + threadIdx.x * A::W; at < end; at += THREADS * A::W) {
        float f[A::W] = {};
        if (at + A::W <= end)
            load<A>(f, values, at);
        else
            for (int i = 0; at + i < end; i++) f[i] = values[at + i];
#pragma unroll
        for (int i = 0; i < A::W; i++) total += SQUARES ? (double)f[i] * (double)f[i] : (double)f[i];
    }
    total = block_sum<THREADS>(total);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

/* total += the sum of the parts */
static __global__ void __launch_bounds__(THREADS) add_parts(double *total, const double *__restrict__ parts, int n) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += parts[i];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) *total += sum;
}

template <bool SQUARES>
static void sum_all(backend *b, double *total, const float *values, int64_t n) {
    if (n == 0) return;
    double *parts = (double *)cuda_scratch(b, cuda_reduce_scratch());
    int64_t part = PART;
    while (part * MOST_PARTS < n) part += PART;
    unsigned n_parts = blocks_of(n, part);
    with_float_access(wide_rows(DTYPE_F32, 0, values),
                      [&](auto a) { LAUNCH(b, (sum_parts<decltype(a), SQUARES>), n_parts, THREADS, 0, parts, values, n, part); });
    LAUNCH(b, add_parts, 1, THREADS, 0, total, parts, (int)n_parts);
}

void cuda_sum(backend *b, double *total, const float *values, int64_t n) { sum_all<false>(b, total, values, n); }

void cuda_sum_squares(backend *b, double *total, const float *values, int64_t n) { sum_all<true>(b, total, values, n); }

/* ---- partial gradients ---- */

constexpr int SLICES = block_threads(1024) / WARP;

/* A warp has 32 columns and takes a slice of the partials, whose sum it keeps in shared memory; the first warp adds the slices.
 */
static __global__ void __launch_bounds__(SLICES *WARP)
    add_partials(float *dw, const float *__restrict__ partials, int64_t n_partials, int64_t stride, int n, bool accumulate) {
    __shared__ float sums[SLICES][WARP];
    int lane = threadIdx.x % WARP, slice = threadIdx.x / WARP, column = (int)blockIdx.x * WARP + lane;
    int64_t first = n_partials * slice / SLICES, end = n_partials * (slice + 1) / SLICES;
    float total = 0;
    if (column < n) {
#pragma unroll 8
        for (int64_t p = first; p < end; p++) total += partials[p * stride + column];
    }
    sums[slice][lane] = total;
    __syncthreads();
    if (slice > 0 || column >= n) return;
    total = 0;
    for (int i = 0; i < SLICES; i++) total += sums[i][lane];
    dw[column] = accumulate ? dw[column] + total : total;
}

void cuda_add_partials(backend *b, float *dw, const float *partials, int64_t n_partials, int64_t stride, int n, bool accumulate) {
    LAUNCH(b, add_partials, blocks_of(n, WARP), SLICES * WARP, 0, dw, partials, n_partials, stride, n, accumulate);
}
