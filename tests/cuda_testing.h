/* cuda_testing.h: the same call of an op on the CPU and on the device, and the comparison of what comes out.
 *
 * A test puts its inputs and takes its results through a `side`, so that it is written once: run_twins runs it on the CPU, then
 * twice on the device, compares the first with the second within limits, and the second with the third bit by bit.
 *
 * What is allowed. Both sides compute in fp32 from the same numbers, but in another order and with other approximations of exp
 * and sqrt, and round the result once to the format of its array. A float may be off by the error that the test names, relative
 * to its own size and to the array's root mean square (sums that cancel are as exact as their terms). A bf16 number may besides
 * have been rounded to the neighbour, which is 2^-7 of it away at most. That happens rarely: as a whole the arrays agree to 1e-3,
 * in f32 to the error named. */
#ifndef MOBILELLM_TESTS_CUDA_TESTING_H
#define MOBILELLM_TESTS_CUDA_TESTING_H

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

#include "emu_orders.h"
#include "ops.h"
#include "util/rng.h"

static const dtype both_dtypes[] = {DTYPE_F32, DTYPE_BF16};

enum { MOST_RESULTS = 8, MOST_BLOCKS = 32 };

/* An array that an op wrote, on the host. */
typedef struct result {
    const char *what;
    dtype x;
    int64_t n;
    double fp32_error;
    void *values;
} result;

/* A backend, and one run on it. */
typedef struct side {
    const ops *ops;
    backend *b;
    void *scratch;
    void *blocks[MOST_BLOCKS]; /* of the device, freed after the run */
    int n_blocks, n_results;
    result results[MOST_RESULTS];
} side;

typedef struct twins {
    side cpu, cuda;
    uint64_t *bits; /* NULL, or what run_twins adds the device's results to, instead of comparing them */
} twins;

static inline void side_open(side *s, const ops *table, const op_limits *limits) {
    *s = (side){.ops = table};
    error err = {0};
    int threads = 1; /* of the CPU: ThreadSanitizer does not know OpenMP's */
    if (table->open(&s->b, threads, 0, &err)) fail_msg("%s", err.text);
    size_t bytes = table->scratch_bytes(s->b, limits);
    s->scratch = table->alloc(s->b, bytes, &err);
    if (!s->scratch) fail_msg("%s", err.text);
    table->set_scratch(s->b, s->scratch, bytes);
}

static inline void side_close(side *s) {
    error err = {0};
    if (s->ops->sync(s->b, &err)) fail_msg("%s", err.text);
    s->ops->free(s->b, s->scratch);
    s->ops->close(s->b);
}

/* Memory of the side that holds `bytes` from the host, or, for an op to write, NaNs (host NULL). It ends where the array does. */
static inline void *put_bytes(side *s, const void *host, size_t bytes) {
    error err = {0};
    assert_true(s->n_blocks < MOST_BLOCKS);
    void *memory = s->ops->alloc(s->b, bytes ? bytes : 1, &err), *filled = NULL;
    if (!memory) fail_msg("%s", err.text);
    if (!host) host = filled = memset(malloc(bytes + 1), 0xff, bytes);
    s->ops->copy_in(s->b, memory, host, bytes);
    free(filled);
    return s->blocks[s->n_blocks++] = memory;
}

static inline void *put(side *s, const void *host, int64_t n, dtype x) { return put_bytes(s, host, (size_t)n * dtype_size(x)); }
static inline float *put_floats(side *s, const float *host, int64_t n) { return put(s, host, n, DTYPE_F32); }

/* Keeps what a run left in an array of the side. */
static inline void take(side *s, const char *what, const void *memory, int64_t n, dtype x, double fp32_error) {
    assert_true(s->n_results < MOST_RESULTS);
    result *r = &s->results[s->n_results++];
    *r = (result){what, x, n, fp32_error, malloc((size_t)n * dtype_size(x) + 1)};
    assert_non_null(r->values);
    s->ops->copy_out(s->b, r->values, memory, (size_t)n * dtype_size(x));
}

static inline double result_element(const result *r, int64_t i) {
    return r->x == DTYPE_F32 ? (double)((const float *)r->values)[i] : (double)bf16_to_float(((const bf16 *)r->values)[i]);
}

