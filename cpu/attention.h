/* attention.h: how the two passes of the CPU's attention cut their work, and where a thread keeps it. The formula is in ops.h.
 *
 * A block is Q consecutive query positions of one key/value head of one sequence. Its rows are the R = Q*G pairs (position, head
 * of the group), G = H/K, position first: the query heads that share a key/value head are rows of the same products, and lie next
 * to each other in qkv and o. A tile is the product of a block with W consecutive keys, a multiple of STEP up to WIDE. The keys
 * that a query sees are an interval, from first[t] to t, and both ends grow with t: so the keys of a block are one interval too,
 * its tiles begin at the first key and none is empty, and a mask is a pair of bounds in a row of a tile. */
#ifndef MOBILELLM_CPU_ATTENTION_H
#define MOBILELLM_CPU_ATTENTION_H

#include "cpu/block_gemm.h"
#include "cpu/cpu.h"
#include "util/arena.h"

enum { STEP = 32, WIDTHS = 4, WIDE = STEP * WIDTHS };

/* One call. */
typedef struct attention {
    dtype x;
    int B, T, H, K, D, G;
    int Q, R, blocks;      /* blocks of a sequence */
    int64_t row;           /* elements of a token in qkv */
    float scale;           /* 1 / sqrt(D) */
    int32_t *first, *last; /* (B,T): the first key that query t sees, the last query that sees key t */
    int64_t work;          /* of all blocks: what is shared out */
} attention;

/* Partial sums of dk and dv: of the head that a thread found already begun, and of the last one that it began itself. */
enum { FOUND, BEGUN, PARTIALS };

/* What a thread works in. Lines of keys have WIDE rows of zeros behind them, so that every tile is whole. */
typedef struct attention_tiles {
    void *k, *v;                        /* (T+WIDE,D) x: the head at hand */
    void *q, *d_o;                      /* (R,D) x: the block at hand */
    float *s, *dp;                      /* (R,WIDE), backward (WIDE,R) */
    void *p, *ds;                       /* likewise, x; with f32 the same memory as s and dp */
    float *o_dq;                        /* (R,D): o in the forward pass, dq in the backward pass */
    float *max_lse, *sum_delta;         /* (R): max and sum, or lse and delta */
    float *dk[PARTIALS], *dv[PARTIALS]; /* (T+WIDE,D) */
    int32_t head[PARTIALS];             /* the head b*K + k whose sum other threads must add to, or -1 */
} attention_tiles;

/* The cut for these sizes, the bounds not yet known. Blocks are largest without a window. */
attention attention_sizes(int window, dtype x, int B, int T, int H, int K, int D);

/* The same with bounds and tiles ((threads) of them) in the backend's scratch memory. */
attention attention_begin(backend *b, attention_tiles **tiles, const int32_t *doc, int window, dtype x, int B, int T, int H,
                          int K, int D);

/* Keys of block i of sequence b: from `first` to before `end`; tiles are taken from the front. */
typedef struct key_range {
    int first, end;
} key_range;

static inline key_range attention_keys(const attention *a, int b, int i) {
    int end = (i + 1) * a->Q;
    return (key_range){a->first[(int64_t)b * a->T + (int64_t)i * a->Q], end < a->T ? end : a->T};
}

static inline int attention_tile_width(int keys_left) { return keys_left < WIDE ? (keys_left + STEP - 1) / STEP * STEP : WIDE; }

/* Blocks are counted in the order (b, key/value head, i), and each thread has one stretch of that order, all of the same work
 * (keys times rows). `work_before` is the work of the blocks before the one asked for. */
int64_t attention_work(const attention *a, int b, int i);
static inline int attention_owner(const attention *a, int64_t work_before, int threads) {
    return (int)(work_before * threads / a->work);
}

static inline void *attention_at(const void *array, dtype x, int64_t element) {
    return (char *)array + element * (int64_t)dtype_size(x);
}

/* k and v of a head to tiles->k and tiles->v. */
void attention_load_head(const attention *a, attention_tiles *tiles, const void *qkv, int b, int k);

/* The rows of block i of a head to tile (R,D), zeros behind position T. The array is qkv or o: (N,stride), query heads first. */
void attention_load_block(const attention *a, void *tile, const void *array, int64_t stride, int b, int k, int i);

#endif
