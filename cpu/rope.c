/* rope.c: the normalisation and rotation of query and key heads, forward and backward, on the CPU.
 *
 * A token's query heads and key heads lie next to each other, so they are one run of H+K heads; the value heads behind them are
 * not touched. Head sizes are small (64, 128): a head is worked on in one line, and the loops see its size as a constant where it
 * is a usual one. The weight gradients of the rms norm are summed in blocks of tokens (see TOKEN_BLOCK). */
#include <assert.h>

#include "cpu/cpu.h"
#include "cpu/vec.h"

size_t cpu_qk_rope_scratch(const op_limits *limits) {
    return (size_t)cpu_token_blocks((int64_t)limits->B * limits->T) * 2 * (size_t)limits->D * sizeof(float);
}

/* y = R u, by the angles whose cosines and sines are given; with -1 for `direction`, y = R^-1 u. y is not u. */
static inline void rotate(float *restrict y, const float *restrict u, const float *restrict cosines, const float *restrict sines,
                          float direction, rope_pairs pairs, int D) {
    int half = D / 2;
    if (pairs == ROPE_HALF) {
#pragma omp simd
        for (int p = 0; p < half; p++) {
            float c = cosines[p], s = direction * sines[p];
            y[p] = u[p] * c - u[p + half] * s;
            y[p + half] = u[p + half] * c + u[p] * s;
        }
    } else {
#pragma omp simd
        for (int p = 0; p < half; p++) {
            float c = cosines[p], s = direction * sines[p];
            y[2 * p] = u[2 * p] * c - u[2 * p + 1] * s;
            y[2 * p + 1] = u[2 * p + 1] * c + u[2 * p] * s;
        }
    }
}

static inline float dot(const float *a, const float *b, int D) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < D; i++) total += a[i] * b[i];
    return total;
}

/* What the heads of one call have in common. */
typedef struct rope_call {
    qk_norm norm;
    rope_pairs pairs;
    dtype x;
    float eps;
    int H, K;
} rope_call;

static inline void head_forward(void *qkv, int64_t at, void *raw, int64_t raw_at, float *rstd, const float *w,
                                const float *cosines, const float *sines, const rope_call *call, int D) {
    float buffer[LINE], scaled[LINE];
    const float *u = line_in(buffer, qkv, call->x, at, D);
    if (call->norm == QK_NORM_NONE) {
        memcpy(scaled, u, (size_t)D * sizeof *u);
    } else {
        float r = 1.0f / sqrtf(dot(u, u, D) / (float)D + call->eps);
        *rstd = r;
        for (int i = 0; i < D; i++) scaled[i] = u[i] * r;
    }
    if (call->norm == QK_NORM_RMS) {
        size_t size = dtype_size(call->x);
        memcpy((char *)raw + (size_t)raw_at * size, (const char *)qkv + (size_t)at * size, (size_t)D * size);
        for (int i = 0; i < D; i++) scaled[i] *= w[i];
    }
    float *y = line_out(buffer, qkv, call->x, at);
    rotate(y, scaled, cosines, sines, 1, call->pairs, D);
    line_close(y, qkv, call->x, at, D);
}

static inline void token_forward(void *qkv, void *raw, float *rstd, const float *wq, const float *wk, const float *cosines,
                                 const float *sines, int64_t n, const rope_call *call, int D) {
    int heads = call->H + call->K;
    for (int head = 0; head < heads; head++) {
        int64_t at = (n * (heads + call->K) + head) * D, index = n * heads + head;
        head_forward(qkv, at, raw, index * D, rstd ? rstd + index : NULL, head < call->H ? wq : wk, cosines, sines, call, D);
    }
}

void cpu_qk_rope_forward(backend *b, void *qkv, void *raw, float *rstd, const void *wq, const void *wk, const float *cosines,
                         const float *sines, const int32_t *pos, qk_norm norm, rope_pairs pairs, float eps, dtype x, int64_t N,
                         int H, int K, int D) {
    assert(D <= LINE && D % 2 == 0);
    float wq_buffer[LINE], wk_buffer[LINE];
    const float *wq_line = norm == QK_NORM_RMS ? line_in(wq_buffer, wq, x, 0, D) : NULL;
    const float *wk_line = norm == QK_NORM_RMS ? line_in(wk_buffer, wk, x, 0, D) : NULL;
    rope_call call = {norm, pairs, x, eps, H, K};
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const float *c = cosines + (int64_t)pos[n] * (D / 2), *s = sines + (int64_t)pos[n] * (D / 2);
        if (D == 64)
            token_forward(qkv, raw, rstd, wq_line, wk_line, c, s, n, &call, 64);
        else if (D == 128)
            token_forward(qkv, raw, rstd, wq_line, wk_line, c, s, n, &call, 128);
        else
            token_forward(qkv, raw, rstd, wq_line, wk_line, c, s, n, &call, D);
    }
}

