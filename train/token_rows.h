/* token_rows.h: the gradient of tied embeddings, reduced in two parts: the head's early, the tokens' rows late.
 *
 * The largest gradient of all, (V,C), is final but for the rows of the last micro-batch's tokens when the backward pass of the
 * layers has not begun. So it is reduced then, beside that pass, and what the tokens add is reduced at the end for itself: only
 * the rows of tokens that occur, a small part of a large vocabulary. Which tokens these are the hosts know from their batches:
 * they agree on them before the step, and all take the same decision.
 *
 * V vocabulary  C d_model  N tokens of this rank's last micro-batch */
#ifndef MOBILELLM_TRAIN_TOKEN_ROWS_H
#define MOBILELLM_TRAIN_TOKEN_ROWS_H

#include "model/model.h"
#include "ranks/ranks.h"

typedef struct token_rows {
    model *model; /* NULL: never used */
    const ranks *ranks;
    int64_t most_rows; /* of a rank's part of a chunk */

    /* Of this step. The tokens that occur on any rank are dealt out to their owners, a chunk after the other. */
    int64_t n_chunks;   /* 0: this step is reduced as a whole, at its end */
    int64_t chunk_rows; /* of a rank's part of each chunk */

    /* On the device */
    float *sums[2];  /* (ways, most_rows, C): what tokens add to the rows of a chunk, of two chunks in turn */
    int32_t *places; /* (N): of each token, its row in the chunks laid end to end */
    int32_t *own;    /* (n_chunks, chunk_rows): the tokens of this rank's part of each chunk, -1 where there are fewer */

    /* On the host */
    int64_t *occurring;              /* (V) bits */
    int32_t *owner, *place;          /* (V): the rank that owns a token's row, and the row of the chunks that it has */
    int32_t *host_places, *host_own; /* what is copied to the device */
    int64_t *n_owned;                /* (ways) occurring tokens of each owner */
} token_rows;

/* Takes memory of the arena where this will be used: tied embeddings, several ranks, and micro-batches long enough to reduce
 * gradients beside them (ops.overlap_tokens). On a dry arena that memory is only counted. */
int token_rows_open(token_rows *t, model *m, const ranks *r, arena *device, error *err);
void token_rows_close(token_rows *t);

/* Collective, before a step: the N tokens of this rank's last micro-batch (0: it has none). */
void token_rows_begin(token_rows *t, const int32_t *tokens, int64_t N);

/* Is this step's gradient reduced in two parts? The same on all ranks. Not where more than half of the vocabulary occurs: what is
 * then still hidden is not worth moving its rows twice. */
static inline bool token_rows_apart(const token_rows *t) { return t->n_chunks > 0; }

/* At the end of backward, on all ranks, if it is: sums the rows of model.dh over the ranks, and adds them to this rank's
 * part of the gradient, which has been reduced without them. Each token's rows are added in the order of their positions, then
 * over the ranks, then to the rest. own_squares (1) += the squares of what this rank adds. */
void token_rows_reduce(token_rows *t, int64_t N, double *own_squares);

#endif
