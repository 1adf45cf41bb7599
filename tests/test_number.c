/* test_number.c: util/number.h. */
#include "util/number.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/rng.h"

static void whole_numbers_are_exact_however_they_are_written(void **state) {
    (void)state;
    const struct {
        const char *text;
        int64_t value;
    } cases[] = {{"0", 0},
                 {"-0", 0},
                 {"+7", 7},
                 {"007", 7},
                 {"42", 42},
                 {"2.6e9", 2600000000},
                 {"2.60e9", 2600000000},
                 {"26e+8", 2600000000},
                 {"100e-2", 1},
                 {"1.50e1", 15},
                 {"-1.5E1", -15},
                 {"5.", 5},
                 {".5e1", 5},
                 {"0e999999999999999999999", 0},
                 {"0.000e-5", 0},
                 {"9007199254740993", 9007199254740993},
                 {"9007199254740993.0", 9007199254740993},
                 {"9.007199254740993e15", 9007199254740993},
                 {"9223372036854775807", INT64_MAX},
                 {"-9223372036854775808", INT64_MIN},
                 {"922337203685477580.7e1", INT64_MAX}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t value = -1;
        if (!number_read_int64(&value, cases[i].text)) fail_msg("%s was refused", cases[i].text);
        if (value != cases[i].value)
            fail_msg("%s: got %lld, expected %lld", cases[i].text, (long long)value, (long long)cases[i].value);
    }
}

static void what_is_not_wholly_a_number_is_refused(void **state) {
    (void)state;
    const char *const texts[] = {"",    " 1",    "1 ",    "1_000", "1,000", "0x10", "1e", "e5",       "1e+",   ".",  "-",
                                 "+-1", "1.2.3", "1e5.0", "inf",   "nan",   ".inf", "1k", "infinity", "1e5e5", "--1"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int64_t whole;
        double value;
        if (number_read_int64(&whole, texts[i])) fail_msg("\"%s\" was read as %lld", texts[i], (long long)whole);
        if (number_read_double(&value, texts[i])) fail_msg("\"%s\" was read as %g", texts[i], value);
    }
}

static void numbers_that_are_not_whole_or_do_not_fit_are_refused(void **state) {
    (void)state;
    const char *const texts[] = {"1.5",  "1e-1",  "2600000000.0000000001",  "9223372036854775808", "-9223372036854775809", "1e19",
                                 "1e99", "1e-99", "1e999999999999999999999"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int64_t whole;
        if (number_read_int64(&whole, texts[i])) fail_msg("\"%s\" was read as %lld", texts[i], (long long)whole);
    }
    double value;
    assert_false(number_read_double(&value, "1e309"));
    assert_false(number_read_double(&value, "-1e309"));
    assert_false(number_read_double(&value, "1e-400")); /* not zero, and no double is as small */
    assert_true(number_read_double(&value, "0e-400"));
    assert_true(value == 0);
    assert_true(number_read_double(&value, "5e-324"));
    assert_true(value == DBL_TRUE_MIN);
}

static void assert_round_trip(double value) {
    char text[NUMBER_TEXT];
    double back = -1;
    number_print_double(text, value);
    if (!number_read_double(&back, text) || memcmp(&back, &value, sizeof value) != 0)
        fail_msg("%.17g was written as %s and read as %.17g", value, text, back);
    if (strchr(text, 'e') && !strchr(text, '.')) fail_msg("%s is no number to a reader of YAML 1.1", text);
}

static void doubles_read_back_to_the_same_bits(void **state) {
    (void)state;
    const double values[] = {
        0,       -0.0,    1,    -1,   0.1,          1.0 / 3, 1e15,  1e15 + 2, 1e-5,       4e-4,
        DBL_MAX, DBL_MIN, 1e22, 1e23, DBL_TRUE_MIN, 500000,  2.6e9, 0.02,     5e-324 * 3, 9007199254740993.0};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) assert_round_trip(values[i]);
    int n = 0;
    for (uint64_t i = 0; n < 100000; i++) { /* any bits at all */
        uint64_t bits = rng_mix(1, i);
        double value;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) continue;
        assert_round_trip(value);
        n++;
    }
}

static void doubles_are_written_short(void **state) {
    (void)state;
    const struct {
        double value;
        const char *text;
    } cases[] = {{0.1, "0.1"}, {4e-4, "0.0004"}, {1e-5, "1.0e-05"},   {500000, "500000"}, {2.6e9, "2600000000"},
                 {1, "1"},     {0.95, "0.95"},   {1e300, "1.0e+300"}, {-0.0, "-0"},       {1.5e-8, "1.5e-08"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[NUMBER_TEXT];
        number_print_double(text, cases[i].value);
        assert_string_equal(text, cases[i].text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(whole_numbers_are_exact_however_they_are_written),
                                       cmocka_unit_test(what_is_not_wholly_a_number_is_refused),
                                       cmocka_unit_test(numbers_that_are_not_whole_or_do_not_fit_are_refused),
                                       cmocka_unit_test(doubles_read_back_to_the_same_bits),
                                       cmocka_unit_test(doubles_are_written_short)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
