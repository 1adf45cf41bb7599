/* test_registry.c: the table of tensors against sizes worked out by hand, and that every element is somebody's, exactly once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/registry.h"

enum { ALIGN = 64 };

static registry build(const model_config *c, int ways) {
    error err = {0};
    registry r;
    if (registry_build(&r, c, ways, &err)) fail_msg("%s", err.text);
    return r;
}

static model_config shipped(const char *name) {
    error err = {0};
    model_config c;
    char path[128];
    snprintf(path, sizeof path, "configs/models/%s.yaml", name);
    if (model_config_read(&c, path, &err)) fail_msg("%s", err.text);
    return c;
}

/* A hybrid with all kinds of tensors: one layer of each kind, weighted QK-norm, untied. */
static model_config hybrid(char attention[4]) {
    memcpy(attention, "fsw", 4);
    return (model_config){.vocab_size = 41,
                          .n_layers = 3,
                          .d_model = 10,
                          .d_ffn = 14,
                          .n_heads = 6,
                          .n_kv_heads = 2,
                          .head_dim = 4,
                          .attention = attention,
                          .window = 4,
                          .qk_norm = QK_NORM_RMS,
                          .rope_theta = 1e4,
                          .norm_eps = 1e-5};
}

/* The sizes of the paper's models [MobileLLM-Flash, table 5], each the product of its axes. */
static void shipped_models_have_the_published_sizes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        param_counts n;
    } expected[] = {
        {"shallow-1.8b", {413794304, 413794304, 167772160, 805306368, 67584, 1800734720}},
        {"flash-350m", {206897152, 0, 36700160, 150994944, 20480, 394612736}},
        {"flash-650m", {258621440, 0, 52428800, 306708480, 28160, 617786880}},
        {"flash-1.4b", {413794304, 0, 167772160, 805306368, 67584, 1386940416}},
    };
    for (int i = 0; i < 4; i++) {
        model_config c = shipped(expected[i].name);
        registry r = build(&c, 1);
        param_counts n = registry_count(&r), e = expected[i].n;
        assert_int_equal(n.embedding, e.embedding);
        assert_int_equal(n.head, e.head);
        assert_int_equal(n.attention, e.attention);
        assert_int_equal(n.ffn, e.ffn);
        assert_int_equal(n.norms, e.norms);
        assert_int_equal(n.total, e.total);
        assert_int_equal(r.n_params, e.total);
        registry_free(&r);
        model_config_free(&c);
    }
}

typedef struct expected_tensor {
    const char *name;
    int layer;
    int64_t rows, columns; /* columns 0: a vector */
    axis axis0, axis1;
    init_kind init;
} expected_tensor;

static const expected_tensor hybrid_tensors[] = {
    {"model.embed_tokens.weight", -1, 41, 10, AXIS_VOCAB, AXIS_D_MODEL, INIT_NORMAL},
    {"model.layers.0.input_layernorm.weight", 0, 10, 0, AXIS_D_MODEL, AXIS_NONE, INIT_ONES},
    {"model.layers.0.self_attn.q_proj.weight", 0, 24, 10, AXIS_Q_HEADS, AXIS_D_MODEL, INIT_NORMAL},
    {"model.layers.0.self_attn.k_proj.weight", 0, 8, 10, AXIS_KV_HEADS, AXIS_D_MODEL, INIT_NORMAL},
    {"model.layers.0.self_attn.v_proj.weight", 0, 8, 10, AXIS_KV_HEADS, AXIS_D_MODEL, INIT_NORMAL},
    {"model.layers.0.self_attn.o_proj.weight", 0, 10, 24, AXIS_D_MODEL, AXIS_Q_HEADS, INIT_RESIDUAL},
    {"model.layers.0.self_attn.q_norm.weight", 0, 4, 0, AXIS_HEAD_DIM, AXIS_NONE, INIT_ONES},
    {"model.layers.0.self_attn.k_norm.weight", 0, 4, 0, AXIS_HEAD_DIM, AXIS_NONE, INIT_ONES},
    {"model.layers.0.post_attention_layernorm.weight", 0, 10, 0, AXIS_D_MODEL, AXIS_NONE, INIT_ONES},
    {"model.layers.0.mlp.gate_proj.weight", 0, 14, 10, AXIS_D_FFN, AXIS_D_MODEL, INIT_NORMAL},
    {"model.layers.0.mlp.up_proj.weight", 0, 14, 10, AXIS_D_FFN, AXIS_D_MODEL, INIT_NORMAL},
    {"model.layers.0.mlp.down_proj.weight", 0, 10, 14, AXIS_D_MODEL, AXIS_D_FFN, INIT_RESIDUAL},
    {"model.layers.1.post_attention_layernorm.weight", 1, 10, 0, AXIS_D_MODEL, AXIS_NONE, INIT_ONES},
    {"model.layers.1.mlp.gate_proj.weight", 1, 14, 10, AXIS_D_FFN, AXIS_D_MODEL, INIT_NORMAL},
    {"model.layers.1.mlp.up_proj.weight", 1, 14, 10, AXIS_D_FFN, AXIS_D_MODEL, INIT_NORMAL},
    {"model.layers.1.mlp.down_proj.weight", 1, 10, 14, AXIS_D_MODEL, AXIS_D_FFN, INIT_RESIDUAL},
    {"model.layers.2.self_attn.q_proj.weight", 2, 24, 10, AXIS_Q_HEADS, AXIS_D_MODEL, INIT_NORMAL},
    {"model.norm.weight", -1, 10, 0, AXIS_D_MODEL, AXIS_NONE, INIT_ONES},
    {"lm_head.weight", -1, 41, 10, AXIS_VOCAB, AXIS_D_MODEL, INIT_NORMAL},
};
enum { N_HYBRID_TENSORS = 1 + 11 + 4 + 11 + 2 };

