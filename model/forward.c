/* forward.c: the network from tokens to the output of the final norm, one line an op.
 *
 * The residual addition is fused into the norm after it: a projection leaves its output in m->delta, and the next norm adds it to
 * the stream while it reads it. */
#include "model/passes.h"

/* The stream before a norm: what was there (`h`) and what is still to be added (NULL at first). */
typedef struct stream {
    const void *h, *delta;
} stream;

/* normed = norm(h + delta); the sum is saved for backward, and is the stream from here on. */
static void norm(model *m, stream *s, void *saved, float *rstd, const void *w, int64_t N) {
    m->ops->rmsnorm_forward(m->backend, m->normed, rstd, s->delta ? saved : NULL, s->h, s->delta, w, (float)m->config.norm_eps,
                            m->options.x, N, m->config.d_model);
    *s = (stream){saved, m->delta};
}

static void attention(model *m, stream *s, int layer, int rows) {
    const model_config *c = &m->config;
    const ops *op = m->ops;
    backend *b = m->backend;
    dtype x = m->options.x;
    int C = c->d_model, H = c->n_heads, K = c->n_kv_heads, D = c->head_dim, T = m->options.T;
    int64_t N = (int64_t)rows * T;
    layer_weights w = model_layer_weights(m, layer);
    layer_activations *a = &m->layers[layer];
    int window = c->attention[layer] == 'w' ? c->window : 0;

    norm(m, s, a->h_attention, a->rstd_attention, w.attention_norm, N);
    op->linear_forward(b, a->qkv, m->normed, w.qkv, x, N, C, (int64_t)(H + 2 * K) * D);
    op->qk_rope_forward(b, a->qkv, a->qk_raw, a->qk_rstd, w.q_norm, w.k_norm, m->cosines, m->sines, m->pos, (qk_norm)c->qk_norm,
                        (rope_pairs)c->rope, (float)c->norm_eps, x, N, H, K, D);
    op->attention_forward(b, a->o, a->lse, a->qkv, m->packed ? m->doc : NULL, window, x, rows, T, H, K, D);
    op->linear_forward(b, m->delta, a->o, w.o, x, N, H * D, C);
}

static void ffn(model *m, stream *s, int layer, int rows) {
    const ops *op = m->ops;
    backend *b = m->backend;
    dtype x = m->options.x;
    int C = m->config.d_model, F = m->config.d_ffn;
    int64_t N = (int64_t)rows * m->options.T;
    layer_weights w = model_layer_weights(m, layer);
    layer_activations *a = &m->layers[layer];

    norm(m, s, a->h_ffn, a->rstd_ffn, w.ffn_norm, N);
    op->linear_forward(b, a->gate_up, m->normed, w.gate_up, x, N, C, 2 * (int64_t)F);
    op->swiglu_forward(b, m->work, a->gate_up, x, N, F);
    op->linear_forward(b, m->delta, m->work, w.down, x, N, F, C);
}

static void copy_input(model *m, const model_input *in) {
    size_t bytes = (size_t)in->rows * (size_t)m->options.T * sizeof(int32_t);
    m->ops->copy_in(m->backend, m->tokens, in->tokens, bytes);
    m->ops->copy_in(m->backend, m->targets, in->targets, bytes);
    m->packed = in->doc != NULL;
    if (m->packed) m->ops->copy_in(m->backend, m->doc, in->doc, bytes);
    m->ops->copy_in(m->backend, m->pos, in->pos, bytes);
}

void model_forward(model *m, const model_input *in, const model_hooks *hooks) {
    const model_config *c = &m->config;
    int64_t N = (int64_t)in->rows * m->options.T;
    range_begin(m, "forward");
    copy_input(m, in);

    /* The embedding is written where the first norm keeps its input, so that it needs no copy. */
    void *first = c->attention[0] == 's' ? m->layers[0].h_ffn : m->layers[0].h_attention;
    weights_needed(hooks, 0);
    m->ops->embedding_forward(m->backend, first, m->tokens, m->params, m->options.x, N, c->d_model);
    stream s = {first, NULL};
    for (int layer = 0; layer < c->n_layers; layer++) {
        layer_begin(m, layer);
        weights_needed(hooks, 1 + layer);
        if (c->attention[layer] != 's') attention(m, &s, layer, in->rows);
        ffn(m, &s, layer, in->rows);
        range_end(m);
    }
    weights_needed(hooks, 1 + c->n_layers);
    if (c->tie_embeddings) weights_needed(hooks, 0); /* the head is the embedding */
    norm(m, &s, m->h_final, m->rstd_final, model_final_norm(m, NULL), N);
    range_end(m);
}
