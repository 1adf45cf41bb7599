/* roofline.c: the parts of a step, each from its shapes.
 *
 * A GEMM runs in waves of tiles over the multiprocessors, each tile slower while its pipeline fills; what is left is bytes over
 * bandwidth. Gradients are reduced while the last backward pass goes on, parameters gathered while the next forward pass begins,
 * so of the collectives only that part counts which nothing hides: the embedding's, which are last to be final (of a tied one
 * only the rows of tokens that occur: train/token_rows.h) and first to be needed, and what is longer than the pass beside it. */
#include "train/roofline.h"

#include <math.h>
#include <string.h>

static const gpu_spec gpus[] = {
    {"a100", "A100 SXM 80 GB", 312e12, 250e12, 0.5, 1.7e12, 80e9, 108},
    {"h100", "H100 SXM 80 GB", 989e12, 735e12, 1, 2.85e12, 80e9, 132},
    {"h200", "H200 SXM 141 GB", 989e12, 735e12, 1, 4.1e12, 141e9, 132},
};
enum { N_GPUS = sizeof gpus / sizeof *gpus };

const link_spec default_links = {
    .node_size = 8, .node_bandwidth = 330e9, .node_latency = 1.5e-6, .net_bandwidth = 45e9, .net_latency = 6e-6};
const state_bytes default_state = {.gradient = 4, .adamw = 34};

const gpu_spec *gpu_spec_find(const char *name, error *err) {
    for (int i = 0; i < N_GPUS; i++)
        if (strcmp(gpus[i].name, name) == 0) return &gpus[i];
    char known[80] = "";
    for (int i = 0; i < N_GPUS; i++) snprintf(known + strlen(known), sizeof known - strlen(known), " %s", gpus[i].name);
    error_set(err, STATUS_USAGE, "no estimate for a device \"%s\"; there are:%s", name, known);
    return NULL;
}

enum { BF16 = 2 };
static const double launch = 4e-6;       /* between two GEMMs */
static const double gap = 2.5e-6;        /* between two small kernels */
static const double ramp = 160;          /* of a tile's inner length: what filling its pipeline costs */
static const double quantisation = 1.10; /* what is left of unfilled waves when tiles are shared out along the inner length too */

/* Seconds of a product of (m,k) by (k,n) with tiles of a x b. */
static double tiled(const gpu_spec *g, double m, double n, double k, double a, double b) {
    double rate = g->gemm / (a * b < 128 * 256 ? 1.06 : 1) / (1 + ramp / k);
    double tiles = ceil(m / a) * ceil(n / b), waves = ceil(tiles / g->n_sm);
    double by_waves = waves * 2 * a * b * k / (rate / g->n_sm), perfect = 2 * m * n * k / rate;
    return tiles >= g->n_sm ? fmin(by_waves, quantisation * perfect) : by_waves;
}

/* out: bytes written (and read, where it is added to) per element of the product. */
static double gemm(const gpu_spec *g, double m, double n, double k, double out) {
    double best = fmin(tiled(g, m, n, k, 128, 128), fmin(tiled(g, m, n, k, 128, 256), tiled(g, m, n, k, 256, 128)));
    double moved = (BF16 * (m * k + n * k) + out * m * n) / g->stream;
    return fmax(best, moved) + launch;
}

/* The three products of a linear layer, N tokens from I to O. */
static double linear(const gpu_spec *g, const state_bytes *s, double N, double I, double O) {
    return gemm(g, N, O, I, BF16) + gemm(g, N, I, O, BF16) + gemm(g, O, I, N, 2 * s->gradient);
}

/* FLOP/s of causal attention on an H100, forward and backward: measured by others for heads of 64 at three lengths, and for 128.
 * Between the lengths: in their logarithm. */
