/* test_cuda_ops.c: our CUDA kernels give what the CPU's ops give, and the same bits every time.
 *
 * The same source runs on a GPU and, in the builds of tests/emu, on the CPU in any order of threads and under sanitizers. Sizes
 * are chosen for what they divide: rows that are read 16 bytes at a time and rows that are not, rows for a warp and for a block,
 * one token and several token blocks. */
#include "cuda_testing.h"

static const op_limits limits = {.B = 1, .T = 5000, .C = 5000, .F = 1, .H = 1, .K = 1, .D = 256, .V = 1, .head_rows = 1};

static int open_twins(void **state) {
    static twins t;
    side_open(&t.cpu, cpu_ops(), &limits);
    side_open(&t.cuda, cuda_ops(), &limits);
    *state = &t;
    return 0;
}

static int close_twins(void **state) {
    twins *t = *state;
    side_close(&t->cpu);
    side_close(&t->cuda);
    return 0;
}

/* What a case of most ops is: a number of rows, their length, and a format. */
typedef struct shape {
    int64_t N;
    int C;
    dtype x;
} shape;

/* Calls run_twins for every size in both formats. */
static void for_shapes(void **state, const char *op, void (*run)(side *, const void *), const shape *shapes, size_t n) {
    for (size_t i = 0; i < 2 * n; i++) {
        shape p = shapes[i / 2];
        p.x = both_dtypes[i % 2];
        char label[96];
        snprintf(label, sizeof label, "%s of %lld x %d", op, (long long)p.N, p.C);
        run_twins(*state, label, run, &p);
    }
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- RMSNorm ---- */

/* 1,101 and 2,056 are longer than a warp holds, 5,000 longer than it holds in either format. */
static const shape norm_shapes[] = {{1, 1, 0},    {3, 3, 0},     {33, 63, 0},   {257, 64, 0}, {33, 100, 0},
                                    {3, 1000, 0}, {33, 1032, 0}, {33, 1101, 0}, {5, 2056, 0}, {3, 5000, 0}};

static void run_rmsnorm_forward(side *s, const void *context) {
    const shape *p = context;
    int64_t n = p->N * p->C;
    void *h = random_array(n, p->x, 1, 1), *delta = random_array(n, p->x, 2, 1), *w = random_array(p->C, p->x, 3, 1);
    void *h_in = put(s, h, n, p->x), *d = put(s, delta, n, p->x), *weight = put(s, w, p->C, p->x);
    void *y = put(s, NULL, n, p->x), *y_alone = put(s, NULL, n, p->x), *h_out = put(s, NULL, n, p->x);
    float *rstd = put_floats(s, NULL, p->N), *rstd_alone = put_floats(s, NULL, p->N);
    s->ops->rmsnorm_forward(s->b, y_alone, rstd_alone, NULL, h_in, NULL, weight, 1e-5f, p->x, p->N, p->C);
    s->ops->rmsnorm_forward(s->b, y, rstd, h_out, h_in, d, weight, 1e-5f, p->x, p->N, p->C);
    take(s, "h + delta", h_out, n, p->x, 0); /* one addition, so the same float */
    take(s, "y", y, n, p->x, 1e-6);
    take(s, "rstd", rstd, p->N, DTYPE_F32, 1e-6);
    take(s, "y without delta", y_alone, n, p->x, 1e-6);
    take(s, "rstd without delta", rstd_alone, p->N, DTYPE_F32, 1e-6);
    s->ops->rmsnorm_forward(s->b, y, rstd, h_in, h_in, d, weight, 1e-5f, p->x, p->N, p->C);
    take(s, "h + delta in place", h_in, n, p->x, 0);
    take(s, "y in place", y, n, p->x, 1e-6);
    free(h), free(delta), free(w);
}

static void run_rmsnorm_backward(side *s, const void *context) {
    const shape *p = context;
    int64_t n = p->N * p->C;
    void *dh = random_array(n, p->x, 1, 1), *dy = random_array(n, p->x, 2, 1), *h = random_array(n, p->x, 3, 1);
    void *w = random_array(p->C, p->x, 4, 1);
    float *rstd = random_floats(p->N, 5, 1), *dw = random_floats(p->C, 6, 1);
    void *dh_out = put(s, dh, n, p->x), *dy_in = put(s, dy, n, p->x), *h_in = put(s, h, n, p->x), *weight = put(s, w, p->C, p->x);
    float *rstd_in = put_floats(s, rstd, p->N), *dw_set = put_floats(s, NULL, p->C), *dw_added = put_floats(s, dw, p->C);
    s->ops->rmsnorm_backward(s->b, dh_out, dw_set, dy_in, h_in, rstd_in, weight, false, p->x, p->N, p->C);
    take(s, "dh", dh_out, n, p->x, 3e-6);
    s->ops->rmsnorm_backward(s->b, dh_out, dw_added, dy_in, h_in, rstd_in, weight, true, p->x, p->N, p->C);
    take(s, "dw", dw_set, p->C, DTYPE_F32, 3e-6);
    take(s, "dw added", dw_added, p->C, DTYPE_F32, 3e-6);
    free(dh), free(dy), free(h), free(w), free(rstd), free(dw);
}

static void rmsnorm_is_the_cpus(void **state) {
    for_shapes(state, "rmsnorm forward", run_rmsnorm_forward, norm_shapes, COUNT(norm_shapes));
    for_shapes(state, "rmsnorm backward", run_rmsnorm_backward, norm_shapes, COUNT(norm_shapes));
}

/* More than a block holds: a failure with the name of the setting, and nothing is read or written. */
static void longer_rows_are_refused(void **state) {
    side *s = &((twins *)*state)->cuda;
    error err = {0};
    s->ops->rmsnorm_forward(s->b, NULL, NULL, NULL, NULL, NULL, NULL, 1e-5f, DTYPE_F32, 1, 8193);
    assert_int_equal(s->ops->sync(s->b, &err), -1);
    assert_non_null(strstr(err.text, "RMSNorm: model.d_model is 8193, and its kernels take at most 8192"));
    s->ops->rmsnorm_backward(s->b, NULL, NULL, NULL, NULL, NULL, NULL, false, DTYPE_F32, 1, 8193);
    assert_int_equal(s->ops->sync(s->b, &err), -1);
    assert_non_null(strstr(err.text, "8193"));
}

/* ---- SwiGLU ---- */

static const shape swiglu_shapes[] = {{1, 1, 0}, {3, 3, 0}, {257, 63, 0}, {33, 64, 0}, {3, 1000, 0}, {33, 1032, 0}, {3, 2500, 0}};

static void run_swiglu(side *s, const void *context) {
    const shape *p = context;
    int64_t n = p->N * p->C;
    void *gate_up = random_array(2 * n, p->x, 1, 3), *dy = random_array(n, p->x, 2, 1);
    void *in = put(s, gate_up, 2 * n, p->x), *y = put(s, NULL, n, p->x), *dy_y = put(s, dy, n, p->x);
    s->ops->swiglu_forward(s->b, y, in, p->x, p->N, p->C);
    take(s, "y", y, n, p->x, 1e-6);
    s->ops->swiglu_backward(s->b, in, dy_y, p->x, p->N, p->C);
    take(s, "gradients of gate and up", in, 2 * n, p->x, 1e-6);
    take(s, "y again", dy_y, n, p->x, 1e-6);
    free(gate_up), free(dy);
}

static void swiglu_is_the_cpus(void **state) { for_shapes(state, "swiglu", run_swiglu, swiglu_shapes, COUNT(swiglu_shapes)); }

/* ---- QK-norm and rotary embedding ---- */

typedef struct rope_case {
    int64_t N;
    int H, K, D;
    qk_norm norm;
    rope_pairs pairs;
    dtype x;
} rope_case;

enum { POSITIONS = 50 };

/* The cosines (half 0) or sines (half 1) of all positions. */
static float *angles(int D, int half) {
    float *values = malloc((size_t)(POSITIONS * D / 2) * sizeof *values);
    for (int i = 0; i < POSITIONS * D / 2; i++) {
        double angle = i / (D / 2) * pow(10000, -2.0 * (i % (D / 2)) / D);
        values[i] = (float)(half ? sin(angle) : cos(angle));
    }
    return values;
}

static void run_rope(side *s, const void *context) {
    const rope_case *p = context;
    int64_t heads = p->H + p->K, n = p->N * (heads + p->K) * p->D, n_raw = p->N * heads * p->D;
    bool rms = p->norm == QK_NORM_RMS;
    void *qkv = random_array(n, p->x, 1, 1), *dqkv = random_array(n, p->x, 2, 1);
    void *wq = random_array(p->D, p->x, 3, 1), *wk = random_array(p->D, p->x, 4, 1);
    float *cosines = angles(p->D, 0), *sines = angles(p->D, 1), *dw = random_floats(p->D, 5, 1);
    int32_t *pos = malloc((size_t)p->N * sizeof *pos);
    for (int64_t i = 0; i < p->N; i++) pos[i] = (int32_t)(i * 7 % POSITIONS); /* not in order, as in packed rows */

    void *io = put(s, qkv, n, p->x), *d_io = put(s, dqkv, n, p->x), *raw = rms ? put(s, NULL, n_raw, p->x) : NULL;
    void *wq_in = rms ? put(s, wq, p->D, p->x) : NULL, *wk_in = rms ? put(s, wk, p->D, p->x) : NULL;
    float *rstd = p->norm == QK_NORM_NONE ? NULL : put_floats(s, NULL, p->N * heads);
    float *cosines_in = put_floats(s, cosines, POSITIONS * p->D / 2), *sines_in = put_floats(s, sines, POSITIONS * p->D / 2);
    float *dwq = rms ? put_floats(s, NULL, p->D) : NULL, *dwk = rms ? put_floats(s, NULL, p->D) : NULL;
    float *dwq_added = rms ? put_floats(s, dw, p->D) : NULL, *dwk_added = rms ? put_floats(s, dw, p->D) : NULL;
    int32_t *pos_in = put_bytes(s, pos, (size_t)p->N * sizeof *pos);

    s->ops->qk_rope_forward(s->b, io, raw, rstd, wq_in, wk_in, cosines_in, sines_in, pos_in, p->norm, p->pairs, 1e-5f, p->x, p->N,
                            p->H, p->K, p->D);
    take(s, "qkv", io, n, p->x, 1e-6);
    if (raw) take(s, "raw", raw, n_raw, p->x, 0);
    if (rstd) take(s, "rstd", rstd, p->N * heads, DTYPE_F32, 1e-6);
    /* Backward of one forward for both sides: what was rounded differently there is not to be compared again here. */
    s->ops->copy_in(s->b, io, qkv, (size_t)n * dtype_size(p->x));
    if (rstd) {
        float *same = random_floats(p->N * heads, 6, 1);
        s->ops->copy_in(s->b, rstd, same, (size_t)(p->N * heads) * sizeof *same);
        free(same);
    }
    s->ops->qk_rope_backward(s->b, d_io, dwq, dwk, io, raw, rstd, wq_in, wk_in, cosines_in, sines_in, pos_in, false, p->norm,
                             p->pairs, p->x, p->N, p->H, p->K, p->D);
    take(s, "dqkv", d_io, n, p->x, 3e-6);
    if (rms) {
        s->ops->copy_in(s->b, d_io, dqkv, (size_t)n * dtype_size(p->x));
        s->ops->qk_rope_backward(s->b, d_io, dwq_added, dwk_added, io, raw, rstd, wq_in, wk_in, cosines_in, sines_in, pos_in,
                                 true, p->norm, p->pairs, p->x, p->N, p->H, p->K, p->D);
        take(s, "dwq", dwq, p->D, DTYPE_F32, 3e-6);
        take(s, "dwk", dwk, p->D, DTYPE_F32, 3e-6);
        take(s, "dwq added", dwq_added, p->D, DTYPE_F32, 3e-6);
        take(s, "dwk added", dwk_added, p->D, DTYPE_F32, 3e-6);
    }
    free(qkv), free(dqkv), free(wq), free(wk), free(cosines), free(sines), free(dw), free(pos);
}

/* Every norm and every layout of pairs, heads that fill a warp and heads that share one. */
static void qk_rope_is_the_cpus(void **state) {
    static const struct {
        int64_t N;
        int H, K, D;
    } sizes[] = {{1, 1, 1, 2},   {33, 3, 1, 6},   {33, 4, 2, 24}, {65, 4, 2, 64},
                 {33, 3, 3, 80}, {33, 6, 2, 128}, {5, 2, 1, 256}, {3, 2, 1, 250}};
    for (size_t i = 0; i < COUNT(sizes) * 3 * 2 * 2; i++) {
        size_t size = i / 12;
        rope_case p = {sizes[size].N,        sizes[size].H,           sizes[size].K,     sizes[size].D,
                       (qk_norm)(i / 4 % 3), (rope_pairs)(i / 2 % 2), both_dtypes[i % 2]};
        char label[96];
        snprintf(label, sizeof label, "qk_rope N %d H %d K %d D %d norm %d pairs %d", (int)p.N, p.H, p.K, p.D, p.norm, p.pairs);
        run_twins(*state, label, run_rope, &p);
    }
}

/* ---- embedding ---- */

typedef struct embedding_case {
    shape shape;
    int64_t V;
    int32_t (*token)(int64_t n, int64_t V);
    double dw_error; /* 0: the CPU's bits */
} embedding_case;

static int32_t any_token(int64_t n, int64_t V) { return (int32_t)(rng_mix(7, (uint64_t)n) % (uint64_t)V); }
static int32_t few_tokens(int64_t n, int64_t V) { return (int32_t)(V - 1 - (int64_t)(rng_mix(8, (uint64_t)n) % 5)); }
static int32_t one_token(int64_t n, int64_t V) { return (int32_t)(n * 0 + V / 2); }
/* Five in six are the same one, among others before and after it. */
static int32_t a_frequent_token(int64_t n, int64_t V) { return n % 6 == 0 ? any_token(n, V) : (int32_t)(V / 2); }
/* Every other one adds nothing. */
static int32_t half_of_any(int64_t n, int64_t V) { return n % 2 ? -1 : any_token(n, V); }

static void run_embedding(side *s, const void *context) {
    const embedding_case *p = context;
    int64_t N = p->shape.N, n = N * p->shape.C, n_rows = p->V * p->shape.C;
    dtype x = p->shape.x;
    void *w = random_array(n_rows, x, 1, 1), *dy = random_array(n, x, 2, 1);
    float *dw = random_floats(n_rows, 3, 1);
    int32_t *tokens = malloc((size_t)N * sizeof *tokens);
    int64_t first = p->V / 3, n_part = (p->V - 2 * first) * p->shape.C; /* the rows in the middle, for themselves */
    for (int64_t i = 0; i < N; i++) tokens[i] = p->token(i, p->V);
    void *w_in = put(s, w, n_rows, x), *y = put(s, NULL, n, x), *dy_in = put(s, dy, n, x);
    float *dw_out = put_floats(s, dw, n_rows);
    int32_t *tokens_in = put_bytes(s, tokens, (size_t)N * sizeof *tokens);
    float *part_out = put_floats(s, dw, n_part);
    if (p->token != half_of_any) {
        s->ops->embedding_forward(s->b, y, tokens_in, w_in, x, N, p->shape.C);
        take(s, "y", y, n, x, 0);
    }
    s->ops->embedding_backward(s->b, dw_out, dy_in, tokens_in, x, N, p->shape.C, 0, p->V);
    s->ops->embedding_backward(s->b, part_out, dy_in, tokens_in, x, N, p->shape.C, first, p->V - 2 * first);
    take(s, "dw", dw_out, n_rows, DTYPE_F32, p->dw_error);
    take(s, "a part of dw", part_out, n_part, DTYPE_F32, p->dw_error);
    free(w), free(dy), free(dw), free(tokens);
}

static void check_embedding(void **state, const embedding_case *cases, size_t n) {
    for (size_t i = 0; i < 2 * n; i++) {
        embedding_case p = cases[i / 2];
        p.shape.x = both_dtypes[i % 2];
        char label[96];
        snprintf(label, sizeof label, "embedding of %d x %d, V %d", (int)p.shape.N, p.shape.C, (int)p.V);
        run_twins(*state, label, run_embedding, &p);
    }
}

/* Fewer tokens than are sorted at once and more, far apart, few different ones and all the same, some that add nothing. All are
 * added in the same order. */
static void embedding_is_the_cpus_to_the_last_bit(void **state) {
    static const embedding_case cases[] = {
        {{1, 1, 0}, 1, any_token, 0},        {{3, 3, 0}, 7, any_token, 0},        {{33, 64, 0}, 50, any_token, 0},
        {{257, 100, 0}, 1000, any_token, 0}, {{257, 1, 0}, 202048, any_token, 0}, {{257, 1032, 0}, 20, few_tokens, 0},
        {{2049, 3, 0}, 1000, any_token, 0},  {{5000, 8, 0}, 300, any_token, 0},   {{5000, 4, 0}, 202048, few_tokens, 0},
        {{33, 8, 0}, 9, one_token, 0},       {{1024, 8, 0}, 9, one_token, 0},     {{3000, 24, 0}, 100, half_of_any, 0}};
    check_embedding(state, cases, COUNT(cases));
}

/* The rows of a token that occurs more than 1,024 times are added in parts: their last part has one row, few, all; the run starts
 * at the first position, and after others. The CPU's sum of 5,000 floats one by one is itself off by some 1e-6. */
static void a_token_that_fills_the_batch_is_added_in_parts(void **state) {
    static const embedding_case cases[] = {
        {{1025, 3, 0}, 9, one_token, 1e-5},          {{3072, 8, 0}, 9, one_token, 1e-5},
        {{5000, 24, 0}, 3, one_token, 1e-5},         {{5000, 1032, 0}, 2, one_token, 1e-5},
        {{1300, 5, 0}, 100, a_frequent_token, 1e-5}, {{5000, 16, 0}, 1000, a_frequent_token, 1e-5},
        {{4097, 8, 0}, 2, any_token, 1e-5}};
    check_embedding(state, cases, COUNT(cases));
}

/* ---- cross-entropy ---- */

typedef struct loss_case {
    int64_t N, V;
    float spread, z_loss;
    dtype x;
} loss_case;

/* Every third token has nothing to predict. */
static int32_t *targets_of(int64_t N, int64_t V) {
    int32_t *targets = malloc((size_t)N * sizeof *targets);
    for (int64_t n = 0; n < N; n++) targets[n] = n % 3 == 1 ? -1 : (int32_t)(rng_mix(2, (uint64_t)n) % (uint64_t)V);
    return targets;
}

static void run_cross_entropy(side *s, const void *context) {
    const loss_case *p = context;
    int64_t n = p->N * p->V;
    void *z = random_array(n, p->x, 1, p->spread);
    int32_t *targets = targets_of(p->N, p->V);
    void *io = put(s, z, n, p->x);
    int32_t *targets_in = put_bytes(s, targets, (size_t)p->N * sizeof *targets);
    float *losses_alone = put_floats(s, NULL, p->N), *losses = put_floats(s, NULL, p->N), *z_losses = put_floats(s, NULL, p->N);
    s->ops->cross_entropy(s->b, losses_alone, NULL, io, targets_in, 0.37f, p->z_loss, false, p->x, p->N, p->V);
    take(s, "losses without backward", losses_alone, p->N, DTYPE_F32, 1e-6);
    take(s, "z without backward", io, n, p->x, 0);
    s->ops->cross_entropy(s->b, losses, z_losses, io, targets_in, 0.37f, p->z_loss, true, p->x, p->N, p->V);
    take(s, "losses", losses, p->N, DTYPE_F32, 1e-6);
    take(s, "z_losses", z_losses, p->N, DTYPE_F32, 1e-6);
    take(s, "dz", io, n, p->x, 3e-6);
    free(z), free(targets);
}

/* Vocabularies for small blocks and for large ones, logits that are close and logits that are far apart. */
static void cross_entropy_is_the_cpus(void **state) {
    static const loss_case cases[] = {{1, 1, 1, 0, 0},        {3, 7, 1, 0, 0},          {33, 7, 30, 1e-3f, 0},
                                      {33, 64, 3, 1e-3f, 0},  {257, 1000, 3, 1e-4f, 0}, {3, 16391, 3, 0, 0},
                                      {3, 5003, 3, 1e-3f, 0}, {3, 202048, 3, 1e-4f, 0}, {3, 202048, 30, 0, 0}};
    for (size_t i = 0; i < 2 * COUNT(cases); i++) {
        loss_case p = cases[i / 2];
        p.x = both_dtypes[i % 2];
        char label[96];
        snprintf(label, sizeof label, "cross_entropy of %d x %d, spread %g", (int)p.N, (int)p.V, (double)p.spread);
        run_twins(*state, label, run_cross_entropy, &p);
    }
}

/* A row with a NaN has a loss that is one, and does not touch its neighbours; logits of -infinity have no probability. */
static void cross_entropy_shows_what_is_not_finite(void **state) {
    twins *t = *state;
    enum { V = 1000 };
    float *z = random_floats(3 * V, 1, 1), losses[3], dz[3 * V];
    z[V + 700] = NAN;
    for (int v = 0; v < V; v++)
        if (v != 5) z[2 * V + v] = -INFINITY;
    int32_t targets[] = {1, 2, 5};
    side *s = &t->cuda;
    float *io = put_floats(s, z, 3 * V), *out = put_floats(s, NULL, 3);
    int32_t *targets_in = put_bytes(s, targets, sizeof targets);
    s->ops->cross_entropy(s->b, out, NULL, io, targets_in, 1, 0, true, DTYPE_F32, 3, V);
    s->ops->copy_out(s->b, losses, out, sizeof losses);
    s->ops->copy_out(s->b, dz, io, sizeof dz);
    assert_true(isfinite(losses[0]) && isfinite(dz[999]));
    assert_true(isnan(losses[1]) && isnan(dz[V + 3]));
    for (int v = 0; v < V; v++)
        if (losses[2] != 0 || dz[2 * V + v] != 0)
            fail_msg("one logit that is not -infinity: loss %g, dz[%d] %g", (double)losses[2], v, (double)dz[2 * V + v]);
    end_run(s);
    free(z);
}

/* ---- sums and conversions ---- */

typedef struct flat_case {
    int64_t n;
    int offset; /* elements from where arrays are aligned */
    dtype x;
} flat_case;

static const flat_case flat_cases[] = {{0, 0, 0}, {1, 0, 0}, {3, 0, 0}, {1000, 0, 0}, {1003, 0, 0}, {1003, 1, 0}, {50007, 0, 0}};

/* A double, as two floats that make it. The second one, to 1e-6, is the double to 1e-13. */
static void take_double(side *s, const char *what, const double *memory) {
    double value;
    s->ops->copy_out(s->b, &value, memory, sizeof value);
    float parts[] = {(float)value, (float)(value - (double)(float)value)};
    take(s, what, memory, 2, DTYPE_F32, 1e-6);
    memcpy(s->results[s->n_results - 1].values, parts, sizeof parts);
}

static void run_sums(side *s, const void *context) {
    const flat_case *p = context;
    double start = 0.25;
    float *values = random_floats(p->n + p->offset, 1, 1);
    const float *in = put_floats(s, values, p->n + p->offset) + p->offset;
    double *total = put_bytes(s, &start, sizeof start), *squares = put_bytes(s, &start, sizeof start);
    s->ops->sum(s->b, total, in, p->n);
    s->ops->sum_squares(s->b, squares, in, p->n);
    take_double(s, "sum", total);
    take_double(s, "sum of squares", squares);
    free(values);
}

static void run_conversions(side *s, const void *context) {
    const flat_case *p = context;
    int64_t n = p->n + p->offset;
    float *floats = random_floats(n, 1, 1);
    void *rounded = random_array(n, p->x, 2, 1);
    char *to = put(s, rounded, n, p->x);
    float *from = put_floats(s, floats, n), *back = put_floats(s, floats, n);
    s->ops->from_float(s->b, to + (size_t)p->offset * dtype_size(p->x), from + p->offset, p->x, p->n);
    s->ops->to_float(s->b, back + p->offset, to + (size_t)p->offset * dtype_size(p->x), p->x, p->n);
    take(s, "from float", to, n, p->x, 0);
    take(s, "to float", back, n, DTYPE_F32, 0);
    free(floats), free(rounded);
}

static void sums_and_conversions_are_the_cpus(void **state) {
    for (size_t i = 0; i < 2 * COUNT(flat_cases); i++) {
        flat_case p = flat_cases[i / 2];
        p.x = both_dtypes[i % 2];
        char label[96];
        snprintf(label, sizeof label, "n %d, offset %d", (int)p.n, p.offset);
        if (p.x == DTYPE_F32) run_twins(*state, label, run_sums, &p);
        run_twins(*state, label, run_conversions, &p);
    }
}

/* ---- AdamW ---- */

static const adamw_step step = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f};

