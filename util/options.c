/* options.c: strict: unknown options, missing and malformed values are errors that name the option and its bounds. */
#include "util/options.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "util/config.h"
#include "util/number.h"

static const command_option *find(const command_option *table, const char *name, size_t length) {
    for (; table->name; table++)
        if (strlen(table->name) == length && strncmp(table->name, name, length) == 0) return table;
    return NULL;
}

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/* -5 is a number and - a file; -resume is a mistake. */
static bool is_option(const char *given) { return given[0] == '-' && (given[1] == '-' || is_letter(given[1])); }

static int unknown(const command_option *table, const char *command, const char *given, error *err) {
    const char *names[64];
    char name[64];
    int n = 0, length = (int)strcspn(given, "=");
    for (; table->name && n < 64; table++) names[n++] = table->name;
    snprintf(name, sizeof name, "%.*s", length, given);
    const char *near = config_nearest(name + strspn(name, "-"), names, n);
    return error_set(err, STATUS_USAGE, "%s: %.*s is not an option.%s%s%s See `mobilellm %s --help`.", command, length, given,
                     near ? " Did you mean --" : "", near ? near : "", near ? "?" : "", command);
}

/* Bounds of whole numbers are shown as such, and those that are there only to be there not at all. */
static int out_of_bounds(const command_option *o, const char *text, error *err) {
    char min[NUMBER_TEXT], max[NUMBER_TEXT];
    number_print_double(min, o->min);
    number_print_double(max, o->max);
    if (o->max >= 1e15) return error_set(err, STATUS_USAGE, "--%s %s: expected at least %s", o->name, text, min);
    return error_set(err, STATUS_USAGE, "--%s %s: expected %s to %s", o->name, text, min, max);
}

static int set(const command_option *o, const char *text, error *err) {
    if (o->kind == OPTION_TEXT) {
        *(const char **)o->value = text;
        return 0;
    }
    double number;
    int64_t whole = 0;
    bool bounded = o->min != 0 || o->max != 0;
    if (!number_read_double(&number, text) || (o->kind == OPTION_INTEGER && !number_read_int64(&whole, text)))
        return error_set(err, STATUS_USAGE, "--%s %s: expected a %snumber", o->name, text,
                         o->kind == OPTION_INTEGER ? "whole " : "");
    if (bounded && !(number >= o->min && number <= o->max)) return out_of_bounds(o, text, err);
    if (o->kind == OPTION_INTEGER)
        *(int64_t *)o->value = whole;
    else
        *(double *)o->value = number;
    return 0;
}

static void help(const command_option *table, const char *usage) {
    printf("%s\n", usage);
    for (; table->name; table++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", table->name, table->metavar ? " " : "", table->metavar ? table->metavar : "");
        printf("  %-26s %s\n", left, table->help);
    }
}

int options_parse(const command_option *table, const char *usage, int argc, char **argv, int *n_rest, int *helped, error *err) {
    *n_rest = *helped = 0;
    for (int i = 1; i < argc; i++) {
        char *given = argv[i];
        if (strcmp(given, "--help") == 0 || strcmp(given, "-h") == 0) {
            if (usage) help(table, usage);
            *helped = 1;
            return 0;
        }
        if (!is_option(given)) {
            argv[1 + (*n_rest)++] = given;
            continue;
        }
        const char *equals = strchr(given, '=');
        const command_option *o = given[1] == '-' ? find(table, given + 2, strcspn(given + 2, "=")) : NULL;
        if (!o) return unknown(table, argv[0], given, err);
        if (o->kind == OPTION_FLAG) {
            if (equals) return error_set(err, STATUS_USAGE, "--%s takes no value", o->name);
            *(bool *)o->value = true;
            continue;
        }
        if (!equals && i + 1 >= argc) return error_set(err, STATUS_USAGE, "--%s lacks its value (%s)", o->name, o->metavar);
        if (set(o, equals ? equals + 1 : argv[++i], err)) return -1;
    }
    return 0;
}
