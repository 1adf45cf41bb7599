/* options.h: command-line options of one command as a table, which is also its help. */
#ifndef MOBILELLM_UTIL_OPTIONS_H
#define MOBILELLM_UTIL_OPTIONS_H

#include "util/error.h"

typedef enum option_kind { OPTION_FLAG, OPTION_INTEGER, OPTION_NUMBER, OPTION_TEXT } option_kind;

/* The table ends with an entry without a name. `value`: bool *, int64_t *, double * or const char **, set when the option is
 * given. */
typedef struct command_option {
    const char *name; /* without the dashes */
    option_kind kind;
    void *value;
    double min, max;     /* of numbers; both 0: any */
    const char *metavar; /* what the help calls the value */
    const char *help;    /* one line */
} command_option;

/* Reads argv[1..]; what is not an option is moved to the front of argv, and *n_rest says how much of it there is (from argv[1]
 * on). What starts with a dash and a letter is an option, or an error that names the nearest one there is.
 * --help (or -h) prints `usage` and the table, and sets *helped; usage NULL: another rank prints. */
int options_parse(const command_option *table, const char *usage, int argc, char **argv, int *n_rest, int *helped, error *err);

#endif
