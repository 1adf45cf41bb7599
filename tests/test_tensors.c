/* test_tensors.c: a model's tensors in and out of it, and the random weights it starts with. */
#include "tests/fixture.h"

static void tensors_come_back_as_they_were_set(void **state) {
    (void)state;
    for (dtype x = DTYPE_F32; x <= DTYPE_BF16; x++) {
        fixture f = fixture_open("hybrid_sfw_rms");
        network net;
        fixture_network(&net, &f, (model_options){.x = x});
        for (int i = 0; i < net.m.registry.n_tensors; i++) {
            const tensor *t = &net.m.registry.tensors[i];
            float *expected = fixture_tensor(&f, "params", t), *got = malloc((size_t)t->count * sizeof *got);
            model_get_tensor(&net.m, t, got);
            for (int64_t k = 0; k < t->count && x == DTYPE_BF16; k++) expected[k] = bf16_to_float(bf16_from_float(expected[k]));
            assert_memory_equal(got, expected, (size_t)t->count * sizeof *got);
            free(expected);
            free(got);
        }
        network_close(&net);
        fixture_close(&f);
    }
}

/* As model_init leaves it, the flat array being shared by `ways`. */
static float *initialised(const model_config *c, const char *name, uint64_t seed, int ways, int64_t *n) {
    error err = {0};
    network net;
    network_open(&net, c, (model_options){.x = DTYPE_F32, .B = 1, .T = 8, .ways = ways});
    if (model_init(&net.m, seed, 0.02f, &err)) fail_msg("%s", err.text);
    const tensor *t = registry_find(&net.m.registry, name);
    float *values = malloc((size_t)t->count * sizeof *values);
    model_get_tensor(&net.m, t, values);
    *n = t->count;
    network_close(&net);
    return values;
}

static double root_mean_square(const float *values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)values[i] * (double)values[i];
    return sqrt(sum / (double)n);
}

/* Projections into the stream start smaller by sqrt(2 n_layers), norms at one; the spread of 2^14 numbers is known to half a
 * percent. */
static void random_weights_have_their_spread(void **state) {
    (void)state;
    char attention[] = "fwfs";
    model_config c = {.vocab_size = 256,
                      .n_layers = 4,
                      .d_model = 64,
                      .d_ffn = 256,
                      .n_heads = 8,
                      .n_kv_heads = 2,
                      .head_dim = 32,
                      .attention = attention,
                      .window = 4,
                      .qk_norm = QK_NORM_RMS,
                      .rope_theta = 1e4,
                      .norm_eps = 1e-5};
    static const struct {
        const char *name;
        double spread;
    } expected[] = {{"model.embed_tokens.weight", 0.02},
                    {"lm_head.weight", 0.02},
                    {"model.layers.2.self_attn.q_proj.weight", 0.02},
                    {"model.layers.1.self_attn.o_proj.weight", 0.02 / 2.828427},
                    {"model.layers.3.mlp.up_proj.weight", 0.02},
                    {"model.layers.0.mlp.down_proj.weight", 0.02 / 2.828427},
                    {"model.layers.0.self_attn.k_norm.weight", 1},
                    {"model.norm.weight", 1}};
    for (int i = 0; i < 8; i++) {
        int64_t n;
        float *values = initialised(&c, expected[i].name, 1, 1, &n), *shared = initialised(&c, expected[i].name, 1, 4, &n);
        float *other = initialised(&c, expected[i].name, 2, 1, &n);
        double spread = root_mean_square(values, n);
        if (!(fabs(spread / expected[i].spread - 1) < 0.025))
            fail_msg("%s: %.5f, expected %.5f", expected[i].name, spread, expected[i].spread);
        assert_memory_equal(values, shared, (size_t)n * sizeof *values);
        assert_true((memcmp(values, other, (size_t)n * sizeof *values) == 0) == (expected[i].spread == 1));
        free(values);
        free(shared);
        free(other);
    }
}

/* model_init makes a tensor in parts, and so does each rank of its own: 65537 x 64 elements are a few more than any of these. */
static void random_weights_can_be_made_in_parts(void **state) {
    (void)state;
    char attention[] = "s";
    model_config c = {.vocab_size = 65537,
                      .n_layers = 1,
                      .d_model = 64,
                      .d_ffn = 2,
                      .n_heads = 1,
                      .n_kv_heads = 1,
                      .head_dim = 2,
                      .attention = attention,
                      .window = 1,
                      .tie_embeddings = true,
                      .rope_theta = 1e4,
                      .norm_eps = 1e-5};
    static const char name[] = "model.embed_tokens.weight";
    int64_t n;
    float *made = initialised(&c, name, 7, 1, &n), *values = malloc((size_t)n * sizeof *values);
    error err = {0};
    registry r;
    if (registry_build(&r, &c, 1, &err)) fail_msg("%s", err.text);
    const tensor *t = registry_find(&r, name);
    const int64_t starts[] = {0, 1, 65535, 65536, 200003, 4194304, n};
    for (int i = 0; i < 6; i++) model_init_values(values + starts[i], &c, t, 7, 0.02f, starts[i], starts[i + 1] - starts[i]);
    assert_memory_equal(values, made, (size_t)n * sizeof *values);
    assert_true(memcmp(values, values + 65536, 65536 * sizeof *values) != 0);
    registry_free(&r);
    free(values);
    free(made);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_come_back_as_they_were_set),
        cmocka_unit_test(random_weights_have_their_spread),
        cmocka_unit_test(random_weights_can_be_made_in_parts),
    };
    return cmocka_run_group_tests_name("tensors", tests, NULL, NULL);
}
