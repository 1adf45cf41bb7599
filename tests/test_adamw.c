/* test_adamw.c: the optimizer's step, against a plain loop in double precision. */
#include "op_testing.h"

enum { N = 2500, STEPS = 5 }; /* more than two lines, and a part of one */

/* One step in double, as written in the paper's algorithm 2 with the schedule folded into lr. */
static void reference_step(double *w, double *m, double *v, const double *g, double scale, const adamw_step *s) {
    for (int i = 0; i < N; i++) {
        double gradient = g[i] * scale, beta1 = (double)s->beta1, beta2 = (double)s->beta2, lr = (double)s->lr;
        w[i] *= 1 - lr * (double)s->weight_decay;
        m[i] = beta1 * m[i] + (1 - beta1) * gradient;
        v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient;
        double m_hat = m[i] / (1 - pow(beta1, (double)s->t)), v_hat = v[i] / (1 - pow(beta2, (double)s->t));
        w[i] -= lr * m_hat / (sqrt(v_hat) + (double)s->eps);
    }
}

static void check_steps(testing *t, dtype x, bool has_master) {
    double *w = random_doubles(t, N, 1, 0.02f), *m = new_doubles(t, N), *v = new_doubles(t, N), *g = NULL;
    void *p = new_array(t, N, x);
    float *master = has_master ? array_of(t, w, N, DTYPE_F32) : NULL, *got_m = new_floats(t, N), *got_v = new_floats(t, N);
    if (!has_master) p = array_of(t, w, N, x);
    for (int i = 0; i < N; i++) m[i] = v[i] = got_m[i] = got_v[i] = 0;
    for (int k = 1; k <= STEPS; k++) {
        g = random_doubles(t, N, 1 + (uint64_t)k, 0.01f);
        g[0] = 0; /* a parameter that gets no gradient only decays */
        float *x_g = array_of(t, g, N, DTYPE_F32), scale = 0.5f + 0.1f * (float)k;
        adamw_step step = {.lr = 3e-3f * (float)k, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f, .t = k};
        t->ops->adamw(t->b, p, master, got_m, got_v, x_g, &scale, &step, x, N);
        reference_step(w, m, v, g, (double)scale, &step);
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
    float w[2] = {0.5f, -1.25f}, m[2] = {0}, v[2] = {0}, one = 1;
    for (int k = 0; k < 3; k++) {
        adamw_step step = {.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.1f, .t = k + 1};
        t.ops->adamw(t.b, w, NULL, m, v, gradients[k], &one, &step, DTYPE_F32, 2);
    }
    check_close("w", w, expected, 2, DTYPE_F32, 2e-7, 1);
    testing_close(&t);
}

/* A step whose gradients were not finite leaves parameters and moments as they are. */
static void a_scale_that_is_not_finite_changes_nothing(void **state) {
    (void)state;
    const float scales[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        testing t;
        testing_open(&t, 2);
        float w[3] = {1, 2, 3}, m[3] = {4, 5, 6}, v[3] = {7, 8, 9}, g[3] = {1, 1, 1};
        bf16 p[3] = {1, 2, 3};
        adamw_step step = {.lr = 0.1f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f, .t = 3};
        t.ops->adamw(t.b, p, w, m, v, g, &scales[i], &step, DTYPE_BF16, 3);
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
        cmocka_unit_test(a_scale_that_is_not_finite_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
