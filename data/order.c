/* order.c: the schedule of sources and the permutation of windows.
 *
 * Picking the source that lags most (weight * s - count), as Megatron-LM does, can leave a source more than one sample behind
 * when there are many. Tijdeman's rule cannot: a source may be drawn once it lags by 1/(2k-2), k sources, and of those the one
 * whose lag would first reach 1 - 1/(2k-2) is drawn. [R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32,
 * 1980] */
#include "data/order.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "util/rng.h"

int sample_order_open(sample_order *o, int n_sources, const char *const *names, const int64_t *n_windows, const double *weights,
                      uint64_t seed, error *err) {
    *o = (sample_order){.n_sources = n_sources, .seed = seed};
    if (n_sources < 1) return error_set(err, STATUS_USAGE, "no data to train on: name at least one prefix");
    double sum = 0;
    for (int d = 0; d < n_sources; d++) {
        if (!(weights[d] > 0) || !isfinite(weights[d]))
            return error_set(err, STATUS_USAGE,
                             "%s: its weight is %g; a weight is a positive number (leave the prefix out to not use it)", names[d],
                             weights[d]);
        if (n_windows[d] < 1)
            return error_set(err, STATUS_INPUT, "%s: no window of data; use a shorter sequence length or leave the prefix out",
                             names[d]);
        sum += weights[d];
    }
    if (!isfinite(sum)) return error_set(err, STATUS_USAGE, "the weights of the data are too large to be summed");

    size_t n = (size_t)n_sources;
    o->n_windows = calloc(n, sizeof *o->n_windows);
    o->weights = calloc(n, sizeof *o->weights);
    o->counts = calloc(n, sizeof *o->counts);
    if (!o->n_windows || !o->weights || !o->counts) {
        sample_order_close(o);
        return error_set(err, STATUS_RESOURCE, "out of memory");
    }
    memcpy(o->n_windows, n_windows, n * sizeof *n_windows);
    for (int d = 0; d < n_sources; d++) o->weights[d] = weights[d] / sum;
    return 0;
}

void sample_order_close(sample_order *o) {
    free(o->n_windows);
    free(o->weights);
    free(o->counts);
    *o = (sample_order){0};
}

/* The source of the next sample. */
static int next_source(const sample_order *o) {
    if (o->n_sources == 1) return 0;
    double release = 1.0 / (2.0 * o->n_sources - 2.0), soonest = INFINITY, most = -INFINITY;
    int due = -1, behind = 0;
    for (int d = 0; d < o->n_sources; d++) {
        /* Two statements, so that no compiler fuses them: every machine must round alike. */
        double share = o->weights[d] * (double)(o->next + 1);
        double lag = share - (double)o->counts[d];
        if (lag > most) most = lag, behind = d;
        if (lag < release) continue;
        double deadline = ((double)o->counts[d] + 1.0 - release) / o->weights[d];
        if (deadline < soonest) soonest = deadline, due = d;
    }
    /* Lags sum to 1, so at least one source reaches 1/k >= release; rounding can hide it only when all are equal. */
    return due >= 0 ? due : behind;
}

sample sample_order_next(sample_order *o) {
    int source = next_source(o);
    int64_t count = o->counts[source]++, n = o->n_windows[source], epoch = count / n;
    o->next++;
    uint64_t key = rng_mix(rng_mix(o->seed, (uint64_t)source), (uint64_t)epoch);
    return (sample){source, epoch, (int64_t)rng_permute(key, (uint64_t)(count % n), (uint64_t)n)};
}

void sample_order_seek(sample_order *o, int64_t s) {
    assert(s >= 0);
    if (s < o->next) {
        memset(o->counts, 0, (size_t)o->n_sources * sizeof *o->counts);
        o->next = 0;
    }
    for (; o->next < s; o->next++) o->counts[next_source(o)]++;
}
