/* test_swiglu.c: the gated activation, against double precision. */
#include "op_testing.h"

static const struct shape {
    int64_t N;
    int F;
} shapes[] = {{1, 24}, {7, 65}, {33, 20}, {2, 1100}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static double silu(double a) { return a / (1 + exp(-a)); }

static void check_forward(testing *t, int64_t N, int F, dtype x) {
    double *gate_up = random_doubles(t, N * 2 * F, 1, 3), *y = new_doubles(t, N * F);
    void *x_gate_up = array_of(t, gate_up, N * 2 * F, x), *x_y = new_array(t, N * F, x);
    t->ops->swiglu_forward(t->b, x_y, x_gate_up, x, N, F);
    for (int64_t n = 0; n < N; n++)
        for (int f = 0; f < F; f++) y[n * F + f] = silu(gate_up[n * 2 * F + f]) * gate_up[n * 2 * F + F + f];
    for (int64_t i = 0; i < N * F; i++) check_close("y", (char *)x_y + (size_t)i * dtype_size(x), y + i, 1, x, 5e-7, fabs(y[i]));
}

/* Each element to a few units in the last place of itself, however small. */
static void forward_is_the_formula(void **state) {
    (void)state;
    for (int i = 0; i < 2 * N_SHAPES; i++) {
        testing t;
        testing_open(&t, 2);
        check_forward(&t, shapes[i / 2].N, shapes[i / 2].F, both_dtypes[i % 2]);
        testing_close(&t);
    }
}

/* Gates of any size: silu(a) is a on the far right, 0 on the far left. */
static void extreme_gates_saturate(void **state) {
    (void)state;
    double gate_up[] = {-1e30, -104, -90, 0, 90, 104, 1e30, 1, 1, 1, 1, 1, 1, 1};
    enum { F = 7 };
    testing t;
    testing_open(&t, 1);
    void *gate = array_of(&t, gate_up, 2 * F, DTYPE_F32);
    float y[F];
    t.ops->swiglu_forward(t.b, y, gate, DTYPE_F32, 1, F);
    double expected[F];
    for (int f = 0; f < F; f++) expected[f] = gate_up[f] < 0 ? 0 : gate_up[f];
    for (int f = 0; f < F; f++) check_close("y", y + f, expected + f, 1, DTYPE_F32, 1e-6, fabs(expected[f]) + 1e-30);
    testing_close(&t);
}

struct swiglu_problem {
    int64_t N;
    int F;
    double *gate_up, *dy;
};

static double swiglu_loss(const void *context) {
    const struct swiglu_problem *p = context;
    double loss = 0;
    for (int64_t n = 0; n < p->N; n++) {
        const double *gate = p->gate_up + n * 2 * p->F, *up = gate + p->F;
        for (int f = 0; f < p->F; f++) loss += p->dy[n * p->F + f] * silu(gate[f]) * up[f];
    }
    return loss;
}

static void check_backward(testing *t, int64_t N, int F, dtype x) {
    struct swiglu_problem p = {N, F, random_doubles(t, N * 2 * F, 1, 2), random_doubles(t, N * F, 2, 1)};
    void *gate_up = array_of(t, p.gate_up, N * 2 * F, x), *dy = array_of(t, p.dy, N * F, x), *y = new_array(t, N * F, x);
    t->ops->swiglu_forward(t->b, y, gate_up, x, N, F);
    t->ops->swiglu_backward(t->b, gate_up, dy, x, N, F);
    check_close("gradient", gate_up, numeric_gradient(t, p.gate_up, N * 2 * F, swiglu_loss, &p), N * 2 * F, x, 1e-6, 4);
    check_same_bits("y again", dy, y, N * F, x);
}

/* In place: gate and up become their gradients, dy becomes y again, bit by bit what forward wrote. */
static void backward_is_the_derivative_and_makes_y_again(void **state) {
    (void)state;
    for (int i = 0; i < 2 * N_SHAPES; i++) {
        testing t;
        testing_open(&t, 2);
        check_backward(&t, shapes[i / 2].N, shapes[i / 2].F, both_dtypes[i % 2]);
        testing_close(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_the_formula),
        cmocka_unit_test(extreme_gates_saturate),
        cmocka_unit_test(backward_is_the_derivative_and_makes_y_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
