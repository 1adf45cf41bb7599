/* test_config.c: util/config.h, on a schema with a key of every kind. */
#include "util/config.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "folder_testing.h"

typedef struct item {
    char *name;
    double weight;
} item;

typedef struct part {
    int size;
    char *label;
} part;

typedef struct sample {
    int count;
    int64_t big;
    double rate, free;
    bool on;
    char *text, *option;
    int color;
    double pair[2];
    config_list items;
    struct {
        int depth;
        int64_t seed;
        struct {
            int deepest;
        } below;
    } section;
    part part;
} sample;

static const char *const colors[] = {"red", "green", "blue", NULL};

static const config_key item_keys[] = {{"name", CONFIG_STRING, offsetof(item, name), .doc = "its name"},
                                       {"weight", CONFIG_DOUBLE, offsetof(item, weight), "1", .doc = "its weight", .max = 10},
                                       {0}};

static const config_key part_keys[] = {{"size", CONFIG_INT, offsetof(part, size), .doc = "how large", .min = 1, .max = 9},
                                       {"label", CONFIG_STRING, offsetof(part, label), "none", .doc = "what it says"},
                                       {0}};

static const config_key below_keys[] = {{"deepest", CONFIG_INT, 0, "5", .doc = "far down"}, {0}};

static const config_key section_keys[] = {
    {"depth", CONFIG_INT, 0, "3", .doc = "how deep"},
    {"seed", CONFIG_INT64, offsetof(sample, section.seed) - offsetof(sample, section), "1", .doc = "a seed", .max = INFINITY},
    {"below", CONFIG_SECTION, offsetof(sample, section.below) - offsetof(sample, section), "{}", .doc = "more",
     .keys = below_keys},
    {0}};

static const config_key schema[] = {
    {"count", CONFIG_INT, offsetof(sample, count), .doc = "how many"},
    {"big", CONFIG_INT64, offsetof(sample, big), "2.6e9", .doc = "a large number", .min = 1, .max = 1e12},
    {"rate", CONFIG_DOUBLE, offsetof(sample, rate), "0.5", .doc = "a share", .max = 1},
    {"free", CONFIG_DOUBLE, offsetof(sample, free), "0", .doc = "any number"},
    {"on", CONFIG_BOOL, offsetof(sample, on), "false", .doc = "a switch"},
    {"text", CONFIG_STRING, offsetof(sample, text), "plain", .doc = "a text"},
    {"option", CONFIG_STRING, offsetof(sample, option), "null", .doc = "a text or nothing"},
    {"color", CONFIG_CHOICE, offsetof(sample, color), "green", .doc = "a color", .choices = colors},
    {"pair", CONFIG_PAIR, offsetof(sample, pair), "[0.9, 0.95]", .doc = "two numbers", .max = 1},
    {"items", CONFIG_LIST, offsetof(sample, items), "[]", .doc = "some items", .keys = item_keys, .item_size = sizeof(item)},
    {"section", CONFIG_SECTION, offsetof(sample, section), "{}", .doc = "a section", .keys = section_keys},
    {"part", CONFIG_SECTION, offsetof(sample, part), NULL, .doc = "a part", .keys = part_keys, .may_be_file = true},
    {0}};