static float *positive_floats(int64_t n, uint64_t key) {
    float *values = random_floats(n, key, 1);
    for (int64_t i = 0; i < n; i++) values[i] = fabsf(values[i]);
    return values;
}

/* Three steps, of which the second one's gradients are not finite. */
static void run_adamw(side *s, const void *context) {
    const flat_case *p = context;
    int64_t n = p->n + p->offset, at = p->offset;
    float *master = random_floats(n, 1, 1), *m = random_floats(n, 2, 1), *v = positive_floats(n, 3), *g = random_floats(n, 4, 1);
    void *rounded = random_array(n, p->x, 1, 1);
    adamw_state start = {.t = 6};
    double squares[] = {100.0, INFINITY, 0.25};
    char *p_io = put(s, rounded, n, p->x);
    float *master_io = p->x == DTYPE_F32 ? NULL : put_floats(s, master, n) + at;
    float *m_io = put_floats(s, m, n), *v_io = put_floats(s, v, n), *g_in = put_floats(s, g, n);
    adamw_state *state = put_bytes(s, &start, sizeof start);
    double *squares_in = put_bytes(s, squares, sizeof squares);
    for (int i = 0; i < 3; i++) {
        s->ops->adamw_begin(s->b, state, squares_in + i, 1, step.beta1, step.beta2);
        s->ops->adamw(s->b, p_io + (size_t)at * dtype_size(p->x), master_io, m_io + at, v_io + at, g_in + at, state, &step, p->x,
                      p->n);
    }
    take(s, "p", p_io, n, p->x, 1e-6);
    if (master_io) take(s, "master", master_io, p->n, DTYPE_F32, 1e-6);
    take(s, "m", m_io, n, DTYPE_F32, 1e-6);
    take(s, "v", v_io, n, DTYPE_F32, 1e-6);
    take(s, "scale", &state->scale, 1, DTYPE_F32, 0);
    take_double(s, "rate", &state->rate);
    take_double(s, "root", &state->root);
    free(master), free(m), free(v), free(g), free(rounded);
}

