/* attention_forward.c: o = softmax(q k^T / sqrt(D)) v, a tile at a time, with the running maximum and sum of each row
 * [Dao et al. 2022, algorithm 1].
 *
 * Two thirds of the time are products at near the speed of large ones, the rest is the exponential. A thread works through its
 * stretch of blocks head by head, so that a head's keys and values are gathered once. No two blocks touch the same output: the
 * bits do not depend on the number of threads. */
#include <assert.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "cpu/attention.h"
#include "cpu/vec.h"

typedef struct pass {
    void *o;                                           /* (N,H*D) x */
    float *lse;                                        /* (B,H,T) */
    const void *qkv;                                   /* (N,(H+2K)*D) x */
    const block_gemm *scores[WIDTHS], *output[WIDTHS]; /* of tiles of STEP, 2*STEP, ... keys */
} pass;

static int prepare(backend *b, pass *f, const attention *a, error *err) {
    for (int i = 0; i < WIDTHS; i++) {
        int W = (i + 1) * STEP;
        block_gemm_shape scores = {.M = a->R, .N = W, .K = a->D, .transpose_b = true, .x = a->x};
        block_gemm_shape output = {.M = a->R, .N = a->D, .K = W, .accumulate = true, .x = a->x};
        f->scores[i] = block_gemm_prepare(b->block_gemms, &scores, err);
        f->output[i] = block_gemm_prepare(b->block_gemms, &output, err);
        if (!f->scores[i] || !f->output[i]) return -1;
    }
    return 0;
}

/* Maxima and sums of a row are taken in LANES interleaved parts, the elements of a vector, and then two by two: compilers may not
 * reorder a plain sum, and what they make of OpenMP's reductions costs as much as the exponentials when loops are this short. */
enum { LANES = 16 };
static_assert(STEP % LANES == 0, "a row of a tile is whole vectors");

static float row_max(const float *s, int W) {
    float lane[LANES];
    memcpy(lane, s, sizeof lane);
    for (int j = LANES; j < W; j += LANES)
#pragma omp simd
        for (int l = 0; l < LANES; l++) lane[l] = s[j + l] > lane[l] ? s[j + l] : lane[l];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] = lane[l + half] > lane[l] ? lane[l + half] : lane[l];
    return lane[0];
}

