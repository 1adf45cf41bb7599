/* profile.c: a backend that is another one with a watch: each op is forwarded, waited for, and counted.
 *
 * To the ops a backend is an opaque pointer, so the profile hands out itself as the backend of its own table: no global state,
 * and nothing but run.c knows that there is a wrapper. */
#include "train/profile.h"

#include <stdlib.h>

#include "util/system.h"

/* ---- counting ---- */

void profile_enter(profile *p) {
    if (p && p->depth++ == 0) p->entered = seconds_now();
}

static void count(profile *p, profile_part part, double flops, double bytes) {
    if (--p->depth > 0) return;
    profile_total *t = &p->parts[part];
    t->calls++;
    t->seconds += seconds_now() - p->entered;
    t->flops += flops;
    t->bytes += bytes;
}

void profile_leave(profile *p, profile_part part, double bytes) {
    if (p) count(p, part, 0, bytes);
}

void profile_step(profile *p, double seconds) {
    if (!p) return;
    if (p->warm) {
        p->steps++;
        p->step_seconds += seconds;
        return;
    }
    p->warm = true;
    for (int i = 0; i < N_PARTS; i++) p->parts[i] = (profile_total){0};
}

double profile_rest(const profile *p) {
    double rest = p->step_seconds;
    for (int i = 0; i < N_STEP_PARTS; i++) rest -= p->parts[i].seconds;
    return rest;
}

/* ---- around an op ---- */

static profile *of(backend *b) { return (profile *)b; }

static profile *begin(backend *b) {
    profile_enter(of(b));
    return of(b);
}

/* The time of an op ends when its work does. A failure that this brings up is kept for the caller's own sync. */
static void end(profile *p, profile_part part, double flops, double bytes) {
    error failure;
    if (p->real->sync(p->backend, &failure) && p->failure.code == STATUS_OK) p->failure = failure;
    count(p, part, flops, bytes);
}

static void end_bytes(profile *p, profile_part part, double bytes) { end(p, part, 0, bytes); }

static void end_gemm(profile *p, gemm_pass pass, int64_t N, int64_t I, int64_t O) {
    int matrix = 0;
    while (matrix < N_MATRICES - 1 && (p->matrices[matrix].I != I || p->matrices[matrix].O != O)) matrix++;
    end(p, (profile_part)(PART_GEMM + N_PASSES * matrix + (int)pass), 2.0 * (double)N * (double)I * (double)O, 0);
}

/* One product of queries, keys and so on over what the mask leaves. */
static double attention_product(int window, int B, int T, int H, int D) {
    return 2.0 * B * T * H * D * model_mean_visible_keys(window, T);
}

/* ---- the device and its memory ---- */

static void close_both(backend *b) {
    of(b)->real->close(of(b)->backend);
    free(of(b));
}

static const char *describe(backend *b) { return of(b)->real->describe(of(b)->backend); }

static const char *describe_attention(backend *b) { return of(b)->real->describe_attention(of(b)->backend); }

static int check_sizes(backend *b, const op_limits *limits, error *err) {
    return of(b)->real->check_sizes(of(b)->backend, limits, err);
}

static double peak_flops(backend *b, dtype x) { return of(b)->real->peak_flops(of(b)->backend, x); }

static size_t memory_available(backend *b, int local_size) { return of(b)->real->memory_available(of(b)->backend, local_size); }

static size_t memory_used(backend *b) { return of(b)->real->memory_used(of(b)->backend); }

static void *alloc_memory(backend *b, size_t bytes, error *err) { return of(b)->real->alloc(of(b)->backend, bytes, err); }

static void free_memory(backend *b, void *memory) { of(b)->real->free(of(b)->backend, memory); }

static void copy_in(backend *b, void *device, const void *host, size_t bytes) {
    profile *p = begin(b);
    p->real->copy_in(p->backend, device, host, bytes);
    end_bytes(p, PART_COPIES, 2 * (double)bytes);
}

static void copy_out(backend *b, void *host, const void *device, size_t bytes) {
    profile *p = begin(b);
    p->real->copy_out(p->backend, host, device, bytes);
    end_bytes(p, PART_COPIES, 2 * (double)bytes);
}

static void copy(backend *b, void *to, const void *from, size_t bytes) {
    profile *p = begin(b);
    p->real->copy(p->backend, to, from, bytes);
    end_bytes(p, PART_COPIES, 2 * (double)bytes);
}

static void zero(backend *b, void *device, size_t bytes) {
    profile *p = begin(b);
    p->real->zero(p->backend, device, bytes);
    end_bytes(p, PART_COPIES, (double)bytes);
}

/* The first failure that either has kept. */
static int sync_both(backend *b, error *err) {
    profile *p = of(b);
    if (p->failure.code == STATUS_OK) return p->real->sync(p->backend, err);
    *err = p->failure;
    p->failure.code = STATUS_OK;
    return -1;
}

