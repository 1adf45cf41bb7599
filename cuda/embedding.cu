/* embedding.cu: rows of the embedding matrix looked up, and their gradients added.
 *
 * A token occurs many times, and its gradients are added in the order of n, as on the CPU. So the positions are sorted by token
 * on the device, and each token's run is added by one block, sixteen rows in flight at a time. A run of more than PART rows (a
 * token that fills the batch) is shared by several blocks: one would take as long as the rest of the step. The keys hold the
 * position too: no two are equal, and any correct sort gives the same result. A bitonic sort is short, and its 20 launches for
 * 65,536 tokens cost less than a thousandth of their training step. */
#include <assert.h>

#include "cuda/device.cuh"

constexpr int THREADS = block_threads(256);
constexpr int ROW_THREADS = block_threads(128);

/* ---- forward ---- */

/* A warp copies a row. */
template <typename A>
__global__ void __launch_bounds__(THREADS)
    embedding_forward(void *__restrict__ y, const int32_t *__restrict__ tokens, const void *__restrict__ w, int64_t N, int C) {
    int64_t n = (int64_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (n >= N) return;
    int64_t from = (int64_t)tokens[n] * C, to = n * C;
#pragma unroll 4
    for (int c = threadIdx.x % WARP * A::W; c < C; c += WARP * A::W) store_pack<A>(y, to + c, load_pack<A>(w, from + c));
}

void cuda_embedding_forward(backend *b, void *y, const int32_t *tokens, const void *w, dtype x, int64_t N, int C) {
    with_access(x, wide_rows(x, C, y, w), [&](auto a) {
        LAUNCH(b, embedding_forward<decltype(a)>, blocks_of(N, THREADS / WARP), THREADS, 0, y, tokens, w, N, C);
    });
}

/* ---- sorting the positions by token ----
 *
 * Bitonic: for size = 2, 4, 8, ... runs of `size` become sorted, upwards and downwards in turn, by comparing elements that lie
 * `stride` = size/2, size/4, ..., 1 apart. Strides within a tile are done in shared memory. [Batcher 1968] */

typedef unsigned long long sort_key; /* row of dw, then position: 32 bits each */

constexpr int TILE = 2048;
constexpr int SORT_THREADS = block_threads(1024);
constexpr sort_key LAST_KEY = ~0ull; /* of tokens that add nothing; fills the array up to a power of two */
constexpr int PART = 1024;           /* rows of a token that one block adds */

/* Keys to sort for N tokens. */
static int64_t padded(int64_t N) {
    int64_t length = TILE;
    while (length < N) length *= 2;
    return length;
}

static size_t scratch_for(int64_t N, int C) {
    size_t partials = (size_t)blocks_of(N, PART) * (size_t)C * sizeof(float);
    return (size_t)padded(N) * sizeof(sort_key) + partials;
}

size_t cuda_embedding_scratch(const op_limits *limits) { return scratch_for((int64_t)limits->B * limits->T, limits->C); }

static __device__ __forceinline__ void order_pair(sort_key *low, sort_key *high, bool upwards) {
    sort_key a = *low, b = *high;
    if ((a > b) == upwards) {
        *low = b;
        *high = a;
    }
}

/* Pair number i of those that lie `stride` apart starts at this element. */
static __device__ __forceinline__ int64_t pair_start(int64_t i, int64_t stride) { return 2 * i - (i & (stride - 1)); }

/* All the steps of one size from a stride that lies within the tile on. */
static __device__ __forceinline__ void merge_tile(sort_key *tile, int64_t first, int64_t size, int stride) {
    for (; stride > 0; stride /= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < TILE / 2; i += SORT_THREADS) {
            int at = (int)pair_start(i, stride);
            order_pair(tile + at, tile + at + stride, ((first + at) & size) == 0);
        }
    }
}

/* Makes the keys of a tile and sorts them, upwards and downwards in turn. */
static __global__ void __launch_bounds__(SORT_THREADS)
    sort_tiles(sort_key *__restrict__ keys, const int32_t *__restrict__ tokens, int64_t N, int64_t first_token, int64_t V) {
    __shared__ sort_key tile[TILE];
    int64_t first = (int64_t)blockIdx.x * TILE;
    for (int i = threadIdx.x; i < TILE; i += SORT_THREADS) {
        int64_t n = first + i, row = n < N ? tokens[n] - first_token : -1;
        tile[i] = row >= 0 && row < V ? (sort_key)row << 32 | (sort_key)n : LAST_KEY;
    }
    for (int size = 2; size <= TILE; size *= 2) merge_tile(tile, first, size, size / 2);
    __syncthreads();
    for (int i = threadIdx.x; i < TILE; i += SORT_THREADS) keys[first + i] = tile[i];
}

/* One step with a stride that is wider than a tile. */
static __global__ void __launch_bounds__(SORT_THREADS)
    order_pairs(sort_key *keys, int64_t size, int64_t stride, int64_t n_pairs) {
    int64_t i = (int64_t)blockIdx.x * SORT_THREADS + threadIdx.x;
    if (i >= n_pairs) return;
    int64_t at = pair_start(i, stride);
    order_pair(keys + at, keys + at + stride, (at & size) == 0);
}

/* The other steps of that size. */
static __global__ void __launch_bounds__(SORT_THREADS) merge_tiles(sort_key *keys, int64_t size) {
    __shared__ sort_key tile[TILE];
    int64_t first = (int64_t)blockIdx.x * TILE;
    for (int i = threadIdx.x; i < TILE; i += SORT_THREADS) tile[i] = keys[first + i];
    merge_tile(tile, first, size, TILE / 2);
    __syncthreads();
    for (int i = threadIdx.x; i < TILE; i += SORT_THREADS) keys[first + i] = tile[i];
}

