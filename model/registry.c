/* registry.c: from a config to the table of tensors, their places in the flat array, and the buckets they are shared in.
 *
 * A bucket holds at most BUCKET_ELEMENTS, so that a reduction's temporary memory stays small and the first one can start early.
 */
#include "model/registry.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TENSOR_ALIGN = 64, BUCKET_ELEMENTS = 1 << 24, TENSORS_PER_LAYER = 11 };

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Where the table is being filled: `at` is the next free element of the flat array. */
typedef struct builder {
    registry *r;
    int64_t at;
} builder;

/* joined: lies directly behind the tensor before it, with which it is one matrix. */
static void add(builder *b, int layer, const char *name, axis axis0, int64_t rows, axis axis1, int64_t columns, init_kind init,
                bool joined) {
    tensor *t = &b->r->tensors[b->r->n_tensors++];
    *t = (tensor){.layer = layer, .shape = {rows, columns}, .axes = {axis0, axis1}, .init = init};
    if (layer >= 0)
        snprintf(t->name, sizeof t->name, "model.layers.%d.%s.weight", layer, name);
    else
        snprintf(t->name, sizeof t->name, "%s.weight", name);
    t->n_axes = axis1 == AXIS_NONE ? 1 : 2;
    t->decay = t->n_axes == 2;
    t->count = rows * columns;
    t->offset = joined ? b->at : round_up(b->at, TENSOR_ALIGN);
    b->at = t->offset + t->count;
    b->r->n_params += t->count;
}

static void add_vector(builder *b, int layer, const char *name, axis a, int64_t n) {
    add(b, layer, name, a, n, AXIS_NONE, 1, INIT_ONES, false);
}

static void add_layer(builder *b, int i, const model_config *c) {
    int64_t C = c->d_model, F = c->d_ffn, Q = (int64_t)c->n_heads * c->head_dim, KV = (int64_t)c->n_kv_heads * c->head_dim;
    if (c->attention[i] != 's') {
        add_vector(b, i, "input_layernorm", AXIS_D_MODEL, C);
        add(b, i, "self_attn.q_proj", AXIS_Q_HEADS, Q, AXIS_D_MODEL, C, INIT_NORMAL, false);
        add(b, i, "self_attn.k_proj", AXIS_KV_HEADS, KV, AXIS_D_MODEL, C, INIT_NORMAL, true);
        add(b, i, "self_attn.v_proj", AXIS_KV_HEADS, KV, AXIS_D_MODEL, C, INIT_NORMAL, true);
        add(b, i, "self_attn.o_proj", AXIS_D_MODEL, C, AXIS_Q_HEADS, Q, INIT_RESIDUAL, false);
        if (c->qk_norm == QK_NORM_RMS) {
            add_vector(b, i, "self_attn.q_norm", AXIS_HEAD_DIM, c->head_dim);
            add_vector(b, i, "self_attn.k_norm", AXIS_HEAD_DIM, c->head_dim);
        }
    }
    add_vector(b, i, "post_attention_layernorm", AXIS_D_MODEL, C);
    add(b, i, "mlp.gate_proj", AXIS_D_FFN, F, AXIS_D_MODEL, C, INIT_NORMAL, false);
    add(b, i, "mlp.up_proj", AXIS_D_FFN, F, AXIS_D_MODEL, C, INIT_NORMAL, true);
    add(b, i, "mlp.down_proj", AXIS_D_MODEL, C, AXIS_D_FFN, F, INIT_RESIDUAL, false);
}

/* Pads the group that began at `start` to what the ways share equally, in multiples of `share`, and cuts it into buckets. */
static int close_group(builder *b, int group, int64_t start, int64_t share) {
    registry *r = b->r;
    int64_t unit = r->ways * share;
    int64_t largest = BUCKET_ELEMENTS / unit * unit;
    if (largest == 0) largest = unit;
    int64_t end = start + round_up(b->at - start, unit);
    int n = (int)((end - start + largest - 1) / largest);
    bucket *grown = realloc(r->buckets, (size_t)(r->n_buckets + n) * sizeof *grown);
    if (!grown) return -1;
    r->buckets = grown;
    for (int64_t at = start; at < end; at += largest) {
        int64_t count = end - at < largest ? end - at : largest;
        r->buckets[r->n_buckets++] = (bucket){group, at, count};
    }
    b->at = end;
    return 0;
}

