/* attention_f32.cu: both passes of attention in fp32, without tensor cores, which would round to 11 bits.
 *
 * For verifying, not for speed: a warp has ROWS rows and goes through tiles of 32 others, a lane one of them, so that a score is
 * one lane's loop over D; then each lane takes every 32nd column, and adds up the tile's rows times what the lanes worked out.
 * The two gradients differ only in what is a row and what is in the tile: one kernel. Every sum is in the order of positions. */
#include "cuda/attention.cuh"

enum { ROWS = 4, COLUMNS = ATTENTION_MAX_D / WARP };
constexpr int BLOCK_ROWS = WARPS * ROWS;

/* Row length in shared memory: odd, so that 32 rows are in 32 banks. */
__device__ __host__ __forceinline__ int padded(int D) { return D | 1; }

/* Positions [t, t+rows) of a head to rows of shared memory, zeros behind position T. */
__device__ __forceinline__ void load_rows(float *tile, const float *head, int64_t stride, int rows, int t, int T, int D) {
    for (int i = (int)threadIdx.x; i < rows * D; i += THREADS) {
        int r = i / D, d = i % D;
        tile[r * padded(D) + d] = t + r < T ? head[(t + r) * stride + d] : 0;
    }
}

__device__ __forceinline__ float dot(const float *u, const float *v, int D) {
    float sum = 0;
    for (int d = 0; d < D; d++) sum += u[d] * v[d];
    return sum;
}

/* sum[column] += of the tile's rows, factor[row] times the row; the factors are the lanes'. */
__device__ __forceinline__ void add_rows(float sum[COLUMNS], const float *factor, const float *tile, int D) {
    int lane = (int)threadIdx.x % WARP;
    for (int j = 0; j < WARP; j++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            if (c * WARP + lane < D) sum[c] += factor[j] * tile[j * padded(D) + c * WARP + lane];
}

__device__ __forceinline__ void store_row(float *row, const float sum[COLUMNS], float factor, int D) {
    int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        if (c * WARP + lane < D) row[c * WARP + lane] = sum[c] * factor;
}

/* ---- forward ---- */

/* One block of queries of a head. */
__global__ void __launch_bounds__(THREADS)
    attention_forward_f32_kernel(float *o_array, float *lse, const float *qkv, attention a) {
    DYN_SMEM(float, queries); /* (BLOCK_ROWS,D), keys (32,D), values (32,D), all padded; probabilities (WARPS,32) */
    int D = a.D, h = (int)blockIdx.x, b = (int)blockIdx.z, t0 = (int)blockIdx.y * BLOCK_ROWS;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    float *keys = queries + BLOCK_ROWS * padded(D), *values = keys + WARP * padded(D);
    float *probability = values + WARP * padded(D) + warp * WARP;
    const float *sequence = qkv + (int64_t)b * a.T * a.row;
    const float *k = sequence + (int64_t)(a.H + h / (a.H / a.K)) * D, *v = k + (int64_t)a.K * D;
    float max[ROWS], sum[ROWS], o[ROWS][COLUMNS] = {};
    int row0 = t0 + warp * ROWS;
#pragma unroll
    for (int r = 0; r < ROWS; r++) max[r] = -INFINITY, sum[r] = 0;

    load_rows(queries, sequence + (int64_t)h * D, a.row, BLOCK_ROWS, t0, a.T, D);
    int end = min(t0 + BLOCK_ROWS, a.T);
    for (int key0 = first_key(a, b, t0); key0 < end; key0 += WARP) {
        __syncthreads();
        load_rows(keys, k, a.row, WARP, key0, a.T, D);
        load_rows(values, v, a.row, WARP, key0, a.T, D);
        __syncthreads();
        int key = key0 + lane;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int t = min(row0 + r, a.T - 1);
            bool seen = key <= t && key >= first_key(a, b, t);
            float s = seen ? a.scale * dot(queries + (warp * ROWS + r) * padded(D), keys + lane * padded(D), D) : -INFINITY;
            float new_max = fmaxf(max[r], warp_max(s));
            if (new_max == -INFINITY) continue; /* nothing seen yet */
            float p = expf(s - new_max), shrink = expf(max[r] - new_max);
            max[r] = new_max;
            sum[r] = sum[r] * shrink + warp_sum(p);
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) o[r][c] *= shrink;
            probability[lane] = p;
            __syncwarp();
            add_rows(o[r], probability, values, D);
            __syncwarp();
        }
    }
    for (int r = 0; r < ROWS && row0 + r < a.T; r++) {
        store_row(o_array + (((int64_t)b * a.T + row0 + r) * a.H + h) * D, o[r], 1 / sum[r], D);
        if (lane == 0) lse[((int64_t)b * a.H + h) * a.T + row0 + r] = max[r] + logf(sum[r]);
    }
}

/* ---- backward ---- */

/* A head's arrays: queries and keys, dO and values, and what of the softmax belongs to the queries. */
struct head_arrays {
    const float *q, *k, *v, *d_o, *lse, *delta;
};

__device__ __forceinline__ head_arrays arrays_of(const attention &a, int b, int h, const float *d_o, const float *lse,
                                                 const float *delta, const float *qkv) {
    const float *sequence = qkv + (int64_t)b * a.T * a.row;
    head_arrays of;
    of.q = sequence + (int64_t)h * a.D;
    of.k = sequence + (int64_t)(a.H + h / (a.H / a.K)) * a.D;
    of.v = of.k + (int64_t)a.K * a.D;
    of.d_o = d_o + ((int64_t)b * a.T * a.H + h) * a.D;
    of.lse = lse + ((int64_t)b * a.H + h) * a.T;
    of.delta = delta + ((int64_t)b * a.H + h) * a.T;
    return of;
}

