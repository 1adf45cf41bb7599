/* tokens.h: a Megatron-LM indexed dataset (PREFIX.bin, PREFIX.idx) read through mmap. docs/data.md has the format. */
#ifndef MOBILELLM_DATA_TOKENS_H
#define MOBILELLM_DATA_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

/* The codes of Megatron-LM that we read. Its other types (int8, int16, int64, floats) are refused by name. */
typedef enum token_type { TOKEN_UINT8 = 1, TOKEN_INT32 = 4, TOKEN_UINT16 = 8 } token_type;

int token_type_bytes(token_type type);
const char *token_type_name(token_type type);
int64_t token_type_max(token_type type); /* the largest id that fits */

typedef struct token_file {
    char *prefix;
    token_type type;
    int token_bytes;
    int64_t n_sequences, n_documents, n_tokens;
    /* private */
    const unsigned char *bin, *idx;
    size_t bin_bytes, idx_bytes;
} token_file;

/* The card PREFIX.json that data/prepare.py and `data pack` write beside the files. A key that is absent is -1 or "", and so are
 * all when there is no card. */
typedef struct token_card {
    int64_t bytes; /* of the UTF-8 text that the tokens stand for, without the special tokens */
    int64_t tokens, vocab_size, n_documents;
    int64_t bin_crc32, idx_crc32; /* CRC-32 (zlib's) of all bytes of the files */
    char tokenizer[64];           /* what made the tokens, in words: "bytes", "bpe" */
    char tokenizer_hash[80];      /* sha256 of tokenizer.json; equal hashes, same meaning of every id */
} token_card;

/* Opens and checks everything that the format promises (magic, version, dtype, counts, size, sequences one after another that
 * fill the .bin, document index from 0 to N), and the index's checksum where the card has it. Legal but empty files open with
 * n_tokens 0. */
int token_file_open(token_file *f, const char *prefix, error *err);
void token_file_close(token_file *f);

/* out[i] = token first + i of the file, sequences one after another, i < n. The caller stays within n_tokens. */
void token_file_read(const token_file *f, int64_t first, int64_t n, int32_t *out);

/* First token of sequence i, i <= n_sequences (the last is n_tokens). */
int64_t token_file_start(const token_file *f, int64_t i);

/* The document that holds token `at`, and through *end the first token after it. */
int64_t token_file_document(const token_file *f, int64_t at, int64_t *end);

/* The whole file read once: the largest token id and whether all lie in [0, vocab_size). Names the first offender.
 * *largest is -1 for an empty file. */
int token_file_verify(const token_file *f, int64_t vocab_size, int32_t *largest, error *err);

/* The whole .bin against the checksum of its card, where that has one. */
int token_file_verify_sum(const token_file *f, const token_card *card, error *err);

/* Says that token `at` of the file lies outside of [0, vocab_size), and what that usually means. Returns -1. */
int token_file_bad_id(const token_file *f, int64_t at, int32_t id, int64_t vocab_size, error *err);

int token_card_read(token_card *card, const char *prefix, error *err);

#endif
