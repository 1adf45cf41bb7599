/* test_rmsnorm.c: RMSNorm with the residual addition, against double precision. */
#include "op_testing.h"

static const struct shape {
    int64_t N;
    int C;
} shapes[] = {{1, 24}, {7, 65}, {33, 24}, {3, 1500}}; /* more tokens than a block, more columns than a line */
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static const double eps = 1e-5;

/* y = h * rstd * w of one row; returns rstd */
static double norm_row(double *y, const double *h, const double *w, int C) {
    double squares = 0;
    for (int c = 0; c < C; c++) squares += h[c] * h[c];
    double rstd = 1 / sqrt(squares / C + eps);
    for (int c = 0; c < C; c++) y[c] = h[c] * rstd * w[c];
    return rstd;
}

static void check_forward(testing *t, int64_t N, int C, bool add, dtype x) {
    int64_t n = N * C;
    double *h = random_doubles(t, n, 1, 1), *delta = random_doubles(t, n, 2, 1), *w = random_doubles(t, C, 3, 1);
    void *x_h = array_of(t, h, n, x), *x_delta = array_of(t, delta, n, x), *x_w = array_of(t, w, C, x), *x_y = new_array(t, n, x);
    float *rstd = new_floats(t, N);
    t->ops->rmsnorm_forward(t->b, x_y, rstd, add ? x_h : NULL, x_h, add ? x_delta : NULL, x_w, (float)eps, x, N, C);

    double *sum = new_doubles(t, n), *y = new_doubles(t, n), *expected_rstd = new_doubles(t, N);
    for (int64_t i = 0; i < n; i++) sum[i] = add ? h[i] + delta[i] : h[i];
    void *rounded_sum = array_of(t, sum, n, x);
    for (int64_t row = 0; row < N; row++) expected_rstd[row] = norm_row(y + row * C, sum + row * C, w, C);
    check_same_bits("h_out", x_h, rounded_sum, n, x);
    check_close("rstd", rstd, expected_rstd, N, DTYPE_F32, 1e-6, 1);
    check_close("y", x_y, y, n, x, 1e-6, 4);
}

/* h_out is the rounded sum, and y the norm of that; h_out may be h, and does not exist when there is nothing to add. */
static void forward_is_the_formula(void **state) {
    (void)state;
    for (int i = 0; i < 4 * N_SHAPES; i++) {
        testing t;
        testing_open(&t, 2);
        check_forward(&t, shapes[i / 4].N, shapes[i / 4].C, i / 2 % 2, both_dtypes[i % 2]);
        testing_close(&t);
    }
}

struct norm_problem {
    int64_t N;
    int C;
    double *h, *w, *dy, *y;
};

static double norm_loss(const void *context) {
    const struct norm_problem *p = context;
    double loss = 0;
    for (int64_t row = 0; row < p->N; row++) {
        norm_row(p->y, p->h + row * p->C, p->w, p->C);
        for (int c = 0; c < p->C; c++) loss += p->dy[row * p->C + c] * p->y[c];
    }
    return loss;
}

static void check_backward(testing *t, int64_t N, int C, bool accumulate, dtype x) {
    int64_t n = N * C;
    struct norm_problem p = {
        N, C, random_doubles(t, n, 1, 1), random_doubles(t, C, 2, 1), random_doubles(t, n, 3, 1), new_doubles(t, C)};
    double *dh = random_doubles(t, n, 4, 1), *dw = random_doubles(t, C, 5, 1), *row_y = new_doubles(t, C);
    void *x_h = array_of(t, p.h, n, x), *x_w = array_of(t, p.w, C, x), *x_dy = array_of(t, p.dy, n, x),
         *x_dh = array_of(t, dh, n, x);
    float *got_dw = array_of(t, dw, C, DTYPE_F32), *rstd = new_floats(t, N);
    for (int64_t row = 0; row < N; row++) rstd[row] = (float)norm_row(row_y, p.h + row * C, p.w, C);

    t->ops->rmsnorm_backward(t->b, x_dh, got_dw, x_dy, x_h, rstd, x_w, accumulate, x, N, C);

    double *h_gradient = numeric_gradient(t, p.h, n, norm_loss, &p), *w_gradient = numeric_gradient(t, p.w, C, norm_loss, &p);
    for (int64_t i = 0; i < n; i++) dh[i] += h_gradient[i];
    for (int c = 0; c < C; c++) dw[c] = (accumulate ? dw[c] : 0) + w_gradient[c];
    check_close("dh", x_dh, dh, n, x, 2e-6, 4);
    check_close("dw", got_dw, dw, C, DTYPE_F32, 1e-6, 4 * sqrt((double)N));
}

/* dh is added to the gradient of the residual stream; dw is added or replaced. */
static void backward_is_the_derivative(void **state) {
    (void)state;
    for (int i = 0; i < 4 * N_SHAPES; i++) {
        testing t;
        testing_open(&t, 2);
        check_backward(&t, shapes[i / 4].N, shapes[i / 4].C, i / 2 % 2, both_dtypes[i % 2]);
        testing_close(&t);
    }
}

/* The weight gradient too has the same bits with one thread and with three. */
static void bits_do_not_depend_on_threads(void **state) {
    (void)state;
    enum { N = 173, C = 65 };
    for (int i = 0; i < 2; i++) {
        dtype x = both_dtypes[i];
        testing one, three;
        testing_open(&one, 1);
        testing_open(&three, 3);
        void *h = array_of(&one, random_doubles(&one, N * C, 1, 1), N * C, x),
             *w = array_of(&one, random_doubles(&one, C, 2, 1), C, x);
        void *y1 = new_array(&one, N * C, x), *y3 = new_array(&one, N * C, x);
        float *rstd = new_floats(&one, N), *dw1 = new_floats(&one, C), *dw3 = new_floats(&one, C);
        one.ops->rmsnorm_forward(one.b, y1, rstd, NULL, h, NULL, w, 1e-5f, x, N, C);
        one.ops->rmsnorm_forward(three.b, y3, rstd, NULL, h, NULL, w, 1e-5f, x, N, C);
        check_same_bits("y", y1, y3, N * C, x);
        one.ops->rmsnorm_backward(one.b, y1, dw1, h, h, rstd, w, false, x, N, C);
        one.ops->rmsnorm_backward(three.b, y3, dw3, h, h, rstd, w, false, x, N, C);
        check_same_bits("dh", y1, y3, N * C, x);
        check_same_bits("dw", dw1, dw3, C, DTYPE_F32);
        testing_close(&three);
        testing_close(&one);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_the_formula),
        cmocka_unit_test(backward_is_the_derivative),
        cmocka_unit_test(bits_do_not_depend_on_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
