/* test_roofline.c: the estimate of a step on GPUs, against what another trainer has published of its own, and for sense. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "train/roofline.h"

static const gpu_spec *h100(void) {
    error err;
    const gpu_spec *g = gpu_spec_find("h100", &err);
    if (!g) fail_msg("%s", err.text);
    return g;
}

static model_config flash_1_4b(void) {
    static char full[] = "ffffffffffffffff";
    return (model_config){.vocab_size = 202048,
                          .n_layers = 16,
                          .d_model = 2048,
                          .d_ffn = 8192,
                          .n_heads = 32,
                          .n_kv_heads = 8,
                          .head_dim = 64,
                          .attention = full,
                          .tie_embeddings = true};
}

/* LLM.Q, benchmarks/H100x1.md: Qwen2.5 on one H100, rows of 1,024 tokens, 524,288 a step, bf16 weights, gradients and moments.
 * Its MFU counts causal attention once, as ours does. */
static void four_published_runs_are_met_within_three_points(void **state) {
    (void)state;
    static char layers[37];
    memset(layers, 'f', 36);
    const struct {
        const char *name;
        int n_layers, d_model, d_ffn, n_heads, n_kv_heads, head_dim, micro;
        int64_t vocab_size;
        double mfu;
    } runs[] = {
        {"0.5B", 24, 896, 4864, 14, 2, 64, 32, 151936, 0.467},
        {"1.5B", 28, 1536, 8960, 12, 2, 128, 32, 151936, 0.567},
        {"3B", 36, 2048, 11008, 16, 2, 128, 16, 151936, 0.592},
        {"7B", 28, 3584, 18944, 28, 4, 128, 4, 152064, 0.601},
    };
    const state_bytes all_bf16 = {.gradient = 2, .adamw = 16};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        model_config c = {.vocab_size = runs[i].vocab_size,
                          .n_layers = runs[i].n_layers,
                          .d_model = runs[i].d_model,
                          .d_ffn = runs[i].d_ffn,
                          .n_heads = runs[i].n_heads,
                          .n_kv_heads = runs[i].n_kv_heads,
                          .head_dim = runs[i].head_dim,
                          .attention = layers + 36 - runs[i].n_layers,
                          .tie_embeddings = true};
        step_shape s = {.rows = 512, .micro = runs[i].micro, .T = 1024, .ranks = 1, .step_tokens = 524288};
        step_estimate e = step_estimate_make(h100(), &default_links, &all_bf16, &c, &s);
        print_message("%s: %.1f %%, published %.1f %%\n", runs[i].name, 100 * e.mfu, 100 * runs[i].mfu);
        if (!(fabs(e.mfu - runs[i].mfu) < 0.03))
            fail_msg("%s: MFU %.1f %%, published %.1f %%", runs[i].name, 100 * e.mfu, 100 * runs[i].mfu);
    }
}

/* The parts add up; twice the rows take nearly twice the time, and are no less efficient. */
static void an_estimate_adds_up(void **state) {
    (void)state;
    model_config c = flash_1_4b();
    step_shape s = {.rows = 32, .micro = 16, .T = 2048, .ranks = 1, .step_tokens = 65536}, twice = s;
    twice.rows = 64;
    twice.step_tokens = 131072;
    step_estimate a = step_estimate_make(h100(), &default_links, &default_state, &c, &s);
    step_estimate b = step_estimate_make(h100(), &default_links, &default_state, &c, &twice);
    double sum = 0;
    for (int i = 0; i < N_STEP_TIMES; i++) sum += a.seconds[i];
    assert_true(fabs(sum / a.total - 1) < 1e-12);
    assert_true(a.seconds[STEP_COLLECTIVES] == 0);
    assert_true(b.total > 1.9 * a.total && b.total < 2 * a.total);
    assert_true(b.mfu > a.mfu);
}

/* More GPUs for the same step: faster, but by less than their number; slower links make it worse, and nothing is free. */
static void more_gpus_are_faster_and_less_efficient(void **state) {
    (void)state;
    model_config c = flash_1_4b();
    link_spec slow = default_links;
    slow.net_bandwidth /= 10;
    double rate = 0, mfu = 1;
    for (int n = 1; n <= 256; n *= 2) {
        step_shape s = {.rows = 256 / n, .micro = 16, .T = 2048, .ranks = n, .step_tokens = 524288};
        step_estimate e = step_estimate_make(h100(), &default_links, &default_state, &c, &s);
        step_estimate f = step_estimate_make(h100(), &slow, &default_state, &c, &s);
        if (!(e.tokens_per_s > rate && e.mfu < mfu))
            fail_msg("%d GPUs: %.0f tokens/s after %.0f, MFU %.3f after %.3f", n, e.tokens_per_s, rate, e.mfu, mfu);
        assert_true(n <= 8 ? f.total == e.total : f.total > e.total);
        rate = e.tokens_per_s;
        mfu = e.mfu;
    }
}

/* Of a tied embedding's gradient most is reduced beside the layers; what is left grows with the tokens of the last micro-batches,
 * up to all of it. */
static void tied_embeddings_are_reduced_early(void **state) {
    (void)state;
    model_config c = flash_1_4b();
    double whole = (double)c.vocab_size * c.d_model * (4 + 2) * 7 / 8 / default_links.node_bandwidth; /* and gathered */
    double before = 0;
    for (int rows = 2; rows <= 128; rows *= 8) {
        step_shape s = {.rows = 256, .micro = rows, .T = 2048, .ranks = 8, .step_tokens = 8 * 256 * 2048};
        double collectives = step_estimate_make(h100(), &default_links, &default_state, &c, &s).seconds[STEP_COLLECTIVES];
        if (!(collectives >= before && (rows <= 16) == (collectives < whole)))
            fail_msg("micro-batches of %d rows: %.2f ms, after %.2f ms; the whole embedding alone takes %.2f ms", rows,
                     1e3 * collectives, 1e3 * before, 1e3 * whole);
        before = collectives;
    }
}

static void an_unknown_device_is_told_those_there_are(void **state) {
    (void)state;
    error err;
    assert_null(gpu_spec_find("h1000", &err));
    assert_int_equal(err.code, STATUS_USAGE);
    assert_non_null(strstr(err.text, "\"h1000\""));
    assert_non_null(strstr(err.text, "h100 h200"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(four_published_runs_are_met_within_three_points), cmocka_unit_test(an_estimate_adds_up),
        cmocka_unit_test(more_gpus_are_faster_and_less_efficient),         cmocka_unit_test(tied_embeddings_are_reduced_early),
        cmocka_unit_test(an_unknown_device_is_told_those_there_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
