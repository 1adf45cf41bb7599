/* token_writer.c: a stream of ids to a Megatron-LM indexed dataset.
 *
 * The ids go to disk as they come. Of the index only the lengths of the sequences and the boundaries of the documents are held in
 * memory, 12 bytes a document: its parts are arrays one after another, whose places depend on how many sequences there will be.
 */
#include "data/token_writer.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "util/file.h"

enum { BUFFER_BYTES = 1 << 18 };

/* A file under its temporary name; fd -1: not open. crc: of what has left the buffer. */
typedef struct output {
    char path[PATH_MAX], temporary[PATH_MAX];
    int fd;
    unsigned char *buffer;
    size_t used;
    uint32_t crc;
} output;

struct token_writer {
    token_type type;
    char *prefix;
    output bin, idx, card;
    int32_t *lengths;   /* (n_sequences) tokens */
    int64_t *documents; /* (n_documents + 1) first sequence of each */
    int64_t n_sequences, n_documents, sequence_capacity, document_capacity;
    int64_t n_tokens, pending; /* pending: tokens of the sequence that is being written */
};

/* ---- one file ---- */

static int output_open(output *o, const char *prefix, const char *suffix, error *err) {
    if (snprintf(o->path, sizeof o->path, "%s%s", prefix, suffix) >= PATH_MAX ||
        snprintf(o->temporary, sizeof o->temporary, "%s%s.tmp", prefix, suffix) >= PATH_MAX)
        return error_set(err, STATUS_USAGE, "%.60s...: the path is too long", prefix);
    o->buffer = malloc(BUFFER_BYTES);
    if (!o->buffer) return error_set(err, STATUS_RESOURCE, "out of memory");
    o->fd = open(o->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (o->fd < 0)
        return error_set(err, STATUS_RESOURCE, "%s: cannot create: %s. The directory must exist and be writable.", o->temporary,
                         strerror(errno));
    return 0;
}

static int output_flush(output *o, error *err) {
    size_t bytes = o->used;
    o->used = 0;
    o->crc = (uint32_t)crc32_z(o->crc, o->buffer, bytes);
    return file_write(o->fd, o->temporary, o->buffer, bytes, err);
}

static int output_put(output *o, const void *data, size_t bytes, error *err) {
    for (size_t done = 0; done < bytes;) {
        if (o->used == BUFFER_BYTES && output_flush(o, err)) return -1;
        size_t n = bytes - done < BUFFER_BYTES - o->used ? bytes - done : BUFFER_BYTES - o->used;
        memcpy(o->buffer + o->used, (const char *)data + done, n);
        o->used += n;
        done += n;
    }
    return 0;
}

/* All bytes on disk, still under the temporary name. */
static int output_close(output *o, error *err) {
    int rc = output_flush(o, err);
    if (rc == 0 && fsync(o->fd)) rc = error_set(err, STATUS_RESOURCE, "%s: cannot write: %s.", o->temporary, strerror(errno));
    if (close(o->fd) && rc == 0) rc = error_set(err, STATUS_RESOURCE, "%s: cannot write: %s.", o->temporary, strerror(errno));
    o->fd = -1;
    return rc;
}

static int output_rename(const output *o, error *err) {
    if (rename(o->temporary, o->path) == 0) return 0;
    return error_set(err, STATUS_RESOURCE, "%s: cannot rename to %s: %s.", o->temporary, o->path, strerror(errno));
}

static void output_abandon(output *o) {
    if (o->fd >= 0) close(o->fd);
    if (o->temporary[0]) unlink(o->temporary);
    free(o->buffer);
}

/* ---- the stream ---- */

/* Makes room for one more element; *array may move. */
static int grow(void **array, int64_t n, int64_t *capacity, size_t element, error *err) {
    if (n < *capacity) return 0;
    int64_t wanted = *capacity ? 2 * *capacity : 1024;
    void *moved = realloc(*array, (size_t)wanted * element);
    if (!moved) return error_set(err, STATUS_RESOURCE, "out of memory for an index of %" PRId64 " entries", wanted);
    *array = moved;
    *capacity = wanted;
    return 0;
}

static int push_document(token_writer *w, int64_t first_sequence, int64_t at, error *err) {
    void *documents = w->documents;
    int rc = grow(&documents, at, &w->document_capacity, sizeof *w->documents, err);
    w->documents = documents;
    if (rc == 0) w->documents[at] = first_sequence;
    return rc;
}

int token_writer_open(token_writer **out, const char *prefix, token_type type, error *err) {
    *out = NULL;
    token_writer *w = calloc(1, sizeof *w);
    if (!w) return error_set(err, STATUS_RESOURCE, "out of memory");
    w->type = type;
    w->bin.fd = w->idx.fd = w->card.fd = -1;
    w->prefix = strdup(prefix);
    int rc = w->prefix ? 0 : error_set(err, STATUS_RESOURCE, "out of memory");
    if (rc || push_document(w, 0, 0, err) || output_open(&w->bin, prefix, ".bin", err)) {
        token_writer_abandon(w);
        return -1;
    }
    *out = w;
    return 0;
}

void token_writer_abandon(token_writer *w) {
    if (!w) return;
    output_abandon(&w->bin);
    output_abandon(&w->idx);
    output_abandon(&w->card);
    free(w->prefix);
    free(w->lengths);
    free(w->documents);
    free(w);
}

int token_writer_append(token_writer *w, const int32_t *ids, int64_t n, error *err) {
    int64_t largest = token_type_max(w->type);
    if (n > INT32_MAX - w->pending)
        return error_set(err, STATUS_INPUT,
                         "%s: a sequence has more than %d tokens, which the format cannot tell: split the document", w->prefix,
                         INT32_MAX);
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] > largest)
            return error_set(err, STATUS_INPUT, "%s: token %" PRId64 " is id %" PRId32 "; %s holds 0 to %" PRId64 ": write int32",
                             w->prefix, w->n_tokens + w->pending + i, ids[i], token_type_name(w->type), largest);
        uint16_t narrow = (uint16_t)ids[i];
        uint8_t byte = (uint8_t)ids[i];
        const void *stored = w->type == TOKEN_INT32    ? (const void *)&ids[i]
                             : w->type == TOKEN_UINT16 ? (const void *)&narrow
                                                       : &byte;
        if (output_put(&w->bin, stored, (size_t)token_type_bytes(w->type), err)) return -1;
    }
    w->pending += n;
    return 0;
}

