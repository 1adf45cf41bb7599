/* embedding.cu: rows of the embedding matrix looked up, and their gradients added.
 *
 * A token occurs many times, and its gradients are added in the order of n, as on the CPU. So the positions are sorted by token
 * on the device, and each token's run is added by one block, sixteen rows in flight at a time. The keys hold the position too: no
 * two are equal, and any correct sort gives the same result. A bitonic sort is short, and its 20 launches for 65,536 tokens cost
 * less than a thousandth of their training step. */
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

typedef unsigned long long sort_key; /* token, then position: 32 bits each */

constexpr int TILE = 2048;
constexpr int SORT_THREADS = block_threads(1024);
constexpr sort_key LAST_KEY = ~0ull; /* fills the array up to a power of two */

/* Keys to sort for N tokens. */
static int64_t padded(int64_t N) {
    int64_t length = TILE;
    while (length < N) length *= 2;
    return length;
}

size_t cuda_embedding_scratch(const op_limits *limits) {
    return (size_t)padded((int64_t)limits->B * limits->T) * sizeof(sort_key);
}

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
    sort_tiles(sort_key *__restrict__ keys, const int32_t *__restrict__ tokens, int64_t N) {
    __shared__ sort_key tile[TILE];
    int64_t first = (int64_t)blockIdx.x * TILE;
    for (int i = threadIdx.x; i < TILE; i += SORT_THREADS) {
        int64_t n = first + i;
        tile[i] = n < N ? (sort_key)tokens[n] << 32 | (sort_key)n : LAST_KEY;
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

static void sort_positions(backend *b, sort_key *keys, const int32_t *tokens, int64_t N) {
    int64_t length = padded(N), n_pairs = length / 2;
    unsigned tiles = blocks_of(length, TILE);
    LAUNCH(b, sort_tiles, tiles, SORT_THREADS, 0, keys, tokens, N);
    for (int64_t size = 2 * TILE; size <= length; size *= 2) {
        for (int64_t stride = size / 2; stride >= TILE; stride /= 2)
            LAUNCH(b, order_pairs, blocks_of(n_pairs, SORT_THREADS), SORT_THREADS, 0, keys, size, stride, n_pairs);
        LAUNCH(b, merge_tiles, tiles, SORT_THREADS, 0, keys, size);
    }
}

/* ---- backward ---- */

constexpr int IN_FLIGHT = 16;

/* Block i adds the run of equal tokens that starts at sorted position i, if one does. */
template <typename A>
__global__ void __launch_bounds__(ROW_THREADS, 4) /* few blocks: registers for the rows */
    add_runs(float *dw, const void *__restrict__ dy, const sort_key *__restrict__ keys, int64_t N, int C) {
    int64_t start = blockIdx.x;
    sort_key token = keys[start] >> 32;
    if (start > 0 && keys[start - 1] >> 32 == token) return;
    for (int c = threadIdx.x * A::W; c < C; c += ROW_THREADS * A::W) {
        float total[A::W];
        load<access<float, A::W>>(total, dw, (int64_t)token * C + c);
        for (int64_t first = start; first < N && keys[first] >> 32 == token; first += IN_FLIGHT) {
            pack<A> rows[IN_FLIGHT];
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; i++) {
                sort_key key = first + i < N ? keys[first + i] : LAST_KEY;
                rows[i] = key >> 32 == token ? load_pack<A>(dy, (int64_t)(key & 0xffffffff) * C + c) : zero_pack<A>();
            }
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; i++)
#pragma unroll
                for (int j = 0; j < A::W; j++) total[j] += to_float(rows[i].element[j]);
        }
        store<access<float, A::W>>(dw, (int64_t)token * C + c, total);
    }
}

void cuda_embedding_backward(backend *b, float *dw, const void *dy, const int32_t *tokens, dtype x, int64_t N, int C, int64_t V) {
    sort_key *keys = (sort_key *)cuda_scratch(b, (size_t)padded(N) * sizeof(sort_key));
    sort_positions(b, keys, tokens, N);
    with_access(x, wide_rows(x, C, dw, dy),
                [&](auto a) { LAUNCH(b, add_runs<decltype(a)>, (unsigned)N, ROW_THREADS, 0, dw, dy, keys, N, C); });
    (void)V; /* the sort takes any token */
}
