/* attention.cuh: device code that the kernels of attention share: the bounds of the mask, and tiles of heads in shared memory. */
#ifndef MOBILELLM_CUDA_ATTENTION_CUH
#define MOBILELLM_CUDA_ATTENTION_CUH

#include <cuda_pipeline.h>

#include "cuda/attention.h"
#include "cuda/tensor_core.cuh"

constexpr int THREADS = block_threads(128), WARPS = THREADS / WARP;

constexpr float LOG2_E = 1.44269504088896340736f;

/* The first key that query t sees; of a t behind the row, what the last query sees. */
__device__ __forceinline__ int first_key(const attention &a, int b, int t) {
    t = min(t, a.T - 1);
    return a.first ? a.first[(int64_t)b * a.T + t] : max(0, t - a.window + 1);
}

/* The last query that sees key t; -1, and so none, for a t behind the row. */
__device__ __forceinline__ int last_query(const attention &a, int b, int t) {
    if (t >= a.T) return -1;
    return a.last ? a.last[(int64_t)b * a.T + t] : min((int64_t)a.T - 1, (int64_t)t + a.window - 1);
}

/* Elements between two rows of a tile in shared memory: see tensor_core.cuh. */
template <int DP> constexpr int LD = DP + 8;

/* Positions [t, t+ROWS) of a head to a tile (ROWS,DP), zeros behind position T and column D. 16-byte copies arrive when
 * __pipeline_wait_prior says so; heads whose size is no multiple of 8 are not aligned for them and go element by element. */
template <int ROWS, int DP>
__device__ __forceinline__ void load_tile(bf16 *tile, const bf16 *head, int64_t stride, int t, int T, int D) {
    constexpr int CHUNKS = DP / 8, STEP = THREADS / CHUNKS;
    if (D % 8 == 0) {
        int r = (int)threadIdx.x / CHUNKS, c = (int)threadIdx.x % CHUNKS * 8;
        const bf16 *from = head + (t + r) * stride + c;
        tile += r * LD<DP> + c;
#pragma unroll
        for (int i = 0; i < ROWS / STEP; i++) {
            bool inside = t + r + i * STEP < T && c < D;
            __pipeline_memcpy_async(tile + i * STEP * LD<DP>, inside ? from : head, 16, inside ? 0 : 16);
            from += STEP * stride;
        }
    }
}

/* The warp's results, times factor[row], through its own MT*16 rows of a tile to positions [t, t+MT*16) of a head. `factor` has
 * the two rows of each part that the lane holds. */
template <int MT, int DP>
__device__ __forceinline__ void store_rows(bf16 *head, int64_t stride, int t, int T, int D, bf16 *rows, const float sum[MT][DP / 8][4],
                                           const float factor[MT][2]) {
    constexpr int CHUNKS = DP / 8;
    int lane = (int)threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < DP / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                bf16 *to = rows + (m * 16 + half * 8 + lane / 4) * LD<DP> + n * 8 + lane % 4 * 2;
                const float *s = sum[m][n] + half * 2;
                *reinterpret_cast<unsigned *>(to) = pack_bf16(s[0] * factor[m][half], s[1] * factor[m][half]);
            }
    __syncwarp();
    for (int i = lane; i < MT * 16 * CHUNKS; i += 32) {
        int r = i / CHUNKS, c = i % CHUNKS * 8;
        if (t + r >= T) break;
        const bf16 *from = rows + r * LD<DP> + c;
        bf16 *to = head + (t + r) * stride + c;
        if (D % 8 == 0) {
            if (c < D) *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(from);
        } else {
            for (int e = 0; e < 8 && c + e < D; e++) to[e] = from[e];
        }
    }
}

/* Lends a kernel its shared memory and starts it; kernels that want more than 48 KiB must be allowed to. */
#define LAUNCH_WITH_SHARED(b, kernel, grid, block, shared, ...)                                                                    \
    (cuda_check(b, #kernel, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(shared))),             \
     LAUNCH(b, kernel, grid, block, shared, __VA_ARGS__))

#endif
