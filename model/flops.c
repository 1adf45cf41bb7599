/* flops.c: what a training step computes, as the mask leaves it. */
#include "model/model.h"

double model_mean_visible_keys(int window, int T) {
    double t = T, w = window > 0 && window < T ? window : T;
    return (w * (w + 1) / 2 + (t - w) * w) / t;
}

double model_flops_per_token(const model_config *c, int T) {
    double C = c->d_model, Q = (double)c->n_heads * c->head_dim, KV = (double)c->n_kv_heads * c->head_dim;
    double weights = (double)c->vocab_size * C, attention = 0;
    for (int i = 0; i < c->n_layers; i++) {
        weights += 3 * C * c->d_ffn;
        if (c->attention[i] == 's') continue;
        weights += C * (2 * Q + 2 * KV);
        attention += 12 * Q * model_mean_visible_keys(c->attention[i] == 'w' ? c->window : 0, T);
    }
    return 6 * weights + attention;
}
