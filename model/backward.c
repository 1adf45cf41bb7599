/* backward.c: the mirror of forward.c, read from its bottom to its top.
 *
 * m->dh is the gradient of the residual stream; each half of a layer adds its own part to it through its norm. What forward did
 * not save is computed again: the norm's output, and the SwiGLU product in the same pass as its gradient. */
#include "model/passes.h"

/* normed = norm(h) once more, from the saved stream. */
static void renorm(model *m, const void *h, float *rstd, const void *w, int64_t N) {
    m->ops->rmsnorm_forward(m->backend, m->normed, rstd, NULL, h, NULL, w, (float)m->config.norm_eps, m->options.x, N,
                            m->config.d_model);
}

static void ffn_backward(model *m, int layer, int64_t N, bool accumulate) {
    const ops *op = m->ops;
    backend *b = m->backend;
    dtype x = m->options.x;
    int C = m->config.d_model, F = m->config.d_ffn;
    layer_weights w = model_layer_weights(m, layer);
    layer_activations *a = &m->layers[layer];

    op->linear_backward_input(b, m->work, m->dh, w.down, x, N, F, C);
    op->swiglu_backward(b, a->gate_up, m->work, x, N, F);
    op->linear_backward_weight(b, w.d_down, m->dh, m->work, accumulate, x, N, F, C);
    renorm(m, a->h_ffn, a->rstd_ffn, w.ffn_norm, N);
    op->linear_backward_weight(b, w.d_gate_up, a->gate_up, m->normed, accumulate, x, N, C, 2 * (int64_t)F);
    op->linear_backward_input(b, m->delta, a->gate_up, w.gate_up, x, N, C, 2 * (int64_t)F);
    op->rmsnorm_backward(b, m->dh, w.d_ffn_norm, m->delta, a->h_ffn, a->rstd_ffn, w.ffn_norm, accumulate, x, N, C);
}

static void attention_backward(model *m, int layer, int rows, bool accumulate) {
    const model_config *c = &m->config;
    const ops *op = m->ops;
    backend *b = m->backend;
    dtype x = m->options.x;
    int C = c->d_model, H = c->n_heads, K = c->n_kv_heads, D = c->head_dim, T = m->options.T;
    int64_t N = (int64_t)rows * T, QKV = (int64_t)(H + 2 * K) * D;
    layer_weights w = model_layer_weights(m, layer);
    layer_activations *a = &m->layers[layer];
    int window = c->attention[layer] == 'w' ? c->window : 0;
    void *dqkv = m->work, *d_o = at_element(m->work, N * QKV, x);

    op->linear_backward_weight(b, w.d_o, m->dh, a->o, accumulate, x, N, H * D, C);
    op->linear_backward_input(b, d_o, m->dh, w.o, x, N, H * D, C);
    op->attention_backward(b, dqkv, d_o, a->o, a->lse, a->qkv, m->packed ? m->doc : NULL, window, x, rows, T, H, K, D);
    op->qk_rope_backward(b, dqkv, w.d_q_norm, w.d_k_norm, a->qkv, a->qk_raw, a->qk_rstd, w.q_norm, w.k_norm, m->cosines, m->sines,
                         m->pos, accumulate, (qk_norm)c->qk_norm, (rope_pairs)c->rope, x, N, H, K, D);
    renorm(m, a->h_attention, a->rstd_attention, w.attention_norm, N);
    op->linear_backward_weight(b, w.d_qkv, dqkv, m->normed, accumulate, x, N, C, QKV);
    op->linear_backward_input(b, m->delta, dqkv, w.qkv, x, N, C, QKV);
    op->rmsnorm_backward(b, m->dh, w.d_attention_norm, m->delta, a->h_attention, a->rstd_attention, w.attention_norm, accumulate,
                         x, N, C);
}

void model_backward(model *m, int rows, bool accumulate, const model_hooks *hooks) {
    const model_config *c = &m->config;
    int64_t N = (int64_t)rows * m->options.T;
    range_begin(m, "backward");
    for (int layer = c->n_layers - 1; layer >= 0; layer--) {
        layer_begin(m, layer);
        weights_needed(hooks, 1 + layer);
        ffn_backward(m, layer, N, accumulate);
        if (c->attention[layer] != 's') attention_backward(m, layer, rows, accumulate);
        range_end(m);
        gradients_final(hooks, 1 + layer);
    }
    if (rows_are_the_callers(hooks)) {
        hooks->rows_final(hooks->context, N);
    } else {
        /* The tied head has put its part there already. */
        if (!c->tie_embeddings && !accumulate)
            m->ops->zero(m->backend, m->grads, (size_t)(c->vocab_size * c->d_model) * sizeof(float));
        m->ops->embedding_backward(m->backend, m->grads, m->dh, m->tokens, m->options.x, N, c->d_model, 0, c->vocab_size);
        gradients_final(hooks, 0);
    }
    range_end(m);
}
