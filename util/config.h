/* config.h: YAML configs read through one schema, which is also their documentation.
 *
 * A schema is an array of config_key that ends with an empty one; each key says where its value goes in a C struct. Reading
 * refuses keys the schema does not know (with the nearest one it does), values of the wrong kind or out of range, and missing
 * keys without a default, naming file:line and the dotted key. `key=value` overrides are applied to the tree before it is read,
 * with the same checks, named as "command line". */
#ifndef MOBILELLM_UTIL_CONFIG_H
#define MOBILELLM_UTIL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "util/error.h"

typedef enum config_kind {
    CONFIG_INT,     /* int; numbers have the form of number.h, so 1e3 is a whole one, and 1_000 or inf none at all */
    CONFIG_INT64,   /* int64_t: 2.6e9 */
    CONFIG_DOUBLE,  /* double */
    CONFIG_BOOL,    /* bool: true or false */
    CONFIG_STRING,  /* char *, allocated; NULL where the default is "null" and nothing is given */
    CONFIG_CHOICE,  /* int (an enum whose values are 0, 1, ...): index into `choices` */
    CONFIG_PAIR,    /* double[2]: [a, b] */
    CONFIG_SECTION, /* a struct inside the struct: `keys` */
    CONFIG_LIST     /* struct config_list: `keys` of one item, `item_size` its bytes; a plain scalar item is its first key */
} config_kind;

typedef struct config_key {
    const char *name;
    config_kind kind;
    size_t offset;
    const char *fallback; /* the default, as it would be written; NULL: must be given. Of a section "{}": its keys' defaults */
    const char *doc;      /* one line: meaning and unit */
    double min, max;      /* of numbers, both included; both 0: any. An INFINITY leaves one side open */
    const char *const *choices; /* ends with NULL */
    const struct config_key *keys;
    size_t item_size;
    bool may_be_file; /* a section that may be given as the path of a YAML file holding it */
} config_key;

typedef struct config_list {
    void *items;
    int n;
} config_list;

/* Reads the file at `path` and the overrides into *out, which is cleared first, and on failure again. When `text` is not NULL it
 * is read instead, and path is only what messages call it. A file named by a may_be_file section is looked for in the working
 * directory, then beside the config. Overrides: "optimizer.lr=1e-3", "data.train=[{prefix: p, weight: 2}]",
 * "data.train.0.prefix=p"; the value is YAML, missing sections are made, the last of two wins, and one that names a section's
 * file comes before those that change the section. */
int config_read(void *out, const config_key *schema, const char *path, const char *text, const char *const *overrides,
                int n_overrides, error *err);

/* Where a key of a config that config_read takes is set, for messages about values that do not go together: "run.yaml:14",
 * "command line"; where it is left out, its section. */
void config_place(char *out, size_t size, const config_key *schema, const char *path, const char *const *overrides,
                  int n_overrides, const char *key);

/* Frees the strings and lists that config_read allocated, and clears them. Safe on a cleared struct. */
void config_free(void *values, const config_key *schema);

/* The values as YAML that config_read takes back unchanged, to the bit: an allocated string, NULL if there is no memory. */
char *config_print(const void *values, const config_key *schema);

/* The value of one key, which is no section or list, as config_print writes it; cut to fit. */
void config_print_value(char *out, size_t size, const void *values, const config_key *key);

/* The keys, their defaults and documentation, as `mobilellm train --help` shows them. */
void config_describe(FILE *to, const config_key *schema);

/* The candidate (of n, or up to NULL when n < 0) nearest to `word` by edit distance; NULL if none is near. */
const char *config_nearest(const char *word, const char *const *candidates, int n);

#endif