static inline void check_close(const char *label, const result *cpu, const result *cuda) {
    double square = 0, square_off = 0;
    for (int64_t i = 0; i < cpu->n; i++) square += pow(result_element(cpu, i), 2);
    double mean = cpu->n ? sqrt(square / (double)cpu->n) : 0;
    for (int64_t i = 0; i < cpu->n; i++) {
        double expected = result_element(cpu, i), got = result_element(cuda, i), off = fabs(got - expected);
        double limit = cpu->fp32_error * (fabs(expected) + mean) + (cpu->x == DTYPE_BF16 ? ldexp(fabs(expected), -7) : 0);
        if (!(off <= limit) && !(isnan(got) && isnan(expected)) && !(got == expected))
            fail_msg("%s: %s, %s: element %lld of %lld is %.9g on the device, %.9g on the CPU: off by %.3g, allowed %.3g", label,
                     cpu->what, dtype_name(cpu->x), (long long)i, (long long)cpu->n, got, expected, off, limit);
        if (isfinite(off)) square_off += off * off;
    }
    double all = sqrt(square_off), allowed = (cpu->x == DTYPE_BF16 ? 1e-3 : cpu->fp32_error) * sqrt(square);
    if (isfinite(square) && !(all <= allowed))
        fail_msg("%s: %s, %s: all %lld elements together are off by %.3g, allowed %.3g", label, cpu->what, dtype_name(cpu->x),
                 (long long)cpu->n, all, allowed);
}

static inline void check_same_bits(const char *label, const result *a, const result *b) {
    for (size_t i = 0; i < (size_t)a->n * dtype_size(a->x); i++)
        if (((const char *)a->values)[i] != ((const char *)b->values)[i])
            fail_msg("%s: %s, %s: element %zu of %lld is %.9g the first time, %.9g the second", label, a->what, dtype_name(a->x),
                     i / dtype_size(a->x), (long long)a->n, result_element(a, (int64_t)(i / dtype_size(a->x))),
                     result_element(b, (int64_t)(i / dtype_size(a->x))));
}

/* Frees what was put; fails if an op did. */
static inline void end_run(side *s) {
    error err = {0};
    while (s->n_blocks) s->ops->free(s->b, s->blocks[--s->n_blocks]);
    if (s->ops->sync(s->b, &err)) fail_msg("%s", err.text);
}

static inline int run_once(side *s, void (*run)(side *, const void *), const void *context, result *results) {
    s->n_results = 0;
    run(s, context);
    end_run(s);
    memcpy(results, s->results, sizeof s->results);
    return s->n_results;
}

static inline void add_results(uint64_t *bits, const result *results, int n) {
    for (int i = 0; i < n; i++) {
        *bits = add_bits(*bits, results[i].values, (size_t)results[i].n * dtype_size(results[i].x));
        free(results[i].values);
    }
}

static inline void run_twins(twins *t, const char *label, void (*run)(side *, const void *), const void *context) {
    result cpu[MOST_RESULTS], first[MOST_RESULTS], second[MOST_RESULTS];
    if (t->bits) {
        add_results(t->bits, first, run_once(&t->cuda, run, context, first));
        return;
    }
    int n = run_once(&t->cpu, run, context, cpu);
    assert_int_equal(run_once(&t->cuda, run, context, first), n);
    assert_int_equal(run_once(&t->cuda, run, context, second), n);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        check_close(label, &cpu[i], &first[i]);
        check_same_bits(label, &first[i], &second[i]);
        free(cpu[i].values);
        free(first[i].values);
        free(second[i].values);
    }
}

/* n normal random numbers in the format of x: a function of the key. The caller frees them. */
static inline void *random_array(int64_t n, dtype x, uint64_t key, float stddev) {
    float *values = malloc((size_t)n * sizeof *values + 1);
    assert_non_null(values);
    rng_normal(values, key, 0, n, stddev);
    if (x == DTYPE_F32) return values;
    bf16 *rounded = malloc((size_t)n * sizeof *rounded + 1);
    assert_non_null(rounded);
    for (int64_t i = 0; i < n; i++) rounded[i] = bf16_from_float(values[i]);
    free(values);
    return rounded;
}

static inline float *random_floats(int64_t n, uint64_t key, float stddev) { return random_array(n, DTYPE_F32, key, stddev); }

#endif
