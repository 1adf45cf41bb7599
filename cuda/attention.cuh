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

enum mask_rows { ROWS_ARE_QUERIES, ROWS_ARE_KEYS };

/* Elements of tiles, as tensor_core.cuh spreads them, become `value` where the row's position, from t0 on, and the column's, from
 * column0 on, do not see each other. */
template <mask_rows ROWS, int MT, int NT, typename... Tiles>
__device__ __forceinline__ void mask_tiles(float value, const attention &a, int b, int t0, int column0, Tiles... tiles) {
    constexpr bool KEYS = ROWS == ROWS_ARE_KEYS;
    int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int t = t0 + m * 16 + half * 8 + lane / 4;
            int first = KEYS ? t : first_key(a, b, t), last = KEYS ? last_query(a, b, t) : t;
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int column = column0 + n * 8 + lane % 4 * 2 + e;
                    if (column < first || column > last) ((tiles[m][n][half * 2 + e] = value), ...);
                }
        }
}

/* Elements between two rows of a tile in shared memory: see tensor_core.cuh. */
template <int DP>
constexpr int LD = DP + 8;

/* Positions [t, t+ROWS) of a head to a tile (ROWS,DP), zeros behind position T and column D. WIDE: D is a multiple of 8, and
 * copies of 16 bytes arrive when __pipeline_wait_prior says so; other heads are not aligned for them. */
template <int ROWS, int DP, bool WIDE>
__device__ __forceinline__ void load_tile(bf16 *tile, const bf16 *head, int64_t stride, int t, int T, int D) {
    if constexpr (WIDE) {
        constexpr int CHUNKS = DP / 8, STEP = THREADS / CHUNKS;
        int r = (int)threadIdx.x / CHUNKS, c = (int)threadIdx.x % CHUNKS * 8;
        const bf16 *from = head + (t + r) * stride + c;
        tile += r * LD<DP> + c;
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP) {
            bool inside = t + r + i < T && c < D;
            __pipeline_memcpy_async(tile + i * LD<DP>, inside ? from : head, 16, inside ? 0 : 16);
            from += STEP * stride;
        }
    } else {
        for (int i = (int)threadIdx.x; i < ROWS * DP; i += THREADS) {
            int r = i / DP, c = i % DP;
            tile[r * LD<DP> + c] = t + r < T && c < D ? head[(t + r) * stride + c] : (bf16)0;
        }
    }
}

/* Positions [t, t+BN) of a key head and of its value head to two tiles, one behind the other. */
template <int BN, int DP, bool WIDE>
__device__ __forceinline__ void load_keys(bf16 *tiles, const bf16 *k, const bf16 *v, int t, const attention &a) {
    load_tile<BN, DP, WIDE>(tiles, k, a.row, t, a.T, a.D);
    load_tile<BN, DP, WIDE>(tiles + BN * LD<DP>, v, a.row, t, a.T, a.D);
}

/* Waits for the tiles that are on their way, and starts those of positions [t, t+BN) on theirs, if t is before `end`, to stage 0
 * or 1 of two, which no warp reads any more. */
template <int BN, int DP, bool WIDE>
__device__ __forceinline__ void next_keys(bf16 *tiles, int stage, const bf16 *k, const bf16 *v, int t, int end,
                                          const attention &a) {
    __pipeline_wait_prior(0);
    __syncthreads(); /* what was on its way is here for all warps, and all have done with the tiles before */
    if (t < end) {
        load_keys<BN, DP, WIDE>(tiles + stage * 2 * BN * LD<DP>, k, v, t, a);
        __pipeline_commit();
    }
}

/* The warp's results, times factor[row], through its own MT*16 rows of a tile to positions [t, t+MT*16) of a head. `factor` has
 * the two rows of each part that the lane holds. */
template <int MT, int DP, bool WIDE>
__device__ __forceinline__ void store_rows(bf16 *head, int64_t stride, int t, int T, int D, bf16 *rows,
                                           const float sum[MT][DP / 8][4], const float factor[MT][2]) {
    constexpr int W = WIDE ? 8 : 1, CHUNKS = DP / W;
    int lane = (int)threadIdx.x % WARP;
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
    for (int i = lane; i < MT * 16 * CHUNKS; i += WARP) {
        int r = i / CHUNKS, c = i % CHUNKS * W;
        typedef access<bf16, W> A;
        if (t + r < T && c < D) store_pack<A>(head + (t + r) * stride, c, load_pack<A>(rows + r * LD<DP>, c));
    }
}

/* Lends a kernel its shared memory and starts it; kernels that want more than 48 KiB must be allowed to. */
#define LAUNCH_WITH_SHARED(b, kernel, grid, block, shared, ...)                                                        \
    (cuda_check(b, #kernel, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(shared))), \
     LAUNCH(b, kernel, grid, block, shared, __VA_ARGS__))

#endif