static void adamw_is_the_cpus(void **state) {
    for (size_t i = 0; i < 2 * COUNT(flat_cases); i++) {
        flat_case p = flat_cases[i / 2];
        p.x = both_dtypes[i % 2];
        char label[96];
        snprintf(label, sizeof label, "adamw n %d, offset %d", (int)p.n, p.offset);
        run_twins(*state, label, run_adamw, &p);
    }
}

/* A step of one side, p rounded by chance. Into p (n), and in and out master (n). */
static void step_by_chance(side *s, bf16 *p, float *master, const flat_case *c, int64_t first, float lr) {
    int64_t n = c->n + c->offset, at = c->offset;
    float *m = random_floats(n, 2, 1), *v = positive_floats(n, 3), *g = random_floats(n, 4, 1);
    adamw_state start = {.t = 6, .rate = 1, .root = 1, .scale = 1};
    adamw_step chance = {.lr = lr, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .stochastic = true, .key = 77, .first = first};
    bf16 *p_out = put(s, NULL, n, DTYPE_BF16);
    float *master_io = put_floats(s, master, n), *m_io = put_floats(s, m, n), *v_io = put_floats(s, v, n),
          *g_in = put_floats(s, g, n);
    adamw_state *state = put_bytes(s, &start, sizeof start);
    s->ops->adamw(s->b, p_out + at, master_io + at, m_io + at, v_io + at, g_in + at, state, &chance, DTYPE_BF16, c->n);
    s->ops->copy_out(s->b, p, p_out, (size_t)n * sizeof *p);
    s->ops->copy_out(s->b, master, master_io, (size_t)n * sizeof *master);
    end_run(s);
    free(m), free(v), free(g);
}