/* s = exp(scale * (s - max)), exactly 1 at the maximum; returns its sum. */
static float row_exp(float *s, float scale, float max, int W) {
#pragma omp simd
    for (int j = 0; j < W; j++) s[j] = vec_exp(scale * (s[j] - max));
    float lane[LANES];
    memcpy(lane, s, sizeof lane);
    for (int j = LANES; j < W; j += LANES)
#pragma omp simd
        for (int l = 0; l < LANES; l++) lane[l] += s[j + l];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

/* A tile of scores becomes exponentials, 0 where the mask is, in a.x; rows of o and their sums follow when a maximum grows. */
static void softmax_tile(const attention *a, attention_tiles *tiles, const int32_t *first, int t0, int tile_begin, int W) {
    for (int r = 0; r < a->R; r++) {
        int t = t0 + r / a->G;
        float *s = tiles->s + (int64_t)r * W;
        int from = t < a->T && first[t] > tile_begin ? first[t] - tile_begin : 0;
        int to = t >= a->T ? 0 : t + 1 - tile_begin < W ? t + 1 - tile_begin : W;
        if (from < to) {
            for (int j = 0; j < from; j++) s[j] = -INFINITY;
            for (int j = to; j < W; j++) s[j] = -INFINITY;
            float max = row_max(s, W), *o = tiles->o_dq + (int64_t)r * a->D;
            if (max > tiles->max_lse[r]) {
                float shrink = expf(a->scale * (tiles->max_lse[r] - max));
                tiles->max_lse[r] = max;
                tiles->sum_delta[r] *= shrink;
                for (int d = 0; d < a->D; d++) o[d] *= shrink;
            }
            tiles->sum_delta[r] += row_exp(s, a->scale, tiles->max_lse[r], W);
        } else {
            memset(s, 0, (size_t)W * sizeof *s);
        }
        line_close(s, tiles->p, a->x, (int64_t)r * W, W);
    }
}

/* o / sum, and lse, to where they belong. */
static void store_block(const attention *a, const pass *f, const attention_tiles *tiles, int b, int k, int i) {
    int t0 = i * a->Q;
    for (int r = 0; r < a->R && t0 + r / a->G < a->T; r++) {
        int t = t0 + r / a->G, h = k * a->G + r % a->G;
        int64_t at = (((int64_t)b * a->T + t) * a->H + h) * a->D;
        float buffer[LINE], *out = line_out(buffer, f->o, a->x, at), factor = 1.0f / tiles->sum_delta[r];
        const float *o = tiles->o_dq + (int64_t)r * a->D;
#pragma omp simd
        for (int d = 0; d < a->D; d++) out[d] = o[d] * factor;
        line_close(out, f->o, a->x, at, a->D);
        f->lse[((int64_t)b * a->H + h) * a->T + t] = a->scale * tiles->max_lse[r] + logf(tiles->sum_delta[r]);
    }
}

static int forward_block(const attention *a, const pass *f, attention_tiles *tiles, int thread, int b, int k, int i) {
    attention_load_block(a, tiles->q, f->qkv, a->row, b, k, i);
    memset(tiles->o_dq, 0, (size_t)a->R * (size_t)a->D * sizeof(float));
    for (int r = 0; r < a->R; r++) {
        tiles->max_lse[r] = -INFINITY;
        tiles->sum_delta[r] = 0;
    }
    key_range keys = attention_keys(a, b, i);
    int failed = 0;
    for (int j = keys.first, W; j < keys.end; j += W) {
        W = attention_tile_width(keys.end - j);
        int width = W / STEP - 1;
        int64_t line = (int64_t)j * a->D;
        failed |= block_gemm_run(f->scores[width], thread, tiles->s, tiles->q, attention_at(tiles->k, a->x, line));
        softmax_tile(a, tiles, a->first + (int64_t)b * a->T, i * a->Q, j, W);
        failed |= block_gemm_run(f->output[width], thread, tiles->o_dq, tiles->p, attention_at(tiles->v, a->x, line));
    }
    store_block(a, f, tiles, b, k, i);
    return failed;
}

/* The stretch of blocks that is this thread's. */
static int forward_stretch(const attention *a, const pass *f, attention_tiles *tiles, int thread, int threads) {
    int64_t work = 0;
    int failed = 0;
    for (int head = 0; head < a->B * a->K; head++) {
        int b = head / a->K, k = head % a->K;
        bool loaded = false;
        for (int i = 0; i < a->blocks; i++) {
            int owner = attention_owner(a, work, threads);
            work += attention_work(a, b, i);
            if (owner != thread) continue;
            if (!loaded) attention_load_head(a, tiles, f->qkv, b, k);
            loaded = true;
            failed |= forward_block(a, f, tiles, thread, b, k, i);
        }
    }
    return failed;
}

void cpu_attention_forward(backend *b, void *o, float *lse, const void *qkv, const int32_t *doc, int window, dtype x, int B,
                           int T, int H, int K, int D) {
    assert(D <= LINE);
    attention_tiles *tiles;
    attention a = attention_begin(b, &tiles, doc, window, x, B, T, H, K, D);
    pass f = {.o = o, .lse = lse, .qkv = qkv};
    error err;
    if (prepare(b, &f, &a, &err)) {
        cpu_fail(b, err.code, "attention", err.text);
        return;
    }
    int failed = 0;
#pragma omp parallel num_threads(b->threads) reduction(| : failed)
    {
        omp_set_num_threads(1); /* see block_gemm_run */
        int thread = omp_get_thread_num();
        failed = forward_stretch(&a, &f, &tiles[thread], thread, omp_get_num_threads());
    }
    if (failed) cpu_fail(b, STATUS_INTERNAL, "attention", "oneDNN failed in a product of the forward pass");
}