static void attention_rates(const gpu_spec *g, int T, int D, double *forward, double *backward) {
    static const double at[3] = {1024, 2048, 8192}, f[3] = {288e12, 334e12, 379e12}, b[3] = {230e12, 275e12, 330e12};
    double t = fmin(fmax(T, at[0]), at[2]);
    int i = t > at[1];
    double part = log(t / at[i]) / log(at[i + 1] / at[i]);
    *forward = g->attention * (D >= 128 ? 480e12 : f[i] + part * (f[i + 1] - f[i]));
    *backward = g->attention * (D >= 128 ? 400e12 : b[i] + part * (b[i + 1] - b[i]));
}

/* Of a row of T tokens in one layer. A window's edge cuts through tiles of 128 keys, which are computed whole. */
static double attention(const gpu_spec *g, const model_config *c, int window, int T, double tokens) {
    double forward, backward, keys = model_mean_visible_keys(window, T);
    if (window > 0 && window < T) keys = fmin(keys + 128, model_mean_visible_keys(0, T));
    attention_rates(g, T, c->head_dim, &forward, &backward);
    double product = 2.0 * tokens * c->n_heads * c->head_dim * keys;
    return 2 * product / forward + 5 * product / backward; /* 5: the scores are made again */
}

/* Of one micro-batch. */
static void micro_batch(step_estimate *e, const gpu_spec *g, const state_bytes *s, const model_config *c, double N, int T) {
    double C = c->d_model, F = c->d_ffn, Q = (double)c->n_heads * c->head_dim, KV = (double)c->n_kv_heads * c->head_dim;
    double V = (double)c->vocab_size, moved = 0, kernels = 0;
    for (int i = 0; i < c->n_layers; i++) {
        e->seconds[STEP_GEMM_LAYERS] += linear(g, s, N, C, 2 * F) + linear(g, s, N, F, C);
        /* A norm and the addition before it, its repetition, its gradient; SwiGLU and its gradient. */
        moved += (4 + 2 + 4) * C + (3 + 6) * F;
        kernels += 6;
        if (c->attention[i] == 's') continue;
        e->seconds[STEP_GEMM_LAYERS] += linear(g, s, N, C, Q + 2 * KV) + linear(g, s, N, Q, C);
        e->seconds[STEP_ATTENTION] += attention(g, c, c->attention[i] == 'w' ? c->window : 0, T, N);
        moved += (4 + 2 + 4) * C + (2 + 3) * (Q + KV); /* and the rotation of queries and keys */
        kernels += 5;
    }
    e->seconds[STEP_ELEMENTWISE] += N * BF16 * moved / g->stream + kernels * gap;
    double chunk = fmin(N, 8192), chunks = ceil(N / chunk); /* what the CUDA backend chooses: head_logits of cuda/backend.c */
    e->seconds[STEP_GEMM_HEAD] += chunks * linear(g, s, chunk, C, V);
    e->seconds[STEP_CROSS_ENTROPY] += N * BF16 * 3 * V / g->stream; /* read for the sum, read and written for the gradient */
    e->seconds[STEP_EMBEDDING] += N * (BF16 * C + 3 * 4 * C) / g->stream + 30e-6;
    e->seconds[STEP_HOST] += 50e-6;
}

/* Seconds in which n GPUs reduce-scatter or all-gather so many bytes, round a ring. */
static double collective(const link_spec *l, double bytes, int n) {
    if (n == 1) return 0;
    int nodes = (n + l->node_size - 1) / l->node_size, in_node = n < l->node_size ? n : l->node_size;
    /* As many rings as a node has adapters: each GPU's share of the network adds up. */
    double bandwidth = nodes == 1 ? l->node_bandwidth : fmin(l->node_bandwidth, in_node * l->net_bandwidth);
    double hops = nodes == 1 ? (n - 1) * l->node_latency : (n - nodes) * l->node_latency + nodes * l->net_latency;
    return bytes * (n - 1) / n / bandwidth + hops;
}

/* What is hidden takes bandwidth and multiprocessors from what hides it: a tenth of its time. */
static double exposed(double hidden, double pass) { return fmax(0, hidden - pass) + 0.1 * fmin(hidden, pass); }

