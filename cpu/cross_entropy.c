/* cross_entropy.c: the loss over rows of logits and its gradient in place, on the CPU.
 *
 * A row (400 kB with 202,048 logits in bf16) is read from memory once: first for its maximum and the sum of exponentials, kept
 * together line by line, then, from the cache, for the gradient. That costs a second exponential, which is cheaper than keeping
 * the first. Exponentials are of z - max, never of z - lse: the small sum then keeps all its digits however large the logits are.
 */
#include <float.h>

#include "cpu/cpu.h"
#include "cpu/vec.h"

typedef struct row_sum {
    float max;
    double sum; /* of exp(z - max), at least 1 */
} row_sum;

/* A number that orders like the float (a NaN at one end or the other), and back. Compilers vectorise the maximum of integers;
 * that of floats only when promised that there are no NaNs, and a run that diverges has them. */
static inline int32_t ordered(float f) {
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

static inline float from_ordered(int32_t order) {
    int32_t bits = order ^ (order >> 31 & 0x7fffffff);
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float line_max(const float *line, int n) {
    int32_t max = INT32_MIN;
#pragma omp simd reduction(max : max)
    for (int i = 0; i < n; i++) max = ordered(line[i]) > max ? ordered(line[i]) : max;
    return from_ordered(max);
}

static row_sum sum_exponentials(const void *z, dtype x, int64_t row, int64_t V) {
    float buffer[LINE];
    row_sum s = {-FLT_MAX, 0}; /* finite: a line of logits that are all -infinity then adds 0 */
    for (int64_t v = 0; v < V; v += LINE) {
        int n = line_length(v, V);
        const float *line = line_in(buffer, z, x, row + v, n);
        float max = fmaxf(line_max(line, n), s.max), sum = 0;
        s.sum *= exp((double)(s.max - max));
        s.max = max;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < n; i++) sum += vec_exp(line[i] - max);
        s.sum += (double)sum;
    }
    return s;
}

/* z = factor * exp(z - max), and at the target what the caller worked out in double */
static void write_gradient(void *z, int32_t target, float target_gradient, float factor, float max, dtype x, int64_t row,
                           int64_t V) {
    float buffer[LINE];
    for (int64_t v = 0; v < V; v += LINE) {
        int n = line_length(v, V);
        float *line = line_open(buffer, z, x, row + v, n);
#pragma omp simd
        for (int i = 0; i < n; i++) line[i] = factor * vec_exp(line[i] - max);
        if (target >= v && target < v + n) line[target - v] = target_gradient;
        line_close(line, z, x, row + v, n);
    }
}

void cpu_cross_entropy(backend *b, float *losses, float *z_losses, void *z, const int32_t *targets, float scale, float z_loss,
                       bool backward, dtype x, int64_t N, int64_t V) {
#pragma omp parallel for num_threads(b->threads) schedule(dynamic, 4)
    for (int64_t n = 0; n < N; n++) {
        int64_t row = n * V;
        losses[n] = 0;
        if (z_losses) z_losses[n] = 0;
        if (targets[n] < 0) {
            if (backward) memset((char *)z + (size_t)row * dtype_size(x), 0, (size_t)V * dtype_size(x));
            continue;
        }
        float one;
        double target_logit = (double)*line_in(&one, z, x, row + targets[n], 1);
        row_sum s = sum_exponentials(z, x, row, V);
        double lse = (double)s.max + log(s.sum);
        losses[n] = (float)((double)s.max - target_logit + log(s.sum));
        if (z_losses) z_losses[n] = (float)((double)z_loss * lse * lse);
        if (!backward) continue;
        double factor = (1.0 + 2.0 * (double)z_loss * lse) / s.sum;
        double at_target = (double)scale * (factor * exp(target_logit - (double)s.max) - 1.0);
        write_gradient(z, targets[n], (float)at_target, (float)((double)scale * factor), s.max, x, row, V);
    }
}
