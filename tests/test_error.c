/* test_error.c: util/error.h. */
#include "util/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void set_fills_code_and_text(void **state) {
    (void)state;
    error err;
    assert_int_equal(error_set(&err, STATUS_INPUT, "%s: %d", "x", 3), -1);
    assert_int_equal(err.code, STATUS_INPUT);
    assert_string_equal(err.text, "x: 3");
}

static void prefix_keeps_code_and_text(void **state) {
    (void)state;
    error err;
    error_set(&err, STATUS_RANK, "lost");
    assert_int_equal(error_prefix(&err, "rank %d", 4), -1);
    assert_int_equal(err.code, STATUS_RANK);
    assert_string_equal(err.text, "rank 4: lost");
}

/* Whatever lay in the memory before, and however long the parts are. */
static void long_messages_are_cut_and_end(void **state) {
    (void)state;
    static char filler[3 * sizeof((error *)0)->text];
    memset(filler, 'x', sizeof filler - 1);
    error err;
    memset(&err, 'y', sizeof err);
    error_set(&err, STATUS_INPUT, "%s", filler);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);

    memset(&err, 'y', sizeof err);
    error_set(&err, STATUS_INPUT, "%.2000s", filler);
    error_prefix(&err, "%.100s", filler);
    assert_int_equal(strnlen(err.text, sizeof err.text), sizeof err.text - 1);

    memset(&err, 'y', sizeof err);
    error_set(&err, STATUS_INPUT, "short");
    error_prefix(&err, "%s", filler);
    assert_int_equal(strnlen(err.text, sizeof err.text), sizeof err.text - 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(set_fills_code_and_text), cmocka_unit_test(prefix_keeps_code_and_text),
                                       cmocka_unit_test(long_messages_are_cut_and_end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
