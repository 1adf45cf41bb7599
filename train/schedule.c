/* schedule.c: warm-up, then one of four shapes. */
#include "train/schedule.h"

#include <math.h>

/* How far t is on the way from `from` to `to`, in [0, 1]. */
static double progress(double t, double from, double to) {
    if (t >= to) return 1;
    return t > from ? (t - from) / (to - from) : 0;
}

double schedule_lr(schedule_kind kind, double lr, double min_lr_ratio, int64_t tokens_done, int64_t step_tokens,
                   int64_t warmup_tokens, int64_t total_tokens, double decay_fraction) {
    double t = (double)tokens_done, warmup = (double)warmup_tokens, total = (double)total_tokens, shape = 1;
    double after = t + (double)step_tokens;
    switch (kind) {
        case SCHEDULE_COSINE:
            shape = 0.5 * (1 + cos(3.14159265358979323846 * progress(t, warmup, total)));
            break;
        case SCHEDULE_LINEAR:
            shape = 1 - progress(t, warmup, total);
            break;
        case SCHEDULE_WSD:
            if (decay_fraction > 0) shape = 1 - sqrt(progress(t, fmax(warmup, (1 - decay_fraction) * total), total));
            break;
        case SCHEDULE_CONSTANT:
            break;
    }
    return lr * (after < warmup ? after / warmup : 1) * (min_lr_ratio + (1 - min_lr_ratio) * shape);
}
