/* pack.c: documents out of files, bytes out of documents.
 *
 * Text is read as a stream, so that neither a file nor a document needs to fit in memory; only a line does. */
#include "data/pack.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/bytes.h"
#include "data/token_writer.h"

enum { CHUNK = 1 << 14 };

typedef struct packing {
    token_writer *writer;
    int64_t bytes, documents;
} packing;

/* A file that is read line by line. */
typedef struct lines {
    FILE *file;
    const char *path;
    char *text; /* the line, with its newline */
    size_t capacity;
    ssize_t length;
    int64_t number;
} lines;

static int add_bytes(packing *p, const char *text, int64_t n, error *err) {
    int32_t ids[CHUNK];
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t some = n - first < CHUNK ? n - first : CHUNK;
        bytes_encode(ids, text + first, some);
        if (token_writer_append(p->writer, ids, some, err)) return -1;
    }
    p->bytes += n;
    return 0;
}

static int end_document(packing *p, error *err) {
    const int32_t eod = BYTES_EOD;
    if (token_writer_append(p->writer, &eod, 1, err) || token_writer_end_sequence(p->writer, err)) return -1;
    p->documents++;
    return token_writer_end_document(p->writer, err);
}

static int pack_whole(packing *p, FILE *file, const char *path, error *err) {
    char text[CHUNK];
    size_t n;
    while ((n = fread(text, 1, sizeof text, file)) > 0)
        if (add_bytes(p, text, (int64_t)n, err)) return -1;
    if (ferror(file)) return error_set(err, STATUS_INPUT, "%s: cannot read: %s", path, strerror(errno));
    return end_document(p, err);
}

/* 1: there is a line; 0: the file ended; -1: error. */
static int next_line(lines *l, error *err) {
    errno = 0;
    l->length = getline(&l->text, &l->capacity, l->file);
    if (l->length >= 0) {
        l->number++;
        return 1;
    }
    if (ferror(l->file) || !feof(l->file))
        return error_set(err, STATUS_INPUT, "%s: cannot read after line %" PRId64 ": %s", l->path, l->number, strerror(errno));
    return 0;
}

static bool is_blank(const lines *l) {
    for (ssize_t i = 0; i < l->length; i++)
        if (!isspace((unsigned char)l->text[i])) return false;
    return true;
}

static int64_t without_newline(const lines *l) {
    return l->length > 0 && l->text[l->length - 1] == '\n' ? l->length - 1 : l->length;
}

static int pack_lines(packing *p, lines *l, error *err) {
    int more;
    while ((more = next_line(l, err)) == 1) {
        int64_t n = without_newline(l);
        if (n > 0 && (add_bytes(p, l->text, n, err) || end_document(p, err))) return -1;
    }
    return more;
}

static int pack_paragraphs(packing *p, lines *l, error *err) {
    bool inside = false;
    int more;
    while ((more = next_line(l, err)) == 1) {
        if (is_blank(l)) {
            if (inside && end_document(p, err)) return -1;
            inside = false;
            continue;
        }
        /* A newline is written when the next line is known to follow it. */
        if (inside && add_bytes(p, "\n", 1, err)) return -1;
        if (add_bytes(p, l->text, without_newline(l), err)) return -1;
        inside = true;
    }
    return more < 0 || (inside && end_document(p, err)) ? -1 : 0;
}

/* The document of a line of JSON. */
static int pack_object(packing *p, const lines *l, const char *key, error *err) {
    json_error_t problem;
    json_t *object = json_loadb(l->text, (size_t)l->length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    if (!object)
        return error_set(err, STATUS_INPUT, "%s:%" PRId64 ": not JSON: %s (byte %d of the line); each line must be an object",
                         l->path, l->number, problem.text, problem.position);
    int rc;
    const json_t *text = json_object_get(object, key); /* NULL if it is not an object */
    if (!json_is_object(object)) {
        rc = error_set(err, STATUS_INPUT, "%s:%" PRId64 ": expected an object, {\"%s\": \"...\"}", l->path, l->number, key);
    } else if (!text) {
        const char *first = json_object_iter_key(json_object_iter(object));
        rc = error_set(err, STATUS_INPUT,
                       "%s:%" PRId64 ": no member \"%s\"; the object has %s%s%s: name the one to take with --key", l->path,
                       l->number, key, first ? "\"" : "none", first ? first : "", first ? "\" and maybe others" : "");
    } else if (!json_is_string(text)) {
        rc = error_set(err, STATUS_INPUT, "%s:%" PRId64 ": \"%s\" is not a string", l->path, l->number, key);
    } else {
        rc = add_bytes(p, json_string_value(text), (int64_t)json_string_length(text), err) || end_document(p, err);
    }
    json_decref(object);
    return rc ? -1 : 0;
}

static int pack_jsonl(packing *p, lines *l, const char *key, error *err) {
    int more;
    while ((more = next_line(l, err)) == 1)
        if (!is_blank(l) && pack_object(p, l, key, err)) return -1;
    return more;
}

static int pack_file(packing *p, const pack_options *o, const char *path, error *err) {
    FILE *file = fopen(path, "re");
    if (!file) return error_set(err, STATUS_INPUT, "%s: %s", path, strerror(errno));
    size_t length = strlen(path);
    bool jsonl =
        o->format == PACK_JSONL || (o->format == PACK_BY_NAME && length >= 6 && strcmp(path + length - 6, ".jsonl") == 0);
    lines l = {.file = file, .path = path};
    int rc;
    if (jsonl)
        rc = pack_jsonl(p, &l, o->key, err);
    else if (o->split == PACK_LINES)
        rc = pack_lines(p, &l, err);
    else if (o->split == PACK_BLANK)
        rc = pack_paragraphs(p, &l, err);
    else
        rc = pack_whole(p, file, path, err);
    free(l.text);
    fclose(file);
    return rc;
}

int pack(const pack_options *o, token_card *card, error *err) {
    packing p = {0};
    if (token_writer_open(&p.writer, o->prefix, TOKEN_UINT16, err)) return -1;
    int rc = 0;
    for (int i = 0; rc == 0 && i < o->n_inputs; i++) rc = pack_file(&p, o, o->inputs[i], err);
    if (rc == 0 && p.documents == 0)
        rc = error_set(err, STATUS_INPUT, "%s%s: there is no document to pack", o->inputs[0],
                       o->n_inputs > 1 ? " and others" : "");
    if (rc) {
        token_writer_abandon(p.writer);
        return -1;
    }
    *card = (token_card){
        .bytes = p.bytes, .vocab_size = BYTES_VOCAB_SIZE, .tokenizer = "bytes", .tokenizer_hash = BYTES_TOKENIZER_HASH};
    return token_writer_finish(p.writer, card, err);
}
