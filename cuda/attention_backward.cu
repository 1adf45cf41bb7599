/* attention_backward.cu: gradients of attention in bf16 on tensor cores, with the probabilities computed again from lse
 * [Dao et al. 2022, algorithm 4].
 *
 *     P = exp(s - lse)    dV = P^T dO    dP = dO V^T    dS = P * (dP - delta), delta = rowsum(dO * O)    dQ = dS K    dK = dS^T Q
 *
 * Two kernels: one has a block of queries and goes through the keys they see, for dQ; one has a block of keys and goes through
 * the queries that see them, of all heads of the group, for dK and dV. Scores and dP are worked out in both: seven products
 * instead of five. In return no block adds to what another one writes: there are no atomics, no fp32 copy of dQ, the bits are
 * always the same, and each gradient is rounded once. The second kernel's tiles lie transposed, (keys, queries), so that P^T and
 * dS^T are left factors as they lie in registers. */
#include "cuda/attention.cuh"

/* ---- dQ ---- */

/* What a lane knows of its queries, l/4 + 8*half + 16*m of the warp's. */
template <int MT>
struct gradient_rows {
    int t0;                         /* the warp's first */
    float lse[MT][2], delta[MT][2]; /* lse times log2(e) */
};

template <int MT>
__device__ __forceinline__ void load_rows(gradient_rows<MT> &rows, const float *lse, const float *delta, int T) {
    int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int t = min(rows.t0 + m * 16 + half * 8 + lane / 4, T - 1);
            rows.lse[m][half] = lse[t] * LOG2_E;
            rows.delta[m][half] = delta[t];
        }
}

/* dp becomes dS without its factor 1/sqrt(D). */
template <int MT, int NT>
__device__ __forceinline__ void score_gradients(float dp[MT][NT][4], const float s[MT][NT][4], const gradient_rows<MT> &rows,
                                                float scale) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float p = exp2_approximate(s[m][n][e] * scale - rows.lse[m][e / 2]);
                dp[m][n][e] = p * (dp[m][n][e] - rows.delta[m][e / 2]);
            }
}

/* One block of WARPS*MT*16 queries of a head, tiles of BN keys. Blocks with the most keys come first. */
template <int DP, int MT, int BN, bool WIDE>
__global__ void __launch_bounds__(THREADS)
    query_gradient_kernel(bf16 *dqkv, const bf16 *d_o_array, const float *lse, const float *delta, const bf16 *qkv, attention a) {
    constexpr int BM = WARPS * MT * 16, NT = BN / 8, ROWS = BM * LD<DP>, TILE = BN * LD<DP>;
    DYN_SMEM(bf16, q_tile); /* queries (BM,LD), their dO (BM,LD), then twice keys and values (BN,LD) each */
    bf16 *kv_tiles = q_tile + 2 * ROWS;
    int h = (int)blockIdx.x, b = (int)blockIdx.z, warp = (int)threadIdx.x / WARP;
    int t0 = (int)(gridDim.y - 1 - blockIdx.y) * BM;
    const bf16 *sequence = qkv + (int64_t)b * a.T * a.row;
    const bf16 *k = sequence + (int64_t)(a.H + h / (a.H / a.K)) * a.D, *v = k + (int64_t)a.K * a.D;
    int begin = first_key(a, b, t0), end = min(t0 + BM, a.T);

    load_tile<BM, DP, WIDE>(q_tile, sequence + (int64_t)h * a.D, a.row, t0, a.T, a.D);
    load_tile<BM, DP, WIDE>(q_tile + ROWS, d_o_array + ((int64_t)b * a.T * a.H + h) * a.D, (int64_t)a.H * a.D, t0, a.T, a.D);
    load_keys<BN, DP, WIDE>(kv_tiles, k, v, begin, a);
    __pipeline_commit();
    gradient_rows<MT> rows;
    rows.t0 = t0 + warp * MT * 16;
    int64_t statistics = ((int64_t)b * a.H + h) * a.T;
    load_rows<MT>(rows, lse + statistics, delta + statistics, a.T);
    int last_row = rows.t0 + MT * 16 - 1, first_of_warp = first_key(a, b, rows.t0), first_of_last = first_key(a, b, last_row);
    __pipeline_wait_prior(0);
    __syncthreads();
    bf16 *my_queries = q_tile + warp * MT * 16 * LD<DP>;
    unsigned q[DP / 16][MT][4]; /* there are registers for these, not for dO */
#pragma unroll
    for (int d = 0; d < DP / 16; d++) load_left<MT>(q[d], my_queries, LD<DP>, d * 16);
    float dq[MT][DP / 8][4];
    clear<MT, DP / 8>(dq);

    for (int key0 = begin, stage = 0; key0 < end; key0 += BN, stage ^= 1) {
        const bf16 *k_tile = kv_tiles + stage * 2 * TILE;
        next_keys<BN, DP, WIDE>(kv_tiles, stage ^ 1, k, v, key0 + BN, end, a);
        if (key0 > last_row || key0 + BN <= first_of_warp) continue;
        float s[MT][NT][4], dp[MT][NT][4];
        clear<MT, NT>(s);
        clear<MT, NT>(dp);
#pragma unroll
        for (int d = 0; d < DP / 16; d++) add_product_transposed<MT, NT>(s, q[d], k_tile, LD<DP>, d * 16);
#pragma unroll
        for (int d = 0; d < DP / 16; d++) {
            unsigned d_o[MT][4];
            load_left<MT>(d_o, my_queries + ROWS, LD<DP>, d * 16);
            add_product_transposed<MT, NT>(dp, d_o, k_tile + TILE, LD<DP>, d * 16);
        }
        score_gradients<MT, NT>(dp, s, rows, a.scale * LOG2_E);
        if (key0 + BN - 1 > rows.t0 || key0 < first_of_last) mask_tiles<ROWS_ARE_QUERIES, MT, NT>(0, a, b, rows.t0, key0, dp);
        add_product<MT, NT, DP / 8>(dq, dp, k_tile, LD<DP>);
    }
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) factor[m][0] = factor[m][1] = a.scale;
    store_rows<MT, DP, WIDE>(dqkv + (int64_t)b * a.T * a.row + (int64_t)h * a.D, a.row, rows.t0, a.T, a.D, my_queries, dq,
                             factor);
}

