/* sample.c: temperature, top-k and top-p over a heap.
 *
 * A vocabulary has 200,000 tokens, of which the filters keep a few: they are taken one by one from the top of a heap, built in
 * O(V), instead of sorting them all. */
#include "eval/sample.h"

#include <math.h>
#include <stdbool.h>

#include "util/rng.h"

static bool before(sample_candidate a, sample_candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/* Lets the candidate at i sink to its place in a heap of n whose first one comes before all others. */
static void sink(sample_candidate *heap, int32_t n, int32_t i) {
    sample_candidate moving = heap[i];
    for (int32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], moving)) break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

/* Moves the first of the heap's n candidates to heap[n - 1], behind the rest. */
static sample_candidate take(sample_candidate *heap, int32_t n) {
    sample_candidate first = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = first;
    sink(heap, n - 1, 0);
    return first;
}

static double weight(sample_candidate c, float max, double temperature) {
    return exp(((double)c.logit - (double)max) / temperature);
}

/* The first candidate at which the running sum of weights passes `target`; rounding aside there is one. */
static int32_t walk(const sample_candidate *c, int32_t n, int32_t stride, float max, double temperature, double target) {
    int32_t token = c[0].token;
    double sum = 0;
    for (int32_t i = 0; i < n && sum <= target; i++) {
        double w = weight(c[i * stride], max, temperature);
        if (w > 0) token = c[i * stride].token;
        sum += w;
    }
    return token;
}

int32_t sample_token(const float *logits, sample_candidate *scratch, int32_t V, const sample_options *options,
                     uint64_t position) {
    sample_candidate best = {-INFINITY, -1};
    int32_t n = 0;
    for (int32_t v = 0; v < V; v++) {
        if (!(logits[v] > -INFINITY)) continue;
        scratch[n] = (sample_candidate){logits[v], v};
        if (n == 0 || before(scratch[n], best)) best = scratch[n];
        n++;
    }
    if (n == 0 || isinf(best.logit) || options->temperature == 0) return best.token;

    double u = rng_uniform(options->seed, position), temperature = options->temperature, mass = 0;
    bool top_k = options->top_k > 0 && options->top_k < n, top_p = options->top_p < 1;
    if (!top_k && !top_p) {
        for (int32_t i = 0; i < n; i++) mass += weight(scratch[i], best.logit, temperature);
        return walk(scratch, n, 1, best.logit, temperature, u * mass);
    }

    /* Taken candidates gather at the end of scratch, the most likely one last. */
    for (int32_t i = n / 2 - 1; i >= 0; i--) sink(scratch, n, i);
    int32_t taken = 0, kept = 0;
    if (top_k)
        while (taken < options->top_k) mass += weight(take(scratch, n - taken++), best.logit, temperature);
    else
        for (int32_t i = 0; i < n; i++) mass += weight(scratch[i], best.logit, temperature);
    double enough = top_p ? options->top_p * mass : INFINITY, sum = 0;
    int32_t limit = top_k ? taken : n;
    do {
        if (kept == taken) take(scratch, n - taken++);
        sum += weight(scratch[n - ++kept], best.logit, temperature);
    } while (kept < limit && sum < enough);
    return walk(scratch + n - 1, kept, -1, best.logit, temperature, u * sum);
}
