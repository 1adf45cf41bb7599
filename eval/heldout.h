/* heldout.h: the loss of a model on a token file, exact over the whole file and independent of the number of ranks. */
#ifndef MOBILELLM_EVAL_HELDOUT_H
#define MOBILELLM_EVAL_HELDOUT_H

#include "model/model.h"
#include "ranks/ranks.h"

typedef struct heldout_loss {
    double nats;    /* summed over the predicted tokens */
    int64_t tokens; /* predicted: all but the first (and, with documents masked, all but each document's first) */
    double bytes;   /* of text behind them, where the card beside the file tells; else NaN */
    double seconds;
    bool abandoned; /* before the end: the rest is of no use */
} heldout_loss;

/* Asked on all ranks before the same batches: whether to abandon the measurement, on all of them. failed: this rank has met an
 * error, for which it is best abandoned. */
typedef struct heldout_stop {
    bool (*asked)(void *context, bool failed);
    void *context;
} heldout_stop;

/* Collective. The file is read in windows of the model's T that follow one another without overlap, the last one shorter: each
 * token but the first is predicted once, from at most T tokens before it. max_tokens: stop after so many (rounded up to whole
 * windows); 0: all. stop: NULL for a measurement that is never abandoned. */
int heldout_measure(heldout_loss *loss, model *m, const char *prefix, bool mask_documents, int64_t max_tokens,
                    const heldout_stop *stop, const ranks *r, error *err);

/* The windows of T tokens that heldout_measure reads of a file. */
int heldout_windows(int64_t *n, const char *prefix, int T, int64_t max_tokens, error *err);

/* Adds one file's loss to a total that starts as {0}. */
void heldout_add(heldout_loss *total, const heldout_loss *loss);

double heldout_mean(const heldout_loss *loss);
double heldout_bits_per_byte(const heldout_loss *loss); /* NaN where unknown */

#endif