static void sort_positions(backend *b, sort_key *keys, const int32_t *tokens, int64_t N, int64_t first_token, int64_t V) {
    int64_t length = padded(N), n_pairs = length / 2;
    unsigned tiles = blocks_of(length, TILE);
    LAUNCH(b, sort_tiles, tiles, SORT_THREADS, 0, keys, tokens, N, first_token, V);
    for (int64_t size = 2 * TILE; size <= length; size *= 2) {
        for (int64_t stride = size / 2; stride >= TILE; stride /= 2)
            LAUNCH(b, order_pairs, blocks_of(n_pairs, SORT_THREADS), SORT_THREADS, 0, keys, size, stride, n_pairs);
        LAUNCH(b, merge_tiles, tiles, SORT_THREADS, 0, keys, size);
    }
}

/* ---- backward ---- */

constexpr int IN_FLIGHT = 16;

static __device__ __forceinline__ sort_key row_of(sort_key key) { return key >> 32; }

/* The start of the run that holds sorted position `at`, where that is a multiple of PART before it; else -1. */
static __device__ __forceinline__ int64_t start_of_parts(const sort_key *__restrict__ keys, int64_t at) {
    sort_key row = row_of(keys[at]);
    int64_t parts = 0, most = at / PART;
    if (most > 0 && row_of(keys[at - PART]) != row) most = 0;
    while (parts < most) {
        int64_t middle = (parts + most + 1) / 2;
        if (row_of(keys[at - middle * PART]) == row)
            parts = middle;
        else
            most = middle - 1;
    }
    int64_t start = at - parts * PART;
    return start == 0 || row_of(keys[start - 1]) != row ? start : -1;
}

/* Block i adds up to PART rows of the run that starts at sorted position i, or a multiple of PART before it, if one does: the
 * first part to dw, each other to a row of partials. No two of these start less than PART apart: i / PART is theirs alone. */
template <typename A>
__global__ void __launch_bounds__(ROW_THREADS, 4) /* few blocks: registers for the rows */
    add_runs(float *dw, float *__restrict__ partials, const void *__restrict__ dy, const sort_key *__restrict__ keys, int64_t N,
             int C) {
    int64_t at = blockIdx.x;
    if (keys[at] == LAST_KEY) return;
    int64_t start = start_of_parts(keys, at);
    if (start < 0) return;
    sort_key row = row_of(keys[at]);
    int64_t end = at + PART < N ? at + PART : N;
    float *to = start == at ? dw + (int64_t)row * C : partials + at / PART * C;
    for (int c = threadIdx.x * A::W; c < C; c += ROW_THREADS * A::W) {
        float total[A::W] = {};
        if (start == at) load<access<float, A::W>>(total, to, c);
        for (int64_t first = at; first < end && row_of(keys[first]) == row; first += IN_FLIGHT) {
            pack<A> rows[IN_FLIGHT];
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; i++) {
                sort_key key = first + i < N ? keys[first + i] : LAST_KEY;
                rows[i] = row_of(key) == row ? load_pack<A>(dy, (int64_t)(key & 0xffffffff) * C + c) : zero_pack<A>();
            }
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; i++)
#pragma unroll
                for (int j = 0; j < A::W; j++) total[j] += to_float(rows[i].element[j]);
        }
        store<access<float, A::W>>(to, c, total);
    }
}

/* The first position of the run that holds `at` and starts less than PART before it. */
static __device__ __forceinline__ int64_t run_start(const sort_key *__restrict__ keys, int64_t at) {
    int64_t low = at >= PART ? at - PART + 1 : 0, high = at;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (row_of(keys[middle]) == row_of(keys[at]))
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Block i adds to dw, in order, the other parts of the run in which i * PART is the first multiple of PART, if it has any. */
template <typename A>
__global__ void __launch_bounds__(ROW_THREADS)
    add_parts(float *dw, const float *__restrict__ partials, const sort_key *__restrict__ keys, int64_t N, int C) {
    int64_t at = (int64_t)blockIdx.x * PART;
    sort_key row = row_of(keys[at]);
    if (keys[at] == LAST_KEY || (at > 0 && row_of(keys[at - PART]) == row)) return;
    int64_t second = run_start(keys, at) + PART;
    int n_parts = 0;
    while (second + (int64_t)n_parts * PART < N && row_of(keys[second + (int64_t)n_parts * PART]) == row) n_parts++;
    if (n_parts == 0) return;
    for (int c = threadIdx.x * A::W; c < C; c += ROW_THREADS * A::W) {
        float total[A::W];
        load<A>(total, dw, (int64_t)row * C + c);
#pragma unroll 8
        for (int i = 0; i < n_parts; i++) {
            float part[A::W];
            load<A>(part, partials, (second / PART + i) * C + c);
#pragma unroll
            for (int j = 0; j < A::W; j++) total[j] += part[j];
        }
        store<A>(dw, (int64_t)row * C + c, total);
    }
}

void cuda_embedding_backward(backend *b, float *dw, const void *dy, const int32_t *tokens, dtype x, int64_t N, int C,
                             int64_t first, int64_t V) {
    sort_key *keys = (sort_key *)cuda_scratch(b, scratch_for(N, C));
    float *partials = (float *)(keys + padded(N));
    sort_positions(b, keys, tokens, N, first, V);
    bool wide = wide_rows(x, C, dw, dy);
    with_access(x, wide,
                [&](auto a) { LAUNCH(b, add_runs<decltype(a)>, (unsigned)N, ROW_THREADS, 0, dw, partials, dy, keys, N, C); });
    if (N <= PART) return;
    with_float_access(
        wide, [&](auto a) { LAUNCH(b, add_parts<decltype(a)>, blocks_of(N, PART), ROW_THREADS, 0, dw, partials, keys, N, C); });
}
