/* fuzz.h: what the fuzz targets share: a directory in memory for the files they make, and a check that ends the run.
 *
 * A target is a C file with LLVMFuzzerTestOneInput, which libFuzzer calls with one input after another: mutations of the seeds in
 * seeds/TARGET/ that reach code not reached before. The promise under test is the same for all: whatever the bytes are, the
 * reader returns 0 with a result that holds together, or -1 with a message; no crash, undefined behaviour, leak, hang or
 * allocation out of proportion. */
#ifndef MOBILELLM_TESTS_FUZZ_H
#define MOBILELLM_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/error.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An assert that names what was found; libFuzzer then keeps the input. */
#define CHECK(condition, ...)                                               \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fputc('\n', stderr);                                            \
            abort();                                                        \
        }                                                                   \
    } while (0)

/* A failure is told: by a message, and by a status that a user can act on. */
static inline void check_told(const error *err) {
    CHECK(err->text[0], "no message");
    CHECK(err->code == STATUS_USAGE || err->code == STATUS_INPUT, "status %d: %s", (int)err->code, err->text);
}

/* Enters $FUZZ_DIR, which tests/fuzz/run.py makes below /dev/shm and removes, so that names in an input name no other file. */
static inline void enter_directory(void) {
    const char *directory = getenv("FUZZ_DIR");
    CHECK(directory && chdir(directory) == 0, "set FUZZ_DIR to an empty directory, as tests/fuzz/run.py does");
}

static inline void put_file(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(data, 1, size, file) == size && fclose(file) == 0, "%s cannot be written", path);
}

#endif