/* du from dy, in place in dqkv. l2 goes through the output, y = R u * rstd: du = R^-1 (rstd * (dy - y * mean(dy*y))), for which
 * the head before the norm need not be kept. rms: g = R^-1 dy, n = u*rstd; du = rstd * (g*w - n * mean(g*w*n)), dw += g*n. */
static inline void head_backward(void *dqkv, float *dw, const void *qkv, int64_t at, const void *raw, int64_t raw_at,
                                 const float *rstd, const float *w, const float *cosines, const float *sines,
                                 const rope_call *call, int D) {
    float buffer[LINE], other_buffer[LINE], g[LINE];
    const float *dy = line_in(buffer, dqkv, call->x, at, D);
    if (call->norm == QK_NORM_RMS) {
        const float *u = line_in(other_buffer, raw, call->x, raw_at, D);
        float r = *rstd, mean = 0;
        rotate(g, dy, cosines, sines, -1, call->pairs, D);
#pragma omp simd reduction(+ : mean)
        for (int i = 0; i < D; i++) {
            dw[i] += g[i] * u[i] * r;
            g[i] *= w[i];
            mean += g[i] * u[i];
        }
        float pull = mean / (float)D * r * r;
        float *du = line_out(buffer, dqkv, call->x, at);
        for (int i = 0; i < D; i++) du[i] = r * (g[i] - u[i] * pull);
        line_close(du, dqkv, call->x, at, D);
        return;
    }
    if (call->norm == QK_NORM_L2) {
        const float *y = line_in(other_buffer, qkv, call->x, at, D);
        float mean = dot(dy, y, D) / (float)D;
        for (int i = 0; i < D; i++) g[i] = *rstd * (dy[i] - y[i] * mean);
    } else {
        memcpy(g, dy, (size_t)D * sizeof *dy);
    }
    float *du = line_out(buffer, dqkv, call->x, at);
    rotate(du, g, cosines, sines, -1, call->pairs, D);
    line_close(du, dqkv, call->x, at, D);
}

static inline void token_backward(void *dqkv, float *dw, const void *qkv, const void *raw, const float *rstd, const float *wq,
                                  const float *wk, const float *cosines, const float *sines, int64_t n, const rope_call *call,
                                  int D) {
    int heads = call->H + call->K;
    for (int head = 0; head < heads; head++) {
        int64_t at = (n * (heads + call->K) + head) * D, index = n * heads + head;
        bool query = head < call->H;
        head_backward(dqkv, query ? dw : dw + D, qkv, at, raw, index * D, rstd ? rstd + index : NULL, query ? wq : wk, cosines,
                      sines, call, D);
    }
}

void cpu_qk_rope_backward(backend *b, void *dqkv, float *dwq, float *dwk, const void *qkv, const void *raw, const float *rstd,
                          const void *wq, const void *wk, const float *cosines, const float *sines, const int32_t *pos,
                          bool accumulate, qk_norm norm, rope_pairs pairs, dtype x, int64_t N, int H, int K, int D) {
    assert(D <= LINE && D % 2 == 0);
    bool rms = norm == QK_NORM_RMS;
    float wq_buffer[LINE], wk_buffer[LINE];
    const float *wq_line = rms ? line_in(wq_buffer, wq, x, 0, D) : NULL, *wk_line = rms ? line_in(wk_buffer, wk, x, 0, D) : NULL;
    rope_call call = {norm, pairs, x, 0, H, K};
    int64_t blocks = cpu_token_blocks(N);
    float *partials =
        rms ? cpu_scratch(b, (size_t)blocks * 2 * (size_t)D * sizeof(float)) : NULL; /* (blocks,2,D): of wq, of wk */
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        float *partial = rms ? partials + block * 2 * D : NULL;
        if (rms) memset(partial, 0, 2 * (size_t)D * sizeof(float));
        int64_t end = (block + 1) * TOKEN_BLOCK < N ? (block + 1) * TOKEN_BLOCK : N;
        for (int64_t n = block * TOKEN_BLOCK; n < end; n++) {
            const float *c = cosines + (int64_t)pos[n] * (D / 2), *s = sines + (int64_t)pos[n] * (D / 2);
            if (D == 64)
                token_backward(dqkv, partial, qkv, raw, rstd, wq_line, wk_line, c, s, n, &call, 64);
            else if (D == 128)
                token_backward(dqkv, partial, qkv, raw, rstd, wq_line, wk_line, c, s, n, &call, 128);
            else
                token_backward(dqkv, partial, qkv, raw, rstd, wq_line, wk_line, c, s, n, &call, D);
        }
    }
    if (!rms) return;
    cpu_add_partials(b, dwq, partials, blocks, 2 * D, D, accumulate);
    cpu_add_partials(b, dwk, partials + D, blocks, 2 * D, D, accumulate);
}
