/* tokens.c: opening, checking and reading Megatron-LM indexed datasets.
 *
 *   offset    .idx, little-endian, packed                      N sequences, D = documents + 1
 *   0         9 bytes "MMIDIDX\0\0"
 *   9         u64 version, 1
 *   17        u8  type of a token
 *   18, 26    u64 N, u64 D
 *   34        i32[N] lengths in tokens
 *   34+4N     i64[N] byte offset of each sequence in the .bin
 *   34+12N    i64[D] documents: first sequence of each, first 0, last N
 *   34+12N+8D i8[N]  modes, of multimodal data only: not read
 *
 * The header's 34 bytes leave every array unaligned: numbers are copied out, never pointed at. All of the index is checked once
 * at open, so that reading needs no checks. The format would allow gaps between sequences; Megatron's writers leave none, and we
 * refuse them: then token t of the file simply lies at byte t * token_bytes, and a .bin that is not the index's own is found by
 * its size. */
#include "data/tokens.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the files are little-endian and read without conversion"
#endif

enum { HEADER_BYTES = 34, VERIFY_CHUNK = 16384 };
static const unsigned char magic[9] = "MMIDIDX\0";

/* Why a file that was right once no longer is, and what to do about it. */
#define WRITE_AGAIN "Write the pair again with `data/prepare.py text` or `mobilellm data pack`."

int token_type_bytes(token_type type) { return type == TOKEN_INT32 ? 4 : type == TOKEN_UINT16 ? 2 : 1; }
const char *token_type_name(token_type type) { return type == TOKEN_INT32 ? "int32" : type == TOKEN_UINT16 ? "uint16" : "uint8"; }
int64_t token_type_max(token_type type) {
    return type == TOKEN_INT32 ? INT32_MAX : type == TOKEN_UINT16 ? UINT16_MAX : UINT8_MAX;
}

