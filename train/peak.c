/* peak.c: the two widest products of a layer, gate|up and the head's chunk. Best of a fifth of a second: the first call builds
 * the plan, and others may be disturbed. */
#include "train/peak.h"

#include "model/passes.h"
#include "util/system.h"

/* Raises *best to the rate of this product, where that is higher. */
static int measure(model *m, void *y, const void *w, int64_t N, int64_t O, double *best, error *err) {
    double start = seconds_now();
    for (int i = 0; i < 3 || seconds_now() - start < 0.2; i++) {
        double t = seconds_now();
        m->ops->linear_forward(m->backend, y, m->normed, w, m->options.x, N, m->config.d_model, O);
        if (m->ops->sync(m->backend, err)) return -1;
        double rate = 2.0 * (double)N * m->config.d_model * (double)O / (seconds_now() - t);
        if (rate > *best) *best = rate;
    }
    return 0;
}

int peak_measure(model *m, double *flops, error *err) {
    int64_t N = (int64_t)m->options.B * m->options.T;
    *flops = 0;
    m->ops->zero(m->backend, m->normed, (size_t)(N * m->config.d_model) * dtype_size(m->options.x));
    if (measure(m, m->layers[0].gate_up, model_layer_weights(m, 0).gate_up, N, 2 * (int64_t)m->config.d_ffn, flops, err))
        return -1;
    return measure(m, m->work, model_head_weight(m, NULL), m->options.head_chunk, m->config.vocab_size, flops, err);
}
