/* loader.h: the rows of each step, made one step ahead by a thread of its own.
 *
 * A step is rows_per_step consecutive samples of the order; rank r of R takes rows [rows*r/R, rows*(r+1)/R) of them, so that the
 * content of a step does not depend on R. */
#ifndef MOBILELLM_DATA_LOADER_H
#define MOBILELLM_DATA_LOADER_H

#include <stdbool.h>
#include <stdint.h>

#include "data/tokens.h"
#include "util/error.h"

/* Host memory, (rows, seq_len) each. targets: the next token, or -1 where there is nothing to predict. doc: numbers of documents
 * within a row, from 0; pos: positions. Without mask_documents doc is 0 and pos counts from 0 in each row; with it pos counts
 * from 0 in each document, or in the part of it that the row has. */
typedef struct token_batch {
    int rows, seq_len;
    int32_t *tokens, *targets, *doc, *pos;
    int64_t n_valid; /* targets that are not -1 */
} token_batch;

typedef struct loader_options {
    int n_sources;
    const char *const *prefixes;
    const double *weights;
    int seq_len, rows_per_step;
    int64_t vocab_size;
    uint64_t seed;
    bool mask_documents; /* a target in another document than its input is -1 */
    int rank, n_ranks;
    int64_t first_sample; /* data position: 0, or what a checkpoint says */
} loader_options;

/* The options' arrays and strings need to live during the call only. */
typedef struct loader loader;
int loader_open(loader **l, const loader_options *options, error *err);
void loader_close(loader *l);

/* The next step's rows of this rank, valid until the next call. Waits for the thread; *waited (if not NULL) says how many
 * seconds. An error that the thread met (a token that is not in the vocabulary) is returned in place of the step that it belongs
 * to, and by every call after it. */
int loader_next(loader *l, const token_batch **batch, double *waited, error *err);

/* Fills row `row` of a batch with the window of up to seq_len + 1 tokens that starts at token `first` of the file; what lies past
 * the end of the file has token 0 and target -1. Keeps batch->n_valid. For evaluation, which reads a file from end to end. */
int token_batch_fill(token_batch *batch, int row, const token_file *file, int64_t first, int64_t vocab_size, bool mask_documents,
                     error *err);

/* A batch of which every token is 0 and every target -1. */
int token_batch_alloc(token_batch *batch, int rows, int seq_len, error *err);
void token_batch_free(token_batch *batch);

#endif
