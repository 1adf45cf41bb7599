/* model.c: the loss head in chunks, and the three ways to run a model: train, losses, logits.
 *
 * The head never holds the logits of more than a chunk of tokens: product, loss and its gradient, both gradient products, next
 * chunk. The loss of 8,192 tokens over 202,048 words would otherwise need 3.3 GB in bf16. */
#include "model/model.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "model/passes.h"

static void *weight(const model *m, int layer, const char *part, float **gradient) {
    char name[96];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, part);
    const tensor *t = registry_find(&m->registry, name);
    if (gradient) *gradient = t && m->grads ? m->grads + t->offset : NULL;
    return t ? at_element(m->params, t->offset, m->options.x) : NULL;
}

layer_weights model_layer_weights(const model *m, int layer) {
    layer_weights w;
    w.attention_norm = weight(m, layer, "input_layernorm", &w.d_attention_norm);
    w.qkv = weight(m, layer, "self_attn.q_proj", &w.d_qkv);
    w.o = weight(m, layer, "self_attn.o_proj", &w.d_o);
    w.q_norm = weight(m, layer, "self_attn.q_norm", &w.d_q_norm);
    w.k_norm = weight(m, layer, "self_attn.k_norm", &w.d_k_norm);
    w.ffn_norm = weight(m, layer, "post_attention_layernorm", &w.d_ffn_norm);
    w.gate_up = weight(m, layer, "mlp.gate_proj", &w.d_gate_up);
    w.down = weight(m, layer, "mlp.down_proj", &w.d_down);
    return w;
}

static const void *top_weight(const model *m, const char *name, float **gradient) {
    const tensor *t = registry_find(&m->registry, name);
    if (gradient) *gradient = m->grads ? m->grads + t->offset : NULL;
    return at_element(m->params, t->offset, m->options.x);
}

const void *model_head_weight(const model *m, float **gradient) {
    return top_weight(m, m->config.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", gradient);
}

const void *model_final_norm(const model *m, float **gradient) { return top_weight(m, "model.norm.weight", gradient); }

/* Logits of rows [first, first + n) of m->normed, into m->work, and their losses. */
static void chunk_losses(model *m, int64_t first, int64_t n, float scale, float z_loss, bool backward) {
    dtype x = m->options.x;
    int C = m->config.d_model;
    int64_t V = m->config.vocab_size;
    const void *in = at_element(m->normed, first * C, x);
    m->ops->linear_forward(m->backend, m->work, in, model_head_weight(m, NULL), x, n, C, V);
    m->ops->cross_entropy(m->backend, m->losses + first, m->z_losses + first, m->work, m->targets + first, scale, z_loss,
                          backward, x, n, V);
}

static void head_forward(model *m, int64_t N) {
    int64_t chunk = m->options.head_chunk;
    range_begin(m, "head");
    for (int64_t first = 0; first < N; first += chunk)
        chunk_losses(m, first, N - first < chunk ? N - first : chunk, 1.0f, 0.0f, false);
    range_end(m);
}

/* Losses, the gradients of the head and the final norm, and dh. */
static void head_train(model *m, int64_t N, float scale, float z_loss, bool accumulate, const model_hooks *hooks) {
    const ops *op = m->ops;
    backend *b = m->backend;
    dtype x = m->options.x;
    int C = m->config.d_model;
    int64_t V = m->config.vocab_size, chunk = m->options.head_chunk;
    float *d_head, *d_norm;
    const void *head = model_head_weight(m, &d_head), *norm = model_final_norm(m, &d_norm);

    range_begin(m, "head");
    for (int64_t first = 0; first < N; first += chunk) {
        int64_t n = N - first < chunk ? N - first : chunk;
        chunk_losses(m, first, n, scale, z_loss, true);
        op->linear_backward_weight(b, d_head, m->work, at_element(m->normed, first * C, x), accumulate || first > 0, x, n, C, V);
        op->linear_backward_input(b, at_element(m->delta, first * C, x), m->work, head, x, n, C, V);
    }
    op->zero(b, m->dh, (size_t)(N * C) * dtype_size(x));
    op->rmsnorm_backward(b, m->dh, d_norm, m->delta, m->h_final, m->rstd_final, norm, accumulate, x, N, C);
    gradients_final(hooks, 1 + m->config.n_layers);
    if (rows_are_the_callers(hooks)) gradients_final(hooks, 0);
    range_end(m);
}

void model_train(model *m, const model_input *in, float scale, float z_loss, bool accumulate, const model_hooks *hooks) {
    assert(m->options.training && in->rows > 0 && in->rows <= m->options.B);
    assert(m->config.tie_embeddings || !rows_are_the_callers(hooks));
    int64_t N = (int64_t)in->rows * m->options.T;
    model_forward(m, in, hooks);
    head_train(m, N, scale, z_loss, accumulate, hooks);
    if (!accumulate) m->ops->zero(m->backend, m->loss_sums, 2 * sizeof *m->loss_sums);
    m->ops->sum(m->backend, m->loss_sums, m->losses, N);
    m->ops->sum(m->backend, m->loss_sums + 1, m->z_losses, N);
    model_backward(m, in->rows, accumulate, hooks);
}

void model_train_nothing(model *m) {
    m->ops->zero(m->backend, m->grads, (size_t)m->registry.n_flat * sizeof(float));
    m->ops->zero(m->backend, m->loss_sums, 2 * sizeof *m->loss_sums);
}

int model_losses(model *m, const model_input *in, float *losses, error *err) {
    assert(in->rows > 0 && in->rows <= m->options.B);
    int64_t N = (int64_t)in->rows * m->options.T;
    model_forward(m, in, NULL);
    head_forward(m, N);
    m->ops->copy_out(m->backend, losses, m->losses, (size_t)N * sizeof *losses);
    return m->ops->sync(m->backend, err);
}

int model_logits(model *m, const model_input *in, int at, float *logits, error *err) {
    assert(at >= 0 && at < m->options.T);
    dtype x = m->options.x;
    int64_t V = m->config.vocab_size, C = m->config.d_model;
    void *row = malloc((size_t)V * sizeof(float));
    if (!row) return error_set(err, STATUS_RESOURCE, "no memory for %lld logits", (long long)V);
    model_forward(m, in, NULL);
    m->ops->linear_forward(m->backend, m->work, at_element(m->normed, at * C, x), model_head_weight(m, NULL), x, 1, (int)C, V);
    m->ops->copy_out(m->backend, row, m->work, (size_t)V * dtype_size(x));
    for (int64_t v = 0; v < V; v++) logits[v] = x == DTYPE_F32 ? ((float *)row)[v] : bf16_to_float(((bf16 *)row)[v]);
    free(row);
    return m->ops->sync(m->backend, err);
}
