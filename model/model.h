/* model.h: the hybrid transformer (docs/step.md walks through one step): its memory, its forward and backward passes.
 *
 * Written once over ops.h. All memory comes from one arena of the backend, so that a dry run of model_layout tells its size.
 * Knows nothing of ranks, files or optimizers: two hooks tell the caller when weights are about to be used and gradients final.
 */
#ifndef MOBILELLM_MODEL_MODEL_H
#define MOBILELLM_MODEL_MODEL_H

#include "model/config.h"
#include "model/registry.h"
#include "ops.h"
#include "util/arena.h"

/* Rows of T tokens in host memory: (rows, T) each. */
typedef struct model_input {
    int rows; /* at most the model's B */
    const int32_t *tokens;
    const int32_t *targets; /* -1: nothing to predict here */
    const int32_t *doc; /* which document of its row a token belongs to; equal numbers are next to each other. NULL: one a row */
    const int32_t *pos; /* position for RoPE, below T */
} model_input;

/* Called when the weights of a group are about to be used (forward and backward), and when its gradients are final (last
 * backward). Groups as in registry.h. Either may be NULL.
 *
 * Where embeddings are tied, their gradient has two parts: the head's, there before the layers' backward passes, and that of the
 * tokens, which are the last of all. With `rows_final` the second is the caller's to add: group 0 is said to be final after the
 * head, without the rows of this micro-batch's tokens, and rows_final comes when these are in model.dh, (N,C) x. */
typedef struct model_hooks {
    void (*weights_needed)(void *context, int group);
    void (*gradients_final)(void *context, int group);
    void (*rows_final)(void *context, int64_t N);
    void *context;
} model_hooks;

typedef struct model_options {
    dtype x;
    int B, T;       /* rows of a micro-batch and their length */
    int head_chunk; /* rows of logits held at a time; 0: model_head_chunk decides */
    int ways;       /* ranks that share each bucket */
    bool training;  /* with gradients and saved activations */
    bool documents; /* every input tells documents apart (model_input.doc) */
} model_options;

/* What forward leaves for the backward pass of a layer. NULL where the layer has no attention, or the kind of norm needs nothing.
 */
typedef struct layer_activations {
    void *h_attention, *h_ffn;        /* (N,C) x: residual stream before each norm */
    float *rstd_attention, *rstd_ffn; /* (N) */
    void *qkv;                        /* (N,(H+2K)*D) x, after QK-norm and RoPE */
    void *qk_raw;                     /* (N,(H+K)*D) x, before */
    float *qk_rstd;                   /* (N,H+K) */
    void *o;                          /* (N,H*D) x */
    float *lse;                       /* (B,H,T) */
    void *gate_up;                    /* (N,2F) x */
} layer_activations;

typedef struct model {
    model_config config;
    model_options options;
    registry registry;
    const ops *ops;
    backend *backend;

    void *params; /* (n_flat) x, in the backend's memory, as the registry lays it out */
    float *grads; /* (n_flat) */

    layer_activations *layers; /* (n_layers) */
    void *h_final;             /* (N,C) x: residual stream before the final norm */
    float *rstd_final;         /* (N) */
    void *dh;                  /* (N,C) x: gradient of the residual stream */
    void *normed, *delta;      /* (N,C) x: output of a norm; of a projection into the stream, and gradient of a norm's output */
    void *work;                /* the widest temporaries, never alive together: see model/memory.c */
    float *losses, *z_losses;  /* (N) */
    double *loss_sums;         /* (2): of losses, of z_losses, of the micro-batches since the last that did not accumulate */
    int32_t *tokens, *targets, *doc, *pos; /* (N): the input, in the backend's memory */
    bool packed;                           /* the input has documents; else doc means nothing */
    float *cosines, *sines;                /* (T,D/2) */
} model;

/* Rows of logits that keep a chunk near head_logits elements (ops.h), between 256 and 8192, and at most N. */
int model_head_chunk(int64_t head_logits, int64_t vocab_size, int64_t N);

/* Builds the model with memory of the arena. On a dry arena only its peak and table are made: nothing touches the backend but
 * ops->check_sizes and ops->scratch_bytes, and the model is good for model_close only. Parameters and gradients are not set:
 * zero, as ops->alloc leaves them. */
int model_open(model *m, const model_config *c, const model_options *o, const ops *op, backend *b, arena *device, error *err);
void model_close(model *m);

/* Random weights: each tensor a function of (seed, its name), independent of ranks and layout. */
int model_init(model *m, uint64_t seed, float stddev, error *err);

/* Elements [first, first + n) of tensor t as model_init makes them, in host memory before rounding: fp32 master weights start
 * there. */
void model_init_values(float *values, const model_config *c, const tensor *t, uint64_t seed, float stddev, int64_t first,
                       int64_t n);

/* One tensor in row-major fp32 host memory: into the parameters, out of the parameters, out of the gradients. */
void model_set_tensor(model *m, const tensor *t, const float *values);
void model_get_tensor(model *m, const tensor *t, float *values);
void model_get_gradient(model *m, const tensor *t, float *values);

/* Forward and backward over one micro-batch. Gradients of scale * (sum of losses) are added to grads, and the sums of losses and
 * z-losses over the valid tokens (not scaled) to m->loss_sums; or replace them when `accumulate` is false. Does not wait for the
 * work to be done. */
void model_train(model *m, const model_input *in, float scale, float z_loss, bool accumulate, const model_hooks *hooks);

/* No micro-batch in this step: gradients and loss sums are zero. */
void model_train_nothing(model *m);

/* Forward only. losses (host, rows*T): of each token, 0 where there is nothing to predict. */
int model_losses(model *m, const model_input *in, float *losses, error *err);

/* Forward only. logits (host, V) fp32: of the token at position `at` of row 0. */
int model_logits(model *m, const model_input *in, int at, float *logits, error *err);

/* Keys that a query sees, itself included, averaged over the T positions of a row. window 0: all before it. */
double model_mean_visible_keys(int window, int T);

/* Floating-point operations of a training step per token, as the mask leaves them: 6 per matrix weight (the embedding lookup is
 * free, the head is not), and attention 12 * H*D * (mean number of visible keys) a layer. */
double model_flops_per_token(const model_config *c, int T);

#endif