/* p is what the CPU makes of the device's master weights, whether or not they begin where a block of random bits does. */
static void adamw_rounds_by_the_cpus_chance(void **state) {
    twins *t = *state;
    const int64_t starts[] = {0, 40, 4, 3, ((int64_t)1 << 33) + 8};
    for (size_t i = 0; i < 5 * COUNT(flat_cases); i++) {
        const flat_case *c = &flat_cases[i / 5];
        int64_t n = c->n + c->offset;
        float *master = random_floats(n, 1, 1);
        bf16 *p = random_array(n, DTYPE_BF16, 5, 1), *expected = random_array(n, DTYPE_BF16, 6, 1);
        step_by_chance(&t->cuda, p, master, c, starts[i % 5], 1e-2f);
        step_by_chance(&t->cpu, expected, master, c, starts[i % 5], 0);
        for (int64_t k = 0; k < n; k++)
            if (p[k] != expected[k])
                fail_msg("n %d, offset %d, first %lld: element %d, %.9g, is %04x on the device, %04x on the CPU", (int)c->n,
                         c->offset, (long long)starts[i % 5], (int)k, (double)master[k], p[k], expected[k]);
        free(master), free(p), free(expected);
    }
}

/* Gradients whose sum of squares is not finite: no number changes, and the step does not count. */
static void adamw_skips_what_is_not_finite(void **state) {
    side *s = &((twins *)*state)->cuda;
    enum { n = 77 };
    float *start = positive_floats(n, 1), *g = random_floats(n, 2, 1), got[n];
    g[5] = NAN;
    adamw_state before = {.t = 3, .scale = 1, .rate = 2, .root = 3}, after;
    double squares[] = {NAN, INFINITY};
    float *arrays[3], *g_in = put_floats(s, g, n);
    for (int i = 0; i < 3; i++) arrays[i] = put_floats(s, start, n);
    adamw_state *state_io = put_bytes(s, &before, sizeof before);
    double *squares_in = put_bytes(s, squares, sizeof squares);
    for (int i = 0; i < 2; i++) {
        s->ops->adamw_begin(s->b, state_io, squares_in + i, 1, step.beta1, step.beta2);
        s->ops->adamw(s->b, arrays[0], NULL, arrays[1], arrays[2], g_in, state_io, &step, DTYPE_F32, n);
        s->ops->copy_out(s->b, &after, state_io, sizeof after);
        assert_true(isnan(after.scale));
        assert_int_equal(after.t, 3);
    }
    for (int i = 0; i < 3; i++) {
        s->ops->copy_out(s->b, got, arrays[i], sizeof got);
        assert_memory_equal(got, start, sizeof got);
    }
    end_run(s);
    free(start), free(g);
}

