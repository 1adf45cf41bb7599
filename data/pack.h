/* pack.h: text files to token files with the byte vocabulary (data/bytes.h), without any other program. */
#ifndef MOBILELLM_DATA_PACK_H
#define MOBILELLM_DATA_PACK_H

#include "data/tokens.h"
#include "util/error.h"

typedef enum pack_format {
    PACK_BY_NAME, /* JSON Lines if the file's name ends in .jsonl, else text */
    PACK_TEXT,
    PACK_JSONL /* each line a JSON object whose member `key` is a document; lines of white space are passed over */
} pack_format;

/* What a document is in a file of text. */
typedef enum pack_split {
    PACK_WHOLE, /* the file */
    PACK_LINES, /* a line that is not empty, without its newline */
    PACK_BLANK  /* lines up to one of white space or the end, without the last one's newline */
} pack_split;

typedef struct pack_options {
    const char *prefix; /* of the files to write */
    const char *const *inputs;
    int n_inputs;
    pack_format format;
    pack_split split;
    const char *key;
} pack_options;

/* Each document becomes a sequence of its bytes and BYTES_EOD, uint16. *card is what was written to PREFIX.json. */
int pack(const pack_options *o, token_card *card, error *err);

#endif
