/* bytes.h: the byte vocabulary: text without a tokenizer. Used by `data pack` and `generate`.
 *
 * Id b < 256 is the byte b of the UTF-8 text; then come two special ids and two that are never used, which round the vocabulary
 * to a multiple of 4. */
#ifndef MOBILELLM_DATA_BYTES_H
#define MOBILELLM_DATA_BYTES_H

#include <stdint.h>

enum {
    BYTES_EOD = 256, /* after each document */
    BYTES_BOS = 257, /* reserved for the beginning of a document; `data pack` writes none */
    BYTES_VOCAB_SIZE = 260
};

/* What stands in a card for the sha256 of a tokenizer.json, which the byte vocabulary does not have. */
#define BYTES_TOKENIZER_HASH "bytes-260"

/* ids[i] = byte i of the text, i < n. */
static inline void bytes_encode(int32_t *ids, const char *text, int64_t n) {
    for (int64_t i = 0; i < n; i++) ids[i] = (unsigned char)text[i];
}

/* The byte of an id, or -1 if it is a special one. */
static inline int bytes_decode(int32_t id) { return id >= 0 && id < 256 ? id : -1; }

#endif
