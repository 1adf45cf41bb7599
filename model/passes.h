/* passes.h: what model/'s own files share. */
#ifndef MOBILELLM_MODEL_PASSES_H
#define MOBILELLM_MODEL_PASSES_H

#include "model/model.h"

/* A layer's weights and where their gradients go: addresses into model.params and model.grads. NULL where the layer has none. */
typedef struct layer_weights {
    const void *attention_norm, *qkv, *o, *q_norm, *k_norm, *ffn_norm, *gate_up, *down;
    float *d_attention_norm, *d_qkv, *d_o, *d_q_norm, *d_k_norm, *d_ffn_norm, *d_gate_up, *d_down;
} layer_weights;
layer_weights model_layer_weights(const model *m, int layer);

/* The matrix that makes logits: the embedding when tied. */
const void *model_head_weight(const model *m, float **gradient);
const void *model_final_norm(const model *m, float **gradient);

/* Element `offset` of a x-array. */
static inline void *at_element(const void *base, int64_t offset, dtype x) {
    return (char *)base + (size_t)offset * dtype_size(x);
}

/* Copies the input to the backend and runs the network up to the final norm, whose output is then in m->normed. */
void model_forward(model *m, const model_input *in, const model_hooks *hooks);

/* From dh, the gradient of the residual stream after the last layer, to all gradients below it. */
void model_backward(model *m, int rows, bool accumulate, const model_hooks *hooks);

/* A part of the work, by its name in docs/step.md: for profilers. */
static inline void range_begin(const model *m, const char *name) { m->ops->range_begin(m->backend, name, -1); }
static inline void layer_begin(const model *m, int layer) { m->ops->range_begin(m->backend, "layer", layer); }
static inline void range_end(const model *m) { m->ops->range_end(m->backend); }

static inline void weights_needed(const model_hooks *hooks, int group) {
    if (hooks && hooks->weights_needed) hooks->weights_needed(hooks->context, group);
}
static inline void gradients_final(const model_hooks *hooks, int group) {
    if (hooks && hooks->gradients_final) hooks->gradients_final(hooks->context, group);
}
static inline bool rows_are_the_callers(const model_hooks *hooks) { return hooks && hooks->rows_final; }

#endif
