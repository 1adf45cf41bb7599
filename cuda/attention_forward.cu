/* attention_forward.cu: o = softmax(q k^T / sqrt(D)) v in bf16 on tensor cores, a tile at a time, with the running maximum and
 * sum of each row [Dao et al. 2022, algorithm 1; the cut into blocks and warps is that of Dao 2023].
 *
 * Bound by the tensor cores and, at D 64, nearly as much by the exponentials and by shared memory. So a warp has MT*16 whole
 * rows: it reads a tile of keys for all of them at once, and needs no other warp for its maxima. The scores stay in registers
 * and become the left factor of the second product there. While a tile is worked on the next one is on its way. */
#include "cuda/attention.cuh"

/* What a lane knows of its rows, l/4 + 8*half + 16*m of the warp's. */
template <int MT>
struct query_rows {
    int t0;           /* the first */
    float max[MT][2]; /* of the scores so far, before scaling */
    float sum[MT][2]; /* of the exponentials, the lane's columns only */
};

/* Scores become exponentials, and the sums before follow where a maximum grew. */
template <int MT, int NT, int DP>
__device__ __forceinline__ void softmax_tile(float s[MT][NT][4], float o[MT][DP / 8][4], query_rows<MT> &rows, float scale) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float max = rows.max[m][half];
#pragma unroll
            for (int n = 0; n < NT; n++) max = fmaxf(max, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
            float shift = max == -INFINITY ? 0 : max * scale; /* of a row that has seen nothing yet */
            float shrink = exp2_approximate(rows.max[m][half] * scale - shift), sum = 0;
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float *value = &s[m][n][half * 2 + e];
                    *value = exp2_approximate(*value * scale - shift);
                    sum += *value;
                }
            rows.max[m][half] = max;
            rows.sum[m][half] = rows.sum[m][half] * shrink + sum;
#pragma unroll
            for (int n = 0; n < DP / 8; n++) {
                o[m][n][half * 2] *= shrink;
                o[m][n][half * 2 + 1] *= shrink;
            }
        }
}

/* o / sum, and lse, to where they belong. */
template <int MT, int DP, bool WIDE>
__device__ __forceinline__ void store_block(const attention &a, bf16 *o_head, float *lse_head, bf16 *tile,
                                            const float o[MT][DP / 8][4], const query_rows<MT> &rows) {
    int lane = (int)threadIdx.x % WARP;
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = rows.sum[m][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            factor[m][half] = 1.0f / sum;
            int t = rows.t0 + m * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0 && t < a.T) lse_head[t] = a.scale * rows.max[m][half] + logf(sum);
        }
    store_rows<MT, DP, WIDE>(o_head, (int64_t)a.H * a.D, rows.t0, a.T, a.D, tile, o, factor);
}

/* One block of WARPS*MT*16 queries of a head, tiles of BN keys. Blocks with the most keys come first. */
template <int DP, int MT, int BN, bool WIDE>
__global__ void __launch_bounds__(THREADS) attention_forward_kernel(bf16 *o_array, float *lse, const bf16 *qkv, attention a) {
    constexpr int BM = WARPS * MT * 16, NT = BN / 8, TILE = BN * LD<DP>;
    DYN_SMEM(bf16, q_tile); /* (BM,LD), then twice keys and values (BN,LD) each */
    bf16 *kv_tiles = q_tile + BM * LD<DP>;
    int h = (int)blockIdx.x, b = (int)blockIdx.z, warp = (int)threadIdx.x / WARP;
    int t0 = (int)(gridDim.y - 1 - blockIdx.y) * BM;
    const bf16 *sequence = qkv + (int64_t)b * a.T * a.row;
    const bf16 *k = sequence + (int64_t)(a.H + h / (a.H / a.K)) * a.D, *v = k + (int64_t)a.K * a.D;

    bf16 *my_queries = q_tile + warp * MT * 16 * LD<DP>;
    query_rows<MT> rows;
    rows.t0 = t0 + warp * MT * 16;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            rows.max[m][half] = -INFINITY;
            rows.sum[m][half] = 0;
        }
    int last_row = rows.t0 + MT * 16 - 1, first_of_warp = first_key(a, b, rows.t0), first_of_last = first_key(a, b, last_row);
    int begin = first_key(a, b, t0), end = min(t0 + BM, a.T);

    load_tile<BM, DP, WIDE>(q_tile, sequence + (int64_t)h * a.D, a.row, t0, a.T, a.D);
    load_keys<BN, DP, WIDE>(kv_tiles, k, v, begin, a);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    unsigned q[DP / 16][MT][4];
#pragma unroll
    for (int d = 0; d < DP / 16; d++) load_left<MT>(q[d], my_queries, LD<DP>, d * 16);
    float o[MT][DP / 8][4];
    clear<MT, DP / 8>(o);

    for (int key0 = begin, stage = 0; key0 < end; key0 += BN, stage ^= 1) {
        const bf16 *k_tile = kv_tiles + stage * 2 * TILE;
        next_keys<BN, DP, WIDE>(kv_tiles, stage ^ 1, k, v, key0 + BN, end, a);
        if (key0 > last_row || key0 + BN <= first_of_warp) continue;
        float s[MT][NT][4];
        clear<MT, NT>(s);
#pragma unroll
        for (int d = 0; d < DP / 16; d++) add_product_transposed<MT, NT>(s, q[d], k_tile, LD<DP>, d * 16);
        if (key0 + BN - 1 > rows.t0 || key0 < first_of_last)
            mask_tiles<ROWS_ARE_QUERIES, MT, NT>(-INFINITY, a, b, rows.t0, key0, s);
        softmax_tile<MT, NT, DP>(s, o, rows, a.scale * LOG2_E);
        add_product<MT, NT, DP / 8>(o, s, k_tile + TILE, LD<DP>);
    }
    store_block<MT, DP, WIDE>(a, o_array + ((int64_t)b * a.T * a.H + h) * a.D, lse + ((int64_t)b * a.H + h) * a.T, my_queries, o,
                              rows);
}

template <int DP, int MT, int BN, bool WIDE>
static void launch(backend *b, void *o, float *lse, const void *qkv, const attention *a) {
    constexpr int BM = WARPS * MT * 16;
    constexpr size_t shared = (size_t)(BM + 4 * BN) * LD<DP> * sizeof(bf16);
    dim3 grid((unsigned)a->H, blocks_of(a->T, BM), (unsigned)a->B);
    LAUNCH_WITH_SHARED(b, (attention_forward_kernel<DP, MT, BN, WIDE>), grid, THREADS, shared, (bf16 *)o, lse, (const bf16 *)qkv,
                       *a);
}

extern "C" void cuda_attention_forward_bf16(backend *b, void *o, float *lse, const void *qkv, const attention *a) {
    if (a->D % 8)
        launch<128, 1, 64, false>(b, o, lse, qkv, a);
    else if (a->D <= 32)
        launch<32, 2, 64, true>(b, o, lse, qkv, a);
    else if (a->D <= 64)
        launch<64, 2, 64, true>(b, o, lse, qkv, a);
    else
        launch<128, 1, 64, true>(b, o, lse, qkv, a);
}