/* The least number of elements that is a multiple both of a row and of TENSOR_ALIGN. */
static int64_t whole_rows(int64_t length) {
    int64_t elements = length;
    while (elements % TENSOR_ALIGN) elements += length;
    return elements;
}

int registry_build(registry *r, const model_config *c, int ways, error *err) {
    *r = (registry){.ways = ways};
    builder b = {r, 0};
    r->tensors = calloc((size_t)c->n_layers * TENSORS_PER_LAYER + 3, sizeof *r->tensors);
    if (!r->tensors) goto no_memory;
    add(&b, -1, "model.embed_tokens", AXIS_VOCAB, c->vocab_size, AXIS_D_MODEL, c->d_model, INIT_NORMAL, false);
    if (close_group(&b, 0, 0, whole_rows(c->d_model))) goto no_memory;
    for (int i = 0; i < c->n_layers; i++) {
        int64_t start = b.at;
        add_layer(&b, i, c);
        if (close_group(&b, 1 + i, start, TENSOR_ALIGN)) goto no_memory;
    }
    int64_t start = b.at;
    add_vector(&b, -1, "model.norm", AXIS_D_MODEL, c->d_model);
    if (!c->tie_embeddings) add(&b, -1, "lm_head", AXIS_VOCAB, c->vocab_size, AXIS_D_MODEL, c->d_model, INIT_NORMAL, false);
    if (close_group(&b, 1 + c->n_layers, start, TENSOR_ALIGN)) goto no_memory;
    r->n_flat = b.at;
    return 0;
no_memory:
    registry_free(r);
    return error_set(err, STATUS_RESOURCE, "no memory for the table of %d layers", c->n_layers);
}

void registry_free(registry *r) {
    free(r->tensors);
    free(r->buckets);
    *r = (registry){0};
}

const tensor *registry_find(const registry *r, const char *name) {
    for (int i = 0; i < r->n_tensors; i++)
        if (strcmp(r->tensors[i].name, name) == 0) return &r->tensors[i];
    return NULL;
}

int64_t registry_shard_size(const registry *r) { return r->n_flat / r->ways; }

int registry_pieces(const registry *r, int rank, piece **pieces) {
    int n = 0, capacity = r->n_tensors + r->n_buckets; /* each bucket's part can cut one tensor more */
    *pieces = malloc((size_t)capacity * sizeof **pieces);
    if (!*pieces) return -1;
    int64_t shard = 0;
    int t = 0;
    for (int i = 0; i < r->n_buckets; i++) {
        int64_t part = r->buckets[i].count / r->ways, from = r->buckets[i].offset + rank * part, to = from + part;
        for (; t < r->n_tensors && r->tensors[t].offset < to; t++) {
            const tensor *x = &r->tensors[t];
            int64_t first = x->offset > from ? x->offset : from, end = x->offset + x->count < to ? x->offset + x->count : to;
            if (first >= end) continue;
            assert(n < capacity);
            (*pieces)[n++] = (piece){t, first - x->offset, end - first, first, shard + first - from};
        }
        if (t > 0) t--; /* the last tensor may go on in the next bucket */
        shard += part;
    }
    return n;
}

param_counts registry_count(const registry *r) {
    param_counts n = {0};
    for (int i = 0; i < r->n_tensors; i++) {
        const tensor *t = &r->tensors[i];
        int64_t *part = t->n_axes == 1                        ? &n.norms
                        : t->layer >= 0                       ? (strstr(t->name, ".mlp.") ? &n.ffn : &n.attention)
                        : strncmp(t->name, "lm_head", 7) == 0 ? &n.head
                                                              : &n.embedding;
        *part += t->count;
        n.total += t->count;
    }
    return n;
}
