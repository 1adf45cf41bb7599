/* ops.c: the parts of a step that have goals of their own, timed alone: the loss head beside its three products, attention over
 * T, the data loader (on the token file whose prefix is given). `make bench` builds it against the library and runs it; it prints
 * tables.
 *
 * Each figure is the best of several runs: what the machine can do, not what else it was doing. */
#include <stdio.h>
#include <stdlib.h>

#include "data/loader.h"
#include "model/passes.h"
#include "ops.h"
#include "util/rng.h"
#include "util/system.h"

static const ops *op;
static backend *b;

static void die(const error *err) {
    fprintf(stderr, "bench: %s\n", err->text);
    exit(1);
}

static void *values(dtype x, int64_t n, float stddev) {
    error err;
    float *host = malloc((size_t)n * sizeof *host);
    void *memory = op->alloc(b, (size_t)n * dtype_size(x), &err);
    if (!host || !memory) die(&err);
    rng_normal(host, 1, 0, n, stddev);
    op->from_float(b, memory, host, x, n);
    free(host);
    return memory;
}

/* Lends the backend what the ops of these limits need; free it. */
static void *lend_scratch(const op_limits *limits) {
    error err;
    size_t bytes = op->scratch_bytes(b, limits);
    void *scratch = op->alloc(b, bytes, &err);
    if (!scratch) die(&err);
    op->set_scratch(b, scratch, bytes);
    return scratch;
}

static double best_of(int runs, void (*run)(void *), void *context) {
    double best = 1e30;
    error err;
    for (int i = 0; i < runs; i++) {
        double start = seconds_now();
        run(context);
        if (op->sync(b, &err)) die(&err);
        double s = seconds_now() - start;
        if (s < best) best = s;
    }
    return best;
}

/* ---- the loss head ---- */

typedef struct head {
    dtype x;
    int64_t N, chunk, V;
    int C;
    void *in, *w, *din, *z;
    float *dw, *losses, *z_losses;
    int32_t *targets;
    bool loss; /* with the loss, or the three products alone */
} head;

static void run_head(void *context) {
    head *h = context;
    for (int64_t first = 0; first < h->N; first += h->chunk) {
        int64_t n = h->N - first < h->chunk ? h->N - first : h->chunk;
        void *in = at_element(h->in, first * h->C, h->x), *din = at_element(h->din, first * h->C, h->x);
        op->linear_forward(b, h->z, in, h->w, h->x, n, h->C, h->V);
        if (h->loss)
            op->cross_entropy(b, h->losses, h->z_losses, h->z, h->targets + first, 1.0f / (float)h->N, 0, true, h->x, n, h->V);
        op->linear_backward_weight(b, h->dw, h->z, in, first > 0, h->x, n, h->C, h->V);
        op->linear_backward_input(b, din, h->z, h->w, h->x, n, h->C, h->V);
    }
}

static void bench_head(dtype x) {
    head h = {.x = x, .N = 2048, .V = 202048, .C = 1024};
    h.chunk = model_head_chunk(cpu_ops()->head_logits, h.V, h.N);
    op_limits limits = {.x = x, .V = h.V, .head_rows = h.chunk};
    void *scratch = lend_scratch(&limits);
    h.in = values(x, h.N * h.C, 1);
    h.w = values(x, h.V * h.C, 0.02f);
    h.din = values(x, h.N * h.C, 0);
    h.z = values(x, h.chunk * h.V, 0);
    h.dw = values(DTYPE_F32, h.V * h.C, 0);
    h.losses = values(DTYPE_F32, h.N, 0);
    h.z_losses = values(DTYPE_F32, h.N, 0);
    h.targets = calloc((size_t)h.N, sizeof *h.targets);
    double products = best_of(3, run_head, &h);
    h.loss = true;
    double whole = best_of(3, run_head, &h);
    printf("| %s | %lld | %.0f MiB | %.2f | %.2f | %.3f |\n", dtype_name(x), (long long)h.chunk,
           (double)(h.chunk * h.V) * (double)dtype_size(x) / 1048576, products, whole, whole / products);
    void *all[] = {scratch, h.in, h.w, h.din, h.z, h.dw, h.losses, h.z_losses};
    for (int i = 0; i < 8; i++) op->free(b, all[i]);
    free(h.targets);
}

