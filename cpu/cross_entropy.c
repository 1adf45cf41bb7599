/* cross_entropy.c: the loss over rows of logits and its gradient in place, on the CPU.
 *
 * Bound by the exponential, so that each is taken once: a row (400 kB with 202,048 logits in bf16) is read from memory for its
 * maximum, and from the cache for the exponentials, which are kept in scratch memory as floats until their sum is known; the
 * gradient is made of them. Exponentials are of z - max, never of z - lse: the small sum then keeps all its digits however large
 * the logits are. */
#include <float.h>

#include <omp.h>

#include "cpu/cpu.h"
#include "cpu/vec.h"

/* Each thread keeps the exponentials of a row: (threads,V). */
static size_t kept_bytes(const backend *b, int64_t V) { return (size_t)b->threads * (size_t)V * sizeof(float); }

size_t cpu_cross_entropy_scratch(const backend *b, const op_limits *limits) { return kept_bytes(b, limits->V); }

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

static float row_max(const void *z, dtype x, int64_t row, int64_t V) {
    float buffer[LINE], max = -FLT_MAX; /* finite: exp(z - max) of logits that are all -infinity is then 0 */
    for (int64_t v = 0; v < V; v += LINE) {
        int n = line_length(v, V);
        max = fmaxf(max, line_max(line_in(buffer, z, x, row + v, n), n));
    }
    return max;
}

/* Exponentials that are added in fp32 before their sum goes on in double: few enough to lose nothing that shows in the loss, also
 * where the compiler adds them one by one. */
enum { SUMMED = 128 };

/* kept = exp(z - max); returns their sum, which is at least 1. */
static double sum_exponentials(float *kept, const void *z, float max, dtype x, int64_t row, int64_t V) {
    float buffer[LINE];
    double total = 0;
    for (int64_t v = 0; v < V; v += LINE) {
        int n = line_length(v, V);
        const float *line = line_in(buffer, z, x, row + v, n);
        float *to = kept + v;
        for (int first = 0; first < n; first += SUMMED) {
            int end = n - first < SUMMED ? n : first + SUMMED;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int i = first; i < end; i++) {
                to[i] = vec_exp(line[i] - max);
                sum += to[i];
            }
            total += (double)sum;
        }
    }
    return total;
}

/* z = factor * kept, and at the target what the caller worked out in double */
static void write_gradient(void *z, const float *kept, int32_t target, float target_gradient, float factor, dtype x, int64_t row,
                           int64_t V) {
    float buffer[LINE];
    for (int64_t v = 0; v < V; v += LINE) {
        int n = line_length(v, V);
        float *line = line_out(buffer, z, x, row + v);
#pragma omp simd
        for (int i = 0; i < n; i++) line[i] = factor * kept[v + i];
        if (target >= v && target < v + n) line[target - v] = target_gradient;
        line_close(line, z, x, row + v, n);
    }
}

void cpu_cross_entropy(backend *b, float *losses, float *z_losses, void *z, const int32_t *targets, float scale, float z_loss,
                       bool backward, dtype x, int64_t N, int64_t V) {
    float *all_kept = cpu_scratch(b, kept_bytes(b, V));
#pragma omp parallel for num_threads(b->threads) schedule(dynamic, 4)
    for (int64_t n = 0; n < N; n++) {
        int64_t row = n * V;
        losses[n] = 0;
        if (z_losses) z_losses[n] = 0;
        if (targets[n] < 0) {
            if (backward) memset((char *)z + (size_t)row * dtype_size(x), 0, (size_t)V * dtype_size(x));
            continue;
        }
        float one, *kept = all_kept + omp_get_thread_num() * V, max = row_max(z, x, row, V);
        double target_logit = (double)*line_in(&one, z, x, row + targets[n], 1);
        double sum = sum_exponentials(kept, z, max, x, row, V), lse = (double)max + log(sum);
        losses[n] = (float)((double)max - target_logit + log(sum));
        if (z_losses) z_losses[n] = (float)((double)z_loss * lse * lse);
        if (!backward) continue;
        double factor = (1.0 + 2.0 * (double)z_loss * lse) / sum;
        double at_target = (double)scale * (factor * exp(target_logit - (double)max) - 1.0);
        write_gradient(z, kept, targets[n], (float)at_target, (float)((double)scale * factor), x, row, V);
    }
}