static const char *write_file(char path[FOLDER_PATH], const char *name, const char *text) {
    FILE *f = fopen(in_folder(path, name), "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    return path;
}

enum { MOST_OVERRIDES = 8 };

/* Reads `text` with overrides (up to NULL). */
static int read_text(sample *s, const char *text, const char *const overrides[MOST_OVERRIDES], error *err) {
    int n = 0;
    while (overrides && n < MOST_OVERRIDES && overrides[n]) n++;
    return config_read(s, schema, "c.yaml", text, overrides, n, err);
}

static sample accepted(const char *text, const char *const overrides[MOST_OVERRIDES]) {
    sample s;
    error err;
    memset(&s, 0xAA, sizeof s);
    if (read_text(&s, text, overrides, &err)) fail_msg("refused: %s\n%s", err.text, text);
    return s;
}

/* The text is refused with a message that begins with `begins`, and nothing is left in the struct. */
static void refused(const char *begins, const char *text, const char *const overrides[MOST_OVERRIDES]) {
    sample s;
    error err;
    memset(&s, 0xAA, sizeof s);
    if (read_text(&s, text, overrides, &err) == 0) fail_msg("accepted:\n%s\nexpected: %s", text, begins);
    assert_int_equal(err.code, STATUS_USAGE);
    if (strncmp(err.text, begins, strlen(begins)) != 0) fail_msg("got: %s\nexpected: %s", err.text, begins);
    assert_null(s.text);
    assert_null(s.items.items);
    assert_null(s.part.label);
}

#define WITH(...) ((const char *const[MOST_OVERRIDES]){__VA_ARGS__})
#define MINIMUM   "count: 1\npart: {size: 2}\n"

static void every_kind_of_value_is_read(void **state) {
    (void)state;
    sample s = accepted(
        "count: -7 # a comment\n"
        "big: 1e10\n"
        "rate: 1\n"
        "free: -2.5e-3\n"
        "on: true\n"
        "text: \"with: quotes\\n\"\n"
        "option: 123\n"
        "color: blue\n"
        "pair: [0.25, 1]\n"
        "items:\n  - name: a\n    weight: 2\n  - b\n"
        "section:\n  depth: 4\n  seed: 9223372036854775807\n  below: {deepest: -1}\n"
        "part:\n  size: 9\n  label: large\n",
        NULL);
    const item *items = s.items.items;
    assert_int_equal(s.count, -7);
    assert_int_equal(s.big, 10000000000);
    assert_true(s.rate == 1 && s.free == -2.5e-3 && s.on);
    assert_string_equal(s.text, "with: quotes\n");
    assert_string_equal(s.option, "123");
    assert_int_equal(s.color, 2);
    assert_true(s.pair[0] == 0.25 && s.pair[1] == 1);
    assert_int_equal(s.items.n, 2);
    assert_string_equal(items[0].name, "a");
    assert_true(items[0].weight == 2 && items[1].weight == 1);
    assert_string_equal(items[1].name, "b");
    assert_int_equal(s.section.depth, 4);
    assert_int_equal(s.section.seed, INT64_MAX);
    assert_int_equal(s.section.below.deepest, -1);
    assert_int_equal(s.part.size, 9);
    assert_string_equal(s.part.label, "large");
    config_free(&s, schema);
    assert_null(s.text);
    assert_int_equal(s.items.n, 0);
    config_free(&s, schema); /* safe on a cleared struct */
}

static void what_is_not_given_has_its_default(void **state) {
    (void)state;
    const char *const texts[] = {MINIMUM,
                                 MINIMUM "section:\nitems:\noption:\n",
                                 "{count: 1, part: {size: 2}, option: ~}",
                                 "\xEF\xBB\xBF" MINIMUM,
                                 "count: 1\r\npart:\r\n  size: 2\r\n",
                                 "---\n" MINIMUM "...\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        sample s = accepted(texts[i], NULL);
        assert_int_equal(s.big, 2600000000);
        assert_true(s.rate == 0.5 && s.free == 0 && !s.on);
        assert_string_equal(s.text, "plain");
        assert_null(s.option);
        assert_int_equal(s.color, 1);
        assert_true(s.pair[0] == 0.9 && s.pair[1] == 0.95);
        assert_int_equal(s.items.n, 0);
        assert_int_equal(s.section.depth, 3);
        assert_int_equal(s.section.below.deepest, 5);
        assert_string_equal(s.part.label, "none");
        config_free(&s, schema);
    }
}

static void unknown_keys_are_refused_with_what_was_meant(void **state) {
    (void)state;
    refused("c.yaml:3: cuont is not a key. Did you mean count?", MINIMUM "cuont: 2\n", NULL);
    refused("c.yaml:4: section.dpeth is not a key. Did you mean section.depth?", MINIMUM "section:\n  dpeth: 2\n", NULL);
    refused("c.yaml:5: section.below.deppest is not a key. Did you mean section.below.deepest?",
            MINIMUM "section:\n  below:\n    deppest: 2\n", NULL);
    refused("c.yaml:4: items.0.wieght is not a key. Did you mean items.0.weight?", MINIMUM "items:\n  - {name: a, wieght: 2}\n",
            NULL);
    refused("c.yaml:3: deepest is not a key. Did you mean section.below.deepest?", MINIMUM "deepest: 2\n", NULL);
    refused("c.yaml:3: zzz is not a key. The keys here are count, big, rate,", MINIMUM "zzz: 2\n", NULL);
    refused("c.yaml:3: << is not a key.", MINIMUM "<<: {count: 2}\n", NULL);
    refused("c.yaml:2: part.sise is not a key. Did you mean part.size?", "count: 1\npart: {sise: 2}\n", NULL);
    refused("c.yaml:4: section.count is not a key. Did you mean count?", MINIMUM "section:\n  count: 2\n", NULL);
}

static void values_of_the_wrong_kind_are_refused(void **state) {
    (void)state;
    refused("c.yaml:3: free: found \"abc\", expected a number", MINIMUM "free: abc\n", NULL);
    refused("c.yaml:3: free: found \"1\" in quotes, expected a number", MINIMUM "free: '1'\n", NULL);
    refused("c.yaml:3: free: found nothing, expected a number", MINIMUM "free:\n", NULL);
    refused("c.yaml:3: free: found \"nan\", expected a number", MINIMUM "free: nan\n", NULL);
    refused("c.yaml:3: free: found \".inf\", expected a number", MINIMUM "free: .inf\n", NULL);
    refused("c.yaml:3: free: found \"1e999\", expected a number", MINIMUM "free: 1e999\n", NULL);
    refused("c.yaml:3: free: found \"1_000\", expected a number", MINIMUM "free: 1_000\n", NULL);
    refused("c.yaml:3: free: found \"0x10\", expected a number", MINIMUM "free: 0x10\n", NULL);
    refused("c.yaml:3: free: found \"1 2\", expected a number", MINIMUM "free: 1 2\n", NULL);
    refused("c.yaml:3: free: found a list, expected a number", MINIMUM "free: [1]\n", NULL);
    refused("c.yaml:3: free: found a section, expected a number", MINIMUM "free: {a: 1}\n", NULL);
    refused("c.yaml:1: count: found \"1.5\", expected a whole number", "count: 1.5\npart: {size: 2}\n", NULL);
    refused("c.yaml:3: on: found \"yes\", expected true or false", MINIMUM "on: yes\n", NULL);
    refused("c.yaml:3: on: found \"True\", expected true or false", MINIMUM "on: True\n", NULL);
    refused("c.yaml:3: text: found a list, expected text", MINIMUM "text: [a]\n", NULL);
    refused("c.yaml:3: text: found nothing, expected text", MINIMUM "text: null\n", NULL);
    refused("c.yaml:3: color: found \"pink\", expected red, green or blue", MINIMUM "color: pink\n", NULL);
    refused("c.yaml:3: color: found nothing, expected red, green or blue", MINIMUM "color:\n", NULL);
    refused("c.yaml:3: pair: found \"1\", expected two numbers: [a, b]", MINIMUM "pair: 1\n", NULL);
    refused("c.yaml:3: pair: found a list, expected two numbers: [a, b]", MINIMUM "pair: [1]\n", NULL);
    refused("c.yaml:3: pair: found a list, expected two numbers: [a, b]", MINIMUM "pair: [1, 0, 1]\n", NULL);
    refused("c.yaml:3: pair: found \"x\", expected a number from 0 to 1", MINIMUM "pair: [1, x]\n", NULL);
    refused("c.yaml:3: items: found \"a\", expected a list: [a, b, ...]", MINIMUM "items: a\n", NULL);
    refused("c.yaml:3: items.1: found a list, expected a section with keys", MINIMUM "items: [a, [b]]\n", NULL);
    refused("c.yaml:3: section: found \"a\", expected a section with keys", MINIMUM "section: a\n", NULL);
    refused("c.yaml:3: section: found a list, expected a section with keys", MINIMUM "section: [1]\n", NULL);
    refused("c.yaml:2: part: found a list, expected a section, or the name of a file", "count: 1\npart: [1]\n", NULL);
}

static void long_values_are_cut_in_messages(void **state) {
    (void)state;
    char text[9000] = MINIMUM "free: ";
    memset(text + strlen(text), 'x', 8000);
    refused("c.yaml:3: free: found \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...\", expected a number", text,
            NULL);
    snprintf(text, sizeof text, MINIMUM "section: {%0900d: 1}\n", 1);
    refused("c.yaml:3: section.00000", text, NULL); /* also the way to it is cut */
}

static void values_out_of_range_are_refused(void **state) {
    (void)state;
    refused("c.yaml:1: count: found \"2147483648\", expected a whole number from -2147483648 to 2147483647",
            "count: 2147483648\npart: {size: 2}\n", NULL);
    refused("c.yaml:3: big: found \"0\", expected a whole number from 1 to 1000000000000", MINIMUM "big: 0\n", NULL);
    refused("c.yaml:3: big: found \"1000000000001\", expected a whole number from 1 to", MINIMUM "big: 1000000000001\n", NULL);
    refused("c.yaml:3: big: found \"9223372036854775808\", expected a whole number", MINIMUM "big: 9223372036854775808\n", NULL);
    refused("c.yaml:3: section.seed: found \"-1\", expected a whole number of at least 0", MINIMUM "section: {seed: -1}\n", NULL);
    refused("c.yaml:3: rate: found \"1.0001\", expected a number from 0 to 1", MINIMUM "rate: 1.0001\n", NULL);
    refused("c.yaml:3: pair: found \"2\", expected a number from 0 to 1", MINIMUM "pair: [0, 2]\n", NULL);
    refused("c.yaml:2: part.size: found \"10\", expected a whole number from 1 to 9", "count: 1\npart: {size: 10}\n", NULL);
    sample s = accepted(MINIMUM "big: 1e12\nrate: 0\n", NULL); /* the bounds themselves are within */
    config_free(&s, schema);
}

static void what_holds_no_keys_is_refused(void **state) {
    (void)state;
    refused("c.yaml: there is nothing in it", "", NULL);
    refused("c.yaml: there is nothing in it", "# only a comment\n", NULL);
    refused("c.yaml:1: the top level: found \"text\", expected the keys of a config", "text\n", NULL);
    refused("c.yaml: the top level: found a list, expected the keys of a config", "- 1\n", NULL);
    refused("c.yaml:2: section.depth is given twice, first in line 2", "count: 1\nsection: {depth: 1, depth: 2}\n", NULL);
}

static void missing_keys_are_named_with_their_meaning(void **state) {
    (void)state;
    refused("c.yaml: count is missing: how many", "part: {size: 2}\n", NULL);
    refused("c.yaml: part is missing: a part", "count: 1\n", NULL);
    refused("c.yaml:2: part.size is missing: how large", "count: 1\npart:\n  label: x\n", NULL);
    refused("c.yaml:4: items.0.name is missing: its name", MINIMUM "items:\n  - weight: 1\n", NULL);
    refused("c.yaml:3: items.0.name is missing: its name", MINIMUM "items: [null]\n", NULL);
}

static void overrides_change_what_the_text_says(void **state) {
    (void)state;
    sample s = accepted(MINIMUM "section:\n  depth: 7\nitems: [a, {name: b}]\n",
                        WITH("section.seed=4", "section.below.deepest=-3", "count=5", "items.0.weight=2", "items.2.name=c",
                             "text=x=y", "pair=[0.5, 0.25]", "big=2.5e6"));
    const item *items = s.items.items;
    assert_int_equal(s.section.seed, 4);
    assert_int_equal(s.section.depth, 7);
    assert_int_equal(s.section.below.deepest, -3);
    assert_int_equal(s.count, 5);
    assert_int_equal(s.items.n, 3);
    assert_string_equal(items[0].name, "a");
    assert_true(items[0].weight == 2 && items[2].weight == 1);
    assert_string_equal(items[2].name, "c");
    assert_string_equal(s.text, "x=y");
    assert_true(s.pair[0] == 0.5 && s.pair[1] == 0.25);
    assert_int_equal(s.big, 2500000);
    config_free(&s, schema);

    s = accepted(MINIMUM "items: [a]\n", WITH("items=[{name: p, weight: 3}, q]", "items.1.weight=4", "items.0=r",
                                              "section={depth: 8}", "section.seed=2", "option=null", "count=6", "count=7"));
    items = s.items.items;
    assert_int_equal(s.items.n, 2);
    assert_string_equal(items[0].name, "r");
    assert_string_equal(items[1].name, "q");
    assert_true(items[0].weight == 1 && items[1].weight == 4);
    assert_int_equal(s.section.depth, 8);
    assert_int_equal(s.section.seed, 2);
    assert_null(s.option);
    assert_int_equal(s.count, 7); /* the last one wins */
    config_free(&s, schema);

    s = accepted(MINIMUM "option: x\n", WITH("option=", "items.0.name='a b, {c}'", "text=\"1\""));
    assert_null(s.option);
    assert_string_equal(((item *)s.items.items)[0].name, "a b, {c}");
    assert_string_equal(s.text, "1");
    config_free(&s, schema);
}

static void overrides_are_checked_like_the_text(void **state) {
    (void)state;
    refused("command line: section.dpeth is not a key. Did you mean section.depth?", MINIMUM, WITH("section.dpeth=1"));
    refused("command line: deepest is not a key. Did you mean section.below.deepest?", MINIMUM, WITH("deepest=1"));
    refused("command line: items.0.nam is not a key. Did you mean items.0.name?", MINIMUM, WITH("items.0.nam=1"));
    refused("command line: part.sise is not a key. Did you mean part.size?", MINIMUM, WITH("part={sise: 1}"));
    refused("command line: count.x is not a key: count holds a value", MINIMUM, WITH("count.x=1"));
    refused("command line: free: found \"abc\", expected a number", MINIMUM, WITH("free=abc"));
    refused("command line: section.seed: found \"-1\", expected a whole number of at least 0", MINIMUM, WITH("section.seed=-1"));
    refused("command line: items.x: expected the number of an item, from 0 to 0 (a new one)", MINIMUM, WITH("items.x=1"));
    refused("command line: items.2: expected the number of an item, from 0 to 1 (a new one)", MINIMUM "items: [a]\n",
            WITH("items.2.name=1"));
    refused("c.yaml:3: items.0.name is missing", MINIMUM "items:\n", WITH("items.0.weight=1"));
    refused("c.yaml:3: section: found \"abc\", expected a section with keys", MINIMUM "section: abc\n", WITH("section.depth=1"));
    refused("command line: count is not key=value, such as optimizer.lr=1e-3", MINIMUM, WITH("count"));
    refused("command line:  is not a key.", MINIMUM, WITH("=1"));
    refused("command line: section. is not a key.", MINIMUM, WITH("section..depth=1"));
    refused(
        "command line: pair=[1: did not find expected ',' or ']' while parsing a flow sequence; a text with special characters "
        "needs quotes",
        MINIMUM, WITH("pair=[1"));
    refused("command line: text=@x: found character that cannot start any token", MINIMUM, WITH("text=@x"));
    refused("command line: items={name: a, name: b}: name is given twice", MINIMUM, WITH("items={name: a, name: b}"));
}

/* The config is in the directory, as is the file of its part; the working directory is another. */
static void a_section_may_be_a_file_beside_the_config(void **state) {
    (void)state;
    char config[128], small[128], large[128];
    write_file(config, "run.yaml", "count: 1\npart: small.yaml\n");
    write_file(small, "small.yaml", "# a part\nsize: 3\nlabel: small\n");
    write_file(large, "large.yaml", "size: 8\nlabel: large\n");
    char whole_path[160];
    snprintf(whole_path, sizeof whole_path, "part=%s", large);
    const struct {
        const char *overrides[MOST_OVERRIDES];
        int size;
        const char *label;
    } cases[] = {{{NULL}, 3, "small"},
                 {{"part.size=4"}, 4, "small"},
                 {{"part=large.yaml"}, 8, "large"},
                 {{whole_path}, 8, "large"},
                 {{"part=large.yaml", "part.size=4"}, 4, "large"},
                 {{"part.size=4", "part=large.yaml"}, 4, "large"},
                 {{"part={size: 5}"}, 5, "none"},
                 {{"part.label=x", "part={size: 5}", "count=2"}, 5, "x"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sample s;
        error err;
        int n = 0;
        while (cases[i].overrides[n]) n++;
        if (config_read(&s, schema, config, NULL, cases[i].overrides, n, &err)) fail_msg("case %zu: %s", i, err.text);
        if (s.part.size != cases[i].size || strcmp(s.part.label, cases[i].label) != 0)
            fail_msg("case %zu: got %d, %s; expected %d, %s", i, s.part.size, s.part.label, cases[i].size, cases[i].label);
        config_free(&s, schema);
    }
}

static void a_section_file_in_the_working_directory_comes_first(void **state) {
    (void)state;
    char config[128], path[128], cwd[4096];
    write_file(config, "run.yaml", "count: 1\npart: small.yaml\n");
    write_file(path, "small.yaml", "size: 3\n");
    assert_non_null(getcwd(cwd, sizeof cwd));
    char elsewhere[128];
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", folder);
    char command[160];
    snprintf(command, sizeof command, "mkdir -p %s", elsewhere);
    assert_int_equal(system(command), 0);
    write_file(path, "elsewhere/small.yaml", "size: 6\n");
    assert_int_equal(chdir(elsewhere), 0);
    sample s;
    error err;
    int result = config_read(&s, schema, config, NULL, NULL, 0, &err);
    assert_int_equal(chdir(cwd), 0);
    if (result) fail_msg("%s", err.text);
    assert_int_equal(s.part.size, 6);
    config_free(&s, schema);
}

/* Reads the file with one override (or none); the message is `expected`, in which %s stands for the directory. */
static void file_refused(const char *name, const char *override, const char *expected, const char *place) {
    char path[128], message[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(message, sizeof message, "%s%s", place, expected);
    sample s;
    error err;
    if (config_read(&s, schema, path, NULL, &override, override ? 1 : 0, &err) == 0) fail_msg("accepted, expected %s", message);
    if (strncmp(err.text, message, strlen(message)) != 0) fail_msg("got: %s\nexpected: %s", err.text, message);
    assert_int_equal(err.code, STATUS_USAGE);
}

/* Errors in a section's file name that file, and keys as they stand there; overrides are named in full. */
static void errors_in_a_section_s_file_name_that_file(void **state) {
    (void)state;
    char path[128], place[160];
    write_file(path, "run.yaml", "count: 1\npart: p.yaml\n");
    write_file(path, "p.yaml", "# a part\nsise: 3\n");
    snprintf(place, sizeof place, "%s/p.yaml", folder);
    file_refused("run.yaml", NULL, ":2: sise is not a key. Did you mean size?", place);
    write_file(path, "p.yaml", "# a part\nsize: 30\n");
    file_refused("run.yaml", NULL, ":2: size: found \"30\", expected a whole number from 1 to 9", place);
    file_refused("run.yaml", "part.size=0", "part.size: found \"0\", expected a whole number from 1 to 9", "command line: ");
    write_file(path, "p.yaml", "label: x\n");
    file_refused("run.yaml", NULL, ": size is missing: how large", place);
    write_file(path, "p.yaml", "");
    file_refused("run.yaml", NULL, ": part: found nothing, expected the keys of a section", place);
    write_file(path, "p.yaml", "a: [\n");
    file_refused("run.yaml", NULL, ":2: did not find expected node content while parsing a flow node", place);

    snprintf(place, sizeof place, "%s/run.yaml", folder);
    write_file(path, "run.yaml", "count: 1\npart: none.yaml\n");
    file_refused("run.yaml", NULL, ":2: part: there is no file none.yaml here, nor", place);
    write_file(path, "run.yaml", "count: 1\npart: /none.yaml\n");
    file_refused("run.yaml", NULL, ":2: part: there is no file /none.yaml", place);
    file_refused("run.yaml", "part=none.yaml", "part: there is no file none.yaml here, nor", "command line: ");
    file_refused("absent.yaml", NULL, "/absent.yaml: cannot be opened: No such file or directory", folder);
    file_refused(".", NULL, "/.: cannot be read: Is a directory", folder);
}

static void a_key_s_place_is_its_line_or_the_command_line(void **state) {
    (void)state;
    char config[128];
    write_file(config, "places.yaml",
               "# a comment\ncount: 1\nitems:\n  - a\n  - name: b\nsection:\n  depth: 1\npart: {size: 1}\n");
    const struct {
        const char *key, *place;
    } cases[] = {{"count", ":2"},         {"items", ":3"},        {"items.0.name", ":4"}, {"items.1.name", ":5"},
                 {"section.depth", NULL}, {"section.seed", ":6"}, {"part.size", ":8"},    {"rate", NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char place[160], expected[160];
        snprintf(expected, sizeof expected, "%s%s", config, cases[i].place ? cases[i].place : "");
        config_place(place, sizeof place, schema, config, WITH("section.depth=2", "rate=1"), 2, cases[i].key);
        assert_string_equal(place, cases[i].place ? expected : "command line");
    }
    char place[160];
    config_place(place, sizeof place, schema, "absent.yaml", NULL, 0, "count");
    assert_string_equal(place, "absent.yaml");
}

static void a_file_too_large_for_a_config_is_refused(void **state) {
    (void)state;
    char path[128];
    FILE *f = fopen(write_file(path, "large.yaml", ""), "w");
    assert_non_null(f);
    for (int i = 0; i < 1 << 18; i++) fputs("#\n", f);
    fclose(f);
    file_refused("large.yaml", NULL, "/large.yaml: larger than 262144 bytes: this is not a config", folder);
}

static void assert_round_trip(const sample *s) {
    char *text = config_print(s, schema);
    assert_non_null(text);
    sample back = accepted(text, NULL);
    char *again = config_print(&back, schema);
    assert_string_equal(text, again);
    assert_int_equal(back.count, s->count);
    assert_int_equal(back.big, s->big);
    assert_memory_equal(&back.rate, &s->rate, sizeof s->rate);
    assert_memory_equal(&back.free, &s->free, sizeof s->free);
    assert_memory_equal(back.pair, s->pair, sizeof s->pair);
    assert_int_equal(back.on, s->on);
    assert_string_equal(back.text, s->text);
    assert_int_equal(back.option == NULL, s->option == NULL);
    if (s->option) assert_string_equal(back.option, s->option);
    assert_int_equal(back.color, s->color);
    assert_int_equal(back.section.depth, s->section.depth);
    assert_int_equal(back.section.seed, s->section.seed);
    assert_int_equal(back.section.below.deepest, s->section.below.deepest);
    assert_int_equal(back.part.size, s->part.size);
    assert_string_equal(back.part.label, s->part.label);
    assert_int_equal(back.items.n, s->items.n);
    for (int i = 0; i < s->items.n; i++) {
        const item *a = s->items.items, *b = back.items.items;
        assert_string_equal(a[i].name, b[i].name);
        assert_memory_equal(&a[i].weight, &b[i].weight, sizeof a->weight);
    }
    free(text);
    free(again);
    config_free(&back, schema);
}

static void what_is_printed_reads_back_to_the_same_bits(void **state) {
    (void)state;
    static char long_text[5000];
    memset(long_text, 'a', sizeof long_text - 1);
    char *const texts[] = {"plain",
                           "",
                           " ",
                           "null",
                           "~",
                           "true",
                           "No",
                           "y",
                           "1",
                           "1e5",
                           "0x1f",
                           "1:30",
                           "2024-01-01",
                           "-",
                           "- a",
                           "a: b",
                           "a #b",
                           "#",
                           "'",
                           "\"",
                           "\\",
                           "a\\nb",
                           "line\nline\n",
                           "\ttab",
                           "trailing ",
                           "[a]",
                           "{a}",
                           "*a",
                           "&a",
                           "!a",
                           "%a",
                           "@a",
                           "`a",
                           "a,b",
                           "|",
                           ">",
                           "?",
                           "=",
                           "<<",
                           "...",
                           "---",
                           ".5",
                           ".inf",
                           "./a/b-c_d.h5",
                           "/data/x=1",
                           "\x7F\x01\x1F",
                           "\r\n",
                           "\xC2\x85",
                           "\xC2\xA0",
                           "\xC3\xA9t\xC3\xA9",
                           "\xE2\x80\xA8",
                           "\xE2\x80\xA9",
                           "\xEF\xBB\xBF",
                           "\xEF\xBF\xBE",
                           "\xE6\x97\xA5\xE6\x9C\xAC",
                           "\xF0\x9F\x98\x80",
                           long_text};
    const double numbers[] = {0, -0.0, 0.1, 1.0 / 3, 1e-300, 5e-324, 1.7976931348623157e308, -2.5e-7, 1e15, 123456789.0};
    item items[2] = {{"p", 0.3}, {"q: r", 1e-17}};
    sample s = {.count = -5, .big = 999999999999, .rate = 1.0 / 7, .on = true, .color = 2, .pair = {2.0 / 3, 5e-324}};
    s.section.seed = INT64_MAX;
    s.section.depth = s.section.below.deepest = INT32_MIN;
    s.part.size = 1;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        s.text = s.part.label = items[0].name = texts[i];
        s.option = i % 2 ? texts[i] : NULL;
        s.free = numbers[i % (sizeof numbers / sizeof *numbers)];
        s.items = (config_list){items, (int)(i % 3)};
        assert_round_trip(&s);
    }
}

static void printing_is_plain_block_yaml(void **state) {
    (void)state;
    sample s = accepted("{count: 1, part: {size: 2}, items: [a, {name: 'b c', weight: 0.5}], rate: 1e-5}", NULL);
    char *text = config_print(&s, schema);
    assert_string_equal(text,
                        "count: 1\nbig: 2600000000\nrate: 1.0e-05\nfree: 0\non: false\ntext: plain\noption: null\ncolor: green\n"
                        "pair: [0.9, 0.95]\nitems:\n  - name: a\n    weight: 1\n  - name: \"b c\"\n    weight: 0.5\n"
                        "section:\n  depth: 3\n  seed: 1\n  below:\n    deepest: 5\npart:\n  size: 2\n  label: none\n");
    free(text);
    char value[16];
    config_print_value(value, sizeof value, &s, &schema[8]);
    assert_string_equal(value, "[0.9, 0.95]");
    config_print_value(value, 6, &s, &schema[8]);
    assert_string_equal(value, "[0.9,");
    config_free(&s, schema);
}

static void the_help_names_keys_defaults_and_meanings_in_columns(void **state) {
    (void)state;
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    assert_non_null(f);
    config_describe(f, schema);
    fclose(f);
    const char *const lines[] = {"  count                  required     how many\n",
                                 "  pair                   [0.9, 0.95]  two numbers\n",
                                 "  color                  green        a color: red | green | blue\n",
                                 "  items.N.weight         1            its weight\n",
                                 "  section.below.deepest  5            far down\n",
                                 "  part                   required     a part (or the name of a file that has these keys)\n"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (!strstr(text, lines[i])) fail_msg("no line\n%sin\n%s", lines[i], text);
    free(text);
}

static void the_nearest_word_is_found_if_one_is_near(void **state) {
    (void)state;
    const char *const words[] = {"train", "eval", "trial", "inspect", "lr", NULL};
    const struct {
        const char *word, *nearest;
    } cases[] = {{"trian", "train"}, {"trai", "train"}, {"trainn", "train"}, {"evla", "eval"}, {"isnpcet", "inspect"},
                 {"rl", "lr"},       {"quantum", NULL}, {"", NULL},          {"x", NULL},      {"eval", "eval"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *found = config_nearest(cases[i].word, words, -1);
        if (found != cases[i].nearest && (!found || !cases[i].nearest || strcmp(found, cases[i].nearest) != 0))
            fail_msg("%s: found %s, expected %s", cases[i].word, found ? found : "none",
                     cases[i].nearest ? cases[i].nearest : "none");
    }
    assert_string_equal(config_nearest("lr", words, 5), "lr");
    assert_null(config_nearest("lr", words, 4));
    static char long_word[200];
    memset(long_word, 'a', sizeof long_word - 1);
    assert_null(config_nearest(long_word, words, -1));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_kind_of_value_is_read),
                                       cmocka_unit_test(what_is_not_given_has_its_default),
                                       cmocka_unit_test(unknown_keys_are_refused_with_what_was_meant),
                                       cmocka_unit_test(values_of_the_wrong_kind_are_refused),
                                       cmocka_unit_test(long_values_are_cut_in_messages),
                                       cmocka_unit_test(values_out_of_range_are_refused),
                                       cmocka_unit_test(what_holds_no_keys_is_refused),
                                       cmocka_unit_test(missing_keys_are_named_with_their_meaning),
                                       cmocka_unit_test(overrides_change_what_the_text_says),
                                       cmocka_unit_test(overrides_are_checked_like_the_text),
                                       cmocka_unit_test(a_section_may_be_a_file_beside_the_config),
                                       cmocka_unit_test(a_section_file_in_the_working_directory_comes_first),
                                       cmocka_unit_test(errors_in_a_section_s_file_name_that_file),
                                       cmocka_unit_test(a_key_s_place_is_its_line_or_the_command_line),
                                       cmocka_unit_test(a_file_too_large_for_a_config_is_refused),
                                       cmocka_unit_test(what_is_printed_reads_back_to_the_same_bits),
                                       cmocka_unit_test(printing_is_plain_block_yaml),
                                       cmocka_unit_test(the_help_names_keys_defaults_and_meanings_in_columns),
                                       cmocka_unit_test(the_nearest_word_is_found_if_one_is_near)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
