/* test_gemm.c: the three products of a linear layer, against double precision. */
#include "gemm_testing.h"

static void check_linear(testing *t, int64_t N, int I, int64_t O, dtype x) {
    double *in = random_doubles(t, N * I, 1, 1), *w = random_doubles(t, O * I, 2, 1), *dy = random_doubles(t, N * O, 3, 1);
    double *start = random_doubles(t, O * I, 4, 1);
    void *x_in = array_of(t, in, N * I, x), *x_w = array_of(t, w, O * I, x), *x_dy = array_of(t, dy, N * O, x);
    void *y = new_array(t, N * O, x), *din = new_array(t, N * I, x);
    float *dw = new_floats(t, O * I), *added = array_of(t, start, O * I, DTYPE_F32);
    for (int64_t i = 0; i < O * I; i++) dw[i] = NAN; /* nothing of it may be read */

    t->ops->linear_forward(t->b, y, x_in, x_w, x, N, I, O);
    t->ops->linear_backward_input(t->b, din, x_dy, x_w, x, N, I, O);
    t->ops->linear_backward_weight(t->b, dw, x_dy, x_in, false, x, N, I, O);
    t->ops->linear_backward_weight(t->b, added, x_dy, x_in, true, x, N, I, O);

    check_close("y", y, product(t, in, I, 1, w, 1, I, N, I, O), N * O, x, 1e-6, sum_scale(I));
    check_close("din", din, product(t, dy, O, 1, w, I, 1, N, O, I), N * I, x, 1e-6, sum_scale(O));
    double *dw_expected = product(t, dy, 1, O, in, I, 1, O, N, I);
    check_close("dw", dw, dw_expected, O * I, DTYPE_F32, 1e-6, sum_scale(N));
    for (int64_t i = 0; i < O * I; i++) dw_expected[i] += start[i];
    check_close("dw added", added, dw_expected, O * I, DTYPE_F32, 1e-6, sum_scale(N));
}

/* Forward, backward to the input, weight gradients replaced and added, in sizes that fit no vector. */
static void products_are_exact(void **state) {
    (void)state;
    for (int i = 0; i < 4 * N_SHAPES; i++) {
        testing t;
        testing_open(&t, 1 + i / 2 % 2);
        check_linear(&t, shapes[i / 4].N, shapes[i / 4].I, shapes[i / 4].O, both_dtypes[i % 2]);
        testing_close(&t);
    }
}

/* The same primitive serves other arrays of its shape; more shapes than are kept come and go. */
static void prepared_products_are_reused(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 2);
    for (int round = 0; round < 2; round++)
        for (int64_t N = 1; N <= 300; N++) {
            float in[2] = {(float)N, 1}, w[2] = {1, (float)round}, y[300], *rows = new_floats(&t, 2 * N);
            for (int64_t n = 0; n < N; n++) memcpy(rows + 2 * n, in, sizeof in);
            t.ops->linear_forward(t.b, y, rows, w, DTYPE_F32, N, 2, 1);
            for (int64_t n = 0; n < N; n++)
                if (y[n] != (float)(N + round)) fail_msg("N %lld, row %lld: %g", (long long)N, (long long)n, (double)y[n]);
            free(t.blocks[--t.n_blocks]);
        }
    testing_close(&t);
}

/* No tokens or no outputs: nothing happens, or a sum of nothing is written. */
static void empty_sizes(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 2);
    float y[6] = {9, 9, 9, 9, 9, 9}, in[6] = {1, 1, 1, 1, 1, 1};
    t.ops->linear_forward(t.b, y, in, in, DTYPE_F32, 0, 3, 2);
    t.ops->linear_forward(t.b, y, in, in, DTYPE_F32, 2, 3, 0);
    t.ops->linear_backward_input(t.b, y, in, in, DTYPE_F32, 0, 3, 2);
    t.ops->linear_backward_weight(t.b, y, in, in, true, DTYPE_F32, 0, 3, 2);
    t.ops->linear_backward_weight(t.b, y, in, in, false, DTYPE_F32, 3, 3, 0);
    check_same_bits("untouched", y, (float[]){9, 9, 9, 9, 9, 9}, 6, DTYPE_F32);
    t.ops->linear_backward_input(t.b, y, in, in, DTYPE_F32, 1, 3, 0);
    check_same_bits("din of no outputs", y, (float[]){0, 0, 0, 9, 9, 9}, 6, DTYPE_F32);
    t.ops->linear_backward_weight(t.b, y, in, in, false, DTYPE_F32, 0, 3, 2);
    check_same_bits("dw of no tokens", y, (float[]){0, 0, 0, 0, 0, 0}, 6, DTYPE_F32);
    testing_close(&t);
}

/* Twice the same call, twice the same bits; also when the number of threads was changed behind the backend's back. */
static void runs_repeat_bit_by_bit(void **state) {
    (void)state;
    enum { N = 257, I = 320, O = 193 };
    for (int i = 0; i < 2; i++) {
        testing t, other;
        testing_open(&t, 2);
        dtype x = both_dtypes[i];
        void *dy = array_of(&t, random_doubles(&t, N * O, 1, 1), N * O, x),
             *in = array_of(&t, random_doubles(&t, N * I, 2, 1), N * I, x);
        float *first = new_floats(&t, O * I), *second = new_floats(&t, O * I);
        t.ops->linear_backward_weight(t.b, first, dy, in, false, x, N, I, O);
        testing_open(&other, 1);
        t.ops->linear_backward_weight(t.b, second, dy, in, false, x, N, I, O);
        check_same_bits("dw", first, second, O * I, DTYPE_F32);
        testing_close(&other);
        testing_close(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_exact),
        cmocka_unit_test(prepared_products_are_reused),
        cmocka_unit_test(empty_sizes),
        cmocka_unit_test(runs_repeat_bit_by_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