/* ---- attention ---- */

typedef struct attention_call {
    dtype x;
    int T, window;
    void *qkv, *o, *d_o, *dqkv;
    float *lse;
} attention_call;

enum { H = 16, K = 4, D = 64 };

static void run_attention(void *context) {
    attention_call *a = context;
    op->attention_forward(b, a->o, a->lse, a->qkv, NULL, a->window, a->x, 1, a->T, H, K, D);
    op->attention_backward(b, a->dqkv, a->d_o, a->o, a->lse, a->qkv, NULL, a->window, a->x, 1, a->T, H, K, D);
}

static double attention_seconds(dtype x, int T, int window) {
    attention_call a = {.x = x, .T = T, .window = window};
    op_limits limits = {.x = x, .B = 1, .T = T, .H = H, .K = K, .D = D};
    void *scratch = lend_scratch(&limits);
    a.qkv = values(x, (int64_t)T * (H + 2 * K) * D, 1);
    a.dqkv = values(x, (int64_t)T * (H + 2 * K) * D, 0);
    a.o = values(x, (int64_t)T * H * D, 0);
    a.d_o = values(x, (int64_t)T * H * D, 1);
    a.lse = values(DTYPE_F32, (int64_t)T * H, 0);
    double s = best_of(T > 4096 ? 3 : 6, run_attention, &a);
    void *all[] = {scratch, a.qkv, a.dqkv, a.o, a.d_o, a.lse};
    for (int i = 0; i < 6; i++) op->free(b, all[i]);
    return s;
}

/* 4 D a visible pair and head forward, 8 D backward; making the probabilities again earns nothing. */
static double attention_flops(int T, int window) {
    double t = T, w = window && window < T ? window : T;
    return 12.0 * D * H * (w * (w + 1) / 2 + (t - w) * w);
}

static void bench_attention(dtype x) {
    for (int T = 512; T <= 8192; T *= 2) {
        double full = attention_seconds(x, T, 0), window = attention_seconds(x, T, 256);
        printf("| %s | %d | %.1f | %.0f | %.1f | %.0f | 1/%.1f |\n", dtype_name(x), T, 1e3 * full,
               attention_flops(T, 0) / full / 1e9, 1e3 * window, attention_flops(T, 256) / window / 1e9, full / window);
    }
}

/* ---- the loader ---- */

static void bench_loader(const char *prefix) {
    enum { SEQ_LEN = 512, ROWS = 4, STEPS = 4000 };
    error err = {0};
    const char *prefixes[] = {prefix};
    const double weights[] = {1};
    loader_options o = {.n_sources = 1,
                        .prefixes = prefixes,
                        .weights = weights,
                        .seq_len = SEQ_LEN,
                        .rows_per_step = ROWS,
                        .vocab_size = 32000,
                        .seed = 1,
                        .n_ranks = 1};
    loader *l;
    if (loader_open(&l, &o, &err)) die(&err);
    double start = seconds_now();
    for (int i = 0; i < STEPS; i++) {
        const token_batch *batch;
        if (loader_next(l, &batch, NULL, &err)) die(&err);
    }
    double rate = (double)STEPS * ROWS * SEQ_LEN / (seconds_now() - start);
    loader_close(l);
    printf("loader alone: %.1f M tokens/s (rows of %d, one thread)\n", rate / 1e6, SEQ_LEN);
}

int main(int argc, char **argv) {
    error err;
    op = cpu_ops();
    if (op->open(&b, 0, 0, &err)) die(&err);
    printf("%s\n\n", op->describe(b));
    if (argc > 1) bench_loader(argv[1]);
    printf(
        "\nLoss head, V 202,048, 2,048 tokens, d_model 1024:\n\n| dtype | chunk | its logits | three GEMMs, s | with loss, s | "
        "ratio |\n"
        "|---|---|---|---|---|---|\n");
    bench_head(DTYPE_F32);
    bench_head(DTYPE_BF16);
    printf(
        "\nAttention, forward and backward, 16/4 heads of 64:\n\n| dtype | T | full, ms | GFLOP/s | window 256, ms | GFLOP/s | "
        "window/full |\n"
        "|---|---|---|---|---|---|---|\n");
    bench_attention(DTYPE_F32);
    bench_attention(DTYPE_BF16);
    op->close(b);
    return 0;
}
