/* test_profile.c: the wrapper of train/profile.h as a backend. What it counts over a whole run is the matter of test_profile.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "train/profile.h"

/* A profile before the CPU backend, by way of a table that a test may damage. */
typedef struct wrapped {
    ops real;
    const ops *op;
    backend *b;
    profile *p;
    float values[64];
} wrapped;

static void wrapped_open(wrapped *w) {
    error err = {0};
    model_config c = {.vocab_size = 100, .n_layers = 1, .d_model = 8, .d_ffn = 16, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4};
    *w = (wrapped){.real = *cpu_ops()};
    w->op = &w->real;
    if (w->op->open(&w->b, 1, 0, &err)) fail_msg("%s", err.text);
    if (profile_open(&w->p, &c, &w->op, &w->b, &err)) fail_msg("%s", err.text);
}

static void wrapped_close(wrapped *w) { w->op->close(w->b); }

static int refuse(backend *b, error *err) {
    (void)b;
    return error_set(err, STATUS_INTERNAL, "zero: refused");
}

static void the_wrapped_backend_does_the_work(void **state) {
    (void)state;
    wrapped w;
    wrapped_open(&w);
    double total = 1;
    for (int i = 0; i < 64; i++) w.values[i] = (float)i;
    w.op->sum(w.b, &total, w.values, 64);
    assert_true(total == 1 + 64 * 63 / 2);
    assert_string_equal(w.op->name, "cpu");
    assert_true(w.p->memory_speed > 1e8);
    assert_int_equal(w.p->parts[PART_REDUCTIONS].calls, 1);
    assert_true(w.p->parts[PART_REDUCTIONS].bytes == sizeof w.values);
    wrapped_close(&w);
}

/* Waiting after each op asks the backend for its failures, which are for the caller: told once, and not before it asks. */
static void a_failure_inside_an_op_reaches_the_callers_sync(void **state) {
    (void)state;
    error err = {0};
    wrapped w;
    wrapped_open(&w);
    w.real.sync = refuse;
    w.op->zero(w.b, w.values, sizeof w.values);
    w.real.sync = cpu_ops()->sync;
    w.op->zero(w.b, w.values, sizeof w.values);
    assert_int_equal(w.op->sync(w.b, &err), -1);
    assert_string_equal(err.text, "zero: refused");
    assert_int_equal(w.op->sync(w.b, &err), 0);
    wrapped_close(&w);
}

static void what_happens_within_a_part_is_that_parts(void **state) {
    (void)state;
    wrapped w;
    wrapped_open(&w);
    profile_enter(w.p);
    w.op->zero(w.b, w.values, sizeof w.values);
    profile_leave(w.p, PART_EVALUATION, 0);
    w.op->zero(w.b, w.values, sizeof w.values);
    assert_int_equal(w.p->parts[PART_EVALUATION].calls, 1);
    assert_int_equal(w.p->parts[PART_COPIES].calls, 1);
    assert_true(w.p->parts[PART_COPIES].bytes == sizeof w.values);
    profile_enter(NULL); /* a run that is not profiled */
    profile_leave(NULL, PART_DATA, 0);
    profile_step(NULL, 1);
    wrapped_close(&w);
}

static void the_first_step_is_left_out(void **state) {
    (void)state;
    wrapped w;
    wrapped_open(&w);
    for (int step = 0; step < 3; step++) {
        w.op->zero(w.b, w.values, sizeof w.values);
        profile_step(w.p, step == 0 ? 100 : 0.5);
    }
    assert_int_equal(w.p->steps, 2);
    assert_true(w.p->step_seconds == 1);
    assert_int_equal(w.p->parts[PART_COPIES].calls, 2);
    assert_true(profile_rest(w.p) == 1 - w.p->parts[PART_COPIES].seconds);
    wrapped_close(&w);
}

/* The config above: qkv is 16 x 8, o 8 x 8, gate|up 32 x 8, down 8 x 16, the head 100 x 8. */
static void labels_name_matrix_and_pass(void **state) {
    (void)state;
    char text[64];
    wrapped w;
    wrapped_open(&w);
    assert_string_equal(profile_label(w.p, PART_GEMM, text), "qkv forward");
    assert_string_equal(profile_label(w.p, PART_GEMM + 3 * N_PASSES + PASS_BACKWARD_WEIGHT, text), "down d weight");
    assert_string_equal(profile_label(w.p, PART_CHECKPOINT, text), "checkpoint");
    for (int i = 2; i <= 4; i += 2) w.p->matrices[i].O = 16; /* as qkv */
    assert_string_equal(profile_label(w.p, PART_GEMM, text), "qkv, gate|up, head forward");
    wrapped_close(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_wrapped_backend_does_the_work),
        cmocka_unit_test(a_failure_inside_an_op_reaches_the_callers_sync),
        cmocka_unit_test(what_happens_within_a_part_is_that_parts),
        cmocka_unit_test(the_first_step_is_left_out),
        cmocka_unit_test(labels_name_matrix_and_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
