/* metrics.h: what a run tells: a console line a person can read, DIR/metrics.jsonl, and a TensorBoard event file.
 *
 * All three carry the same figures under the same names (step, tokens, loss, lr, grad_norm, tokens_per_s, ...). Only rank 0 has
 * one.
 *
 * metrics.jsonl holds one JSON object a line: {"kind": "train", ...} with the fields of step_metrics, or {"kind": "eval", ...}
 * with those of eval_metrics; what is not finite is null. TensorBoard's tags are train/loss, ..., and eval/PREFIX/loss, ... */
#ifndef MOBILELLM_TRAIN_METRICS_H
#define MOBILELLM_TRAIN_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

typedef struct step_metrics {
    int64_t step, n_steps, tokens;
    double loss, z_loss, lr, grad_norm;
    double step_s, data_wait_s;              /* since the last logged step, per step */
    double tokens_per_s, gflops, peak_share; /* peak_share: gflops over the GEMM peak measured at start; NaN: not measured */
    size_t memory_bytes;                     /* resident, of the largest rank */
    double eta_s;
    int64_t skipped_steps; /* since the start of the run */
} step_metrics;

typedef struct eval_metrics {
    int64_t step, tokens;
    const char *prefix;                     /* or "total" */
    double loss, perplexity, bits_per_byte; /* NaN where the bytes are unknown */
    int64_t eval_tokens;
    double seconds;
} eval_metrics;

typedef struct metrics metrics;

/* Makes DIR if it is missing. Appends to what an earlier part of the run wrote, after cutting away lines of steps > first_step (a
 * run resumed from an older checkpoint repeats them) and a last line that a kill left torn. evaluates: the run will repeat the
 * evaluation of first_step too, of which part may be there. first_step 0 is a new run: nothing of an old one in DIR remains
 * valid. */
int metrics_open(metrics **m, const char *dir, int64_t first_step, bool evaluates, error *err);

/* Safe on NULL. Nothing is buffered, so nothing is lost without it. */
void metrics_close(metrics *m);

/* Write to all three places before they return. Fail when one of them cannot be written (a full disk). */
int metrics_step(metrics *m, const step_metrics *s, error *err);
int metrics_eval(metrics *m, const eval_metrics *e, error *err);

/* The console lines, without the newline. Columns keep their places over a run:
 *
 * step  120/5000  tokens 62.9M  loss  3.8123  lr 3.1e-04  gnorm  0.84  5.41k tok/s   212 GFLOP/s  (51%)  mem 1.84 GiB  eta 12m04s
 * eval  500       heldout/wiki  loss  3.7080  ppl  40.8  bits/byte 1.3100
 *
 * with "skipped 2" (steps) and "data 1.2%" (of the time, spent waiting for data) at the end when there is something to say.
 * step_width: digits of n_steps, or 0 when no step was logged yet; prefix_width: of the longest prefix. */
enum { METRICS_LINE = 512 };
void metrics_step_line(char line[METRICS_LINE], const step_metrics *s);
void metrics_eval_line(char line[METRICS_LINE], const eval_metrics *e, int step_width, int prefix_width);

#endif
