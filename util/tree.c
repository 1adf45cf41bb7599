/* tree.c: from libyaml's document to our tree.
 *
 * libyaml resolves an alias to the node it names, so that a document is a graph that may even have cycles. We refuse any node that
 * is reached twice: what remains is a tree, at most as large as the text. */
#include "util/tree.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* One document being converted. */
typedef struct conversion {
    yaml_document_t *document;
    const char *file;
    bool numbered; /* lines are worth telling */
    bool *visited; /* by number of the node, from 1 */
    char path[256]; /* the dotted key of the node at hand, cut if it is longer */
    int depth;
} conversion;

int tree_error(const tree *at, error *err, const char *format, ...) {
    char text[sizeof err->text / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (at->line > 0) return error_set(err, STATUS_USAGE, "%s:%d: %s", at->file, at->line, text);
    return error_set(err, STATUS_USAGE, "%s: %s", at->file, text);
}

static int no_memory(const char *file, error *err) { return error_set(err, STATUS_RESOURCE, "%s: no memory to read it", file); }

void tree_free(tree *t) {
    for (int i = 0; i < t->n; i++) tree_free(&t->items[i]);
    free(t->items);
    free(t->text);
    free(t->key);
    *t = (tree){0};
}

tree *tree_find(const tree *map, const char *key) {
    for (int i = 0; i < map->n; i++)
        if (strcmp(map->items[i].key, key) == 0) return &map->items[i];
    return NULL;
}

tree *tree_add(tree *to, const char *key, error *err) {
    tree *grown = realloc(to->items, (size_t)(to->n + 1) * sizeof *grown);
    if (grown) to->items = grown;
    char *copy = key ? strdup(key) : NULL;
    if (!grown || (key && !copy)) {
        free(copy);
        no_memory(to->file, err);
        return NULL;
    }
    tree *item = &to->items[to->n++];
    *item = (tree){.key = copy, .file = to->file, .line = to->line};
    return item;
}

void tree_replace(tree *t, tree *value) {
    tree taken = *value;
    free(taken.key);
    taken.key = t->key;
    t->key = NULL;
    tree_free(t);
    *t = taken;
    *value = (tree){0};
}

/* Lengthens the path by one part, and returns the length to cut it back to. */
static size_t enter(conversion *c, const char *part) {
    size_t length = strlen(c->path);
    snprintf(c->path + length, sizeof c->path - length, "%s%s", length ? "." : "", part);
    return length;
}

static int line_of(const conversion *c, const yaml_mark_t *mark) { return c->numbered ? (int)mark->line + 1 : 0; }

static bool has_own_tag(const yaml_node_t *node) {
    static const char *const ordinary[] = {YAML_STR_TAG, YAML_SEQ_TAG, YAML_MAP_TAG};
    for (size_t i = 0; i < sizeof ordinary / sizeof *ordinary; i++)
        if (strcmp((const char *)node->tag, ordinary[i]) == 0) return false;
    return true;
}

static bool is_nothing(const yaml_node_t *node) {
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    if (node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp((const char *)node->data.scalar.value, words[i]) == 0) return true;
    return false;
}

static int convert_scalar(conversion *c, tree *t, const yaml_node_t *node, error *err) {
    const char *value = (const char *)node->data.scalar.value;
    if (is_nothing(node)) return 0;
    if (strlen(value) != node->data.scalar.length) return tree_error(t, err, "%s: a text may not hold a NUL character", c->path);
    t->kind = TREE_TEXT;
    t->quoted = node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    t->text = strdup(value);
    return t->text ? 0 : no_memory(c->file, err);
}

static int convert(conversion *c, tree *t, int number, error *err);

static int convert_list(conversion *c, tree *t, const yaml_node_t *node, error *err) {
    t->kind = TREE_LIST;
    const yaml_node_item_t *first = node->data.sequence.items.start, *end = node->data.sequence.items.top;
    for (const yaml_node_item_t *item = first; item < end; item++) {
        char part[24];
        snprintf(part, sizeof part, "%td", item - first);
        tree *child = tree_add(t, NULL, err);
        if (!child) return -1;
        size_t back = enter(c, part);
        if (convert(c, child, *item, err)) return -1;
        c->path[back] = '\0';
    }
    return 0;
}

static int convert_pair(conversion *c, tree *t, const yaml_node_pair_t *pair, error *err) {
    const yaml_node_t *name = yaml_document_get_node(c->document, pair->key);
    tree at = {.file = c->file, .line = line_of(c, &name->start_mark)};
    const char *key = (const char *)name->data.scalar.value;
    if (name->type != YAML_SCALAR_NODE || strlen(key) != name->data.scalar.length)
        return tree_error(&at, err, "a key must be a word%s%s", c->path[0] ? ", below " : "", c->path);
    size_t back = enter(c, key);
    const tree *twin = tree_find(t, key);
    if (twin && twin->line > 0) return tree_error(&at, err, "%s is given twice, first in line %d", c->path, twin->line);
    if (twin) return tree_error(&at, err, "%s is given twice", c->path);
    tree *child = tree_add(t, key, err);
    if (!child) return -1;
    child->line = at.line;
    if (convert(c, child, pair->value, err)) return -1;
    c->path[back] = '\0';
    return 0;
}

/* Scalars and items of a list are where they begin; a map or list below a key is where its key is. */
static int convert(conversion *c, tree *t, int number, error *err) {
    const yaml_node_t *node = yaml_document_get_node(c->document, number);
    t->file = c->file;
    if (node->type == YAML_SCALAR_NODE || !t->key) t->line = line_of(c, &node->start_mark);
    if (c->visited[number])
        return tree_error(t, err, "%s is an alias (*name), which configs do not have: write the value out", c->path);
    c->visited[number] = true;
    if (has_own_tag(node)) return tree_error(t, err, "%s has a tag (%s), which configs do not have", c->path, node->tag);
    if (node->type == YAML_SCALAR_NODE) return convert_scalar(c, t, node, err);

    if (c->depth == TREE_DEPTH) return tree_error(t, err, "nested deeper than %d levels, which no config needs", TREE_DEPTH);
    c->depth++;
    if (node->type == YAML_SEQUENCE_NODE) {
        if (convert_list(c, t, node, err)) return -1;
    } else {
        t->kind = TREE_MAP;
        const yaml_node_pair_t *end = node->data.mapping.pairs.top;
        for (const yaml_node_pair_t *pair = node->data.mapping.pairs.start; pair < end; pair++)
            if (convert_pair(c, t, pair, err)) return -1;
    }
    c->depth--;
    return 0;
}

/* Does the line on which libyaml stopped, or the one before, begin with a tab? Then this is what to say. */
static bool has_tab_near(const char *text, size_t length, size_t line) {
    const char *at = text, *end = text + length;
    for (size_t i = 0; at < end && i <= line; i++) {
        const char *indent = at;
        while (indent < end && (*indent == ' ' || *indent == '\t'))
            if (*indent++ == '\t' && i + 1 >= line) return true;
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        at = newline ? newline + 1 : end;
    }
    return false;
}

static int syntax_error(const yaml_parser_t *parser, const conversion *c, const char *text, size_t length, error *err) {
    if (parser->error == YAML_MEMORY_ERROR) return no_memory(c->file, err);
    if (parser->error == YAML_READER_ERROR)
        return error_set(err, STATUS_USAGE, "%s: %s at byte %zu: a config is a text in UTF-8", c->file, parser->problem,
                         parser->problem_offset);
    tree at = {.file = c->file, .line = line_of(c, &parser->problem_mark)};
    const char *hint = has_tab_near(text, length, parser->problem_mark.line) ? ": indent with spaces, not with tabs" : "";
    if (!parser->context) return tree_error(&at, err, "%s%s", parser->problem, hint);
    return tree_error(&at, err, "%s %s%s", parser->problem, parser->context, hint);
}

/* The first document to the tree; that nothing follows it. */
static int read_documents(yaml_parser_t *parser, conversion *c, tree *t, const char *text, size_t length, error *err) {
    yaml_document_t document;
    if (!yaml_parser_load(parser, &document)) return syntax_error(parser, c, text, length, err);
    int n_nodes = (int)(document.nodes.top - document.nodes.start), result = 0;
    if (n_nodes > 0) {
        c->document = &document;
        c->visited = calloc((size_t)n_nodes + 1, sizeof *c->visited);
        result = c->visited ? convert(c, t, 1, err) : no_memory(c->file, err);
        free(c->visited);
    }
    yaml_document_delete(&document);
    if (result || n_nodes == 0) return result;

    if (!yaml_parser_load(parser, &document)) return syntax_error(parser, c, text, length, err);
    tree second = {.file = c->file, .line = line_of(c, &document.start_mark)};
    if (yaml_document_get_root_node(&document)) result = tree_error(&second, err, "a second document begins here; a config is one");
    yaml_document_delete(&document);
    return result;
}

int tree_parse(tree *t, const char *file, bool numbered, const char *text, size_t length, error *err) {
    *t = (tree){.file = file};
    conversion c = {.file = file, .numbered = numbered};
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser)) return no_memory(file, err);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, length);
    int result = read_documents(&parser, &c, t, text, length, err);
    yaml_parser_delete(&parser);
    if (result) tree_free(t);
    if (!result && t->kind != TREE_TEXT) t->line = 0; /* what a file lacks, it lacks as a whole */
    return result;
}
