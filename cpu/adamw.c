/* adamw.c: one step of AdamW over a flat array of parameters, on the CPU.
 *
 * Bound by memory (30 bytes an element with bf16 parameters and a master copy, 28 without), so everything is one pass. Decay
 * comes first and is not seen by the moments, as in the paper and in PyTorch. Scalars are prepared in double. */
#include <assert.h>

#include "cpu/cpu.h"
#include "cpu/vec.h"
#include "util/philox.h"

typedef struct adamw_factors {
    float keep, beta1, new1, beta2, new2, rate, root, eps, scale;
} adamw_factors;

void cpu_adamw_begin(backend *b, adamw_state *state, const double *sum_squares, float max_norm, float beta1, float beta2) {
    (void)b;
    if (!isfinite(*sum_squares)) {
        state->scale = NAN;
        return;
    }
    state->t++;
    state->rate = 1.0 / (1.0 - pow((double)beta1, (double)state->t));
    state->root = 1.0 / sqrt(1.0 - pow((double)beta2, (double)state->t));
    state->scale = max_norm == 0 ? 1.0f : (float)fmin(1.0, (double)max_norm / (sqrt(*sum_squares) + 1e-6));
}

static adamw_factors prepare(const adamw_step *step, const adamw_state *state) {
    double beta1 = (double)step->beta1, beta2 = (double)step->beta2, lr = (double)step->lr;
    return (adamw_factors){.keep = (float)(1.0 - lr * (double)step->weight_decay),
                           .beta1 = step->beta1,
                           .new1 = (float)(1.0 - beta1),
                           .beta2 = step->beta2,
                           .new2 = (float)(1.0 - beta2),
                           .rate = (float)(lr * state->rate),
                           .root = (float)state->root,
                           .eps = step->eps,
                           .scale = state->scale};
}

static void update_line(float *w, float *m, float *v, const float *g, adamw_factors f, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) {
        float gradient = g[i] * f.scale;
        m[i] = f.beta1 * m[i] + f.new1 * gradient;
        v[i] = f.beta2 * v[i] + f.new2 * gradient * gradient;
        w[i] = w[i] * f.keep - f.rate * m[i] / (sqrtf(v[i]) * f.root + f.eps);
    }
}

/* p = w rounded by chance, for a line that begins at element `first` of its tensor. */
static void round_line(bf16 *p, const float *w, uint64_t key, int64_t t, int64_t first, int n) {
    uint32_t words[LINE / 2 + 4];
    int skip = (int)(first % PHILOX_HALVES), blocks = (skip + n + PHILOX_HALVES - 1) / PHILOX_HALVES;
    for (int k = 0; k < blocks; k++) philox(words + 4 * k, key, (uint64_t)t, (uint64_t)(first / PHILOX_HALVES + k));
    for (int i = 0; i < n; i++) p[i] = bf16_stochastic(w[i], philox_half(words[(skip + i) / 2], (uint32_t)(skip + i)));
}

void cpu_adamw(backend *b, void *p, float *master, float *m, float *v, const float *g, const adamw_state *state,
               const adamw_step *step, dtype x, int64_t n) {
    assert(master || x == DTYPE_F32);
    if (isnan(state->scale)) return;
    adamw_factors factors = prepare(step, state);
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t at = 0; at < n; at += LINE) {
        int length = line_length(at, n);
        float *w = master ? master + at : (float *)p + at;
        update_line(w, m + at, v + at, g + at, factors, length);
        if (!master) continue;
        if (x == DTYPE_F32)
            memcpy((float *)p + at, w, (size_t)length * sizeof *w);
        else if (step->stochastic)
            round_line((bf16 *)p + at, w, step->key, state->t, step->first + at, length);
        else
            line_close(w, p, x, at, length);
    }
}
