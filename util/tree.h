/* tree.h: a YAML text as a tree of plain nodes, each of which knows the line it came from.
 *
 * Configs use the part of YAML that needs no manual: one document of maps, lists and text. What else YAML has (aliases, tags,
 * several documents, keys that are not words) is refused, and so are duplicate keys and nesting beyond TREE_DEPTH. Whether a
 * text is a number is for its reader to say, not for the tree. */
#ifndef MOBILELLM_UTIL_TREE_H
#define MOBILELLM_UTIL_TREE_H

#include <stdbool.h>
#include <stddef.h>

#include "util/error.h"

enum { TREE_DEPTH = 16 };

typedef enum tree_kind {
    TREE_NOTHING, /* null, ~ or no value */
    TREE_TEXT,
    TREE_LIST,
    TREE_MAP
} tree_kind;

typedef struct tree {
    tree_kind kind;
    char *text;         /* TREE_TEXT */
    bool quoted;        /* ... written in quotes, or as a block */
    struct tree *items; /* (n) TREE_LIST, TREE_MAP */
    int n;
    char *key;        /* its key, in a map */
    const char *file; /* what messages call its source; outlives the tree */
    int line;         /* from 1; 0 where a line says nothing: the whole file, or the command line */
} tree;

/* Reads a YAML text. `file` is what messages call it; numbered: its lines are worth telling. A text with nothing in it gives
 * TREE_NOTHING. On failure *t is cleared and *err names file and line. */
int tree_parse(tree *t, const char *file, bool numbered, const char *text, size_t length, error *err);
void tree_free(tree *t); /* and clears it */

tree *tree_find(const tree *map, const char *key); /* NULL: it has none */

/* Adds an item to a list (key NULL) or a map, with nothing in it and the place of `to`. NULL: no memory, *err is set. */
tree *tree_add(tree *to, const char *key, error *err);

/* Puts `value` where *t is, which keeps its key; *value is cleared. */
void tree_replace(tree *t, tree *value);

/* "file:line: " or "file: " and the message, as an error of usage. Returns -1. */
int tree_error(const tree *at, error *err, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