static void post(backend *b, const void *device, size_t bytes) { of(b)->real->post(of(b)->backend, device, bytes); }

static int fetch(backend *b, void *host, size_t bytes, error *err) {
    int result = of(b)->real->fetch(of(b)->backend, host, bytes, err);
    return result ? result : sync_both(b, err);
}

static void range_begin(backend *b, const char *name, int64_t number) { of(b)->real->range_begin(of(b)->backend, name, number); }

static void range_end(backend *b) { of(b)->real->range_end(of(b)->backend); }

static size_t scratch_bytes(backend *b, const op_limits *limits) { return of(b)->real->scratch_bytes(of(b)->backend, limits); }

static void set_scratch(backend *b, void *memory, size_t bytes) { of(b)->real->set_scratch(of(b)->backend, memory, bytes); }

static void tune(backend *b, bool on) { of(b)->real->tune(of(b)->backend, on); }

/* ---- collectives: joined at once, so that their time is their own ---- */

static int connect_ranks(backend *b, const ranks *world, error *err) {
    of(b)->ways = world->size;
    return of(b)->real->connect(of(b)->backend, world, err);
}

static int64_t reduce_scatter(backend *b, float *buffer, int64_t n) {
    profile *p = begin(b);
    int64_t ticket = p->real->reduce_scatter(p->backend, buffer, n);
    p->real->join(p->backend, ticket);
    end_bytes(p, PART_COLLECTIVES, (double)p->ways * (double)n * sizeof(float));
    return ticket;
}

static int64_t all_gather(backend *b, void *buffer, size_t bytes) {
    profile *p = begin(b);
    int64_t ticket = p->real->all_gather(p->backend, buffer, bytes);
    p->real->join(p->backend, ticket);
    end_bytes(p, PART_COLLECTIVES, (double)p->ways * (double)bytes);
    return ticket;
}

static void join(backend *b, int64_t ticket) { of(b)->real->join(of(b)->backend, ticket); }

static void all_sum(backend *b, double *values, int n) {
    profile *p = begin(b);
    p->real->all_sum(p->backend, values, n);
    end_bytes(p, PART_COLLECTIVES, (double)n * sizeof *values);
}

/* ---- the ops, in the order of ops.h ---- */

static void embedding_forward(backend *b, void *y, const int32_t *tokens, const void *w, dtype x, int64_t N, int C) {
    profile *p = begin(b);
    p->real->embedding_forward(p->backend, y, tokens, w, x, N, C);
    end_bytes(p, PART_EMBEDDING, 2.0 * (double)N * C * (double)dtype_size(x));
}

static void embedding_backward(backend *b, float *dw, const void *dy, const int32_t *tokens, dtype x, int64_t N, int C,
                               int64_t first, int64_t V) {
    profile *p = begin(b);
    p->real->embedding_backward(p->backend, dw, dy, tokens, x, N, C, first, V);
    end_bytes(p, PART_EMBEDDING, (double)N * C * (double)(dtype_size(x) + 2 * sizeof(float)));
}

static void rmsnorm_forward(backend *b, void *y, float *rstd, void *h_out, const void *h, const void *delta, const void *w,
                            float eps, dtype x, int64_t N, int C) {
    profile *p = begin(b);
    p->real->rmsnorm_forward(p->backend, y, rstd, h_out, h, delta, w, eps, x, N, C);
    end_bytes(p, PART_NORM, (delta ? 4.0 : 2.0) * (double)N * C * (double)dtype_size(x));
}

static void rmsnorm_backward(backend *b, void *dh, float *dw, const void *dy, const void *h, const float *rstd, const void *w,
                             bool accumulate, dtype x, int64_t N, int C) {
    profile *p = begin(b);
    p->real->rmsnorm_backward(p->backend, dh, dw, dy, h, rstd, w, accumulate, x, N, C);
    end_bytes(p, PART_NORM, 4.0 * (double)N * C * (double)dtype_size(x));
}

static void linear_forward(backend *b, void *y, const void *in, const void *w, dtype x, int64_t N, int I, int64_t O) {
    profile *p = begin(b);
    p->real->linear_forward(p->backend, y, in, w, x, N, I, O);
    end_gemm(p, PASS_FORWARD, N, I, O);
}

static void linear_backward_input(backend *b, void *din, const void *dy, const void *w, dtype x, int64_t N, int I, int64_t O) {
    profile *p = begin(b);
    p->real->linear_backward_input(p->backend, din, dy, w, x, N, I, O);
    end_gemm(p, PASS_BACKWARD_INPUT, N, I, O);
}