static void tensors_have_their_names_shapes_and_kinds(void **state) {
    (void)state;
    char attention[4];
    model_config c = hybrid(attention);
    registry r = build(&c, 1);
    assert_int_equal(r.n_tensors, N_HYBRID_TENSORS);
    for (size_t i = 0; i < sizeof hybrid_tensors / sizeof *hybrid_tensors; i++) {
        expected_tensor e = hybrid_tensors[i];
        const tensor *t = registry_find(&r, e.name);
        if (!t) fail_msg("there is no %s", e.name);
        bool matrix = e.columns > 0;
        assert_int_equal(t->layer, e.layer);
        assert_int_equal(t->n_axes, matrix ? 2 : 1);
        assert_int_equal(t->shape[0], e.rows);
        if (matrix) assert_int_equal(t->shape[1], e.columns);
        assert_int_equal(t->axes[0], e.axis0);
        assert_int_equal(t->axes[1], e.axis1);
        assert_int_equal(t->init, e.init);
        assert_int_equal(t->decay, matrix);
        assert_int_equal(t->count, e.rows * (matrix ? e.columns : 1));
    }
    registry_free(&r);
}

static void what_a_network_lacks_is_not_there(void **state) {
    (void)state;
    char attention[4];
    model_config c = hybrid(attention);
    registry r = build(&c, 1);
    assert_null(registry_find(&r, "model.layers.1.input_layernorm.weight"));
    assert_null(registry_find(&r, "model.layers.1.self_attn.q_proj.weight"));
    assert_null(registry_find(&r, "model.layers.3.mlp.up_proj.weight"));
    registry_free(&r);
    c.tie_embeddings = true;
    c.qk_norm = QK_NORM_L2;
    r = build(&c, 1);
    assert_null(registry_find(&r, "lm_head.weight"));
    assert_null(registry_find(&r, "model.layers.0.self_attn.q_norm.weight"));
    assert_int_equal(r.n_tensors, N_HYBRID_TENSORS - 1 - 4);
    registry_free(&r);
}

static int64_t end_of(const registry *r, const char *name) {
    const tensor *t = registry_find(r, name);
    return t->offset + t->count;
}

static void joined_matrices_are_one(void **state) {
    (void)state;
    char attention[4];
    model_config c = hybrid(attention);
    registry r = build(&c, 1);
    assert_int_equal(end_of(&r, "model.layers.2.self_attn.q_proj.weight"),
                     registry_find(&r, "model.layers.2.self_attn.k_proj.weight")->offset);
    assert_int_equal(end_of(&r, "model.layers.2.self_attn.k_proj.weight"),
                     registry_find(&r, "model.layers.2.self_attn.v_proj.weight")->offset);
    assert_int_equal(end_of(&r, "model.layers.1.mlp.gate_proj.weight"),
                     registry_find(&r, "model.layers.1.mlp.up_proj.weight")->offset);
    registry_free(&r);
}

static int group_of(const registry *r, const tensor *t, int n_layers) {
    if (t->layer >= 0) return 1 + t->layer;
    return t == &r->tensors[0] ? 0 : 1 + n_layers;
}

/* Tensors in order without overlap, each inside the buckets of its group; buckets without gaps, each an equal part for each way.
 */