static int64_t read_i64(const unsigned char *at) {
    int64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int32_t read_i32(const unsigned char *at) {
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int32_t length_of(const token_file *f, int64_t i) { return read_i32(f->idx + HEADER_BYTES + 4 * i); }
static int64_t offset_of(const token_file *f, int64_t i) { return read_i64(f->idx + HEADER_BYTES + 4 * f->n_sequences + 8 * i); }
static int64_t document_of(const token_file *f, int64_t d) {
    return read_i64(f->idx + HEADER_BYTES + 12 * f->n_sequences + 8 * d);
}

/* ---- opening ---- */

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Maps PREFIX + suffix for reading. An empty file has no mapping. */
static int map_file(const unsigned char **data, size_t *bytes, const char *prefix, const char *suffix, error *err) {
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s%s", prefix, suffix) >= sizeof path)
        return error_set(err, STATUS_INPUT, "%.60s...: the path is longer than %zu bytes", prefix, sizeof path - 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int failure = errno;
        bool with_suffix = ends_with(prefix, ".bin") || ends_with(prefix, ".idx");
        return error_set(err, failure == EACCES ? STATUS_RESOURCE : STATUS_INPUT, "%s: %s. %s", path, strerror(failure),
                         with_suffix ? "Name the data without .bin or .idx."
                                     : "Token data is a pair PREFIX.bin and PREFIX.idx: check the path, or make the pair with "
                                       "`data/prepare.py text` or `mobilellm data pack`.");
    }
    struct stat info;
    int rc = 0;
    if (fstat(fd, &info) != 0)
        rc = error_set(err, STATUS_INPUT, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        rc = error_set(err, STATUS_INPUT, "%s is not a regular file, which token data must be to be mapped into memory", path);
    else if (info.st_size > 0) {
        *bytes = (size_t)info.st_size;
        void *map = mmap(NULL, *bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            rc = error_set(err, STATUS_RESOURCE, "%s: cannot map %zu bytes: %s", path, *bytes, strerror(errno));
        else
            *data = map;
    }
    close(fd);
    return rc;
}

static int check_type(token_file *f, int code, error *err) {
    static const char *const names[] = {"", "uint8", "int8", "int16", "int32", "int64", "float64", "float32", "uint16"};
    if (code == TOKEN_INT32 || code == TOKEN_UINT16 || code == TOKEN_UINT8) {
        f->type = (token_type)code;
        f->token_bytes = token_type_bytes(f->type);
        return 0;
    }
    const char *name = code >= 1 && code <= 8 ? names[code] : "unknown";
    return error_set(err, STATUS_INPUT,
                     "%s.idx: its tokens are of type %s (code %d); this program reads int32 and uint16, and uint8 for masks. "
                     "Convert it, or write it again with one of these types.",
                     f->prefix, name, code);
}

/* The header, and whether the file has the size that its counts ask for. */
static int check_header(token_file *f, error *err) {
    if (f->idx_bytes < HEADER_BYTES || memcmp(f->idx, magic, sizeof magic) != 0)
        return error_set(
            err, STATUS_INPUT,
            "%s.idx: %zu bytes that do not begin with the %d-byte header of a Megatron-LM index (MMIDIDX): it is another "
            "kind of file or damaged. " WRITE_AGAIN,
            f->prefix, f->idx_bytes, HEADER_BYTES);
    uint64_t version = (uint64_t)read_i64(f->idx + 9);
    if (version != 1)
        return error_set(err, STATUS_INPUT, "%s.idx: version %" PRIu64 " of the format; this program knows version 1", f->prefix,
                         version);
    if (check_type(f, f->idx[17], err)) return -1;

    uint64_t n = (uint64_t)read_i64(f->idx + 18), d = (uint64_t)read_i64(f->idx + 26);
    if (d == 0)
        return error_set(err, STATUS_INPUT,
                         "%s.idx: an empty document index; even without documents it holds one 0. " WRITE_AGAIN, f->prefix);
    uint64_t limit = INT64_MAX / 32; /* so that lying counts cannot overflow what follows */
    uint64_t need = n < limit && d < limit ? HEADER_BYTES + 12 * n + 8 * d : UINT64_MAX;
    if (need > f->idx_bytes) {
        char bytes[40] = "more than any file holds";
        if (need != UINT64_MAX) snprintf(bytes, sizeof bytes, "%" PRIu64 " bytes", need);
        return error_set(err, STATUS_INPUT,
                         "%s.idx: %" PRIu64 " sequences and %" PRIu64
                         " document boundaries need %s, the file has %zu bytes: it is "
                         "truncated. " WRITE_AGAIN,
                         f->prefix, n, d, bytes, f->idx_bytes);
    }
    if (f->idx_bytes != need && f->idx_bytes != need + n) /* + n: modes */
        return error_set(err, STATUS_INPUT,
                         "%s.idx: %" PRIu64 " sequences and %" PRIu64 " document boundaries need %" PRIu64
                         " bytes, the file has %zu: "
                         "%" PRIu64 " too many. " WRITE_AGAIN,
                         f->prefix, n, d, need, f->idx_bytes, f->idx_bytes - need);
    f->n_sequences = (int64_t)n;
    f->n_documents = (int64_t)d - 1;
    return 0;
}

/* Lengths and offsets: each sequence begins where the one before it ends, and the last ends with the .bin. */
static int check_sequences(token_file *f, error *err) {
    int64_t bytes = 0, size = (int64_t)f->bin_bytes;
    for (int64_t i = 0; i < f->n_sequences; i++) {
        int64_t length = length_of(f, i), offset = offset_of(f, i);
        if (length < 0)
            return error_set(err, STATUS_INPUT,
                             "%s.idx: sequence %" PRId64 " has length %" PRId64 ": the index is damaged. " WRITE_AGAIN, f->prefix,
                             i, length);
        if (offset != bytes)
            return error_set(err, STATUS_INPUT,
                             "%s.idx: sequence %" PRId64 " begins at byte %" PRId64
                             " of the .bin, but the sequences before it end at byte "
                             "%" PRId64 ": sequences must lie one after another, without gap or overlap. " WRITE_AGAIN,
                             f->prefix, i, offset, bytes);
        bytes += length * f->token_bytes;
        if (bytes > size)
            return error_set(err, STATUS_INPUT,
                             "%s.bin: sequence %" PRId64 " ends at byte %" PRId64 ", the file has %" PRId64
                             ": it is truncated, or not the "
                             "one that %s.idx was written with. " WRITE_AGAIN,
                             f->prefix, i, bytes, size, f->prefix);
    }
    if (bytes != size)
        return error_set(err, STATUS_INPUT,
                         "%s.bin: the index accounts for %" PRId64 " bytes, the file has %" PRId64
                         ": it is not the one that %s.idx was "
                         "written with. " WRITE_AGAIN,
                         f->prefix, bytes, size, f->prefix);
    f->n_tokens = bytes / f->token_bytes;
    return 0;
}

static int check_documents(const token_file *f, error *err) {
    if (document_of(f, 0) != 0)
        return error_set(err, STATUS_INPUT, "%s.idx: the first document begins at sequence %" PRId64 ", expected 0. " WRITE_AGAIN,
                         f->prefix, document_of(f, 0));
    for (int64_t d = 1; d <= f->n_documents; d++)
        if (document_of(f, d) < document_of(f, d - 1))
            return error_set(err, STATUS_INPUT,
                             "%s.idx: document %" PRId64 " begins at sequence %" PRId64 ", before document %" PRId64
                             " at %" PRId64 ": the document index is damaged. " WRITE_AGAIN,
                             f->prefix, d, document_of(f, d), d - 1, document_of(f, d - 1));
    int64_t last = document_of(f, f->n_documents);
    if (last != f->n_sequences)
        return error_set(err, STATUS_INPUT,
                         "%s.idx: the documents end at sequence %" PRId64 " of %" PRId64
                         ": the writer did not end its last document "
                         "(end_document), or the index is damaged. " WRITE_AGAIN,
                         f->prefix, last, f->n_sequences);
    return 0;
}

/* Of a whole file in memory: the card's, or damage. */
static int check_sum(const char *prefix, const char *ending, const unsigned char *data, size_t bytes, int64_t wanted,
                     error *err) {
    if (wanted < 0) return 0;
    int64_t sum = (int64_t)crc32_z(0, bytes ? data : (const unsigned char *)"", bytes);
    if (sum == wanted) return 0;
    return error_set(err, STATUS_INPUT,
                     "%s%s: its CRC-32 is %08" PRIx64 ", and %s.json says %08" PRIx64
                     ": it has changed since it was written. " WRITE_AGAIN " If it is meant to be as it is, remove the card.",
                     prefix, ending, sum, prefix, wanted);
}

static int check_index_sum(const token_file *f, error *err) {
    token_card card;
    if (token_card_read(&card, f->prefix, err)) return -1;
    return check_sum(f->prefix, ".idx", f->idx, f->idx_bytes, card.idx_crc32, err);
}

int token_file_verify_sum(const token_file *f, const token_card *card, error *err) {
    return check_sum(f->prefix, ".bin", f->bin, f->bin_bytes, card->bin_crc32, err);
}

int token_file_open(token_file *f, const char *prefix, error *err) {
    *f = (token_file){0};
    f->prefix = strdup(prefix);
    if (!f->prefix) return error_set(err, STATUS_RESOURCE, "out of memory");
    if (map_file(&f->idx, &f->idx_bytes, prefix, ".idx", err) || map_file(&f->bin, &f->bin_bytes, prefix, ".bin", err) ||
        check_header(f, err) || check_sequences(f, err) || check_documents(f, err) || check_index_sum(f, err)) {
        token_file_close(f);
        return -1;
    }
    return 0;
}

void token_file_close(token_file *f) {
    if (f->bin) munmap((void *)(uintptr_t)f->bin, f->bin_bytes);
    if (f->idx) munmap((void *)(uintptr_t)f->idx, f->idx_bytes);
    free(f->prefix);
    *f = (token_file){0};
}

/* ---- reading ---- */

void token_file_read(const token_file *f, int64_t first, int64_t n, int32_t *out) {
    assert(first >= 0 && n >= 0 && first <= f->n_tokens - n);
    if (n == 0) return;
    const unsigned char *in = f->bin + first * f->token_bytes;
    if (f->type == TOKEN_INT32) {
        memcpy(out, in, (size_t)n * 4);
    } else if (f->type == TOKEN_UINT16) {
        const uint16_t *ids = (const uint16_t *)(const void *)in; /* the .bin has no header: it is aligned */
        for (int64_t i = 0; i < n; i++) out[i] = ids[i];
    } else {
        for (int64_t i = 0; i < n; i++) out[i] = in[i];
    }
}

int64_t token_file_start(const token_file *f, int64_t i) {
    assert(i >= 0 && i <= f->n_sequences);
    return i == f->n_sequences ? f->n_tokens : offset_of(f, i) / f->token_bytes;
}

int64_t token_file_document(const token_file *f, int64_t at, int64_t *end) {
    assert(at >= 0 && at < f->n_tokens);
    /* The last sequence, and then the last document, that begins at or before: ones of length zero before it are passed over. */
    int64_t low = 0, high = f->n_sequences;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (token_file_start(f, middle) <= at)
            low = middle;
        else
            high = middle;
    }
    int64_t sequence = low;
    low = 0, high = f->n_documents;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (document_of(f, middle) <= sequence)
            low = middle;
        else
            high = middle;
    }
    *end = token_file_start(f, document_of(f, low + 1));
    return low;
}

int token_file_bad_id(const token_file *f, int64_t at, int32_t id, int64_t vocab_size, error *err) {
    return error_set(err, STATUS_INPUT,
                     "%s.bin: token %" PRId64 " is id %" PRId32 ", outside of a vocabulary of %" PRId64 " (ids 0 to %" PRId64
                     "): the data was made with another tokenizer than the model's, or is damaged",
                     f->prefix, at, id, vocab_size, vocab_size - 1);
}

int token_file_verify(const token_file *f, int64_t vocab_size, int32_t *largest, error *err) {
    int32_t ids[VERIFY_CHUNK];
    *largest = -1;
    for (int64_t first = 0; first < f->n_tokens; first += VERIFY_CHUNK) {
        int64_t n = f->n_tokens - first < VERIFY_CHUNK ? f->n_tokens - first : VERIFY_CHUNK;
        token_file_read(f, first, n, ids);
        for (int64_t i = 0; i < n; i++) {
            if (ids[i] < 0 || ids[i] >= vocab_size) return token_file_bad_id(f, first + i, ids[i], vocab_size, err);
            if (ids[i] > *largest) *largest = ids[i];
        }
    }
    return 0;
}

/* ---- the card ---- */

/* card[key], an integer of at least 0; -1 where the key is absent. */
static int card_number(int64_t *value, const json_t *card, const char *key, const char *path, error *err) {
    const json_t *found = json_object_get(card, key);
    if (!found) return 0;
    if (!json_is_integer(found) || json_integer_value(found) < 0)
        return error_set(err, STATUS_INPUT, "%s: \"%s\" must be an integer of at least 0", path, key);
    *value = json_integer_value(found);
    return 0;
}

/* card[key], a text of less than `size` bytes; "" where the key is absent. */
static int card_text(char *value, size_t size, const json_t *card, const char *key, const char *path, error *err) {
    const json_t *found = json_object_get(card, key);
    if (!found) return 0;
    if (!json_is_string(found) || json_string_length(found) >= size)
        return error_set(err, STATUS_INPUT, "%s: \"%s\" must be a string of less than %zu bytes", path, key, size);
    strcpy(value, json_string_value(found));
    return 0;
}

int token_card_read(token_card *card, const char *prefix, error *err) {
    *card = (token_card){.bytes = -1, .tokens = -1, .vocab_size = -1, .n_documents = -1, .bin_crc32 = -1, .idx_crc32 = -1};
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s.json", prefix) >= sizeof path)
        return error_set(err, STATUS_INPUT, "%.60s...: the path is longer than %zu bytes", prefix, sizeof path - 1);
    FILE *file = fopen(path, "re");
    if (!file) return errno == ENOENT ? 0 : error_set(err, STATUS_RESOURCE, "%s: %s", path, strerror(errno));

    json_error_t problem;
    json_t *json = json_loadf(file, JSON_REJECT_DUPLICATES, &problem);
    fclose(file);
    if (!json)
        return error_set(err, STATUS_INPUT, "%s:%d: the card of the data is not JSON: %s", path, problem.line, problem.text);
    int rc;
    if (!json_is_object(json))
        rc = error_set(err, STATUS_INPUT, "%s: the card of the data must be a JSON object", path);
    else
        rc = card_number(&card->bytes, json, "bytes", path, err) || card_number(&card->tokens, json, "tokens", path, err) ||
             card_number(&card->vocab_size, json, "vocab_size", path, err) ||
             card_number(&card->n_documents, json, "n_documents", path, err) ||
             card_number(&card->bin_crc32, json, "bin_crc32", path, err) ||
             card_number(&card->idx_crc32, json, "idx_crc32", path, err) ||
             card_text(card->tokenizer, sizeof card->tokenizer, json, "tokenizer", path, err) ||
             card_text(card->tokenizer_hash, sizeof card->tokenizer_hash, json, "tokenizer_hash", path, err);
    json_decref(json);
    return rc ? -1 : 0;
}
