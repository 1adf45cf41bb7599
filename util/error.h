/* error.h: errors caused by the world (files, configs, memory, ranks) travel up as a value.
 *
 * A function that can fail takes `error *err` last and returns 0, or -1 with *err filled. The message names the file, what was
 * found, what was expected and what to do; whoever called main() prints it once and exits with its code. Errors caused by this
 * program itself are asserts. */
#ifndef MOBILELLM_UTIL_ERROR_H
#define MOBILELLM_UTIL_ERROR_H

#include <stdarg.h>
#include <stdnoreturn.h>

/* The exit statuses of the program, also listed by `mobilellm --help`. */
typedef enum status {
    STATUS_OK = 0,
    STATUS_INTERNAL = 1, /* a library failed in a way we did not foresee */
    STATUS_USAGE = 2,    /* command line or config: nothing was started */
    STATUS_INPUT = 3,    /* a data file, checkpoint or tokenizer is missing, damaged or does not fit */
    STATUS_RESOURCE = 4, /* memory, disk, permissions, a directory in use by another run */
    STATUS_DIVERGED = 5, /* too many non-finite steps in a row */
    STATUS_RANK = 6,     /* another rank failed or hung, and ended this one */
    STATUS_AGAIN = 75    /* stopped by a signal or the time limit, nothing is lost: start again with --resume */
} status;

typedef struct error {
    status code;
    char text[2048];
} error;

#ifdef __cplusplus
extern "C" {
#endif

/* Fills *err and returns -1, so that a failing path reads `return error_set(err, STATUS_INPUT, "%s: ...", path);`. */
int error_set(error *err, status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the message already in *err (which file of a list, which rank) and returns -1. */
int error_prefix(error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#ifdef __cplusplus
}
#endif
#endif
