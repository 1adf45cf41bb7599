/* tree.c: from libyaml's events to our tree.
 *
 * Events and not its document loader, because so the reading ends at the first thing that configs do not have: an alias or a tag
 * is refused in its own line, and a megabyte of brackets at its seventeenth, which the loader would need minutes for. */
#include "util/tree.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* A text being read. */
typedef struct reader {
    yaml_parser_t parser;
    const char *file, *text;
    size_t length;
    bool numbered;  /* lines are worth telling */
    char path[256]; /* the dotted key of the node at hand, cut if it is longer */
    int depth;
    error *err;
} reader;

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
static size_t enter(reader *r, const char *part) {
    size_t length = strlen(r->path);
    snprintf(r->path + length, sizeof r->path - length, "%s%s", length ? "." : "", part);
    return length;
}

static const char *path_of(const reader *r) { return r->path[0] ? r->path : "the top level"; }

static int line_of(const reader *r, const yaml_mark_t *mark) { return r->numbered ? (int)mark->line + 1 : 0; }

/* Does the line on which libyaml stopped, or the one before, begin with a tab? Then this is what to say. */
static bool has_tab_near(const reader *r, size_t line) {
    const char *at = r->text, *end = r->text + r->length;
    for (size_t i = 0; at < end && i <= line; i++) {
        for (const char *indent = at; indent < end && (*indent == ' ' || *indent == '\t'); indent++)
            if (*indent == '\t' && i + 1 >= line) return true;
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        at = newline ? newline + 1 : end;
    }
    return false;
}

static int syntax_error(const reader *r) {
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR) return no_memory(r->file, r->err);
    if (p->error == YAML_READER_ERROR)
        return error_set(r->err, STATUS_USAGE, "%s: %s at byte %zu: a config is a text in UTF-8", r->file, p->problem,
                         p->problem_offset);
    tree at = {.file = r->file, .line = line_of(r, &p->problem_mark)};
    const char *hint = has_tab_near(r, p->problem_mark.line) ? ": indent with spaces, not with tabs" : "";
    if (!p->context) return tree_error(&at, r->err, "%s%s", p->problem, hint);
    return tree_error(&at, r->err, "%s %s%s", p->problem, p->context, hint);
}

static int next_event(reader *r, yaml_event_t *event) { return yaml_parser_parse(&r->parser, event) ? 0 : syntax_error(r); }

static bool is_nothing(const yaml_event_t *e) {
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    if (e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp((const char *)e->data.scalar.value, words[i]) == 0) return true;
    return false;
}

static int refuse_tag(reader *r, const tree *t, const char *tag) {
    return tree_error(t, r->err, "%s has a tag (%s), which configs do not have", path_of(r), tag);
}

static int read_scalar(reader *r, tree *t, const yaml_event_t *e) {
    const char *value = (const char *)e->data.scalar.value;
    if (e->data.scalar.tag) return refuse_tag(r, t, (const char *)e->data.scalar.tag);
    if (is_nothing(e)) return 0;
    if (strlen(value) != e->data.scalar.length)
        return tree_error(t, r->err, "%s: a text may not hold a NUL character", path_of(r));
    t->kind = TREE_TEXT;
    t->quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    t->text = strdup(value);
    return t->text ? 0 : no_memory(r->file, r->err);
}

static int read_node(reader *r, tree *t, const yaml_event_t *first);

static int read_item(reader *r, tree *list, const yaml_event_t *first) {
    char part[24];
    snprintf(part, sizeof part, "%d", list->n);
    tree *item = tree_add(list, NULL, r->err);
    if (!item) return -1;
    size_t back = enter(r, part);
    if (read_node(r, item, first)) return -1;
    r->path[back] = '\0';
    return 0;
}

