/* test_tree.c: util/tree.h. */
#include "util/tree.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static tree parsed(const char *text) {
    tree t;
    error err;
    if (tree_parse(&t, "c.yaml", true, text, strlen(text), &err)) fail_msg("refused: %s\n%s", err.text, text);
    return t;
}

/* The text is refused with a message that begins with `begins`. */
static void refused(const char *begins, const char *text) {
    tree t;
    error err;
    if (tree_parse(&t, "c.yaml", true, text, strlen(text), &err) == 0) fail_msg("accepted:\n%s\nexpected: %s", text, begins);
    assert_int_equal(err.code, STATUS_USAGE);
    if (strncmp(err.text, begins, strlen(begins)) != 0) fail_msg("got: %s\nexpected: %s", err.text, begins);
    assert_null(t.items);
}

static void assert_text(const tree *t, const char *text, bool quoted, int line) {
    assert_non_null(t);
    assert_int_equal(t->kind, TREE_TEXT);
    assert_string_equal(t->text, text);
    assert_int_equal(t->quoted, quoted);
    assert_int_equal(t->line, line);
}

static void nodes_hold_their_text_and_know_their_line(void **state) {
    (void)state;
    tree t = parsed("a: 1 # first\nb:\n  c: 'x y'\n  d:\n  - p\n  - \"q\"\n\ne: ~\nf: 'null'\ng: |\n  two\n  lines\n");
    assert_int_equal(t.kind, TREE_MAP);
    assert_int_equal(t.n, 5);
    assert_int_equal(t.line, 0);
    assert_text(tree_find(&t, "a"), "1", false, 1);
    const tree *b = tree_find(&t, "b"), *d = tree_find(b, "d");
    assert_int_equal(b->line, 2);
    assert_text(tree_find(b, "c"), "x y", true, 3);
    assert_int_equal(d->kind, TREE_LIST);
    assert_int_equal(d->line, 4);
    assert_int_equal(d->n, 2);
    assert_text(&d->items[0], "p", false, 5);
    assert_text(&d->items[1], "q", true, 6);
    assert_int_equal(tree_find(&t, "e")->kind, TREE_NOTHING);
    assert_int_equal(tree_find(&t, "e")->line, 8);
    assert_text(tree_find(&t, "f"), "null", true, 9);
    assert_string_equal(tree_find(&t, "g")->text, "two\nlines\n");
    assert_null(tree_find(&t, "c"));
    tree_free(&t);
    tree_free(&t); /* safe on a cleared tree */
}

static void a_text_without_values_is_nothing(void **state) {
    (void)state;
    const char *const texts[] = {"", "\n", "# comment\n", "---\n", "~\n", "\xEF\xBB\xBF"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        tree t = parsed(texts[i]);
        assert_int_equal(t.kind, TREE_NOTHING);
        tree_free(&t);
    }
}

static void replacing_and_adding_keep_keys_and_places(void **state) {
    (void)state;
    tree t = parsed("a: 1\nb: [x]\n"), value = parsed("[p, q]");
    error err;
    tree_replace(tree_find(&t, "a"), &value);
    assert_int_equal(value.kind, TREE_NOTHING);
    const tree *a = tree_find(&t, "a");
    assert_int_equal(a->n, 2);
    assert_text(&a->items[1], "q", false, 1);
    tree *b = tree_find(&t, "b"), *added = tree_add(b, NULL, &err);
    assert_non_null(added);
    assert_int_equal(b->n, 2);
    assert_int_equal(added->kind, TREE_NOTHING);
    assert_int_equal(added->line, 2);
    assert_non_null(tree_add(&t, "c", &err));
    assert_int_equal(tree_find(&t, "c")->kind, TREE_NOTHING);
    tree_free(&t);
}

static void keys_given_twice_are_refused(void **state) {
    (void)state;
    refused("c.yaml:3: a is given twice, first in line 1", "a: 1\nb: 2\na: 1\n");
    refused("c.yaml:3: section.depth is given twice, first in line 2", "section:\n  depth: 1\n  depth: 1\n");
    refused("c.yaml:1: items.1.name is given twice, first in line 1", "items: [a, {name: b, name: b}]\n");
}

static void what_is_no_plain_yaml_is_refused(void **state) {
    (void)state;
    refused("c.yaml:2: a second document begins here; a config is one", "count: 1\n---\ncount: 2\n");
    refused("c.yaml:2: rate is an alias (*x), which configs do not have", "free: &x 1\nrate: *x\n");
    refused("c.yaml:1: a.0 is an alias (*x), which configs do not have", "a: &x [*x]\n");
    refused("c.yaml:1: free has a tag (!foo), which configs do not have", "free: !foo 1\n");
    refused("c.yaml:1: pair has a tag (tag:yaml.org,2002:seq), which", "pair: !!seq [1, 1]\n");
    refused("c.yaml:1: the top level has a tag (!a), which configs do not have", "!a {count: 1}\n");
    refused("c.yaml:1: a key of the top level is not a word", "? [a]\n: 1\n");
    refused("c.yaml:1: a key of section is not a word", "section: {{a: b}: 1}\n");
    refused("c.yaml:1: text: a text may not hold a NUL character", "text: \"a\\0b\"\n");
    refused(
        "c.yaml:2: found character that cannot start any token while scanning for the next token: indent with spaces, not with "
        "tabs",
        "section:\n\tdepth: 1\n");
    refused(
        "c.yaml:3: found a tab character that violates indentation while scanning a plain scalar: indent with spaces, not with "
        "tabs",
        "section:\n  depth: 1\n\tseed: 1\n");
    refused("c.yaml:2: did not find expected ',' or ']' while parsing a flow sequence", "pair: [1, 1\n");
    refused("c.yaml:1: mapping values are not allowed in this context", "text: a: b\n");
    refused("c.yaml: invalid leading UTF-8 octet at byte 6: a config is a text in UTF-8", "text: \xFF\n");
    refused("c.yaml: control characters are not allowed at byte", "text: \x01\n");
    refused("c.yaml: invalid leading UTF-8 octet at byte 0",
            "\xFF\xFE"
            "c"); /* UTF-16 */
}

/* What makes a careless reader recurse or take minutes. Some of it is YAML, but none of it is a config. */
static void hostile_texts_are_done_with_at_once(void **state) {
    (void)state;
    enum { N = 200000 };
    char *text = malloc(N + 1);
    assert_non_null(text);
    const char *const units[] = {"[", "{", "- ", "? ", "[{", "\"", "&", "!", "a: [", "*", "\n", "a:\n", "'", "|\n", "%"};
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t n = strlen(units[u]);
        for (size_t i = 0; i + n <= N; i += n) memcpy(text + i, units[u], n);
        text[N / n * n] = '\0';
        tree t;
        error err;
        if (tree_parse(&t, "c.yaml", true, text, strlen(text), &err) == 0 && t.kind == TREE_MAP)
            fail_msg("%d bytes of \"%s\" were read as a map", N, units[u]);
        tree_free(&t);
    }
    free(text);
    refused("c.yaml:1: nested deeper than 16 levels", "[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nodes_hold_their_text_and_know_their_line), cmocka_unit_test(a_text_without_values_is_nothing),
        cmocka_unit_test(replacing_and_adding_keep_keys_and_places), cmocka_unit_test(keys_given_twice_are_refused),
        cmocka_unit_test(what_is_no_plain_yaml_is_refused),          cmocka_unit_test(hostile_texts_are_done_with_at_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
