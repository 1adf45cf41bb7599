/* attention_testing.h: a call of attention, and the comparison of what it wrote, for the tests of both backends.
 *
 * Limits are on the norm of the error relative to the norm of the tensor. fp32: 1e-5. bf16: probabilities, their gradients and
 * results are rounded once each, by at most 2^-8 and 0.42 times that in the mean square, independently: two roundings on the way
 * to a result make 2.35e-3 (and that is what large tensors show); the limit is twice that, for the small ones. The reference of
 * the backward pass is given the forward pass's rounded o, as the op is. */
#ifndef MOBILELLM_TESTS_ATTENTION_TESTING_H
#define MOBILELLM_TESTS_ATTENTION_TESTING_H

#include "op_testing.h"

/* One call: who works it out, its sizes, and everything it reads, also in double. */
typedef struct problem {
    testing *t; /* memory of the test, and the CPU */
    const ops *ops;
    backend *b;
    dtype x;
    int B, T, H, K, D, window;
    int32_t *doc;        /* (N) or NULL */
    double *qkv;         /* (N,(H+2K)*D) */
    double *d_o;         /* (N,H*D) */
    void *x_qkv, *x_d_o; /* the same, in x */
} problem;

/* What it writes. */
typedef struct results {
    void *o;    /* (N,H*D) x */
    float *lse; /* (B,H,T) */
    void *dqkv; /* (N,(H+2K)*D) x */
} results;

static const int groups[] = {1, 2, 4};

static inline int width(const problem *p) { return (p->H + 2 * p->K) * p->D; }
static inline int64_t n_qkv(const problem *p) { return (int64_t)p->B * p->T * width(p); }
static inline int64_t n_o(const problem *p) { return (int64_t)p->B * p->T * p->H * p->D; }
static inline int64_t n_lse(const problem *p) { return (int64_t)p->B * p->H * p->T; }

/* Makes x's inputs of the doubles, which become what these hold. */
static inline void round_inputs(problem *p) {
    p->x_qkv = array_of(p->t, p->qkv, n_qkv(p), p->x);
    p->x_d_o = array_of(p->t, p->d_o, n_o(p), p->x);
}

static inline void draw_inputs(problem *p, float stddev) {
    p->qkv = random_doubles(p->t, n_qkv(p), 1, stddev);
    p->d_o = random_doubles(p->t, n_o(p), 2, 1);
    round_inputs(p);
}

/* For the CPU that t has open. */
static inline problem make_problem(testing *t, dtype x, int B, int T, int H, int K, int D, int window) {
    problem p = {.t = t, .ops = t->ops, .b = t->b, .x = x, .B = B, .T = T, .H = H, .K = K, .D = D, .window = window};
    draw_inputs(&p, 1.5f);
    return p;
}

/* Documents of 1, 2, ... `longest`, 1, 2, ... positions; they do not go on into the next row, though its number may be the same.
 */
static inline void add_documents(problem *p, int longest) {
    p->doc = new_bytes(p->t, (size_t)p->B * (size_t)p->T * sizeof *p->doc);
    for (int i = 0, length = 1, left = 1, number = 7; i < p->B * p->T; i++) {
        p->doc[i] = number;
        if (--left > 0) continue;
        length = length % longest + 1, left = length, number--;
    }
}

/* ---- comparison ---- */

static const double limit_of[] = {[DTYPE_F32] = 1e-5, [DTYPE_BF16] = 4.7e-3};

static inline void check_limit(const problem *p, const char *what, double off, double limit) {
    if (!(off <= limit))
        fail_msg("%s, %s B %d T %d H %d K %d D %d window %d%s: relative error %.3g, allowed %.3g", what, dtype_name(p->x), p->B,
                 p->T, p->H, p->K, p->D, p->window, p->doc ? " documents" : "", off, limit);
}

/* Sums of squares over columns [from, to) of rows of `columns`. */
typedef struct squares {
    double error, expected;
} squares;

static inline squares compare(const void *got, dtype x, const double *expected, int64_t rows, int columns, int from, int to) {
    squares s = {0, 0};
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * columns + from; i < row * columns + to; i++) {
            double e = element(got, x, i) - expected[i];
            s.error += e * e;
            s.expected += expected[i] * expected[i];
        }
    return s;
}

static inline void check_output(const problem *p, const void *got, const double *expected, double limit) {
    squares s = compare(got, p->x, expected, 1, (int)n_o(p), 0, (int)n_o(p));
    check_limit(p, "o", sqrt(s.error / s.expected), limit);
}

/* Each of dq, dk and dv to the limit. Where queries see only themselves dq and dk are 0 but for rounding: then on dv's scale. */
static inline void check_gradients(const problem *p, const void *got, const double *expected, double limit) {
    int begin[] = {0, p->H * p->D, (p->H + p->K) * p->D, width(p)};
    const char *names[] = {"dq", "dk", "dv"};
    double dv_squares = compare(got, p->x, expected, (int64_t)p->B * p->T, width(p), begin[2], begin[3]).expected;
    for (int i = 0; i < 3; i++) {
        squares s = compare(got, p->x, expected, (int64_t)p->B * p->T, width(p), begin[i], begin[i + 1]);
        check_limit(p, names[i], sqrt(s.error / (s.expected > 1e-10 * dv_squares ? s.expected : dv_squares)), limit);
    }
}

static inline void check_results(const problem *p, const results *r, const double *o, const double *lse, const double *dqkv) {
    check_output(p, r->o, o, limit_of[p->x]);
    check_close("lse", r->lse, lse, n_lse(p), DTYPE_F32, 2e-6, 8);
    check_gradients(p, r->dqkv, dqkv, limit_of[p->x]);
}

#endif
