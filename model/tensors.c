/* tensors.c: a model's tensors seen from the host: random weights, and one tensor in or out. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "model/passes.h"
#include "util/rng.h"

enum { INIT_BLOCK = 1 << 16 }; /* elements made at a time */

/* values: fp32; the parameters take them rounded to x. */
static void put(model *m, int64_t offset, const float *values, int64_t n, bf16 *rounded) {
    void *to = at_element(m->params, offset, m->options.x);
    if (m->options.x == DTYPE_BF16)
        for (int64_t i = 0; i < n; i++) rounded[i] = bf16_from_float(values[i]);
    m->ops->copy_in(m->backend, to, m->options.x == DTYPE_BF16 ? (const void *)rounded : (const void *)values,
                    (size_t)n * dtype_size(m->options.x));
}

static void init_values(float *values, const model_config *c, const tensor *t, uint64_t seed, float stddev, int64_t first,
                        int64_t n) {
    if (t->init == INIT_ONES) {
        for (int64_t i = 0; i < n; i++) values[i] = 1.0f;
        return;
    }
    float s = t->init == INIT_RESIDUAL ? stddev / sqrtf(2.0f * (float)c->n_layers) : stddev;
    rng_normal(values, rng_mix(seed, rng_hash(t->name)), (uint64_t)first, n, s);
}

void model_init_values(float *values, const model_config *c, const tensor *t, uint64_t seed, float stddev, int64_t first,
                       int64_t n) {
    int64_t blocks = (n + INIT_BLOCK - 1) / INIT_BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        int64_t at = i * INIT_BLOCK, count = n - at < INIT_BLOCK ? n - at : INIT_BLOCK;
        init_values(values + at, c, t, seed, stddev, first + at, count);
    }
}

int model_init(model *m, uint64_t seed, float stddev, error *err) {
    enum { CHUNK = 64 * INIT_BLOCK };
    float *values = malloc(CHUNK * (sizeof(float) + sizeof(bf16)));
    if (!values) return error_set(err, STATUS_RESOURCE, "no memory to initialise tensors (%zu bytes)", CHUNK * sizeof(float));
    for (int i = 0; i < m->registry.n_tensors; i++) {
        const tensor *t = &m->registry.tensors[i];
        for (int64_t first = 0; first < t->count; first += CHUNK) {
            int64_t n = t->count - first < CHUNK ? t->count - first : CHUNK;
            model_init_values(values, &m->config, t, seed, stddev, first, n);
            put(m, t->offset + first, values, n, (bf16 *)(values + CHUNK));
        }
    }
    int result = m->ops->sync(m->backend, err);
    free(values);
    return result;
}

void model_set_tensor(model *m, const tensor *t, const float *values) {
    bf16 *rounded = malloc((size_t)t->count * sizeof *rounded);
    assert(rounded);
    put(m, t->offset, values, t->count, rounded);
    free(rounded);
}

void model_get_tensor(model *m, const tensor *t, float *values) {
    void *from = at_element(m->params, t->offset, m->options.x);
    m->ops->copy_out(m->backend, values, from, (size_t)t->count * dtype_size(m->options.x));
    if (m->options.x == DTYPE_BF16) /* widened in place, from the end */
        for (int64_t i = t->count - 1; i >= 0; i--) {
            bf16 narrow;
            memcpy(&narrow, (bf16 *)values + i, sizeof narrow);
            values[i] = bf16_to_float(narrow);
        }
}

void model_get_gradient(model *m, const tensor *t, float *values) {
    m->ops->copy_out(m->backend, values, m->grads + t->offset, (size_t)t->count * sizeof(float));
}
