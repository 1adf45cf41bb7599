/* op_testing.h: what the tests of the CPU's ops share: arrays in both number formats, and comparison with double precision.
 *
 * A test draws doubles, makes arrays of the op from them (which rounds the doubles too, so that the reference sees the same
 * numbers), calls the op, and compares with the formula of ops.h worked out in double by plain loops. Gradients are compared with
 * central differences of that formula, element by element.
 *
 * What is allowed: results are computed in fp32 and rounded once to the format of the array, so an element may be off by half a
 * unit in the last place of bf16, and by the fp32 error that the test names, which is relative to the scale of the terms summed.
 */
#ifndef MOBILELLM_TESTS_OP_TESTING_H
#define MOBILELLM_TESTS_OP_TESTING_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ops.h"
#include "util/rng.h"

static const dtype both_dtypes[] = {DTYPE_F32, DTYPE_BF16};

/* An open backend with scratch memory, and the memory of a test, all freed together. */
enum { MAX_BLOCKS = 1024 };
typedef struct testing {
    const ops *ops;
    backend *b;
    void *scratch;
    void *blocks[MAX_BLOCKS];
    int n_blocks;
} testing;

static inline void testing_open(testing *t, int threads) {
    *t = (testing){.ops = cpu_ops()};
    error err = {0};
    if (t->ops->open(&t->b, threads, 0, &err)) fail_msg("%s", err.text);
    op_limits limits = {
        .x = DTYPE_BF16, .B = 1, .T = 512, .C = 2048, .F = 1, .H = 1, .K = 1, .D = 128, .V = 2500, .head_rows = 1};
    size_t bytes = t->ops->scratch_bytes(t->b, &limits);
    t->scratch = t->ops->alloc(t->b, bytes, &err);
    assert_non_null(t->scratch);
    t->ops->set_scratch(t->b, t->scratch, bytes);
}

static inline void testing_close(testing *t) {
    error err = {0};
    if (t->ops->sync(t->b, &err)) fail_msg("%s", err.text);
    t->ops->free(t->b, t->scratch);
    t->ops->close(t->b);
    for (int i = 0; i < t->n_blocks; i++) free(t->blocks[i]);
}

static inline void *new_bytes(testing *t, size_t bytes) {
    assert_true(t->n_blocks < MAX_BLOCKS);
    void *block = malloc(bytes ? bytes : 1);
    assert_non_null(block);
    return t->blocks[t->n_blocks++] = block;
}

static inline double *new_doubles(testing *t, int64_t n) { return new_bytes(t, (size_t)n * sizeof(double)); }
static inline float *new_floats(testing *t, int64_t n) { return new_bytes(t, (size_t)n * sizeof(float)); }
static inline void *new_array(testing *t, int64_t n, dtype x) { return new_bytes(t, (size_t)n * dtype_size(x)); }

/* n normal random numbers: a function of the key. */
static inline double *random_doubles(testing *t, int64_t n, uint64_t key, float stddev) {
    float *draws = new_floats(t, n);
    double *values = new_doubles(t, n);
    rng_normal(draws, key, 0, n, stddev);
    for (int64_t i = 0; i < n; i++) values[i] = (double)draws[i];
    return values;
}

static inline double element(const void *array, dtype x, int64_t i) {
    return x == DTYPE_F32 ? (double)((const float *)array)[i] : (double)bf16_to_float(((const bf16 *)array)[i]);
}

/* An array of the op that holds the values; the values become what it holds. */
static inline void *array_of(testing *t, double *values, int64_t n, dtype x) {
    void *array = new_array(t, n, x);
    for (int64_t i = 0; i < n; i++) {
        if (x == DTYPE_F32)
            ((float *)array)[i] = (float)values[i];
        else
            ((bf16 *)array)[i] = bf16_from_float((float)values[i]);
        values[i] = element(array, x, i);
    }
    return array;
}

static inline void *copy_of(testing *t, const void *array, int64_t n, dtype x) {
    return memcpy(new_array(t, n, x), array, (size_t)n * dtype_size(x));
}

/* |got - expected| <= half a unit in the last place of x (bf16), plus fp32_error * scale. */
static inline void check_close(const char *what, const void *got, const double *expected, int64_t n, dtype x, double fp32_error,
                               double scale) {
    for (int64_t i = 0; i < n; i++) {
        double value = element(got, x, i), fp32_limit = fp32_error * scale;
        double limit = fp32_limit + (x == DTYPE_BF16 ? ldexp(fabs(expected[i]) + fp32_limit, -8) : 0);
        if (!(fabs(value - expected[i]) <= limit))
            fail_msg("%s, %s: element %lld of %lld is %.9g, expected %.9g: off by %.3g, allowed %.3g", what, dtype_name(x),
                     (long long)i, (long long)n, value, expected[i], fabs(value - expected[i]), limit);
    }
}

static inline void check_same_bits(const char *what, const void *a, const void *b, int64_t n, dtype x) {
    for (size_t i = 0; i < (size_t)n * dtype_size(x); i++)
        if (((const char *)a)[i] != ((const char *)b)[i])
            fail_msg("%s, %s: element %zu of %lld: %.9g and %.9g", what, dtype_name(x), i / dtype_size(x), (long long)n,
                     element(a, x, (int64_t)(i / dtype_size(x))), element(b, x, (int64_t)(i / dtype_size(x))));
}

/* d loss / d values[i], by central differences. */
static inline double *numeric_gradient(testing *t, double *values, int64_t n, double (*loss)(const void *), const void *context) {
    double *gradient = new_doubles(t, n), step = 1e-5;
    for (int64_t i = 0; i < n; i++) {
        double at = values[i];
        values[i] = at + step;
        double above = loss(context);
        values[i] = at - step;
        gradient[i] = (above - loss(context)) / (2 * step);
        values[i] = at;
    }
    return gradient;
}

#endif
