/* config_print.c: a config struct as YAML, its schema as a page of help, and the nearest word to a misspelt one. */
#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "util/config.h"
#include "util/number.h"

/* ---- values ---- */

/* Is the text, without quotes, the same text to every YAML reader? We are stricter than YAML: many of its plain texts are
 * numbers, dates or truth values to one reader or another. */
static bool is_plain(const char *text) {
    static const char *const words[] = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"};
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcasecmp(text, words[i]) == 0) return false;
    if (!*text || (!strchr(letters, *text) && *text != '/')) return false;
    size_t n = strspn(text, letters);
    while (text[n] && strchr("0123456789./+-@%=", text[n])) n += 1 + strspn(text + n + 1, letters);
    return text[n] == '\0';
}

/* The code point that begins at `at`, in valid UTF-8, and its length. */
static uint32_t code_point(const char *at, int *length) {
    const unsigned char *b = (const unsigned char *)at;
    *length = b[0] < 0x80 ? 1 : b[0] < 0xE0 ? 2 : b[0] < 0xF0 ? 3 : 4;
    uint32_t c = *length == 1 ? b[0] : b[0] & (0x7Fu >> *length);
    for (int i = 1; i < *length; i++) c = c << 6 | (b[i] & 0x3F);
    return c;
}

/* Within double quotes. What YAML does not let stand, or would fold as a line break, is written by its number. */
static void print_quoted(FILE *to, const char *text) {
    fputc('"', to);
    for (int length; *text; text += length) {
        uint32_t c = code_point(text, &length);
        if (c == '"' || c == '\\')
            fprintf(to, "\\%c", (char)c);
        else if (c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x2028 || c == 0x2029 || c == 0xFEFF || c == 0xFFFE || c == 0xFFFF)
            fprintf(to, "\\u%04X", c);
        else
            fwrite(text, 1, (size_t)length, to);
    }
    fputc('"', to);
}

static void print_string(FILE *to, const char *text) {
    if (!text)
        fputs("null", to);
    else if (is_plain(text))
        fputs(text, to);
    else
        print_quoted(to, text);
}

static void print_value(FILE *to, const void *at, const config_key *key) {
    char a[NUMBER_TEXT], b[NUMBER_TEXT];
    switch (key->kind) {
        case CONFIG_INT:
            fprintf(to, "%d", *(const int *)at);
            return;
        case CONFIG_INT64:
            fprintf(to, "%lld", (long long)*(const int64_t *)at);
            return;
        case CONFIG_BOOL:
            fputs(*(const bool *)at ? "true" : "false", to);
            return;
        case CONFIG_STRING:
            print_string(to, *(char *const *)at);
            return;
        case CONFIG_CHOICE:
            print_string(to, key->choices[*(const int *)at]);
            return;
        case CONFIG_DOUBLE:
            number_print_double(a, *(const double *)at);
            fputs(a, to);
            return;
        case CONFIG_PAIR:
            number_print_double(a, ((const double *)at)[0]);
            number_print_double(b, ((const double *)at)[1]);
            fprintf(to, "[%s, %s]", a, b);
            return;
        case CONFIG_SECTION:
        case CONFIG_LIST:
            assert(!"a section or a list is no single value");
    }
}

void config_print_value(char *out, size_t size, const void *values, const config_key *key) {
    out[0] = '\0';
    FILE *to = fmemopen(out, size, "w");
    if (!to) return;
    print_value(to, (const char *)values + key->offset, key);
    fclose(to);
    out[size - 1] = '\0';
}

/* ---- whole configs ---- */

static void print_keys(FILE *to, const void *values, const config_key *keys, int indent, bool after_dash);

