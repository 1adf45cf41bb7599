/* data_testing.h: what the tests of token files share: a directory of their own, whole files in and out, and small data sets. */
#ifndef MOBILELLM_TESTS_DATA_TESTING_H
#define MOBILELLM_TESTS_DATA_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "data/token_writer.h"
#include "data/tokens.h"

/* Group fixtures: *state is the path of an empty directory, removed at the end. */
static inline int make_directory(void **state) {
    char *path = strdup("/tmp/test_data.XXXXXX");
    *state = path;
    return path && mkdtemp(path) ? 0 : -1;
}

static inline int remove_directory(void **state) {
    char command[100];
    snprintf(command, sizeof command, "rm -r %s", (char *)*state);
    free(*state);
    return system(command);
}

typedef struct path_text {
    char text[300];
} path_text;

static inline path_text path_in(void **state, const char *name) {
    path_text path;
    snprintf(path.text, sizeof path.text, "%s/%s", (char *)*state, name);
    return path;
}

static inline void write_file(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file) fail_msg("%s cannot be written", path);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

/* The content of prefix + suffix, allocated, with a zero byte after it. */
static inline unsigned char *read_file(const char *prefix, const char *suffix, size_t *bytes) {
    char path[400];
    snprintf(path, sizeof path, "%s%s", prefix, suffix);
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s cannot be read", path);
    unsigned char *data = calloc(1, 1 << 20);
    assert_non_null(data);
    *bytes = fread(data, 1, (1 << 20) - 1, file);
    fclose(file);
    return data;
}

/* The message says each of the facts (NULL-terminated list). */
static inline void assert_says(const error *err, ...) {
    va_list facts;
    va_start(facts, err);
    for (const char *fact; (fact = va_arg(facts, const char *));)
        if (!strstr(err->text, fact)) fail_msg("\"%s\" is not in: %s", fact, err->text);
    va_end(facts);
}

/* Writes documents of the given lengths (each one sequence); token t of the file is (first + step * t) mod modulus. */
typedef struct ramp {
    int64_t first, step, modulus;
} ramp;

static inline void write_documents(const char *prefix, token_type type, const int64_t *lengths, int n, ramp r) {
    error err = {0};
    token_writer *w;
    if (token_writer_open(&w, prefix, type, &err)) fail_msg("%s", err.text);
    int64_t t = 0;
    for (int d = 0; d < n; d++) {
        for (int64_t i = 0; i < lengths[d]; i++, t++) {
            int32_t id = (int32_t)((r.first + r.step * t) % r.modulus);
            assert_int_equal(token_writer_append(w, &id, 1, &err), 0);
        }
        assert_int_equal(token_writer_end_sequence(w, &err), 0);
        assert_int_equal(token_writer_end_document(w, &err), 0);
    }
    if (token_writer_finish(w, NULL, &err)) fail_msg("%s", err.text);
}

#endif