static int read_pair(reader *r, tree *map, const yaml_event_t *first) {
    tree at = {.file = r->file, .line = line_of(r, &first->start_mark)};
    const char *key = (const char *)first->data.scalar.value;
    if (first->type != YAML_SCALAR_EVENT || first->data.scalar.tag || strlen(key) != first->data.scalar.length)
        return tree_error(&at, r->err, "a key of %s is not a word", path_of(r));
    size_t back = enter(r, key);
    const tree *twin = tree_find(map, key);
    if (twin && r->numbered) return tree_error(&at, r->err, "%s is given twice, first in line %d", r->path, twin->line);
    if (twin) return tree_error(&at, r->err, "%s is given twice", r->path);
    tree *value = tree_add(map, key, r->err);
    if (!value) return -1;
    value->line = at.line;
    yaml_event_t event;
    if (next_event(r, &event)) return -1;
    int result = read_node(r, value, &event);
    yaml_event_delete(&event);
    r->path[back] = '\0';
    return result;
}

static int read_items(reader *r, tree *t, yaml_event_type_t end, int (*read)(reader *r, tree *t, const yaml_event_t *first)) {
    if (r->depth == TREE_DEPTH) return tree_error(t, r->err, "nested deeper than %d levels, which no config needs", TREE_DEPTH);
    r->depth++;
    for (bool done = false; !done;) {
        yaml_event_t event;
        if (next_event(r, &event)) return -1;
        done = event.type == end;
        int result = done ? 0 : read(r, t, &event);
        yaml_event_delete(&event);
        if (result) return result;
    }
    r->depth--;
    return 0;
}

/* Scalars and items of a list are where they begin; a map or list below a key is where its key is. */
static int read_node(reader *r, tree *t, const yaml_event_t *first) {
    t->file = r->file;
    if (first->type == YAML_SCALAR_EVENT || !t->key) t->line = line_of(r, &first->start_mark);
    if (first->type == YAML_ALIAS_EVENT) {
        t->line = line_of(r, &first->start_mark);
        return tree_error(t, r->err, "%s is an alias (*%s), which configs do not have: write the value out", path_of(r),
                          first->data.alias.anchor);
    }
    if (first->type == YAML_SCALAR_EVENT) return read_scalar(r, t, first);
    if (first->type == YAML_SEQUENCE_START_EVENT) {
        if (first->data.sequence_start.tag) return refuse_tag(r, t, (const char *)first->data.sequence_start.tag);
        t->kind = TREE_LIST;
        return read_items(r, t, YAML_SEQUENCE_END_EVENT, read_item);
    }
    assert(first->type == YAML_MAPPING_START_EVENT);
    if (first->data.mapping_start.tag) return refuse_tag(r, t, (const char *)first->data.mapping_start.tag);
    t->kind = TREE_MAP;
    return read_items(r, t, YAML_MAPPING_END_EVENT, read_pair);
}

/* The events around the root: stream start, document start, (root), document end, stream end. */
static int read_stream(reader *r, tree *t) {
    for (bool done = false, seen = false; !done;) {
        yaml_event_t event;
        if (next_event(r, &event)) return -1;
        int result = 0;
        if (event.type == YAML_DOCUMENT_START_EVENT && seen) {
            tree at = {.file = r->file, .line = line_of(r, &event.start_mark)};
            result = tree_error(&at, r->err, "a second document begins here; a config is one");
        } else if (event.type == YAML_DOCUMENT_START_EVENT) {
            seen = true;
        } else if (event.type != YAML_STREAM_START_EVENT && event.type != YAML_STREAM_END_EVENT &&
                   event.type != YAML_DOCUMENT_END_EVENT) {
            result = read_node(r, t, &event);
        }
        done = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
        if (result) return result;
    }
    return 0;
}

int tree_parse(tree *t, const char *file, bool numbered, const char *text, size_t length, error *err) {
    static const char byte_order_mark[] = "\xEF\xBB\xBF"; /* which libyaml passes over only when it may guess the encoding */
    size_t mark = sizeof byte_order_mark - 1;
    if (length >= mark && memcmp(text, byte_order_mark, mark) == 0) {
        text += mark;
        length -= mark;
    }
    *t = (tree){.file = file};
    reader r = {.file = file, .text = text, .length = length, .numbered = numbered, .err = err};
    if (!yaml_parser_initialize(&r.parser)) return no_memory(file, err);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, length);
    int result = read_stream(&r, t);
    yaml_parser_delete(&r.parser);
    if (result) tree_free(t);
    if (!result && t->kind != TREE_TEXT) t->line = 0; /* what a file lacks, it lacks as a whole */
    return result;
}
