/* test_rope.c: normalisation and rotation of query and key heads, against double precision. */
#include "op_testing.h"

static const double eps = 1e-5;

/* One call: sizes, kinds, and everything it reads, in double. */
typedef struct problem {
    int64_t N;
    int H, K, D;
    qk_norm norm;
    rope_pairs pairs;
    double *qkv, *w[2], *cosines, *sines; /* (N,(H+2K)*D), wq and wk (D), (positions, D/2) */
    int32_t *pos;
    double *dy, *y; /* (N,(H+2K)*D) */
} problem;

enum { POSITIONS = 50 };

static int width(const problem *p) { return (p->H + 2 * p->K) * p->D; }

static problem make_problem(testing *t, int64_t N, int H, int K, int D, qk_norm norm, rope_pairs pairs) {
    problem p = {.N = N, .H = H, .K = K, .D = D, .norm = norm, .pairs = pairs};
    p.qkv = random_doubles(t, N * width(&p), 1, 1);
    p.dy = random_doubles(t, N * width(&p), 2, 1);
    p.y = new_doubles(t, N * width(&p));
    for (int i = 0; i < 2; i++) p.w[i] = random_doubles(t, D, 3 + (uint64_t)i, 1);
    p.cosines = new_doubles(t, (int64_t)POSITIONS * D / 2), p.sines = new_doubles(t, (int64_t)POSITIONS * D / 2);
    for (int i = 0; i < POSITIONS * D / 2; i++) {
        double angle = i / (D / 2) * pow(10000, -2.0 * (i % (D / 2)) / D);
        p.cosines[i] = cos(angle), p.sines[i] = sin(angle);
    }
    p.pos = new_bytes(t, (size_t)N * sizeof *p.pos);
    for (int64_t n = 0; n < N; n++) p.pos[n] = (int32_t)(n * 7 % POSITIONS); /* not in order, as in packed rows */
    return p;
}

/* y of one head, and its rstd */
static double head(double *y, const double *u, const problem *p, const double *w, int32_t pos) {
    double squares = 0;
    for (int i = 0; i < p->D; i++) squares += u[i] * u[i];
    double rstd = 1 / sqrt(squares / p->D + eps);
    for (int pair = 0; pair < p->D / 2; pair++) {
        int first = p->pairs == ROPE_HALF ? pair : 2 * pair, second = p->pairs == ROPE_HALF ? pair + p->D / 2 : 2 * pair + 1;
        double a = u[first], b = u[second], c = p->cosines[pos * (p->D / 2) + pair], s = p->sines[pos * (p->D / 2) + pair];
        if (p->norm != QK_NORM_NONE) a *= rstd, b *= rstd;
        if (p->norm == QK_NORM_RMS) a *= w[first], b *= w[second];
        y[first] = a * c - b * s;
        y[second] = b * c + a * s;
    }
    return rstd;
}

/* The whole of y; rstd (N,H+K) where not NULL */
static void reference(const problem *p, double *rstd) {
    memcpy(p->y, p->qkv, (size_t)(p->N * width(p)) * sizeof *p->y);
    for (int64_t n = 0; n < p->N; n++)
        for (int i = 0; i < p->H + p->K; i++) {
            int64_t at = n * width(p) + i * p->D;
            double r = head(p->y + at, p->qkv + at, p, p->w[i >= p->H], p->pos[n]);
            if (rstd) rstd[n * (p->H + p->K) + i] = r;
        }
}

static double rope_loss(const void *context) {
    const problem *p = context;
    reference(p, NULL);
    double loss = 0;
    for (int64_t i = 0; i < p->N * width(p); i++) loss += p->dy[i] * p->y[i];
    return loss;
}

/* The arrays of the op. */
typedef struct arrays {
    void *qkv, *raw, *w[2], *dqkv;
    float *rstd, *cosines, *sines;
} arrays;

static arrays make_arrays(testing *t, problem *p, dtype x) {
    arrays a = {.qkv = array_of(t, p->qkv, p->N * width(p), x), .dqkv = array_of(t, p->dy, p->N * width(p), x)};
    a.raw = p->norm == QK_NORM_RMS ? new_array(t, p->N * (p->H + p->K) * p->D, x) : NULL;
    a.rstd = p->norm == QK_NORM_NONE ? NULL : new_floats(t, p->N * (p->H + p->K));
    for (int i = 0; i < 2; i++) a.w[i] = p->norm == QK_NORM_RMS ? array_of(t, p->w[i], p->D, x) : NULL;
    a.cosines = array_of(t, p->cosines, (int64_t)POSITIONS * p->D / 2, DTYPE_F32);
    a.sines = array_of(t, p->sines, (int64_t)POSITIONS * p->D / 2, DTYPE_F32);
    return a;
}