/* All groups of tensors but the embedding. */
static double collectives_of_layers(const link_spec *l, const model_config *c, double bytes, int n, double params) {
    double layer = (params - (double)c->vocab_size * c->d_model) / c->n_layers;
    return c->n_layers * collective(l, layer * bytes, n);
}

/* Different words among so many tokens, were they drawn by Zipf's law: the i-th most frequent as often as 1/i. Text repeats its
 * own words, and has fewer. */
static double different_words(double vocabulary, double tokens) {
    double words = 0, euler = 0.5772, most_frequent = tokens / (log(vocabulary) + euler);
    for (int64_t i = 1; i <= (int64_t)vocabulary; i++) words -= expm1(-most_frequent / (double)i);
    return words;
}

/* Beside a backward pass of so many seconds, in whose last micro-batches all ranks together have so many tokens. */
static double reduction(const gpu_spec *g, const link_spec *l, const state_bytes *s, const model_config *c, int n, double params,
                        double pass, double tokens, bool early) {
    double V = (double)c->vocab_size, row = c->d_model * s->gradient,
           layers = collectives_of_layers(l, c, s->gradient, n, params);
    double rows = early ? different_words(V, tokens) : V;
    if (2 * rows > V) return collective(l, V * row, n) + exposed(layers, pass);
    double passes = 3; /* over the rows' sums: cleared, added to, their squares */
    return collective(l, rows * row, n) + passes * rows * row / g->stream + exposed(layers + collective(l, V * row, n), pass);
}

/* Beside a forward pass. */
static double gathering(const link_spec *l, const model_config *c, int n, double params, double pass) {
    double embedding = (double)c->vocab_size * c->d_model;
    return collective(l, embedding * BF16, n) + exposed(collectives_of_layers(l, c, BF16, n, params), pass);
}

static double weights_of(const model_config *c) {
    double C = c->d_model, Q = (double)c->n_heads * c->head_dim, KV = (double)c->n_kv_heads * c->head_dim, layers = 0;
    for (int i = 0; i < c->n_layers; i++) layers += 3 * C * c->d_ffn + (c->attention[i] == 's' ? 0 : C * (2 * Q + 2 * KV));
    return (c->tie_embeddings ? 1 : 2) * (double)c->vocab_size * C + layers;
}

step_estimate step_estimate_make(const gpu_spec *g, const link_spec *links, const state_bytes *state, const model_config *c,
                                 const step_shape *s) {
    step_estimate e = {0}, last = {0};
    double params = weights_of(c);
    int micro = s->micro < s->rows ? s->micro : s->rows, rows = 0;
    for (int row = 0; row < s->rows; row += rows) {
        last = (step_estimate){0};
        rows = s->rows - row < micro ? s->rows - row : micro;
        micro_batch(&last, g, state, c, (double)s->T * rows, s->T);
        for (int i = 0; i < N_STEP_TIMES; i++) e.seconds[i] += last.seconds[i];
    }
    double pass = 0;
    for (int i = 0; i < STEP_ADAMW; i++) pass += last.seconds[i];
    e.seconds[STEP_ADAMW] = params * state->adamw / s->ranks / g->stream;
    bool early = c->tie_embeddings && (int64_t)micro * s->T >= cuda_ops()->overlap_tokens;
    if (s->ranks > 1)
        e.seconds[STEP_COLLECTIVES] =
            reduction(g, links, state, c, s->ranks, params, pass * 2 / 3, (double)s->ranks * rows * s->T, early) +
            gathering(links, c, s->ranks, params, pass / 3);
    e.seconds[STEP_HOST] += 0.3e-3;
    for (int i = 0; i < N_STEP_TIMES; i++) e.total += e.seconds[i];
    e.tokens_per_s = s->step_tokens / e.total;
    e.mfu = e.tokens_per_s * model_flops_per_token(c, s->T) / (g->peak * s->ranks);
    return e;
}
