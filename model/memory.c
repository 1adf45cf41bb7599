/* memory.c: where everything of a model lies: one pass over the config that takes memory from an arena, dry or real.
 *
 * A training step saves per layer only what backward cannot cheaply compute again: the residual stream before each norm, qkv, the
 * attention output with its log-sum-exp, and gate|up. Norm outputs and the SwiGLU product are recomputed. Without training all
 * layers share one set of these buffers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/passes.h"

int model_head_chunk(int64_t head_logits, int64_t vocab_size, int64_t N) {
    int64_t rows = head_logits / vocab_size;
    rows = rows < 256 ? 256 : rows > 8192 ? 8192 : rows;
    return (int)(rows < N ? rows : N);
}

static int64_t max3(int64_t a, int64_t b, int64_t c) {
    int64_t ab = a > b ? a : b;
    return ab > c ? ab : c;
}

/* in_place: one residual stream that every norm updates; else each keeps its own input for backward. */
static layer_activations layer_memory(const model *m, arena *a, bool attention, bool in_place) {
    const model_config *c = &m->config;
    dtype x = m->options.x;
    int64_t N = (int64_t)m->options.B * m->options.T, C = c->d_model, H = c->n_heads, K = c->n_kv_heads, D = c->head_dim;
    size_t e = dtype_size(x);
    layer_activations l = {0};
    if (attention) {
        l.h_attention = arena_alloc(a, "activations", (size_t)(N * C) * e);
        l.rstd_attention = arena_alloc(a, "activations", (size_t)N * sizeof(float));
        l.qkv = arena_alloc(a, "activations", (size_t)(N * (H + 2 * K) * D) * e);
        if (c->qk_norm == QK_NORM_RMS) l.qk_raw = arena_alloc(a, "activations", (size_t)(N * (H + K) * D) * e);
        if (c->qk_norm != QK_NORM_NONE) l.qk_rstd = arena_alloc(a, "activations", (size_t)(N * (H + K)) * sizeof(float));
        l.o = arena_alloc(a, "activations", (size_t)(N * H * D) * e);
        l.lse = arena_alloc(a, "activations", (size_t)(N * H) * sizeof(float));
    }
    l.h_ffn = in_place ? l.h_attention : arena_alloc(a, "activations", (size_t)(N * C) * e);
    l.rstd_ffn = arena_alloc(a, "activations", (size_t)N * sizeof(float));
    l.gate_up = arena_alloc(a, "activations", (size_t)(N * 2 * c->d_ffn) * e);
    return l;
}

/* All layers see the same memory. */
static void shared_layer_memory(model *m, arena *a) {
    layer_activations all = layer_memory(m, a, true, true);
    for (int i = 0; i < m->config.n_layers; i++) m->layers[i] = all;
    m->h_final = all.h_attention;
}

static void activation_memory(model *m, arena *a) {
    const model_config *c = &m->config;
    const model_options *o = &m->options;
    int64_t N = (int64_t)o->B * o->T, C = c->d_model, H = c->n_heads, K = c->n_kv_heads, D = c->head_dim;
    size_t e = dtype_size(o->x);
    if (o->training) {
        for (int i = 0; i < c->n_layers; i++) m->layers[i] = layer_memory(m, a, c->attention[i] != 's', false);
        m->h_final = arena_alloc(a, "activations", (size_t)(N * C) * e);
        m->dh = arena_alloc(a, "temporaries", (size_t)(N * C) * e);
    } else {
        shared_layer_memory(m, a);
    }
    m->rstd_final = arena_alloc(a, "activations", (size_t)N * sizeof(float));
    m->normed = arena_alloc(a, "temporaries", (size_t)(N * C) * e);
    m->delta = arena_alloc(a, "temporaries", (size_t)(N * C) * e);
    /* The SwiGLU product and its gradient (N,F); the gradients of qkv (N,(H+2K)*D) and behind it of o (N,H*D); the logits. */
    int64_t widest = max3(N * c->d_ffn, N * (2 * H + 2 * K) * D, o->head_chunk * c->vocab_size);
    m->work = arena_alloc(a, "temporaries", (size_t)widest * e);
    m->losses = arena_alloc(a, "temporaries", (size_t)N * sizeof(float));
    m->z_losses = arena_alloc(a, "temporaries", (size_t)N * sizeof(float));
    m->loss_sums = arena_alloc(a, "temporaries", 2 * sizeof(double));
    int32_t **inputs[] = {&m->tokens, &m->targets, &m->doc, &m->pos};
    for (int i = 0; i < 4; i++) *inputs[i] = arena_alloc(a, "temporaries", (size_t)N * sizeof(int32_t));
    m->cosines = arena_alloc(a, "temporaries", (size_t)(o->T * (D / 2)) * sizeof(float));
    m->sines = arena_alloc(a, "temporaries", (size_t)(o->T * (D / 2)) * sizeof(float));
}