/* The clipping factor and the corrections, worked out here. */
static void adamw_begin_is_the_formula(void **state) {
    side *s = &((twins *)*state)->cuda;
    static const struct {
        double squares;
        float max_norm;
        double scale;
    } cases[] = {{100, 1, 1 / (10 + 1e-6)}, {0.25, 1, 1}, {1e60, 1, 1e-30}, {100, 0, 1}, {0, 1, 1}};
    adamw_state start = {.t = 0}, got;
    adamw_state *state_io = put_bytes(s, &start, sizeof start);
    double *squares = put_bytes(s, NULL, sizeof *squares);
    for (size_t i = 0; i < COUNT(cases); i++) {
        s->ops->copy_in(s->b, squares, &cases[i].squares, sizeof(double));
        s->ops->adamw_begin(s->b, state_io, squares, cases[i].max_norm, 0.9f, 0.95f);
        s->ops->copy_out(s->b, &got, state_io, sizeof got);
        double t = (double)i + 1, rate = 1 / (1 - pow((double)0.9f, t)), root = 1 / sqrt(1 - pow((double)0.95f, t));
        assert_int_equal(got.t, i + 1);
        if (fabs((double)got.scale / cases[i].scale - 1) > 1e-7 || fabs(got.rate / rate - 1) > 1e-14 ||
            fabs(got.root / root - 1) > 1e-14)
            fail_msg("case %zu: scale %g, rate %g, root %g; expected %g, %g, %g", i, (double)got.scale, got.rate, got.root,
                     cases[i].scale, rate, root);
    }
    end_run(s);
}

