/* test_adamw.c: the optimizer's step, against a plain loop in double precision. */
#include "op_testing.h"

enum { N = 2500, STEPS = 5 }; /* more than two lines, and a part of one */

/* One step in double, as written in the paper's algorithm 2 with the schedule folded into lr. */
static void reference_step(double *w, double *m, double *v, const double *g, double scale, const adamw_step *s, int t) {
    for (int i = 0; i < N; i++) {
        double gradient = g[i] * scale, beta1 = (double)s->beta1, beta2 = (double)s->beta2, lr = (double)s->lr;
        w[i] *= 1 - lr * (double)s->weight_decay;
        m[i] = beta1 * m[i] + (1 - beta1) * gradient;
        v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient;
        double m_hat = m[i] / (1 - pow(beta1, (double)t)), v_hat = v[i] / (1 - pow(beta2, (double)t));
        w[i] -= lr * m_hat / (sqrt(v_hat) + (double)s->eps);
    }
}

static void check_steps(testing *t, dtype x, bool has_master) {
    double *w = random_doubles(t, N, 1, 0.02f), *m = new_doubles(t, N), *v = new_doubles(t, N), *g = NULL;
    void *p = new_array(t, N, x);
    float *master = has_master ? array_of(t, w, N, DTYPE_F32) : NULL, *got_m = new_floats(t, N), *got_v = new_floats(t, N);
    if (!has_master) p = array_of(t, w, N, x);
    adamw_state adamw = {0};
    for (int i = 0; i < N; i++) m[i] = v[i] = got_m[i] = got_v[i] = 0;
    for (int k = 1; k <= STEPS; k++) {
        g = random_doubles(t, N, 1 + (uint64_t)k, 0.01f);
        g[0] = 0; /* a parameter that gets no gradient only decays */
        float *x_g = array_of(t, g, N, DTYPE_F32);
        adamw_step step = {.lr = 3e-3f * (float)k, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f};
        double norm = 2 + k, sum_squares = norm * norm; /* not that of g: any scale will do */
        t->ops->adamw_begin(t->b, &adamw, &sum_squares, 1.5f, step.beta1, step.beta2);
        t->ops->adamw(t->b, p, master, got_m, got_v, x_g, &adamw, &step, x, N);
        assert_int_equal(adamw.t, k);
        reference_step(w, m, v, g, 1.5 / (norm + 1e-6), &step, k);
    }
    check_close("w", has_master ? master : p, w, N, DTYPE_F32, 1e-6, 0.1);
    check_close("m", got_m, m, N, DTYPE_F32, 1e-6, 0.01);
    check_close("v", got_v, v, N, DTYPE_F32, 1e-6, 1e-4);
    for (int i = 0; i < N; i++) w[i] = element(has_master ? master : p, DTYPE_F32, i);
    check_same_bits("p", p, array_of(t, w, N, x), N, x);
}

/* Several steps with changing rates and scales; p is the master copy rounded, where there is one. */
static void steps_are_the_formula(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        testing t;
        testing_open(&t, 2);
        check_steps(&t, i == 2 ? DTYPE_BF16 : DTYPE_F32, i > 0);
        testing_close(&t);
    }
}

/* What torch.optim.AdamW (torch 2.15, float64) gives for three steps on w = 0.5, -1.25 with g = 0.1, -3 then 0.2, 1 then -0.4,
 * 1e-4; lr 0.01, betas (0.9, 0.999), eps 1e-8, weight decay 0.1. */
static void steps_are_those_of_torch(void **state) {
    (void)state;
    static const float gradients[3][2] = {{0.1f, -3.0f}, {0.2f, 1.0f}, {-0.4f, 1e-4f}};
    static const double expected[2] = {0.48081726714661976, -1.2291820563277278};
    testing t;
    testing_open(&t, 1);
    float w[2] = {0.5f, -1.25f}, m[2] = {0}, v[2] = {0};
    adamw_state adamw = {0};
    for (int k = 0; k < 3; k++) {
        adamw_step step = {.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.1f};
        double unclipped = 9;
        t.ops->adamw_begin(t.b, &adamw, &unclipped, 0, step.beta1, step.beta2);
        t.ops->adamw(t.b, w, NULL, m, v, gradients[k], &adamw, &step, DTYPE_F32, 2);
    }
    check_close("w", w, expected, 2, DTYPE_F32, 2e-7, 1);
    testing_close(&t);
}

/* torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6)). */
static void clipping_is_that_of_torch(void **state) {
    (void)state;
    const double nan = (double)NAN, infinity = (double)INFINITY;
    const struct {
        double sum_squares;
        float max_norm;
        double expected;
    } cases[] = {
        {16, 1, 1 / (4 + 1e-6)}, {0.25, 1, 1},  {0, 1, 1},          {16, 0, 1},
        {1e60, 2, 2e-30},        {nan, 1, nan}, {infinity, 1, nan}, {infinity, 0, nan},
    };
    testing t;
    testing_open(&t, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        adamw_state adamw = {.scale = -1};
        t.ops->adamw_begin(t.b, &adamw, &cases[i].sum_squares, cases[i].max_norm, 0.9f, 0.95f);
        bool right = isnan(cases[i].expected) ? isnan(adamw.scale) : adamw.scale == (float)cases[i].expected;
        if (!right)
            fail_msg("sum of squares %g, max_norm %g: scale %.9g, expected %.9g", cases[i].sum_squares, (double)cases[i].max_norm,
                     (double)adamw.scale, cases[i].expected);
    }
    testing_close(&t);
}

/* A step whose gradients were not finite leaves parameters and moments as they are. */
static void a_norm_that_is_not_finite_changes_nothing(void **state) {
    (void)state;
    const double norms[] = {(double)NAN, (double)INFINITY, -(double)INFINITY};
    for (int i = 0; i < 3; i++) {
        testing t;
        testing_open(&t, 2);
        float w[3] = {1, 2, 3}, m[3] = {4, 5, 6}, v[3] = {7, 8, 9}, g[3] = {1, 1, 1};
        bf16 p[3] = {1, 2, 3};
        adamw_step step = {.lr = 0.1f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f};
        adamw_state adamw = {.t = 3, .rate = 1, .root = 1, .scale = 1};
        t.ops->adamw_begin(t.b, &adamw, &norms[i], 0, step.beta1, step.beta2);
        t.ops->adamw(t.b, p, w, m, v, g, &adamw, &step, DTYPE_BF16, 3);
        assert_int_equal(adamw.t, 3);
        check_same_bits("p", p, (bf16[]){1, 2, 3}, 3, DTYPE_BF16);
        check_same_bits("w", w, (float[]){1, 2, 3}, 3, DTYPE_F32);
        check_same_bits("m", m, (float[]){4, 5, 6}, 3, DTYPE_F32);
        check_same_bits("v", v, (float[]){7, 8, 9}, 3, DTYPE_F32);
        testing_close(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_the_formula),
        cmocka_unit_test(steps_are_those_of_torch),
        cmocka_unit_test(clipping_is_that_of_torch),
        cmocka_unit_test(a_norm_that_is_not_finite_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