static void check_buckets(const model_config *c, int ways) {
    registry r = build(c, ways);
    assert_int_equal(r.ways, ways);
    int64_t at = 0;
    for (int i = 0; i < r.n_buckets; i++) {
        bucket b = r.buckets[i];
        assert_int_equal(b.offset, at);
        assert_true(b.count > 0 && b.count % ((int64_t)ways * ALIGN) == 0);
        if (b.group == 0) assert_true(b.count % ((int64_t)ways * c->d_model) == 0); /* whole rows */
        if (i > 0) assert_true(b.group == r.buckets[i - 1].group || b.group == r.buckets[i - 1].group + 1);
        at += b.count;
    }
    assert_int_equal(at, r.n_flat);
    assert_int_equal(r.buckets[0].group, 0);
    assert_int_equal(r.buckets[r.n_buckets - 1].group, 1 + c->n_layers);
    assert_int_equal(registry_shard_size(&r) * ways, r.n_flat);

    int64_t end = 0, sum = 0;
    for (int i = 0; i < r.n_tensors; i++) {
        const tensor *t = &r.tensors[i];
        assert_true(t->offset >= end);
        end = t->offset + t->count;
        sum += t->count;
        for (int k = 0; k < r.n_buckets; k++) {
            bucket b = r.buckets[k];
            bool meet = b.offset < end && t->offset < b.offset + b.count;
            if (meet) assert_int_equal(b.group, group_of(&r, t, c->n_layers));
        }
    }
    assert_true(end <= r.n_flat);
    assert_int_equal(sum, r.n_params);
    registry_free(&r);
}

static void buckets_cover_all_once(void **state) {
    (void)state;
    static const int ways[] = {1, 2, 3, 8, 64, 500};
    static const char *const names[] = {"shallow-1.8b", "flash-350m", "flash-650m", "tiny"};
    char attention[4];
    model_config small = hybrid(attention);
    for (int i = 0; i < 6; i++) {
        check_buckets(&small, ways[i]);
        for (int k = 0; k < 4; k++) {
            model_config c = shipped(names[k]);
            check_buckets(&c, ways[i]);
            model_config_free(&c);
        }
    }
}

/* The pieces of a rank lie in its equal parts of the buckets, in order, and `shard` counts through its own array. */
static void check_piece(const registry *r, int rank, const piece *p) {
    const tensor *t = &r->tensors[p->tensor];
    assert_true(p->count > 0 && p->first >= 0 && p->first + p->count <= t->count);
    assert_int_equal(p->flat, t->offset + p->first);
    int64_t shard = 0;
    for (int i = 0; i < r->n_buckets; i++) {
        bucket b = r->buckets[i];
        int64_t part = b.count / r->ways, from = b.offset + rank * part;
        if (p->flat >= from && p->flat < from + part) {
            assert_true(p->flat + p->count <= from + part);
            assert_int_equal(p->shard, shard + p->flat - from);
            return;
        }
        shard += part;
    }
    fail_msg("an element of %s is given to rank %d, which does not own it", t->name, rank);
}

static void check_pieces(const model_config *c, int ways) {
    registry r = build(c, ways);
    int64_t *owned = calloc((size_t)r.n_tensors, sizeof *owned);
    for (int rank = 0; rank < ways; rank++) {
        piece *pieces;
        int n = registry_pieces(&r, rank, &pieces);
        assert_true(n >= 0);
        for (int i = 0; i < n; i++) {
            check_piece(&r, rank, &pieces[i]);
            if (i > 0) assert_true(pieces[i].flat >= pieces[i - 1].flat + pieces[i - 1].count);
            owned[pieces[i].tensor] += pieces[i].count;
        }
        free(pieces);
    }
    /* Each piece lies with its owner, pieces of a rank do not overlap, and together they are as many elements as there are. */
    for (int i = 0; i < r.n_tensors; i++) assert_int_equal(owned[i], r.tensors[i].count);
    free(owned);
    registry_free(&r);
}

static void pieces_cover_all_once(void **state) {
    (void)state;
    static const int ways[] = {1, 2, 3, 7, 64};
    static const char *const names[] = {"shallow-1.8b", "flash-350m", "tiny"};
    char attention[4];
    model_config small = hybrid(attention);
    for (int i = 0; i < 5; i++) {
        check_pieces(&small, ways[i]);
        for (int k = 0; k < 3; k++) {
            model_config c = shipped(names[k]);
            check_pieces(&c, ways[i]);
            model_config_free(&c);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shipped_models_have_the_published_sizes),
        cmocka_unit_test(tensors_have_their_names_shapes_and_kinds),
        cmocka_unit_test(what_a_network_lacks_is_not_there),
        cmocka_unit_test(joined_matrices_are_one),
        cmocka_unit_test(buckets_cover_all_once),
        cmocka_unit_test(pieces_cover_all_once),
    };
    return cmocka_run_group_tests_name("registry", tests, NULL, NULL);
}