static void forward(testing *t, const problem *p, const arrays *a, dtype x) {
    t->ops->qk_rope_forward(t->b, a->qkv, a->raw, a->rstd, a->w[0], a->w[1], a->cosines, a->sines, p->pos, p->norm, p->pairs,
                            (float)eps, x, p->N, p->H, p->K, p->D);
}

static void backward(testing *t, const problem *p, const arrays *a, float *dwq, float *dwk, bool accumulate, dtype x) {
    t->ops->qk_rope_backward(t->b, a->dqkv, dwq, dwk, a->qkv, a->raw, a->rstd, a->w[0], a->w[1], a->cosines, a->sines, p->pos,
                             accumulate, p->norm, p->pairs, x, p->N, p->H, p->K, p->D);
}

static void check_forward(testing *t, problem *p, dtype x) {
    arrays a = make_arrays(t, p, x);
    int64_t heads = p->H + p->K;
    double *rstd = new_doubles(t, p->N * heads);
    forward(t, p, &a, x);
    reference(p, rstd);
    check_close("qkv", a.qkv, p->y, p->N * width(p), x, 5e-7, 4);
    if (a.rstd) check_close("rstd", a.rstd, rstd, p->N * heads, DTYPE_F32, 5e-7, 4);
    for (int64_t n = 0; n < p->N; n++) {
        const double *values = p->qkv + n * width(p) + heads * p->D;
        char *got = (char *)a.qkv + (size_t)(n * width(p) + heads * p->D) * dtype_size(x);
        check_same_bits("value heads", got, array_of(t, (double *)values, p->K * p->D, x), p->K * p->D, x);
        char *raw = (char *)a.raw + (size_t)(n * heads * p->D) * dtype_size(x);
        if (a.raw) check_same_bits("raw", raw, array_of(t, p->qkv + n * width(p), heads * p->D, x), heads * p->D, x);
    }
}

/* Calls `check` for every norm, pairing and number format, for head sizes with and without a loop of their own. */
static void for_all_kinds(void (*check)(testing *, problem *, dtype)) {
    static const int sizes[] = {2, 24, 64, 128};
    for (int i = 0; i < 4 * 3 * 2 * 2; i++) {
        testing t;
        testing_open(&t, 2);
        int D = sizes[i % 4], norm = i / 4 % 3, pairs = i / 12 % 2;
        problem p = make_problem(&t, D == 24 ? 33 : 2, 3, 1, D, (qk_norm)norm, (rope_pairs)pairs);
        check(&t, &p, both_dtypes[i / 24]);
        testing_close(&t);
    }
}

/* Query and key heads are normalised and rotated, rstd and the heads before the norm kept, value heads left alone. */
static void forward_is_the_formula(void **state) {
    (void)state;
    for_all_kinds(check_forward);
}

/* l2 goes back through its output as it was rounded: du = R^-1 (rstd * (dy - y * mean(dy*y))) */
static void l2_formula(double *du, const problem *p, const double *y, const float *rstd) {
    problem inverse = *p;
    double sines[POSITIONS * 64], turned[128];
    for (int i = 0; i < POSITIONS * p->D / 2; i++) sines[i] = -p->sines[i];
    inverse.sines = sines;
    inverse.norm = QK_NORM_NONE;
    for (int64_t n = 0; n < p->N; n++)
        for (int i = 0; i < p->H + p->K; i++) {
            int64_t at = n * width(p) + i * p->D;
            double mean = 0;
            for (int d = 0; d < p->D; d++) mean += p->dy[at + d] * y[at + d] / p->D;
            for (int d = 0; d < p->D; d++) turned[d] = (double)rstd[n * (p->H + p->K) + i] * (p->dy[at + d] - y[at + d] * mean);
            head(du + at, turned, &inverse, NULL, p->pos[n]);
        }
}