/* ---- the same bits ---- */

/* Of what every op writes. */
static uint64_t hash_of_bits(twins *t) {
    static void (*const cases[])(void **state) = {rmsnorm_is_the_cpus,       swiglu_is_the_cpus,
                                                  qk_rope_is_the_cpus,       embedding_is_the_cpus_to_the_last_bit,
                                                  cross_entropy_is_the_cpus, sums_and_conversions_are_the_cpus,
                                                  adamw_is_the_cpus};
    uint64_t hash = NO_BITS;
    void *state = t;
    t->bits = &hash;
    for (size_t i = 0; i < COUNT(cases); i++) cases[i](&state);
    t->bits = NULL;
    return hash;
}

static void bits_are_the_same_in_every_order(void **state) {
#if defined(CUEMU) && !defined(CUEMU_CHECKED)
    check_all_orders(hash_of_bits(*state));
#else
    (void)state;
    skip(); /* a GPU has its own; sanitizers have other bits, and more to do */
#endif
}

static int print_hash(void) {
    void *state;
    int failed = open_twins(&state) || printf("%" PRIx64 "\n", hash_of_bits(state)) < 0;
    return failed || close_twins(&state);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "hash") == 0) return print_hash();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm_is_the_cpus),
        cmocka_unit_test(longer_rows_are_refused),
        cmocka_unit_test(swiglu_is_the_cpus),
        cmocka_unit_test(qk_rope_is_the_cpus),
        cmocka_unit_test(embedding_is_the_cpus_to_the_last_bit),
        cmocka_unit_test(a_token_that_fills_the_batch_is_added_in_parts),
        cmocka_unit_test(cross_entropy_is_the_cpus),
        cmocka_unit_test(cross_entropy_shows_what_is_not_finite),
        cmocka_unit_test(sums_and_conversions_are_the_cpus),
        cmocka_unit_test(adamw_is_the_cpus),
        cmocka_unit_test(adamw_rounds_by_the_cpus_chance),
        cmocka_unit_test(adamw_skips_what_is_not_finite),
        cmocka_unit_test(adamw_begin_is_the_formula),
        cmocka_unit_test(bits_are_the_same_in_every_order),
    };
    return cmocka_run_group_tests(tests, open_twins, close_twins);
}