static void linear_backward_weight(backend *b, float *dw, const void *dy, const void *in, bool accumulate, dtype x, int64_t N,
                                   int I, int64_t O) {
    profile *p = begin(b);
    p->real->linear_backward_weight(p->backend, dw, dy, in, accumulate, x, N, I, O);
    end_gemm(p, PASS_BACKWARD_WEIGHT, N, I, O);
}

static void qk_rope_forward(backend *b, void *qkv, void *raw, float *rstd, const void *wq, const void *wk, const float *cosines,
                            const float *sines, const int32_t *pos, qk_norm norm, rope_pairs pairs, float eps, dtype x, int64_t N,
                            int H, int K, int D) {
    profile *p = begin(b);
    p->real->qk_rope_forward(p->backend, qkv, raw, rstd, wq, wk, cosines, sines, pos, norm, pairs, eps, x, N, H, K, D);
    end_bytes(p, PART_QK_ROPE, (norm == QK_NORM_RMS ? 3.0 : 2.0) * (double)N * (H + K) * D * (double)dtype_size(x));
}

static void qk_rope_backward(backend *b, void *dqkv, float *dwq, float *dwk, const void *qkv, const void *raw, const float *rstd,
                             const void *wq, const void *wk, const float *cosines, const float *sines, const int32_t *pos,
                             bool accumulate, qk_norm norm, rope_pairs pairs, dtype x, int64_t N, int H, int K, int D) {
    profile *p = begin(b);
    p->real->qk_rope_backward(p->backend, dqkv, dwq, dwk, qkv, raw, rstd, wq, wk, cosines, sines, pos, accumulate, norm, pairs, x,
                              N, H, K, D);
    end_bytes(p, PART_QK_ROPE, (norm == QK_NORM_NONE ? 2.0 : 3.0) * (double)N * (H + K) * D * (double)dtype_size(x));
}

static void attention_forward(backend *b, void *o, float *lse, const void *qkv, const int32_t *doc, int window, dtype x, int B,
                              int T, int H, int K, int D) {
    profile *p = begin(b);
    p->real->attention_forward(p->backend, o, lse, qkv, doc, window, x, B, T, H, K, D);
    end(p, PART_ATTENTION_FORWARD, 2 * attention_product(window, B, T, H, D), 0);
}

static void attention_backward(backend *b, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv,
                               const int32_t *doc, int window, dtype x, int B, int T, int H, int K, int D) {
    profile *p = begin(b);
    p->real->attention_backward(p->backend, dqkv, d_o, o, lse, qkv, doc, window, x, B, T, H, K, D);
    end(p, PART_ATTENTION_BACKWARD, 4 * attention_product(window, B, T, H, D), 0);
}

static void swiglu_forward(backend *b, void *y, const void *gate_up, dtype x, int64_t N, int F) {
    profile *p = begin(b);
    p->real->swiglu_forward(p->backend, y, gate_up, x, N, F);
    end_bytes(p, PART_SWIGLU, 3.0 * (double)N * F * (double)dtype_size(x));
}

static void swiglu_backward(backend *b, void *gate_up, void *dy_y, dtype x, int64_t N, int F) {
    profile *p = begin(b);
    p->real->swiglu_backward(p->backend, gate_up, dy_y, x, N, F);
    end_bytes(p, PART_SWIGLU, 6.0 * (double)N * F * (double)dtype_size(x));
}

static void cross_entropy(backend *b, float *losses, float *z_losses, void *z, const int32_t *targets, float scale, float z_loss,
                          bool backward, dtype x, int64_t N, int64_t V) {
    profile *p = begin(b);
    p->real->cross_entropy(p->backend, losses, z_losses, z, targets, scale, z_loss, backward, x, N, V);
    end_bytes(p, PART_CROSS_ENTROPY, (backward ? 2.0 : 1.0) * (double)N * (double)V * (double)dtype_size(x));
}

static void sum(backend *b, double *total, const float *values, int64_t n) {
    profile *p = begin(b);
    p->real->sum(p->backend, total, values, n);
    end_bytes(p, PART_REDUCTIONS, (double)n * sizeof(float));
}

static void sum_squares(backend *b, double *total, const float *values, int64_t n) {
    profile *p = begin(b);
    p->real->sum_squares(p->backend, total, values, n);
    end_bytes(p, PART_REDUCTIONS, (double)n * sizeof(float));
}

static void adamw_begin(backend *b, adamw_state *state, const double *squares, float max_norm, float beta1, float beta2) {
    profile *p = begin(b);
    p->real->adamw_begin(p->backend, state, squares, max_norm, beta1, beta2);
    end_bytes(p, PART_REDUCTIONS, sizeof *state + sizeof *squares);
}

