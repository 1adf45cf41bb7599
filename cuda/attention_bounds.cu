/* attention_bounds.cu: from the documents' numbers, what each query sees and what each key is seen by; and the backward pass's
 * rowsum(dO * O).
 *
 * A row of documents is one block: each thread finds the changes among its few consecutive positions, and the nearest change
 * before and behind them comes from the other threads. */
#include "cuda/attention.cuh"

constexpr int BOUNDS = block_threads(256);

/* first and last: doc_begin and doc_end hold, for each thread, the begin of the last document that begins in its stretch or
 * before it, and the end of the first one that ends in its stretch or behind it. */
__global__ void __launch_bounds__(BOUNDS) bounds_kernel(int32_t *first, int32_t *last, const int32_t *doc, int window, int T) {
    __shared__ int doc_begin[BOUNDS], doc_end[BOUNDS];
    int me = (int)threadIdx.x, each = (T + BOUNDS - 1) / BOUNDS, from = min(me * each, T), to = min(from + each, T);
    first += (int64_t)blockIdx.x * T, last += (int64_t)blockIdx.x * T, doc += (int64_t)blockIdx.x * T;
    int begin = 0, end = T - 1;
    for (int t = from; t < to; t++)
        if (t > 0 && doc[t] != doc[t - 1]) begin = t;
    for (int t = to - 1; t >= from; t--)
        if (t < T - 1 && doc[t] != doc[t + 1]) end = t;
    doc_begin[me] = begin, doc_end[me] = end;
    __syncthreads();
    for (int step = 1; step < BOUNDS; step *= 2) { /* running maximum from the left, running minimum from the right */
        if (me >= step) begin = max(begin, doc_begin[me - step]);
        if (me + step < BOUNDS) end = min(end, doc_end[me + step]);
        __syncthreads();
        doc_begin[me] = begin, doc_end[me] = end;
        __syncthreads();
    }
    begin = me > 0 ? doc_begin[me - 1] : 0;
    for (int t = from; t < to; t++) {
        if (t > 0 && doc[t] != doc[t - 1]) begin = t;
        first[t] = max(begin, t - window + 1);
    }
    end = me + 1 < BOUNDS ? doc_end[me + 1] : T - 1;
    for (int t = to - 1; t >= from; t--) {
        if (t < T - 1 && doc[t] != doc[t + 1]) end = t;
        last[t] = (int)min((int64_t)end, (int64_t)t + window - 1);
    }
}

extern "C" void cuda_attention_bounds(backend *b, int32_t *first, int32_t *last, const int32_t *doc, const attention *a) {
    LAUNCH(b, bounds_kernel, (unsigned)a->B, BOUNDS, 0, first, last, doc, a->window, a->T);
}

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(bf16 value) { return __uint_as_float((unsigned)value << 16); }

/* Eight lanes a row, rows in the order of delta. */
template <class X>
__global__ void __launch_bounds__(THREADS) delta_kernel(float *delta, const X *d_o, const X *o, attention a, int64_t rows) {
    constexpr int LANES = 8, WIDE = 16 / sizeof(X);
    int64_t row = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / LANES;
    int lane = (int)threadIdx.x % LANES;
    float sum = 0;
    if (row < rows) {
        int64_t t = row % a.T, h = row / a.T % a.H, b = row / a.T / a.H, at = ((b * a.T + t) * a.H + h) * a.D;
        if (a.D % WIDE == 0) {
            for (int d = lane * WIDE; d < a.D; d += LANES * WIDE) {
                uint4 left = *reinterpret_cast<const uint4 *>(d_o + at + d), right = *reinterpret_cast<const uint4 *>(o + at + d);
                const X *l = reinterpret_cast<const X *>(&left), *r = reinterpret_cast<const X *>(&right);
#pragma unroll
                for (int e = 0; e < WIDE; e++) sum += as_float(l[e]) * as_float(r[e]);
            }
        } else {
            for (int d = lane; d < a.D; d += LANES) sum += as_float(d_o[at + d]) * as_float(o[at + d]);
        }
    }
#pragma unroll
    for (int other = LANES / 2; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
    if (row < rows && lane == 0) delta[row] = sum;
}

extern "C" void cuda_attention_delta(backend *b, float *delta, const void *d_o, const void *o, dtype x, const attention *a) {
    int64_t rows = (int64_t)a->B * a->H * a->T, a_block = THREADS / 8;
    unsigned blocks = (unsigned)((rows + a_block - 1) / a_block);
    if (x == DTYPE_F32)
        LAUNCH(b, (delta_kernel<float>), blocks, THREADS, 0, delta, (const float *)d_o, (const float *)o, *a, rows);
    else
        LAUNCH(b, (delta_kernel<bf16>), blocks, THREADS, 0, delta, (const bf16 *)d_o, (const bf16 *)o, *a, rows);
}
