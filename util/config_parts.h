/* config_parts.h: what the files behind config.h share. Nothing else includes it.
 *
 * config_read.c reads a tree into a struct, config_override.c changes the tree as the command line says, config_print.c writes.
 */
#ifndef MOBILELLM_UTIL_CONFIG_PARTS_H
#define MOBILELLM_UTIL_CONFIG_PARTS_H

#include "util/config.h"
#include "util/tree.h"

#define CONFIG_COMMAND_LINE "command line" /* the file that a tree's nodes name when they come from an override */

/* The name of a file that was read: the tree's nodes point to it. */
typedef struct config_file {
    struct config_file *next;
    char name[];
} config_file;

typedef struct config_reader {
    const config_key *schema;
    const char *main_file;
    config_file *files;
    char path[512]; /* the dotted key of the value at hand, cut if it is longer */
    size_t base;    /* how much of it stands for a file of its own, whose keys go by the rest */
    error *err;
} config_reader;

/* Lengthens the path by one part; returns the length to leave it with. */
size_t config_enter(config_reader *r, const char *part);
void config_leave(config_reader *r, size_t length);

const config_key *config_find_key(const config_key *keys, const char *name); /* NULL: there is none */

/* Errors at a node; they return -1. "file:line: optimizer.lr: found "abc", expected ...". */
int config_wrong(config_reader *r, const tree *t, const char *expected);
int config_unknown_key(config_reader *r, const tree *at, const config_key *keys, const char *name);

/* Make a map of what may stand for a section (nothing, the name of a file) or for an item of a list (nothing, its first key). */
int config_open_section(config_reader *r, const config_key *key, tree *t);
int config_open_item(config_reader *r, const config_key *list, tree *t);

/* Applies the overrides to the tree of the config. */
int config_override(config_reader *r, tree *root, const char *const *overrides, int n_overrides);

#endif