/* m, v and the weights (master or p) are read and written, g is read, and beside a master p is written. */
static void adamw(backend *b, void *w, float *master, float *m, float *v, const float *g, const adamw_state *state,
                  const adamw_step *step, dtype x, int64_t n) {
    profile *p = begin(b);
    p->real->adamw(p->backend, w, master, m, v, g, state, step, x, n);
    end_bytes(p, PART_ADAMW, (double)n * (double)(7 * sizeof(float) + (master ? dtype_size(x) : 0)));
}

static void to_float(backend *b, float *y, const void *in, dtype x, int64_t n) {
    profile *p = begin(b);
    p->real->to_float(p->backend, y, in, x, n);
    end_bytes(p, PART_COPIES, (double)n * (double)(sizeof(float) + dtype_size(x)));
}

static void from_float(backend *b, void *y, const float *in, dtype x, int64_t n) {
    profile *p = begin(b);
    p->real->from_float(p->backend, y, in, x, n);
    end_bytes(p, PART_COPIES, (double)n * (double)(sizeof(float) + dtype_size(x)));
}

/* ---- opening ---- */

/* `open` is left out: what is wrapped is open. */
static ops table_like(const ops *real) {
    return (ops){
        .name = real->name,
        .host_memory = real->host_memory,
        .run_ahead = real->run_ahead,
        .head_logits = real->head_logits,
        .overlap_tokens = real->overlap_tokens,
        .close = close_both,
        .describe = describe,
        .describe_attention = real->describe_attention ? describe_attention : NULL,
        .check_sizes = real->check_sizes ? check_sizes : NULL,
        .peak_flops = peak_flops,
        .memory_available = memory_available,
        .memory_used = memory_used,
        .alloc = alloc_memory,
        .free = free_memory,
        .copy_in = copy_in,
        .copy_out = copy_out,
        .copy = copy,
        .zero = zero,
        .sync = sync_both,
        .post = post,
        .fetch = fetch,
        .range_begin = range_begin,
        .range_end = range_end,
        .scratch_bytes = scratch_bytes,
        .set_scratch = set_scratch,
        .tune = real->tune ? tune : NULL,
        .connect = connect_ranks,
        .reduce_scatter = reduce_scatter,
        .all_gather = all_gather,
        .join = join,
        .all_sum = all_sum,
        .embedding_forward = embedding_forward,
        .embedding_backward = embedding_backward,
        .rmsnorm_forward = rmsnorm_forward,
        .rmsnorm_backward = rmsnorm_backward,
        .linear_forward = linear_forward,
        .linear_backward_input = linear_backward_input,
        .linear_backward_weight = linear_backward_weight,
        .qk_rope_forward = qk_rope_forward,
        .qk_rope_backward = qk_rope_backward,
        .attention_forward = attention_forward,
        .attention_backward = attention_backward,
        .swiglu_forward = swiglu_forward,
        .swiglu_backward = swiglu_backward,
        .cross_entropy = cross_entropy,
        .sum = sum,
        .sum_squares = sum_squares,
        .adamw_begin = adamw_begin,
        .adamw = adamw,
        .to_float = to_float,
        .from_float = from_float,
    };
}

/* The best of four copies; the first of them also makes the pages. */
static int measure_memory(double *speed, const ops *op, backend *b, error *err) {
    const size_t bytes = (size_t)128 << 20; /* two of them are beyond the caches of most processors */
    char *from = op->alloc(b, bytes, err), *to = from ? op->alloc(b, bytes, err) : NULL;
    int result = to ? 0 : -1;
    if (to) op->zero(b, from, bytes);
    for (int i = 0; i < 4 && result == 0; i++) {
        double start = seconds_now();
        op->copy(b, to, from, bytes);
        result = op->sync(b, err);
        double rate = 2 * (double)bytes / (seconds_now() - start);
        if (rate > *speed) *speed = rate;
    }
    if (to) op->free(b, to);
    if (from) op->free(b, from);
    return result;
}

int profile_open(profile **opened, const model_config *c, const ops **op, backend **b, error *err) {
    int64_t C = c->d_model, F = c->d_ffn, Q = (int64_t)c->n_heads * c->head_dim, KV = (int64_t)c->n_kv_heads * c->head_dim;
    profile *p = calloc(1, sizeof *p);
    if (!p) return error_set(err, STATUS_RESOURCE, "no memory for a profile");
    *p = (profile){
        .table = table_like(*op),
        .real = *op,
        .backend = *b,
        .ways = 1,
        .matrices = {{"qkv", C, Q + 2 * KV}, {"o", Q, C}, {"gate|up", C, 2 * F}, {"down", F, C}, {"head", C, c->vocab_size}}};
    if (measure_memory(&p->memory_speed, *op, *b, err)) {
        free(p);
        return -1;
    }
    *opened = p;
    *op = &p->table;
    *b = (backend *)p;
    return 0;
}
