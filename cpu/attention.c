/* attention.c: what both passes of attention share: the cut into blocks, the bounds of the mask, the memory of the threads.
 *
 * Blocks have about 256 rows, so that a tile and what is made of it stay in L2 (1 MiB on the machines this was tuned on) while
 * the products are large enough for oneDNN. More query heads in a group mean fewer positions in a block, and so less work that
 * the diagonal throws away; with a narrow window, where its edges are much of the work, blocks are shorter still. */
#include "cpu/attention.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { ROWS = 256, MIN_Q = 16, MAX_Q = 64, MAX_Q_NARROW = 32, NARROW_WINDOW = 512 };

int cpu_attention_open(backend *b, error *err) { return block_gemm_open(&b->block_gemms, b->engine, b->threads, b->widens, err); }

void cpu_attention_close(backend *b) {
    block_gemm_close(b->block_gemms);
    b->block_gemms = NULL;
}

static int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

attention attention_sizes(int window, dtype x, int B, int T, int H, int K, int D) {
    assert(K > 0 && H % K == 0 && D > 0);
    attention a = {.x = x, .B = B, .T = T, .H = H, .K = K, .D = D, .G = H / K};
    int whole_row = (T + MIN_Q - 1) / MIN_Q * MIN_Q;
    int most = window > 0 && window <= NARROW_WINDOW ? MAX_Q_NARROW : MAX_Q;
    a.Q = clamp(clamp(ROWS / a.G / MIN_Q * MIN_Q, MIN_Q, most), MIN_Q, whole_row);
    a.R = a.Q * a.G;
    a.blocks = (T + a.Q - 1) / a.Q;
    a.row = (int64_t)(H + 2 * K) * D;
    a.scale = 1.0f / sqrtf((float)D);
    return a;
}

static attention_tiles allocate_tiles(arena *memory, const attention *a) {
    const char *part = "attention";
    size_t x = dtype_size(a->x), D = (size_t)a->D, R = (size_t)a->R, keys = (size_t)a->T + WIDE;
    attention_tiles t = {.k = arena_alloc(memory, part, keys * D * x), .v = arena_alloc(memory, part, keys * D * x)};
    t.q = arena_alloc(memory, part, R * D * x);
    t.d_o = arena_alloc(memory, part, R * D * x);
    t.s = arena_alloc(memory, part, R * WIDE * sizeof(float));
    t.dp = arena_alloc(memory, part, R * WIDE * sizeof(float));
    t.p = a->x == DTYPE_F32 ? t.s : arena_alloc(memory, part, R * WIDE * x);
    t.ds = a->x == DTYPE_F32 ? t.dp : arena_alloc(memory, part, R * WIDE * x);
    t.o_dq = arena_alloc(memory, part, R * D * sizeof(float));
    t.max_lse = arena_alloc(memory, part, R * sizeof(float));
    t.sum_delta = arena_alloc(memory, part, R * sizeof(float));
    for (int i = 0; i < PARTIALS; i++) {
        t.dk[i] = arena_alloc(memory, part, keys * D * sizeof(float));
        t.dv[i] = arena_alloc(memory, part, keys * D * sizeof(float));
        t.head[i] = -1;
    }
    return t;
}

/* Bounds and the array of tiles, then each thread's tiles. */
static attention_tiles *allocate(arena *memory, attention *a, int threads) {
    size_t bounds = (size_t)a->B * (size_t)a->T * sizeof(int32_t);
    a->first = arena_alloc(memory, "attention", bounds);
    a->last = arena_alloc(memory, "attention", bounds);
    attention_tiles *tiles = arena_alloc(memory, "attention", (size_t)threads * sizeof *tiles);
    for (int i = 0; i < threads; i++) {
        attention_tiles of_thread = allocate_tiles(memory, a);
        if (tiles) tiles[i] = of_thread;
    }
    return tiles;
}

size_t cpu_attention_scratch(const backend *b, const op_limits *limits) {
    if (limits->K == 0) return 0;
    attention a = attention_sizes(0, limits->x, limits->B, limits->T, limits->H, limits->K, limits->D);
    arena dry = arena_dry();
    allocate(&dry, &a, b->threads);
    return dry.peak;
}

static void set_bounds(attention *a, const int32_t *doc, int b, int window) {
    int32_t *first = a->first + (int64_t)b * a->T, *last = a->last + (int64_t)b * a->T;
    if (doc) doc += (int64_t)b * a->T;
    int reach = window > 0 && window < a->T ? window : a->T;
    for (int t = 0, begin = 0; t < a->T; t++) {
        if (doc && t > 0 && doc[t] != doc[t - 1]) begin = t;
        first[t] = t - reach + 1 > begin ? t - reach + 1 : begin;
    }
    for (int t = a->T - 1, end = a->T - 1; t >= 0; t--) {
        if (doc && t < a->T - 1 && doc[t] != doc[t + 1]) end = t;
        last[t] = t + reach - 1 < end ? t + reach - 1 : end;
    }
}

attention attention_begin(backend *b, attention_tiles **tiles, const int32_t *doc, int window, dtype x, int B, int T, int H,
                          int K, int D) {
    attention a = attention_sizes(window, x, B, T, H, K, D);
    arena scratch = arena_on(b->scratch, b->scratch_bytes);
    *tiles = allocate(&scratch, &a, b->threads);
    for (int row = 0; row < B; row++) {
        set_bounds(&a, doc, row, window);
        for (int i = 0; i < a.blocks; i++) a.work += K * attention_work(&a, row, i);
    }
    return a;
}

int64_t attention_work(const attention *a, int b, int i) {
    key_range keys = attention_keys(a, b, i);
    return (keys.end - keys.first + STEP - 1) / STEP;
}

void attention_load_head(const attention *a, attention_tiles *tiles, const void *qkv, int b, int k) {
    size_t bytes = (size_t)a->D * dtype_size(a->x);
    int64_t of_k = (int64_t)(a->H + k) * a->D, of_v = (int64_t)(a->H + a->K + k) * a->D;
    for (int t = 0; t < a->T; t++) {
        int64_t token = ((int64_t)b * a->T + t) * a->row, line = (int64_t)t * a->D;
        memcpy(attention_at(tiles->k, a->x, line), attention_at(qkv, a->x, token + of_k), bytes);
        memcpy(attention_at(tiles->v, a->x, line), attention_at(qkv, a->x, token + of_v), bytes);
    }
    int64_t behind = (int64_t)a->T * a->D;
    memset(attention_at(tiles->k, a->x, behind), 0, WIDE * bytes);
    memset(attention_at(tiles->v, a->x, behind), 0, WIDE * bytes);
}

void attention_load_block(const attention *a, void *tile, const void *array, int64_t stride, int b, int k, int i) {
    int64_t group = (int64_t)a->G * a->D;
    for (int q = 0; q < a->Q; q++) {
        int64_t t = (int64_t)i * a->Q + q;
        void *rows = attention_at(tile, a->x, q * group);
        if (t < a->T)
            memcpy(rows, attention_at(array, a->x, ((int64_t)b * a->T + t) * stride + k * group),
                   (size_t)group * dtype_size(a->x));
        else
            memset(rows, 0, (size_t)group * dtype_size(a->x));
    }
}
