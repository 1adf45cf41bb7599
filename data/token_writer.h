/* token_writer.h: writes PREFIX.bin, PREFIX.idx and PREFIX.json as a stream of tokens, sequences and documents.
 *
 * Nothing that lies under its own name is ever half-written: the files are written under PREFIX.bin.tmp and so on, forced to
 * disk, and renamed, the .idx last. A failure or kill before leaves no .idx of the new data. */
#ifndef MOBILELLM_DATA_TOKEN_WRITER_H
#define MOBILELLM_DATA_TOKEN_WRITER_H

#include <stdint.h>

#include "data/tokens.h"
#include "util/error.h"

typedef struct token_writer token_writer;

int token_writer_open(token_writer **w, const char *prefix, token_type type, error *err);

/* Adds n ids to the sequence that is being written. Refuses an id that the type cannot hold. */
int token_writer_append(token_writer *w, const int32_t *ids, int64_t n, error *err);

/* Each sequence and each document is ended; either may be empty. */
int token_writer_end_sequence(token_writer *w, error *err);
int token_writer_end_document(token_writer *w, error *err);

/* Puts the files in place and frees the writer. The card's tokens, n_documents and checksums are filled in; without a card (NULL)
 * none is written, and an earlier one is removed. */
int token_writer_finish(token_writer *w, token_card *card, error *err);

/* Removes what was written and frees the writer. After any failure but one of finish, which has done it. */
void token_writer_abandon(token_writer *w);

#endif
