/* attention_backward.c: gradients of attention, with the probabilities computed again from lse [Dao et al. 2022, algorithm 4].
 *
 *     P = exp(s - lse)    dV = P^T dO    dP = dO V^T    dS = P * (dP - delta), delta = rowsum(dO * O)    dQ = dS K    dK = dS^T Q
 *
 * Tiles lie transposed, (keys, rows): so P^T and dS^T are the left factors of two of the products as they lie. The right factor's
 * transposition is free, that of a large left factor is a copy.
 *
 * dk and dv of a head are summed over its blocks in order, by the thread whose stretch the blocks are in. A head that two or more
 * stretches share has one partial sum in each, and they are added in the threads' order: the bits depend on the number of
 * threads, and on nothing else. */
#include <assert.h>
#include <omp.h>
#include <string.h>

#include "cpu/attention.h"
#include "cpu/vec.h"

typedef struct pass {
    void *dqkv;                                                             /* (N,(H+2K)*D) x */
    const void *d_o;                                                        /* (N,H*D) x */
    const void *o;                                                          /* (N,H*D) x */
    const float *lse;                                                       /* (B,H,T) */
    const void *qkv;                                                        /* (N,(H+2K)*D) x */
    const block_gemm *scores[WIDTHS], *key_sum[WIDTHS], *query_sum[WIDTHS]; /* of tiles of STEP, 2*STEP, ... keys */
} pass;

static int prepare(backend *b, pass *f, const attention *a, error *err) {
    for (int i = 0; i < WIDTHS; i++) {
        int W = (i + 1) * STEP;
        block_gemm_shape scores = {.M = W, .N = a->R, .K = a->D, .transpose_b = true, .x = a->x};
        block_gemm_shape key_sum = {.M = W, .N = a->D, .K = a->R, .accumulate = true, .x = a->x};
        block_gemm_shape query_sum = {.M = a->R, .N = a->D, .K = W, .transpose_a = true, .accumulate = true, .x = a->x};
        f->scores[i] = block_gemm_prepare(b->block_gemms, &scores, err);
        f->key_sum[i] = block_gemm_prepare(b->block_gemms, &key_sum, err);
        f->query_sum[i] = block_gemm_prepare(b->block_gemms, &query_sum, err);
        if (!f->scores[i] || !f->key_sum[i] || !f->query_sum[i]) return -1;
    }
    return 0;
}

/* lse and delta of the block's rows. */
static void load_statistics(const attention *a, const pass *f, attention_tiles *tiles, int b, int k, int i) {
    float o_buffer[LINE], d_o_buffer[LINE];
    int t0 = i * a->Q;
    for (int r = 0; r < a->R && t0 + r / a->G < a->T; r++) {
        int t = t0 + r / a->G, h = k * a->G + r % a->G;
        int64_t at = (((int64_t)b * a->T + t) * a->H + h) * a->D;
        const float *o = line_in(o_buffer, f->o, a->x, at, a->D), *d_o = line_in(d_o_buffer, f->d_o, a->x, at, a->D);
        float delta = 0;
#pragma omp simd reduction(+ : delta)
        for (int d = 0; d < a->D; d++) delta += o[d] * d_o[d];
        tiles->max_lse[r] = f->lse[((int64_t)b * a->H + h) * a->T + t];
        tiles->sum_delta[r] = delta;
    }
}

/* s becomes P^T, dp becomes dS^T without its factor 1/sqrt(D); 0 where the mask is, in a.x. */
static void gradient_tile(const attention *a, attention_tiles *tiles, const int32_t *last, int t0, int tile_begin, int W) {
    const float *lse = tiles->max_lse, *delta = tiles->sum_delta;
    for (int c = 0; c < W; c++) {
        int key = tile_begin + c;
        float *s = tiles->s + (int64_t)c * a->R, *dp = tiles->dp + (int64_t)c * a->R;
        int from = key > t0 ? (key - t0) * a->G : 0, to = key < a->T ? (last[key] + 1 - t0) * a->G : 0;
        if (to > a->R) to = a->R;
        if (from >= to) from = to = 0;
        memset(s, 0, (size_t)from * sizeof *s);
        memset(dp, 0, (size_t)from * sizeof *dp);
#pragma omp simd
        for (int r = from; r < to; r++) {
            s[r] = vec_exp(mul_add(a->scale, s[r], -lse[r]));
            dp[r] = s[r] * (dp[r] - delta[r]);
        }
        memset(s + to, 0, (size_t)(a->R - to) * sizeof *s);
        memset(dp + to, 0, (size_t)(a->R - to) * sizeof *dp);
        line_close(s, tiles->p, a->x, (int64_t)c * a->R, a->R);
        line_close(dp, tiles->ds, a->x, (int64_t)c * a->R, a->R);
    }
}

/* D elements of a token of dqkv = factor * sum */
static void store_line(const attention *a, void *dqkv, int64_t at, const float *sum, float factor) {
    float buffer[LINE], *out = line_out(buffer, dqkv, a->x, at);
#pragma omp simd
    for (int d = 0; d < a->D; d++) out[d] = sum[d] * factor;
    line_close(out, dqkv, a->x, at, a->D);
}

static void store_query_gradient(const attention *a, const pass *f, const attention_tiles *tiles, int b, int k, int i) {
    int t0 = i * a->Q;
    for (int r = 0; r < a->R && t0 + r / a->G < a->T; r++) {
        int64_t token = ((int64_t)b * a->T + t0 + r / a->G) * a->row, of_q = (int64_t)(k * a->G + r % a->G) * a->D;
        store_line(a, f->dqkv, token + of_q, tiles->o_dq + (int64_t)r * a->D, a->scale);
    }
}