/* Angles in double: at position 8191 an fp32 product would be off by 2^-11 of a turn. */
static int fill_rope_tables(model *m, error *err) {
    int half = m->config.head_dim / 2;
    size_t bytes = (size_t)m->options.T * (size_t)half * sizeof(float);
    float *table = malloc(2 * bytes);
    if (!table) return error_set(err, STATUS_RESOURCE, "no memory for the rotary tables (%zu bytes)", 2 * bytes);
    float *cosines = table, *sines = table + (size_t)m->options.T * (size_t)half;
    for (int64_t t = 0; t < m->options.T; t++)
        for (int p = 0; p < half; p++) {
            double angle = (double)t * pow(m->config.rope_theta, -2.0 * p / m->config.head_dim);
            cosines[t * half + p] = (float)cos(angle);
            sines[t * half + p] = (float)sin(angle);
        }
    m->ops->copy_in(m->backend, m->cosines, cosines, bytes);
    m->ops->copy_in(m->backend, m->sines, sines, bytes);
    int result = m->ops->sync(m->backend, err);
    free(table);
    return result;
}

/* The config's strings are not shared: a model outlives the file it was read from. */
static int copy_config(model_config *to, const model_config *from, error *err) {
    *to = *from;
    to->attention = strdup(from->attention);
    return to->attention ? 0 : error_set(err, STATUS_RESOURCE, "no memory for a model config");
}

static op_limits limits_of(const model_config *c, const model_options *o) {
    return (op_limits){.x = o->x,
                       .B = o->B,
                       .T = o->T,
                       .C = c->d_model,
                       .F = c->d_ffn,
                       .H = c->n_heads,
                       .K = c->n_kv_heads,
                       .D = c->head_dim,
                       .V = c->vocab_size,
                       .head_rows = o->head_chunk,
                       .training = o->training,
                       .full = strchr(c->attention, 'f') != NULL,
                       .window = strchr(c->attention, 'w') ? c->window : 0,
                       .documents = o->documents};
}

int model_open(model *m, const model_config *c, const model_options *o, const ops *op, backend *b, arena *device, error *err) {
    *m = (model){.options = *o, .ops = op, .backend = b};
    int64_t N = (int64_t)o->B * o->T;
    if (m->options.head_chunk == 0 || m->options.head_chunk > N)
        m->options.head_chunk = model_head_chunk(op->head_logits, c->vocab_size, N);
    op_limits limits = limits_of(c, &m->options);
    if (op->check_sizes && op->check_sizes(b, &limits, err)) return -1;
    if (copy_config(&m->config, c, err)) return -1;
    if (registry_build(&m->registry, c, o->ways, err)) goto fail;
    m->layers = calloc((size_t)c->n_layers, sizeof *m->layers);
    if (!m->layers) {
        error_set(err, STATUS_RESOURCE, "no memory for a model of %d layers", c->n_layers);
        goto fail;
    }
    size_t flat = (size_t)m->registry.n_flat;
    m->params = arena_alloc(device, "parameters", flat * dtype_size(o->x));
    if (o->training) m->grads = arena_alloc(device, "gradients", flat * sizeof(float));
    activation_memory(m, device);
    size_t scratch_bytes = op->scratch_bytes(b, &limits);
    void *scratch = arena_alloc(device, "scratch", scratch_bytes);
    if (device->base == NULL) return 0;
    op->set_scratch(b, scratch, scratch_bytes);
    if (fill_rope_tables(m, err)) goto fail;
    return 0;
fail:
    model_close(m);
    return -1;
}

void model_close(model *m) {
    registry_free(&m->registry);
    free(m->config.attention);
    free(m->layers);
    *m = (model){0};
}
