/* test_options.c: util/options.h. */
#include "util/options.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct parsed {
    bool fast;
    int64_t count, seed;
    double rate;
    const char *name;
    int n_rest, helped, result;
    error err;
    char *argv[12];
} parsed;

/* Of "demo" and these words (NULL-terminated). */
static parsed parse(const char *usage, char *const *words) {
    parsed p = {.argv = {"demo"}};
    int argc = 1;
    for (; words[argc - 1]; argc++) p.argv[argc] = words[argc - 1];
    const command_option table[] = {{"fast", OPTION_FLAG, &p.fast, 0, 0, NULL, "go fast"},
                                    {"count", OPTION_INTEGER, &p.count, 1, 1 << 20, "N", "how many (1)"},
                                    {"seed", OPTION_INTEGER, &p.seed, 0, 9e18, "N", "of the draws"},
                                    {"rate", OPTION_NUMBER, &p.rate, 0, 0.5, "X", "of something"},
                                    {"name", OPTION_TEXT, &p.name, 0, 0, "TEXT", "of it"},
                                    {0}};
    p.result = options_parse(table, usage, argc, p.argv, &p.n_rest, &p.helped, &p.err);
    return p;
}

#define WORDS(...) ((char *const[]){__VA_ARGS__, NULL})

static void values_follow_or_stand_behind_an_equals_sign(void **state) {
    (void)state;
    parsed p = parse("", WORDS("--count", "7", "--rate=0.25", "--name", "--fast", "--seed=9000000000000000000"));
    assert_int_equal(p.result, 0);
    assert_true(p.count == 7 && p.rate == 0.25 && p.seed == 9000000000000000000);
    assert_string_equal(p.name, "--fast"); /* a value, whatever it looks like */
    assert_false(p.fast);
    assert_int_equal(p.n_rest, 0);
}

static void options_may_stand_anywhere_and_the_rest_keeps_its_order(void **state) {
    (void)state;
    parsed p = parse("", WORDS("a", "--fast", "b=--x", "--count", "2", "-", "-5"));
    assert_int_equal(p.result, 0);
    assert_true(p.fast && p.count == 2);
    assert_int_equal(p.n_rest, 4);
    const char *rest[] = {"a", "b=--x", "-", "-5"};
    for (int i = 0; i < 4; i++) assert_string_equal(p.argv[1 + i], rest[i]);
}

static void refused(char *const *words, const char *message) {
    parsed p = parse("", words);
    assert_int_equal(p.result, -1);
    assert_int_equal(p.err.code, STATUS_USAGE);
    assert_string_equal(p.err.text, message);
}

static void mistakes_are_named(void **state) {
    (void)state;
    refused(WORDS("--fats"), "demo: --fats is not an option. Did you mean --fast? See `mobilellm demo --help`.");
    refused(WORDS("--cuont=3"), "demo: --cuont is not an option. Did you mean --count? See `mobilellm demo --help`.");
    refused(WORDS("-fast"), "demo: -fast is not an option. Did you mean --fast? See `mobilellm demo --help`.");
    refused(WORDS("--elsewhere"), "demo: --elsewhere is not an option. See `mobilellm demo --help`.");
    refused(WORDS("--"), "demo: -- is not an option. See `mobilellm demo --help`.");
    refused(WORDS("--fast=1"), "--fast takes no value");
    refused(WORDS("--count"), "--count lacks its value (N)");
    refused(WORDS("--count", "two"), "--count two: expected a whole number");
    refused(WORDS("--count", "2.5"), "--count 2.5: expected a whole number");
    refused(WORDS("--count", "0"), "--count 0: expected 1 to 1048576");
    refused(WORDS("--rate", "0.6"), "--rate 0.6: expected 0 to 0.5");
    refused(WORDS("--rate", ""), "--rate : expected a number");
    refused(WORDS("--seed", "-1"), "--seed -1: expected at least 0");
}

/* What `parse` prints on standard output. */
static parsed parse_printing(char text[1000], const char *usage, char *const *words) {
    FILE *file = tmpfile();
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    dup2(fileno(file), STDOUT_FILENO);
    parsed p = parse(usage, words);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    rewind(file);
    text[fread(text, 1, 999, file)] = '\0';
    fclose(file);
    return p;
}

static void help_is_the_table(void **state) {
    (void)state;
    char text[1000];
    for (int i = 0; i < 2; i++) {
        parsed p = parse_printing(text, "Usage: demo\n", i ? WORDS("-h") : WORDS("x", "--help", "--wrong"));
        assert_int_equal(p.result, 0);
        assert_int_equal(p.helped, 1);
        assert_string_equal(text,
                            "Usage: demo\n\n"
                            "  --fast                     go fast\n"
                            "  --count N                  how many (1)\n"
                            "  --seed N                   of the draws\n"
                            "  --rate X                   of something\n"
                            "  --name TEXT                of it\n");
    }
    assert_int_equal(parse_printing(text, NULL, WORDS("--help")).helped, 1);
    assert_string_equal(text, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_follow_or_stand_behind_an_equals_sign),
        cmocka_unit_test(options_may_stand_anywhere_and_the_rest_keeps_its_order),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(help_is_the_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
