/* cross_entropy.cu: the loss over rows of logits and its gradient in place.
 *
 * Bound by memory: a row of 202,048 logits in bf16 is 400 kB, more than shared memory holds. A block reads it once for its
 * maximum and the sum of exponentials together, and once more for the gradient, backwards, because what it read last is still in
 * the cache. Exponentials are of z - max, never of z - lse: the small sum then keeps all its digits however large the logits are.
 */
#include <float.h>

#include "cuda/device.cuh"

/* Threads of a block that takes a row: many for the rows of a large vocabulary. */
constexpr int FEW = block_threads(128), MANY = block_threads(1024);
constexpr int64_t LONG_ROW = 16384;
constexpr int IN_FLIGHT = 3; /* packs that a thread reads together */

typedef struct row_sum {
    float max;
    double sum; /* of exp(z - max), at least 1 */
} row_sum;

/* Takes more logits into the sum of a thread. __expf is off by |1.2 (z - max)| + 2 units in the last place at most: large only
 * where the term is small. */
template <int W>
static __device__ __forceinline__ void add_exponentials(float &max, float &sum, const float (&z)[W]) {
    float larger = max;
#pragma unroll
    for (int i = 0; i < W; i++) larger = fmaxf(larger, z[i]);
    if (larger > max) {
        sum *= __expf(max - larger);
        max = larger;
    }
#pragma unroll
    for (int i = 0; i < W; i++) sum += __expf(z[i] - max);
}

/* The maximum and the sum over a row, known to all threads of the block. */
template <typename A, int T>
static __device__ row_sum sum_row(const void *z, int64_t row, int64_t V) {
    float max = -FLT_MAX, sum = 0; /* finite: logits of -infinity then add 0 */
    for (int64_t first = threadIdx.x * A::W; first < V; first += IN_FLIGHT * T * A::W) {
        pack<A> held[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            int64_t v = first + i * T * A::W;
            held[i] = v < V ? load_pack<A>(z, row + v) : zero_pack<A>();
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            float f[A::W];
            unpack<A>(f, held[i]);
            if (first + i * T * A::W < V) add_exponentials(max, sum, f);
        }
    }
    float row_max = block_max<T>(max);
    return {row_max, block_sum<T>((double)sum * (double)__expf(max - row_max))};
}

/* z = factor * exp(z - max), and at the target what was worked out in double */
template <typename A, int T>
static __device__ void write_gradient(void *z, int32_t target, float target_gradient, float factor, float max, int64_t row,
                                      int64_t V) {
    constexpr int64_t stretch = IN_FLIGHT * T * A::W;
    for (int64_t start = (V - 1) / stretch * stretch; start >= 0; start -= stretch) {
        int64_t first = start + threadIdx.x * A::W;
        pack<A> held[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            int64_t v = first + i * T * A::W;
            held[i] = v < V ? load_pack<A>(z, row + v) : zero_pack<A>();
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            int64_t v = first + i * T * A::W;
            float f[A::W];
            unpack<A>(f, held[i]);
#pragma unroll
            for (int j = 0; j < A::W; j++) f[j] = v + j == target ? target_gradient : factor * __expf(f[j] - max);
            if (v < V) store<A>(z, row + v, f);
        }
    }
}

template <typename A, int T>
static __device__ void clear_row(void *z, int64_t row, int64_t V) {
    for (int64_t v = threadIdx.x * A::W; v < V; v += T * A::W) store_pack<A>(z, row + v, zero_pack<A>());
}

/* Block n takes row n. */
template <typename A, int T>
__global__ void __launch_bounds__(T, 1)
    cross_entropy(float *losses, float *z_losses, void *z, const int32_t *__restrict__ targets, float scale, float z_loss,
                  bool backward, int64_t V) {
    __shared__ float factor, target_gradient;
    int64_t n = blockIdx.x, row = n * V;
    int32_t target = targets[n];
    if (target < 0) {
        if (threadIdx.x == 0) losses[n] = 0;
        if (threadIdx.x == 0 && z_losses) z_losses[n] = 0;
        if (backward) clear_row<A, T>(z, row, V);
        return;
    }
    row_sum s = sum_row<A, T>(z, row, V);
    if (threadIdx.x == 0) {
        double over_max = (double)to_float(static_cast<const typename A::X *>(z)[row + target]) - (double)s.max;
        double lse = (double)s.max + log(s.sum), slope = (1.0 + 2.0 * (double)z_loss * lse) / s.sum;
        losses[n] = (float)(log(s.sum) - over_max);
        if (z_losses) z_losses[n] = (float)((double)z_loss * lse * lse);
        factor = (float)((double)scale * slope);
        target_gradient = (float)((double)scale * (slope * exp(over_max) - 1.0));
    }
    if (!backward) return;
    __syncthreads();
    write_gradient<A, T>(z, target, target_gradient, factor, s.max, row, V);
}

void cuda_cross_entropy(backend *b, float *losses, float *z_losses, void *z, const int32_t *targets, float scale, float z_loss,
                        bool backward, dtype x, int64_t N, int64_t V) {
    with_access(x, wide_rows(x, V, z), [&](auto a) {
        typedef decltype(a) A;
        if (V < LONG_ROW)
            LAUNCH(b, (cross_entropy<A, FEW>), (unsigned)N, FEW, 0, losses, z_losses, z, targets, scale, z_loss, backward, V);
        else
            LAUNCH(b, (cross_entropy<A, MANY>), (unsigned)N, MANY, 0, losses, z_losses, z, targets, scale, z_loss, backward, V);
    });
}
