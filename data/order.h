/* order.h: which sample is number s of a run. A pure function of (sources, weights, seed, s): not of ranks, batch size or length.
 *
 * A sample is a window of seq_len + 1 tokens of a file, windows overlap by one token. Sample s belongs to source d by Tijdeman's
 * schedule (the chairman assignment problem, 1980): after any s samples each source has had weight * s of them, within one. The
 * c-th sample of a source is element c mod n of the permutation of its n windows keyed by (seed, source number, c div n): each
 * window once an epoch. */
#ifndef MOBILELLM_DATA_ORDER_H
#define MOBILELLM_DATA_ORDER_H

#include <stdint.h>

#include "util/error.h"

typedef struct sample_order {
    int n_sources;
    int64_t *n_windows; /* (n_sources) */
    double *weights;    /* (n_sources), sum 1 */
    int64_t *counts;    /* (n_sources) samples drawn so far from each */
    int64_t next;       /* number of the next sample */
    uint64_t seed;
} sample_order;

typedef struct sample {
    int source;
    int64_t epoch, window; /* the window starts at token window * seq_len */
} sample;

/* Weights are positive and of any sum; each source has at least one window. names (n_sources) serve the messages only. */
int sample_order_open(sample_order *o, int n_sources, const char *const *names, const int64_t *n_windows, const double *weights,
                      uint64_t seed, error *err);
void sample_order_close(sample_order *o);

/* Places the order before sample number s, by counting from 0 or from where it stands (a few nanoseconds a sample and source). */
void sample_order_seek(sample_order *o, int64_t s);
sample sample_order_next(sample_order *o);

#endif