static void print_key(FILE *to, const void *at, const config_key *key, int indent) {
    fprintf(to, "%s:", key->name);
    if (key->kind == CONFIG_SECTION) {
        fputc('\n', to);
        print_keys(to, at, key->keys, indent + 2, false);
        return;
    }
    if (key->kind != CONFIG_LIST) {
        fputc(' ', to);
        print_value(to, at, key);
        fputc('\n', to);
        return;
    }
    const config_list *list = at;
    fputs(list->n ? "\n" : " []\n", to);
    for (int i = 0; i < list->n; i++) {
        fprintf(to, "%*s- ", indent + 2, "");
        print_keys(to, (const char *)list->items + (size_t)i * key->item_size, key->keys, indent + 4, true);
    }
}

/* after_dash: the first key stands in the line of its item's dash. */
static void print_keys(FILE *to, const void *values, const config_key *keys, int indent, bool after_dash) {
    for (const config_key *key = keys; key->name; key++) {
        if (!after_dash || key != keys) fprintf(to, "%*s", indent, "");
        print_key(to, (const char *)values + key->offset, key, indent);
    }
}

char *config_print(const void *values, const config_key *schema) {
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    if (!to) return NULL;
    print_keys(to, values, schema, 0, false);
    bool failed = ferror(to);
    if (fclose(to) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}

/* ---- help ---- */

enum { COLUMN = 64 }; /* room for the longest dotted name */

/* A section's default is the defaults of its keys. */
static const char *described_default(const config_key *key) {
    if (!key->fallback) return "required";
    return key->kind == CONFIG_SECTION ? "" : key->fallback;
}

/* One line a key: its dotted name, its default, its documentation. With to NULL the columns are only measured. */
static void describe_keys(FILE *to, const config_key *keys, const char *section, int widths[2]) {
    for (const config_key *key = keys; key->name; key++) {
        char name[COLUMN];
        const char *value = described_default(key);
        snprintf(name, sizeof name, "%s%s%s", section, *section ? "." : "", key->name);
        if (to) {
            fprintf(to, "  %-*s  %-*s  %s", widths[0], name, widths[1], value, key->doc);
            for (int i = 0; key->kind == CONFIG_CHOICE && key->choices[i]; i++)
                fprintf(to, "%s%s", i ? " | " : ": ", key->choices[i]);
            if (key->may_be_file) fputs(" (or the name of a file that has these keys)", to);
            fputc('\n', to);
        } else {
            if ((int)strlen(name) > widths[0]) widths[0] = (int)strlen(name);
            if ((int)strlen(value) > widths[1]) widths[1] = (int)strlen(value);
        }
        size_t end = strlen(name);
        if (key->kind == CONFIG_LIST) snprintf(name + end, sizeof name - end, ".N");
        if (key->keys) describe_keys(to, key->keys, name, widths);
    }
}

void config_describe(FILE *to, const config_key *schema) {
    int widths[2] = {0, 0};
    describe_keys(NULL, schema, "", widths);
    describe_keys(to, schema, "", widths);
}

/* ---- spelling ---- */

enum { LONGEST_WORD = 63 };

/* Letters to insert, delete, replace or swap with their neighbour to make b of a. [Damerau 1964, as optimal string alignment] */
static int edit_distance(const char *a, const char *b) {
    int n = (int)strlen(a), m = (int)strlen(b);
    if (n > LONGEST_WORD || m > LONGEST_WORD) return INT_MAX;
    int rows[3][LONGEST_WORD + 1]; /* rows i-2, i-1 and i of the table, in turn */
    for (int j = 0; j <= m; j++) rows[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *row = rows[i % 3], *above = rows[(i + 2) % 3], *two_above = rows[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && two_above[j - 2] + 1 < best) best = two_above[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[n % 3][m];
}

const char *config_nearest(const char *word, const char *const *candidates, int n) {
    const char *nearest = NULL;
    int least = ((int)strlen(word) + 2) / 3; /* one error in three letters is still the same word */
    for (int i = 0; n < 0 ? candidates[i] != NULL : i < n; i++) {
        int distance = edit_distance(word, candidates[i]);
        if (distance > least || (nearest && distance == least)) continue;
        nearest = candidates[i];
        least = distance;
    }
    return nearest;
}
