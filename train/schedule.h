/* schedule.h: the learning rate of a step, as a function of tokens only. */
#ifndef MOBILELLM_TRAIN_SCHEDULE_H
#define MOBILELLM_TRAIN_SCHEDULE_H

#include <stdint.h>

#include "train/config.h"

/* The learning rate of the step that takes the run from t = tokens_done to t + step_tokens tokens:
 *
 *   lr * min(1, (t + step_tokens) / warmup_tokens) * (m + (1 - m) * shape(p)),     m = min_lr_ratio
 *
 *   kind        p goes from 0 to 1 over t in            shape(p)
 *   cosine      [warmup, total]                         (1 + cos(pi p)) / 2    [Loshchilov & Hutter 2017, eq. 5]
 *   linear      [warmup, total]                         1 - p
 *   wsd         [(1 - decay_fraction) total, total]     1 - sqrt(p)            [Haegele et al. 2024, "1-sqrt" cooldown]
 *   constant    -                                       1
 *
 * p is 0 before its interval and 1 after it; wsd's does not start before the end of warm-up. Warm-up counts the step's own
 * tokens, decay those before it: the first step moves the weights, the step that reaches warmup_tokens and the one after it have
 * lr itself, the last step is one step short of m * lr, and any step from total_tokens on has m * lr. How a step is split into
 * micro-batches and ranks plays no part. */
double schedule_lr(schedule_kind kind, double lr, double min_lr_ratio, int64_t tokens_done, int64_t step_tokens,
                   int64_t warmup_tokens, int64_t total_tokens, double decay_fraction);

#endif