int token_writer_end_sequence(token_writer *w, error *err) {
    void *lengths = w->lengths;
    int rc = grow(&lengths, w->n_sequences, &w->sequence_capacity, sizeof *w->lengths, err);
    w->lengths = lengths;
    if (rc) return -1;
    w->lengths[w->n_sequences++] = (int32_t)w->pending;
    w->n_tokens += w->pending;
    w->pending = 0;
    return 0;
}

int token_writer_end_document(token_writer *w, error *err) {
    assert(w->pending == 0);
    if (push_document(w, w->n_sequences, w->n_documents + 1, err)) return -1;
    w->n_documents++;
    return 0;
}

/* ---- the index, the card, and putting all in place ---- */

static int write_index(token_writer *w, error *err) {
    output *o = &w->idx;
    uint64_t version = 1, n = (uint64_t)w->n_sequences, d = (uint64_t)w->n_documents + 1;
    unsigned char type = (unsigned char)w->type;
    if (output_open(o, w->prefix, ".idx", err) || output_put(o, "MMIDIDX\0", 9, err) || output_put(o, &version, 8, err) ||
        output_put(o, &type, 1, err) || output_put(o, &n, 8, err) || output_put(o, &d, 8, err) ||
        output_put(o, w->lengths, 4 * n, err))
        return -1;
    for (int64_t i = 0, offset = 0; i < w->n_sequences; i++) {
        if (output_put(o, &offset, 8, err)) return -1;
        offset += (int64_t)w->lengths[i] * token_type_bytes(w->type);
    }
    if (output_put(o, w->documents, 8 * d, err)) return -1;
    return output_close(o, err);
}

static int write_card(token_writer *w, const token_card *card, error *err) {
    json_t *json = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "bytes", (json_int_t)card->bytes, "tokens",
                             (json_int_t)card->tokens, "n_documents", (json_int_t)card->n_documents, "vocab_size",
                             (json_int_t)card->vocab_size, "bin_crc32", (json_int_t)card->bin_crc32, "idx_crc32",
                             (json_int_t)card->idx_crc32, "tokenizer", card->tokenizer, "tokenizer_hash", card->tokenizer_hash);
    char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;
    json_decref(json);
    if (!text) return error_set(err, STATUS_INTERNAL, "%s.json: cannot be put as JSON (out of memory, or not UTF-8)", w->prefix);
    int rc = output_open(&w->card, w->prefix, ".json", err) || output_put(&w->card, text, strlen(text), err) ||
             output_put(&w->card, "\n", 1, err) || output_close(&w->card, err);
    free(text);
    return rc ? -1 : 0;
}

/* Forces the renames in the directory of `path` to disk. */
static int sync_directory(const char *path, error *err) {
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int length = slash == path ? 1 : slash ? (int)(slash - path) : 1;
    snprintf(directory, sizeof directory, "%.*s", length, slash ? path : ".");
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int failed = fd < 0 || fsync(fd);
    if (failed) error_set(err, STATUS_RESOURCE, "%s: cannot be forced to disk: %s.", directory, strerror(errno));
    if (fd >= 0) close(fd);
    return failed ? -1 : 0;
}

/* An index of earlier data goes first: beside the new .bin it would be wrong, and without it the prefix is plainly no data. */
static int put_in_place(token_writer *w, bool with_card, error *err) {
    char card[PATH_MAX];
    if (snprintf(card, sizeof card, "%s.json", w->prefix) >= PATH_MAX)
        return error_set(err, STATUS_USAGE, "%.60s...: the path is too long", w->prefix);
    if (unlink(w->idx.path) && errno != ENOENT)
        return error_set(err, STATUS_RESOURCE, "%s: cannot be replaced: %s.", w->idx.path, strerror(errno));
    if (output_rename(&w->bin, err)) return -1;
    if (with_card && output_rename(&w->card, err)) return -1;
    if (!with_card && unlink(card) && errno != ENOENT)
        return error_set(err, STATUS_RESOURCE, "%s: the card of earlier data cannot be removed: %s.", card, strerror(errno));
    if (output_rename(&w->idx, err)) return -1;
    return sync_directory(w->bin.path, err);
}

int token_writer_finish(token_writer *w, token_card *card, error *err) {
    assert(w->pending == 0 && w->documents[w->n_documents] == w->n_sequences);
    int rc = output_close(&w->bin, err) || write_index(w, err);
    if (card) {
        card->tokens = w->n_tokens;
        card->n_documents = w->n_documents;
        card->bin_crc32 = w->bin.crc;
        card->idx_crc32 = w->idx.crc;
    }
    rc = rc || (card && write_card(w, card, err)) || put_in_place(w, card, err);
    token_writer_abandon(w);
    return rc ? -1 : 0;
}