static void check_backward(testing *t, problem *p, dtype x) {
    arrays a = make_arrays(t, p, x);
    int64_t n = p->N * width(p);
    forward(t, p, &a, x);
    double *dw[2] = {random_doubles(t, p->D, 5, 1), random_doubles(t, p->D, 6, 1)},
           *du = numeric_gradient(t, p->qkv, n, rope_loss, p);
    float *added[2], *written[2] = {new_floats(t, p->D), new_floats(t, p->D)};
    for (int i = 0; i < 2; i++) added[i] = array_of(t, dw[i], p->D, DTYPE_F32);
    if (p->norm == QK_NORM_L2 && x == DTYPE_BF16) {
        double *y = new_doubles(t, n);
        for (int64_t i = 0; i < n; i++) y[i] = element(a.qkv, x, i);
        l2_formula(du, p, y, a.rstd);
    }
    arrays again = a;
    again.dqkv = copy_of(t, a.dqkv, n, x);
    backward(t, p, &a, added[0], added[1], true, x);
    backward(t, p, &again, written[0], written[1], false, x);

    check_close("dqkv", a.dqkv, du, n, x, 2e-6, 8);
    check_same_bits("dqkv again", again.dqkv, a.dqkv, n, x);
    for (int i = 0; i < 2 && p->norm == QK_NORM_RMS; i++) {
        double *gradient = numeric_gradient(t, p->w[i], p->D, rope_loss, p);
        check_close("dw written", written[i], gradient, p->D, DTYPE_F32, 1e-6, 4 * sqrt((double)p->N));
        for (int d = 0; d < p->D; d++) gradient[d] += dw[i][d];
        check_close("dw added", added[i], gradient, p->D, DTYPE_F32, 1e-6, 4 * sqrt((double)p->N));
    }
}

/* Every kind goes back exactly; the value heads' gradient is left alone; weight gradients are added or replaced. */
static void backward_is_the_derivative(void **state) {
    (void)state;
    for_all_kinds(check_backward);
}

/* Scores depend on how far apart two tokens are, not on where they are. */
static void rotation_is_relative(void **state) {
    (void)state;
    enum { D = 64 };
    for (int pairs = 0; pairs < 2; pairs++) {
        testing t;
        testing_open(&t, 1);
        problem p = make_problem(&t, 4, 1, 1, D, QK_NORM_NONE, (rope_pairs)pairs);
        int32_t pos[] = {9, 4, 45, 40}; /* tokens 0 and 1 are as far apart as tokens 2 and 3 */
        p.pos = pos;
        for (int n = 1; n < 4; n++) memcpy(p.qkv + n * width(&p), p.qkv, (size_t)width(&p) * sizeof *p.qkv);
        arrays a = make_arrays(&t, &p, DTYPE_F32);
        forward(&t, &p, &a, DTYPE_F32);
        const float *qkv = a.qkv;
        double near = 0, far = 0;
        for (int d = 0; d < D; d++) {
            near += (double)qkv[d] * (double)qkv[width(&p) + D + d];
            far += (double)qkv[2 * width(&p) + d] * (double)qkv[3 * width(&p) + D + d];
        }
        check_close("score", &(float){(float)far}, &near, 1, DTYPE_F32, 2e-6, 8);
        testing_close(&t);
    }
}

/* The weight gradients too have the same bits with one thread and with three. */
static void bits_do_not_depend_on_threads(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        testing t[2];
        arrays a[2];
        float *dw[2][2];
        problem p = {0};
        for (int k = 0; k < 2; k++) {
            testing_open(&t[k], 1 + 2 * k);
            p = make_problem(&t[k], 173, 4, 2, 64, QK_NORM_RMS, ROPE_INTERLEAVED);
            a[k] = make_arrays(&t[k], &p, both_dtypes[i]);
            dw[k][0] = new_floats(&t[k], 64), dw[k][1] = new_floats(&t[k], 64);
            forward(&t[k], &p, &a[k], both_dtypes[i]);
            backward(&t[k], &p, &a[k], dw[k][0], dw[k][1], false, both_dtypes[i]);
        }
        check_same_bits("dqkv", a[0].dqkv, a[1].dqkv, p.N * width(&p), both_dtypes[i]);
        check_same_bits("dwq", dw[0][0], dw[1][0], 64, DTYPE_F32);
        check_same_bits("dwk", dw[0][1], dw[1][1], 64, DTYPE_F32);
        testing_close(&t[0]);
        testing_close(&t[1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_the_formula),
        cmocka_unit_test(backward_is_the_derivative),
        cmocka_unit_test(rotation_is_relative),
        cmocka_unit_test(bits_do_not_depend_on_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