/* One block of rows of a head. Rows are keys: dk (sum) = dS^T q and dv (sum_p) = P^T dO, over the heads of the group. Rows are
 * queries: dq (sum) = dS k. */
template <bool KEYS>
__global__ void __launch_bounds__(THREADS) attention_backward_f32_kernel(float *dqkv, const float *d_o, const float *lse,
                                                                         const float *delta, const float *qkv, attention a) {
    DYN_SMEM(float, rows); /* q or k and dO or v (BLOCK_ROWS,D) each, the tile's k or q and v or dO (32,D); dS, P (WARPS,32) */
    int D = a.D, head = (int)blockIdx.x, b = (int)blockIdx.z, t0 = (int)blockIdx.y * BLOCK_ROWS;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, row0 = t0 + warp * ROWS;
    float *rows2 = rows + BLOCK_ROWS * padded(D), *tile = rows2 + BLOCK_ROWS * padded(D), *tile2 = tile + WARP * padded(D);
    float *of_ds = tile2 + WARP * padded(D) + warp * WARP, *of_p = of_ds + BLOCK_ROWS / ROWS * WARP;
    float sum[ROWS][COLUMNS] = {}, sum_p[ROWS][COLUMNS] = {};
    int first_head = KEYS ? head * (a.H / a.K) : head, heads = KEYS ? a.H / a.K : 1;
    int begin = KEYS ? t0 : first_key(a, b, t0);
    int end = KEYS ? last_query(a, b, min(t0 + BLOCK_ROWS, a.T) - 1) + 1 : min(t0 + BLOCK_ROWS, a.T);

    for (int h = first_head; h < first_head + heads; h++) {
        head_arrays of = arrays_of(a, b, h, d_o, lse, delta, qkv);
        int64_t o_row = (int64_t)a.H * D;
        if (h == first_head) {
            load_rows(rows, KEYS ? of.k : of.q, a.row, BLOCK_ROWS, t0, a.T, D);
            load_rows(rows2, KEYS ? of.v : of.d_o, KEYS ? a.row : o_row, BLOCK_ROWS, t0, a.T, D);
        }
        for (int other0 = begin; other0 < end; other0 += WARP) {
            __syncthreads();
            load_rows(tile, KEYS ? of.q : of.k, a.row, WARP, other0, a.T, D);
            load_rows(tile2, KEYS ? of.d_o : of.v, KEYS ? o_row : a.row, WARP, other0, a.T, D);
            __syncthreads();
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int row = row0 + r, other = other0 + lane, query = KEYS ? other : row, key = KEYS ? row : other;
                bool seen = max(row, other) < a.T && key <= query && key >= first_key(a, b, query);
                float p = 0, ds = 0;
                if (seen) {
                    int at = (warp * ROWS + r) * padded(D);
                    p = expf(a.scale * dot(rows + at, tile + lane * padded(D), D) - of.lse[query]);
                    ds = p * (dot(rows2 + at, tile2 + lane * padded(D), D) - of.delta[query]);
                }
                of_ds[lane] = ds;
                of_p[lane] = p;
                __syncwarp();
                add_rows(sum[r], of_ds, tile, D);
                if (KEYS) add_rows(sum_p[r], of_p, tile2, D);
                __syncwarp();
            }
        }
    }
    for (int r = 0; r < ROWS && row0 + r < a.T; r++) {
        float *out = dqkv + ((int64_t)b * a.T + row0 + r) * a.row + (int64_t)(KEYS ? a.H + head : head) * D;
        store_row(out, sum[r], a.scale, D);
        if (KEYS) store_row(out + (int64_t)a.K * D, sum_p[r], 1, D);
    }
}

/* ---- launchers ---- */

static dim3 grid_of(const attention *a, int heads) { return dim3((unsigned)heads, blocks_of(a->T, BLOCK_ROWS), (unsigned)a->B); }

extern "C" void cuda_attention_forward_f32(backend *b, void *o, float *lse, const void *qkv, const attention *a) {
    size_t shared = ((size_t)(BLOCK_ROWS + 2 * WARP) * (size_t)padded(a->D) + THREADS) * sizeof(float);
    LAUNCH_WITH_SHARED(b, attention_forward_f32_kernel, grid_of(a, a->H), THREADS, shared, (float *)o, lse, (const float *)qkv,
                       *a);
}

template <bool KEYS>
static void gradient(backend *b, void *dqkv, const void *d_o, const float *lse, const float *delta, const void *qkv,
                     const attention *a) {
    size_t shared = ((size_t)(2 * BLOCK_ROWS + 2 * WARP) * (size_t)padded(a->D) + 2 * THREADS) * sizeof(float);
    LAUNCH_WITH_SHARED(b, (attention_backward_f32_kernel<KEYS>), grid_of(a, KEYS ? a->K : a->H), THREADS, shared, (float *)dqkv,
                       (const float *)d_o, lse, delta, (const float *)qkv, *a);
}

extern "C" void cuda_attention_backward_f32(backend *b, void *dqkv, const void *d_o, const float *lse, const float *delta,
                                            const void *qkv, const attention *a) {
    gradient<false>(b, dqkv, d_o, lse, delta, qkv, a);
    gradient<true>(b, dqkv, d_o, lse, delta, qkv, a);
}