/* ---- dK and dV ---- */

/* s becomes P^T, dp dS^T without its factor 1/sqrt(D), for queries whose lse * log2(e) and delta are in shared memory. */
template <int MT, int NT>
__device__ __forceinline__ void transposed_gradients(float s[MT][NT][4], float dp[MT][NT][4], const float *lse,
                                                     const float *delta, float scale) {
    int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float2 lses = *reinterpret_cast<const float2 *>(lse + n * 8 + lane % 4 * 2);
        float2 deltas = *reinterpret_cast<const float2 *>(delta + n * 8 + lane % 4 * 2);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[m][n][e] = exp2_approximate(s[m][n][e] * scale - (e % 2 ? lses.y : lses.x));
                dp[m][n][e] = s[m][n][e] * (dp[m][n][e] - (e % 2 ? deltas.y : deltas.x));
            }
    }
}

/* A tile of queries: one of those that see a block of keys, of one head of the group after the other. */
struct query_tile {
    int h, t0;
};

/* Queries and dO, lse and delta of a tile. */
template <int DP, int BN, bool WIDE>
__device__ __forceinline__ void load_queries(bf16 *tile, float *statistics, query_tile at, const bf16 *d_o, const float *lse,
                                             const float *delta, const bf16 *qkv, const attention &a, int b) {
    int me = (int)threadIdx.x;
    load_tile<BN, DP, WIDE>(tile, qkv + (int64_t)b * a.T * a.row + (int64_t)at.h * a.D, a.row, at.t0, a.T, a.D);
    load_tile<BN, DP, WIDE>(tile + BN * LD<DP>, d_o + ((int64_t)b * a.T * a.H + at.h) * a.D, (int64_t)a.H * a.D, at.t0, a.T, a.D);
    __pipeline_commit();
    static_assert(BN <= THREADS, "one thread a query");
    if (me < BN) {
        int64_t of = ((int64_t)b * a.H + at.h) * a.T + min(at.t0 + me, a.T - 1);
        statistics[me] = lse[of] * LOG2_E;
        statistics[BN + me] = delta[of];
    }
}

