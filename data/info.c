/* info.c: `mobilellm data info`: token files described and checked. */
#include "data/info.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int describe_lengths(token_info *info, const token_file *file, error *err) {
    int64_t n = file->n_sequences;
    if (n == 0) return 0;
    int64_t *lengths = malloc((size_t)n * sizeof *lengths);
    if (!lengths) return error_set(err, STATUS_RESOURCE, "%s: out of memory for %" PRId64 " lengths", file->prefix, n);
    for (int64_t i = 0; i < n; i++) lengths[i] = token_file_start(file, i + 1) - token_file_start(file, i);
    qsort(lengths, (size_t)n, sizeof *lengths, by_size);
    info->shortest = lengths[0];
    info->median = lengths[(n - 1) / 2];
    info->longest = lengths[n - 1];
    free(lengths);
    return 0;
}

/* A card beside other data than it was written with. */
static int check_card(const token_card *card, const token_file *file, error *err) {
    bool tokens = card->tokens >= 0 && card->tokens != file->n_tokens;
    bool documents = card->n_documents >= 0 && card->n_documents != file->n_documents;
    if (!tokens && !documents) return 0;
    return error_set(err, STATUS_INPUT,
                     "%s.json says %" PRId64 " %s, %s.idx has %" PRId64
                     ": the card belongs to other data. Write the data again, or remove "
                     "the card.",
                     file->prefix, tokens ? card->tokens : card->n_documents, tokens ? "tokens" : "documents", file->prefix,
                     tokens ? file->n_tokens : file->n_documents);
}

static int verify_ids(token_info *info, const token_file *file, int64_t vocab_size, error *err) {
    int64_t carded = info->card.vocab_size;
    int64_t limit = vocab_size > 0 ? vocab_size : carded >= 0 ? carded : (int64_t)INT32_MAX + 1;
    if (token_file_verify(file, limit, &info->largest, err)) return -1;
    if (carded >= 0 && info->largest >= carded)
        return error_set(err, STATUS_INPUT,
                         "%s.bin holds id %" PRId32 ", %s.json says a vocabulary of %" PRId64 ": the card belongs to other data",
                         file->prefix, info->largest, file->prefix, carded);
    return 0;
}

int token_info_read(token_info *info, const char *prefix, bool verify, int64_t vocab_size, error *err) {
    token_file file;
    if (token_file_open(&file, prefix, err)) return -1;
    *info = (token_info){.type = file.type,
                         .n_sequences = file.n_sequences,
                         .n_documents = file.n_documents,
                         .n_tokens = file.n_tokens,
                         .largest = -1};
    int rc = token_card_read(&info->card, prefix, err) || check_card(&info->card, &file, err) ||
             describe_lengths(info, &file, err) ||
             (verify && (verify_ids(info, &file, vocab_size, err) || token_file_verify_sum(&file, &info->card, err)));
    token_file_close(&file);
    return rc ? -1 : 0;
}

/* ---- printing ---- */

/* 1234567 as 1,234,567; "-" for -1, which stands for what is not known. Returns text. */
static const char *grouped(char text[32], int64_t number) {
    if (number < 0) return strcpy(text, "-");
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%" PRId64, number), at = 0;
    for (int i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = '\0';
    return text;
}

void token_info_print(FILE *to, const token_info *infos, const char *const *prefixes, int n) {
    int width = 6;
    for (int i = 0; i < n; i++)
        if ((int)strlen(prefixes[i]) > width) width = (int)strlen(prefixes[i]);
    fprintf(to, "%-*s  %-6s %12s %12s %15s  %22s %10s %10s  %s\n", width, "prefix", "type", "documents", "sequences", "tokens",
            "shortest/median/longest", "bytes/token", "largest id", "tokenizer, vocabulary");
    for (int i = 0; i < n; i++) {
        const token_info *f = &infos[i];
        char a[32], b[32], c[32], lengths[100], ratio[32] = "-";
        snprintf(lengths, sizeof lengths, "%s/%s/%s", grouped(a, f->shortest), grouped(b, f->median), grouped(c, f->longest));
        if (f->card.bytes >= 0 && f->n_tokens > 0)
            snprintf(ratio, sizeof ratio, "%.3f", (double)f->card.bytes / (double)f->n_tokens);
        fprintf(to, "%-*s  %-6s %12s %12s", width, prefixes[i], token_type_name(f->type), grouped(a, f->n_documents),
                grouped(b, f->n_sequences));
        fprintf(to, " %15s  %23s %11s", grouped(a, f->n_tokens), lengths, ratio);
        fprintf(to, " %10s  %s, %s\n", grouped(a, f->largest), f->card.tokenizer[0] ? f->card.tokenizer : "-",
                grouped(b, f->card.vocab_size));
    }
}

static json_t *number_or_null(int64_t number) { return number < 0 ? json_null() : json_integer(number); }
static json_t *text_or_null(const char *text) { return text[0] ? json_string(text) : json_null(); }

int token_info_print_json(FILE *to, const token_info *infos, const char *const *prefixes, int n, error *err) {
    json_t *all = json_array();
    for (int i = 0; i < n; i++) {
        const token_info *f = &infos[i];
        json_t *ratio =
            f->card.bytes >= 0 && f->n_tokens > 0 ? json_real((double)f->card.bytes / (double)f->n_tokens) : json_null();
        json_t *lengths = json_pack("{s:I, s:I, s:I}", "shortest", (json_int_t)f->shortest, "median", (json_int_t)f->median,
                                    "longest", (json_int_t)f->longest);
        json_array_append_new(
            all, json_pack("{s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "prefix", prefixes[i], "type",
                           token_type_name(f->type), "documents", (json_int_t)f->n_documents, "sequences",
                           (json_int_t)f->n_sequences, "tokens", (json_int_t)f->n_tokens, "lengths", lengths, "bytes",
                           number_or_null(f->card.bytes), "bytes_per_token", ratio, "largest_id", number_or_null(f->largest),
                           "vocab_size", number_or_null(f->card.vocab_size), "tokenizer", text_or_null(f->card.tokenizer),
                           "tokenizer_hash", text_or_null(f->card.tokenizer_hash)));
    }
    bool complete = json_array_size(all) == (size_t)n; /* json_pack fails on a prefix that is not UTF-8 */
    int rc = complete && json_dumpf(all, to, JSON_INDENT(1)) == 0
                 ? 0
                 : error_set(err, STATUS_INTERNAL, "the figures cannot be put as JSON");
    if (rc == 0) fputc('\n', to);
    json_decref(all);
    return rc;
}
