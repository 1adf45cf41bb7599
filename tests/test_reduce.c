/* test_reduce.c: sums, the clipping factor and conversions between number formats. */
#include "op_testing.h"

static const int64_t lengths[] = {0, 1, 7, 1024, 1025, 600000}; /* nothing, less than a line, more lines than parts */
enum { N_LENGTHS = sizeof lengths / sizeof *lengths };

/* Totals are added to what is there, in double. */
static void sums_are_exact_to_double(void **state) {
    (void)state;
    for (int i = 0; i < N_LENGTHS; i++) {
        testing t;
        testing_open(&t, 2);
        int64_t n = lengths[i];
        double *values = random_doubles(&t, n, 1, 1), got_sum = 5, got_squares = 7;
        long double sum = 5, squares = 7;
        float *array = array_of(&t, values, n, DTYPE_F32);
        for (int64_t j = 0; j < n; j++) sum += values[j], squares += (long double)values[j] * values[j];
        t.ops->sum(t.b, &got_sum, array, n);
        t.ops->sum_squares(t.b, &got_squares, array, n);
        if (!(fabs(got_sum - (double)sum) <= 1e-15 * (double)(n + 5)))
            fail_msg("sum of %lld: %.17g, expected %.17g", (long long)n, got_sum, (double)sum);
        if (!(fabs(got_squares - (double)squares) <= 1e-14 * got_squares))
            fail_msg("sum of squares of %lld: %.17g, expected %.17g", (long long)n, got_squares, (double)squares);
        testing_close(&t);
    }
}

/* One NaN or infinity anywhere is seen; squares too large for fp32 are not. */
static void sums_see_what_is_not_finite(void **state) {
    (void)state;
    enum { N = 5000 };
    testing t;
    testing_open(&t, 2);
    float *array = new_floats(&t, N);
    for (int at = 0; at < N; at += 833) {
        for (int i = 0; i < N; i++) array[i] = 1e30f;
        double squares = 0;
        t.ops->sum_squares(t.b, &squares, array, N);
        assert_true(isfinite(squares));
        array[at] = at % 2 ? NAN : INFINITY;
        t.ops->sum_squares(t.b, &squares, array, N);
        if (isfinite(squares)) fail_msg("%g at %d is not seen", (double)array[at], at);
    }
    testing_close(&t);
}

static void sums_do_not_depend_on_threads(void **state) {
    (void)state;
    enum { N = 600000 };
    double totals[3] = {0}, squares[3] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        testing t;
        testing_open(&t, threads);
        float *array = array_of(&t, random_doubles(&t, N, 1, 1), N, DTYPE_F32);
        t.ops->sum(t.b, &totals[threads - 1], array, N);
        t.ops->sum_squares(t.b, &squares[threads - 1], array, N);
        testing_close(&t);
    }
    assert_true(totals[0] == totals[1] && totals[0] == totals[2]);
    assert_true(squares[0] == squares[1] && squares[0] == squares[2]);
}

/* Conversions of arrays are those of util/dtype.h element by element, which test_vec.c checks. */
static void casts_are_those_of_elements(void **state) {
    (void)state;
    for (int i = 0; i < N_LENGTHS; i++) {
        testing t;
        testing_open(&t, 2);
        int64_t n = lengths[i];
        float *values = array_of(&t, random_doubles(&t, n, 1, 1), n, DTYPE_F32), *back = new_floats(&t, n),
              *same = new_floats(&t, n);
        bf16 *rounded = new_array(&t, n, DTYPE_BF16);
        t.ops->from_float(t.b, rounded, values, DTYPE_BF16, n);
        t.ops->to_float(t.b, back, rounded, DTYPE_BF16, n);
        for (int64_t j = 0; j < n; j++)
            if (rounded[j] != bf16_from_float(values[j]) || back[j] != bf16_to_float(rounded[j]))
                fail_msg("element %lld of %lld: %.9g became %.9g", (long long)j, (long long)n, (double)values[j],
                         (double)back[j]);
        t.ops->from_float(t.b, same, values, DTYPE_F32, n);
        check_same_bits("f32 from float", same, values, n, DTYPE_F32);
        t.ops->to_float(t.b, back, values, DTYPE_F32, n);
        check_same_bits("f32 to float", back, values, n, DTYPE_F32);
        testing_close(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_exact_to_double),
        cmocka_unit_test(sums_see_what_is_not_finite),
        cmocka_unit_test(sums_do_not_depend_on_threads),
        cmocka_unit_test(casts_are_those_of_elements),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