/* One block of WARPS*MT*16 keys of a key/value head, tiles of BN queries. Blocks that the most queries see come first. */
template <int DP, int MT, int BN, bool WIDE>
__global__ void __launch_bounds__(THREADS)
    key_gradient_kernel(bf16 *dqkv, const bf16 *d_o, const float *lse, const float *delta, const bf16 *qkv, attention a) {
    constexpr int BM = WARPS * MT * 16, NT = BN / 8, ROWS = BM * LD<DP>, TILE = BN * LD<DP>;
    DYN_SMEM(bf16, k_tile); /* keys (BM,LD), values (BM,LD), then twice queries and dO (BN,LD) each */
    __shared__ float statistics[2][2 * BN];
    bf16 *q_tiles = k_tile + 2 * ROWS;
    int kv_head = (int)blockIdx.x, b = (int)blockIdx.z, warp = (int)threadIdx.x / WARP;
    int t0 = (int)blockIdx.y * BM, group = a.H / a.K;
    int64_t k_at = (int64_t)b * a.T * a.row + (int64_t)(a.H + kv_head) * a.D, v_at = k_at + (int64_t)a.K * a.D;

    int row0 = t0 + warp * MT * 16, last_row = row0 + MT * 16 - 1;
    int last_of_first = last_query(a, b, row0), last_of_warp = last_query(a, b, min(last_row, a.T - 1));
    int last_of_block = last_query(a, b, min(t0 + BM, a.T) - 1);
    query_tile here = {kv_head * group, t0};

    load_tile<BM, DP, WIDE>(k_tile, qkv + k_at, a.row, t0, a.T, a.D);
    load_tile<BM, DP, WIDE>(k_tile + ROWS, qkv + v_at, a.row, t0, a.T, a.D);
    load_queries<DP, BN, WIDE>(q_tiles, statistics[0], here, d_o, lse, delta, qkv, a, b);
    bf16 *my_keys = k_tile + warp * MT * 16 * LD<DP>, *my_values = my_keys + ROWS;
    float dk[MT][DP / 8][4], dv[MT][DP / 8][4];
    clear<MT, DP / 8>(dk);
    clear<MT, DP / 8>(dv);

    for (int stage = 0; here.h < (kv_head + 1) * group; stage ^= 1) {
        const bf16 *q_tile = q_tiles + stage * 2 * TILE, *d_o_tile = q_tile + TILE;
        int query0 = here.t0;
        here.t0 += BN;
        if (here.t0 > last_of_block) here = {here.h + 1, t0};
        __pipeline_wait_prior(0);
        __syncthreads(); /* this tile is here, and no warp reads the one before any more */
        if (here.h < (kv_head + 1) * group)
            load_queries<DP, BN, WIDE>(q_tiles + (stage ^ 1) * 2 * TILE, statistics[stage ^ 1], here, d_o, lse, delta, qkv, a, b);
        if (query0 + BN <= row0 || query0 > last_of_warp) continue;
        float s[MT][NT][4], dp[MT][NT][4];
        clear<MT, NT>(s);
        clear<MT, NT>(dp);
#pragma unroll 1 /* unrolled it wants more registers than there are */
        for (int d = 0; d < DP / 16; d++) {
            unsigned left[MT][4];
            load_left<MT>(left, my_keys, LD<DP>, d * 16);
            add_product_transposed<MT, NT>(s, left, q_tile, LD<DP>, d * 16);
            load_left<MT>(left, my_values, LD<DP>, d * 16);
            add_product_transposed<MT, NT>(dp, left, d_o_tile, LD<DP>, d * 16);
        }
        transposed_gradients<MT, NT>(s, dp, statistics[stage], statistics[stage] + BN, a.scale * LOG2_E);
        if (query0 < last_row || query0 + BN - 1 > last_of_first) mask_tiles<ROWS_ARE_KEYS, MT, NT>(0, a, b, row0, query0, s, dp);
        add_product<MT, NT, DP / 8>(dv, s, d_o_tile, LD<DP>);
        add_product<MT, NT, DP / 8>(dk, dp, q_tile, LD<DP>);
    }
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) factor[m][0] = factor[m][1] = a.scale;
    store_rows<MT, DP, WIDE>(dqkv + k_at, a.row, row0, a.T, a.D, my_keys, dk, factor);
#pragma unroll
    for (int m = 0; m < MT; m++) factor[m][0] = factor[m][1] = 1;
    store_rows<MT, DP, WIDE>(dqkv + v_at, a.row, row0, a.T, a.D, my_values, dv, factor);
}

template <int DP, int MT, int BN, bool WIDE>
static void launch(backend *b, void *dqkv, const void *d_o, const float *lse, const float *delta, const void *qkv,
                   const attention *a) {
    constexpr int BM = WARPS * MT * 16;
    constexpr size_t shared = (size_t)(2 * BM + 4 * BN) * LD<DP> * sizeof(bf16);
    dim3 queries((unsigned)a->H, blocks_of(a->T, BM), (unsigned)a->B), keys((unsigned)a->K, queries.y, queries.z);
    LAUNCH_WITH_SHARED(b, (query_gradient_kernel<DP, MT, BN, WIDE>), queries, THREADS, shared, (bf16 *)dqkv, (const bf16 *)d_o,
                       lse, delta, (const bf16 *)qkv, *a);
    LAUNCH_WITH_SHARED(b, (key_gradient_kernel<DP, MT, BN, WIDE>), keys, THREADS, shared, (bf16 *)dqkv, (const bf16 *)d_o, lse,
                       delta, (const bf16 *)qkv, *a);
}

extern "C" void cuda_attention_backward_bf16(backend *b, void *dqkv, const void *d_o, const float *lse, const float *delta,
                                             const void *qkv, const attention *a) {
    if (a->D % 8)
        launch<128, 1, 32, false>(b, dqkv, d_o, lse, delta, qkv, a);
    else if (a->D <= 32)
        launch<32, 2, 32, true>(b, dqkv, d_o, lse, delta, qkv, a);
    else if (a->D <= 64)
        launch<64, 2, 32, true>(b, dqkv, d_o, lse, delta, qkv, a);
    else
        launch<128, 1, 32, true>(b, dqkv, d_o, lse, delta, qkv, a);
}