/* dk and dv of position t of a head. */
static void store_key_gradient(const attention *a, const pass *f, const float *dk, const float *dv, int head, int t) {
    int b = head / a->K, k = head % a->K;
    int64_t token = ((int64_t)b * a->T + t) * a->row, line = (int64_t)t * a->D;
    store_line(a, f->dqkv, token + (int64_t)(a->H + k) * a->D, dk + line, a->scale);
    store_line(a, f->dqkv, token + (int64_t)(a->H + a->K + k) * a->D, dv + line, 1.0f);
}

static int backward_block(const attention *a, const pass *f, attention_tiles *tiles, int thread, int partial, int b, int k,
                          int i) {
    attention_load_block(a, tiles->q, f->qkv, a->row, b, k, i);
    attention_load_block(a, tiles->d_o, f->d_o, (int64_t)a->H * a->D, b, k, i);
    load_statistics(a, f, tiles, b, k, i);
    memset(tiles->o_dq, 0, (size_t)a->R * (size_t)a->D * sizeof(float));
    key_range keys = attention_keys(a, b, i);
    int failed = 0;
    for (int j = keys.first, W; j < keys.end; j += W) {
        W = attention_tile_width(keys.end - j);
        int width = W / STEP - 1;
        int64_t line = (int64_t)j * a->D;
        const void *k_tile = attention_at(tiles->k, a->x, line), *v_tile = attention_at(tiles->v, a->x, line);
        failed |= block_gemm_run(f->scores[width], thread, tiles->s, k_tile, tiles->q);
        failed |= block_gemm_run(f->scores[width], thread, tiles->dp, v_tile, tiles->d_o);
        gradient_tile(a, tiles, a->last + (int64_t)b * a->T, i * a->Q, j, W);
        failed |= block_gemm_run(f->key_sum[width], thread, tiles->dv[partial] + line, tiles->p, tiles->d_o);
        failed |= block_gemm_run(f->key_sum[width], thread, tiles->dk[partial] + line, tiles->ds, tiles->q);
        failed |= block_gemm_run(f->query_sum[width], thread, tiles->o_dq, tiles->ds, k_tile);
    }
    store_query_gradient(a, f, tiles, b, k, i);
    return failed;
}

static void begin_head(const attention *a, const pass *f, attention_tiles *tiles, int partial, int head) {
    size_t bytes = ((size_t)a->T + WIDE) * (size_t)a->D * sizeof(float);
    attention_load_head(a, tiles, f->qkv, head / a->K, head % a->K);
    memset(tiles->dk[partial], 0, bytes);
    memset(tiles->dv[partial], 0, bytes);
    tiles->head[partial] = head;
}

/* The stretch of blocks that is this thread's. Leaves in tiles->head which sums are not whole. */
static int backward_stretch(const attention *a, const pass *f, attention_tiles *tiles, int thread, int threads) {
    int64_t work = 0;
    int failed = 0;
    for (int head = 0; head < a->B * a->K; head++) {
        int b = head / a->K, k = head % a->K, mine = 0, partial = FOUND;
        for (int i = 0; i < a->blocks; i++) {
            int owner = attention_owner(a, work, threads);
            work += attention_work(a, b, i);
            if (owner != thread) continue;
            if (mine++ == 0) {
                partial = i == 0 ? BEGUN : FOUND;
                begin_head(a, f, tiles, partial, head);
            }
            failed |= backward_block(a, f, tiles, thread, partial, b, k, i);
        }
        if (mine < a->blocks) continue;
        for (int t = 0; t < a->T; t++) store_key_gradient(a, f, tiles->dk[BEGUN], tiles->dv[BEGUN], head, t);
        tiles->head[BEGUN] = -1;
    }
    return failed;
}

/* Adds up the heads that stretches share; by all threads, each with some of the positions. */
static void add_partials(const attention *a, const pass *f, const attention_tiles *tiles, int threads) {
    for (int beginner = 0; beginner < threads; beginner++) {
        int head = tiles[beginner].head[BEGUN];
        if (head < 0) continue;
        float *dk = tiles[beginner].dk[BEGUN], *dv = tiles[beginner].dv[BEGUN];
#pragma omp for schedule(static) nowait
        for (int t = 0; t < a->T; t++) {
            int64_t begin = (int64_t)t * a->D, end = begin + a->D;
            for (int other = beginner + 1; other < threads; other++) {
                if (tiles[other].head[FOUND] != head) continue;
                for (int64_t e = begin; e < end; e++) {
                    dk[e] += tiles[other].dk[FOUND][e];
                    dv[e] += tiles[other].dv[FOUND][e];
                }
            }
            store_key_gradient(a, f, dk, dv, head, t);
        }
    }
}

void cpu_attention_backward(backend *b, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv,
                            const int32_t *doc, int window, dtype x, int B, int T, int H, int K, int D) {
    assert(D <= LINE);
    attention_tiles *tiles;
    attention a = attention_begin(b, &tiles, doc, window, x, B, T, H, K, D);
    pass f = {.dqkv = dqkv, .d_o = d_o, .o = o, .lse = lse, .qkv = qkv};
    error err;
    if (prepare(b, &f, &a, &err)) {
        cpu_fail(b, err.code, "attention", err.text);
        return;
    }
    int failed = 0;
#pragma omp parallel num_threads(b->threads) reduction(| : failed)
    {
        omp_set_num_threads(1); /* see block_gemm_run */
        int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        failed = backward_stretch(&a, &f, &tiles[thread], thread, threads);
#pragma omp barrier
        add_partials(&a, &f, tiles, threads);
    }
    if (failed) cpu_fail(b, STATUS_INTERNAL, "attention", "oneDNN failed in a product of the backward pass");
}
