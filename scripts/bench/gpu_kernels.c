/* gpu_kernels.c: what a GPU does, measured through the same table of ops that training calls. JSON, a line a measurement.
 *
 *   gpu_kernels device [gemm=8192] [mib=1024]      its name, the rate of a square product, the speed of its memory in a copy
 *   gpu_kernels ops V= C= F= H= K= D= B= T= [window=] [gemm=] [mib=]      the same, then each op at a network's shapes, in bf16
 *   mpirun -np N gpu_kernels links [mib=256]       reduce-scatter and all-gather between GPUs, small to large
 *
 * Calls follow one another without a wait, as in training, and the clock is the host's, around many of them: a kernel shorter
 * than its launch is charged the launch, which is what it costs. Bytes count each array once for being read and once for being
 * written; operations, what the mask leaves, as `mobilellm plan` does. seconds=: how long each measurement takes (0.05).
 *
 * Exit status 4: no GPU, or what was asked for did not fit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/passes.h"
#include "ops.h"
#include "ranks/ranks.h"
#include "util/rng.h"
#include "util/system.h"

static const dtype x = DTYPE_BF16;
enum { X = 2 }; /* its bytes */

/* One measurement's surroundings: the shapes, and arrays that all ops share. */
typedef struct bench {
    const ops *op;
    backend *b;
    ranks world;
    double seconds;
    int64_t V, C, F, H, K, D, B, T, window, gemm, mib;
    int64_t N, QKV, wide, chunk; /* tokens, width of qkv, of the widest activation; rows of logits */
    char *u, *y, *z;             /* (N,wide) x each */
    char *logits;                /* (chunk,V) x */
    char *w;                     /* (largest matrix) x */
    float *dw, *master, *m, *v;  /* (largest matrix) */
    float *rows, *rows2;         /* a number a token and head, each */
    float *cosines, *sines;      /* (T,D/2) */
    int32_t *tokens, *pos;       /* (N) */
    double *total;
    adamw_state *state;
    int64_t n_weights;                 /* of the largest matrix */
    int64_t shard;                     /* elements of a rank's part, for links */
    int64_t layer_N, layer_I, layer_O; /* the linear layer being measured */
    char *out;                         /* (layer_N,layer_O) x: its output, and the gradient of that */
} bench;

static _Noreturn void die(const bench *k, const error *err) { ranks_abort(&k->world, err); }

static void wait_for_device(bench *k) {
    error err = {0};
    if (k->op->sync(k->b, &err)) die(k, &err);
}

static void *allocate(bench *k, double bytes) {
    error err = {0};
    void *memory = k->op->alloc(k->b, (size_t)bytes, &err);
    if (memory == NULL) die(k, &err);
    return memory;
}

/* ---- arrays ---- */

/* n random numbers, of which the first million is drawn and the rest repeats it: constants would draw less power, and GPUs that
 * draw less run faster. */
static void *random_x(bench *k, int64_t n) {
    enum { DRAWN = 1 << 20 };
    int64_t drawn = n < DRAWN ? n : DRAWN;
    float *host = malloc((size_t)drawn * sizeof *host), *device = allocate(k, (double)drawn * sizeof *host);
    char *memory = allocate(k, (double)n * X);
    rng_normal(host, 1, 0, drawn, 0.5f);
    k->op->copy_in(k->b, device, host, (size_t)drawn * sizeof *host);
    k->op->from_float(k->b, memory, device, x, drawn);
    for (int64_t at = drawn; at < n; at += drawn)
        k->op->copy(k->b, memory + at * X, memory, (size_t)(n - at < drawn ? n - at : drawn) * X);
    wait_for_device(k);
    k->op->free(k->b, device);
    free(host);
    return memory;
}

static float *zeros(bench *k, int64_t n) {
    float *memory = allocate(k, (double)n * sizeof *memory);
    k->op->zero(k->b, memory, (size_t)n * sizeof *memory);
    return memory;
}

/* Tokens that are drawn evenly, and positions in a row. */
static void make_tokens(bench *k) {
    size_t bytes = (size_t)k->N * sizeof *k->tokens;
    int32_t *host = malloc(bytes);
    k->tokens = allocate(k, (double)bytes);
    k->pos = allocate(k, (double)bytes);
    for (int64_t i = 0; i < k->N; i++) host[i] = (int32_t)((uint64_t)i * 2654435761u % (uint64_t)k->V);
    k->op->copy_in(k->b, k->tokens, host, bytes);
    for (int64_t i = 0; i < k->N; i++) host[i] = (int32_t)(i % k->T);
    k->op->copy_in(k->b, k->pos, host, bytes);
    wait_for_device(k);
    free(host);
}

static void make_angles(bench *k) {
    int64_t n = k->T * k->D / 2;
    float *host = malloc((size_t)n * sizeof *host);
    k->cosines = zeros(k, n);
    k->sines = zeros(k, n);
    for (int half = 0; half < 2; half++) {
        for (int64_t i = 0; i < n; i++) {
            double angle = (double)(i / (k->D / 2)) * pow(500000, -2.0 * (double)(i % (k->D / 2)) / (double)k->D);
            host[i] = (float)(half ? sin(angle) : cos(angle));
        }
        k->op->copy_in(k->b, half ? k->sines : k->cosines, host, (size_t)n * sizeof *host);
    }
    wait_for_device(k);
    free(host);
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static void make_arrays(bench *k) {
    k->N = k->B * k->T;
    k->QKV = (k->H + 2 * k->K) * k->D;
    k->wide = larger(larger(k->QKV, 2 * k->F), k->C);
    k->chunk = model_head_chunk(k->op->head_logits, k->V, k->N);
    k->n_weights = larger(k->V * k->C, k->wide * larger(k->C, k->H * k->D));
    k->u = random_x(k, k->N * k->wide);
    k->y = random_x(k, k->N * k->wide);
    k->z = random_x(k, k->N * k->wide);
    k->logits = random_x(k, k->chunk * k->V);
    k->w = random_x(k, k->n_weights);
    k->dw = zeros(k, k->n_weights);
    k->master = zeros(k, k->n_weights);
    k->m = zeros(k, k->n_weights);
    k->v = zeros(k, k->n_weights);
    k->rows = zeros(k, k->N * (k->H + k->K));
    k->rows2 = zeros(k, k->N);
    k->total = (double *)zeros(k, 2);
    k->state = (adamw_state *)zeros(k, sizeof *k->state / sizeof(float));
    make_tokens(k);
    make_angles(k);
}

/* Kept to the end of the program. */
static void lend_scratch(bench *k) {
    op_limits limits = {.x = x,
                        .B = (int)k->B,
                        .T = (int)k->T,
                        .C = (int)k->C,
                        .F = (int)k->F,
                        .H = (int)k->H,
                        .K = (int)k->K,
                        .D = (int)k->D,
                        .V = k->V,
                        .head_rows = k->chunk,
                        .training = true,
                        .full = true,
                        .window = (int)k->window};
    size_t bytes = k->op->scratch_bytes(k->b, &limits);
    k->op->set_scratch(k->b, allocate(k, (double)bytes), bytes);
}

/* ---- timing ---- */

/* Seconds of a call, the best of three runs of as many as take k->seconds / 3. The first call of all builds plans and is not
 * counted. */
static double seconds_of(bench *k, void (*call)(bench *)) {
    double best = INFINITY, s = 0;
    int64_t n = 1;
    call(k);
    wait_for_device(k);
    for (int run = 0; run < 3;) {
        double start = seconds_now();
        for (int64_t i = 0; i < n; i++) call(k);
        wait_for_device(k);
        s = seconds_now() - start;
        if (s < k->seconds / 3 && n < 1 << 14) { /* too short to tell: more calls, and again */
            n = larger(n + 1, (int64_t)fmin((double)n * 8, 1.2 * (double)n * k->seconds / 3 / s));
            continue;
        }
        best = fmin(best, s / (double)n);
        run++;
    }
    return best;
}

/* ---- the device ---- */

static void square_product(bench *k) { k->op->linear_forward(k->b, k->y, k->u, k->w, x, k->gemm, (int)k->gemm, k->gemm); }

static void copy_all(bench *k) { k->op->copy(k->b, k->z, k->u, (size_t)k->mib << 20); }

static void measure_device(bench *k) {
    int64_t n = k->gemm * k->gemm;
    k->u = random_x(k, larger(n, k->mib << 19));
    k->w = random_x(k, n);
    k->y = allocate(k, (double)n * X);
    k->z = allocate(k, (double)(k->mib << 20));
    double gemm = 2.0 * (double)n * (double)k->gemm / seconds_of(k, square_product);
    double copy = 2.0 * (double)(k->mib << 20) / seconds_of(k, copy_all);
    void *all[] = {k->u, k->w, k->y, k->z};
    for (int i = 0; i < 4; i++) k->op->free(k->b, all[i]);
    printf(
        "{\"device\": \"%s\", \"gemm\": %lld, \"peak_flops\": %.6g, \"gemm_flops\": %.6g, \"copy_bytes_per_s\": %.6g, "
        "\"free_bytes\": %zu, "
        "\"taken_bytes\": %zu}\n",
        k->op->describe(k->b), (long long)k->gemm, k->op->peak_flops(k->b, x), gemm, copy, k->op->memory_available(k->b, 1),
        k->op->memory_used(k->b));
}

/* ---- the ops ---- */

static void run_embedding(bench *k) { k->op->embedding_forward(k->b, k->y, k->tokens, k->w, x, k->N, (int)k->C); }
static void run_embedding_back(bench *k) { k->op->embedding_backward(k->b, k->dw, k->u, k->tokens, x, k->N, (int)k->C, 0, k->V); }
static void run_norm(bench *k) { k->op->rmsnorm_forward(k->b, k->y, k->rows, k->z, k->z, k->u, k->w, 1e-5f, x, k->N, (int)k->C); }
static void run_norm_back(bench *k) {
    k->op->rmsnorm_backward(k->b, k->z, k->dw, k->u, k->y, k->rows, k->w, false, x, k->N, (int)k->C);
}
static void run_rope(bench *k) {
    k->op->qk_rope_forward(k->b, k->u, NULL, k->rows, NULL, NULL, k->cosines, k->sines, k->pos, QK_NORM_L2, ROPE_INTERLEAVED,
                           1e-5f, x, k->N, (int)k->H, (int)k->K, (int)k->D);
}
static void run_rope_back(bench *k) {
    k->op->qk_rope_backward(k->b, k->z, NULL, NULL, k->u, NULL, k->rows, NULL, NULL, k->cosines, k->sines, k->pos, false,
                            QK_NORM_L2, ROPE_INTERLEAVED, x, k->N, (int)k->H, (int)k->K, (int)k->D);
}
static void attend(bench *k, int window) {
    k->op->attention_forward(k->b, k->y, k->rows, k->u, NULL, window, x, (int)k->B, (int)k->T, (int)k->H, (int)k->K, (int)k->D);
}
/* y's values are not those of this window: the same work. */
static void attend_back(bench *k, int window) {
    k->op->attention_backward(k->b, k->z, k->y, k->y, k->rows, k->u, NULL, window, x, (int)k->B, (int)k->T, (int)k->H, (int)k->K,
                              (int)k->D);
}
static void run_full(bench *k) { attend(k, 0); }
static void run_full_back(bench *k) { attend_back(k, 0); }
static void run_window(bench *k) { attend(k, (int)k->window); }
static void run_window_back(bench *k) { attend_back(k, (int)k->window); }
static void run_swiglu(bench *k) { k->op->swiglu_forward(k->b, k->y, k->u, x, k->N, (int)k->F); }
static void run_swiglu_back(bench *k) { k->op->swiglu_backward(k->b, k->z, k->y, x, k->N, (int)k->F); }
static void run_loss(bench *k) {
    k->op->cross_entropy(k->b, k->rows, k->rows2, k->logits, k->tokens, 1.0f / (float)k->N, 0, true, x, k->chunk, k->V);
}
static void run_squares(bench *k) { k->op->sum_squares(k->b, k->total, k->dw, k->n_weights); }
static void run_adamw(bench *k) {
    const adamw_step step = {.lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f};
    k->op->adamw(k->b, k->w, k->master, k->m, k->v, k->dw, k->state, &step, x, k->n_weights);
}
static void run_to_float(bench *k) { k->op->to_float(k->b, k->dw, k->w, x, k->n_weights); }
static void run_zero(bench *k) { k->op->zero(k->b, k->dw, (size_t)k->n_weights * sizeof *k->dw); }

static void run_linear(bench *k) { k->op->linear_forward(k->b, k->out, k->u, k->w, x, k->layer_N, (int)k->layer_I, k->layer_O); }
static void run_linear_input(bench *k) {
    k->op->linear_backward_input(k->b, k->y, k->out, k->w, x, k->layer_N, (int)k->layer_I, k->layer_O);
}
static void run_linear_weight(bench *k) {
    k->op->linear_backward_weight(k->b, k->dw, k->out, k->u, false, x, k->layer_N, (int)k->layer_I, k->layer_O);
}

static void tell(bench *k, const char *name, const char *part, void (*call)(bench *), double flops, double bytes) {
    double s = seconds_of(k, call);
    printf("{\"op\": \"%s%s\", \"seconds\": %.6g, \"flops\": %.6g, \"bytes\": %.6g}\n", name, part, s, flops, bytes);
    fflush(stdout);
}

static void tell_linear(bench *k, const char *name, int64_t N, int64_t I, int64_t O) {
    double n = (double)N, i = (double)I, o = (double)O, flops = 2 * n * i * o, in = n * i * X, out = n * o * X, w = i * o * X;
    k->layer_N = N;
    k->layer_I = I;
    k->layer_O = O;
    k->out = O == k->V ? k->logits : k->z;
    tell(k, name, " forward", run_linear, flops, in + w + out);
    tell(k, name, " backward, input", run_linear_input, flops, in + w + out);
    tell(k, name, " backward, weight", run_linear_weight, flops, in + 2 * w + out); /* fp32 */
}

static void tell_attention(bench *k, const char *name, int64_t window, void (*forward)(bench *), void (*backward)(bench *)) {
    double pairs = (double)k->N * model_mean_visible_keys((int)window, (int)k->T) * (double)(k->H * k->D);
    double qkv = (double)(k->N * k->QKV) * X, o = (double)(k->N * k->H * k->D) * X;
    tell(k, name, " forward", forward, 4 * pairs, qkv + o);
    tell(k, name, " backward", backward, 8 * pairs, 2 * qkv + 2 * o);
}

static void measure_ops(bench *k) {
    double NC = (double)(k->N * k->C) * X, NF = (double)(k->N * k->F) * X, VC = (double)k->n_weights,
           L = (double)(k->chunk * k->V) * X;
    double qk = (double)(k->N * (k->H + k->K) * k->D) * X;
    tell_linear(k, "qkv", k->N, k->C, k->QKV);
    tell_linear(k, "o", k->N, k->H * k->D, k->C);
    tell_linear(k, "gate|up", k->N, k->C, 2 * k->F);
    tell_linear(k, "down", k->N, k->F, k->C);
    tell_linear(k, "head, a chunk", k->chunk, k->C, k->V);
    tell(k, "cross-entropy", ", a chunk", run_loss, 0, 2 * L);
    tell_attention(k, "attention", 0, run_full, run_full_back);
    if (k->window > 0 && k->window < k->T) tell_attention(k, "attention, window", k->window, run_window, run_window_back);
    tell(k, "QK-norm, RoPE", " forward", run_rope, 0, 2 * qk);
    tell(k, "QK-norm, RoPE", " backward", run_rope_back, 0, 3 * qk);
    tell(k, "norm", " forward", run_norm, 0, 4 * NC);
    tell(k, "norm", " backward", run_norm_back, 0, 4 * NC);
    tell(k, "SwiGLU", " forward", run_swiglu, 0, 3 * NF);
    tell(k, "SwiGLU", " backward", run_swiglu_back, 0, 6 * NF);
    tell(k, "embedding", " forward", run_embedding, 0, 2 * NC);
    tell(k, "embedding", " backward", run_embedding_back, 0, NC + 4 * NC); /* fp32, read and written */
    tell(k, "sum of squares", "", run_squares, 0, 4 * VC);
    k->op->adamw_begin(k->b, k->state, k->total, 1, 0.9f, 0.95f);
    tell(k, "AdamW", "", run_adamw, 0, VC * (4 + 3 * 8 + X)); /* gradient; master, m, v both ways; parameter */
    tell(k, "bf16 to fp32", "", run_to_float, 0, VC * (X + 4));
    tell(k, "zero", "", run_zero, 0, 4 * VC);
}

/* ---- links ---- */

static void run_reduce_scatter(bench *k) { k->op->join(k->b, k->op->reduce_scatter(k->b, k->dw, k->shard)); }
static void run_all_gather(bench *k) { k->op->join(k->b, k->op->all_gather(k->b, k->dw, (size_t)k->shard * sizeof *k->dw)); }

/* Seconds of a call, the mean of 10 on the slowest rank: all ranks must make the same number. */
static double seconds_together(bench *k, void (*call)(bench *)) {
    enum { CALLS = 10 };
    call(k);
    wait_for_device(k);
    ranks_barrier(&k->world);
    double start = seconds_now();
    for (int i = 0; i < CALLS; i++) call(k);
    wait_for_device(k);
    int64_t ns = (int64_t)(1e9 * (seconds_now() - start));
    ranks_max_int64(&k->world, &ns, 1);
    return 1e-9 * (double)ns / CALLS;
}

static void tell_link(bench *k, const char *name, void (*call)(bench *)) {
    double s = seconds_together(k, call), bytes = (double)k->shard * sizeof *k->dw * k->world.size;
    double bus = bytes * (k->world.size - 1) / k->world.size / s; /* as nccl-tests define it: what each GPU's link carries */
    if (k->world.rank == 0)
        printf("{\"collective\": \"%s\", \"ranks\": %d, \"bytes\": %.0f, \"seconds\": %.6g, \"bus_bytes_per_s\": %.6g}\n", name,
               k->world.size, bytes, s, bus);
}

static void measure_links(bench *k) {
    error err = {0};
    if (ranks_watch(&k->world, 60, "A link between the GPUs may be down: `nvidia-smi topo -m`, NCCL_DEBUG=INFO.", &err) ||
        k->op->connect(k->b, &k->world, &err))
        die(k, &err);
    int64_t most = (k->mib << 20) / (int64_t)sizeof *k->dw / k->world.size;
    k->dw = zeros(k, most * k->world.size);
    for (k->shard = larger(most / 256, 1); k->shard <= most; k->shard *= 4) {
        tell_link(k, "reduce-scatter", run_reduce_scatter);
        tell_link(k, "all-gather", run_all_gather);
    }
}

/* ---- the command line ---- */

static void take_argument(bench *k, const char *text) {
    const struct {
        const char *name;
        int64_t *value;
    } numbers[] = {{"V", &k->V}, {"C", &k->C}, {"F", &k->F},           {"H", &k->H},       {"K", &k->K},    {"D", &k->D},
                   {"B", &k->B}, {"T", &k->T}, {"window", &k->window}, {"gemm", &k->gemm}, {"mib", &k->mib}};
    const char *equals = strchr(text, '=');
    size_t length = equals ? (size_t)(equals - text) : 0;
    if (equals && strncmp(text, "seconds=", length + 1) == 0) {
        k->seconds = atof(equals + 1);
        return;
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && equals; i++)
        if (strlen(numbers[i].name) == length && strncmp(text, numbers[i].name, length) == 0 && atoll(equals + 1) > 0) {
            *numbers[i].value = atoll(equals + 1);
            return;
        }
    error err = {0};
    error_set(&err, STATUS_USAGE, "%s is not an argument: see the start of scripts/bench/gpu_kernels.c", text);
    die(k, &err);
}

int main(int argc, char **argv) {
    error err = {0};
    bench k = {.op = cuda_ops(), .world = {.size = 1, .local_size = 1}, .seconds = 0.05, .gemm = 8192, .mib = 1024};
    const char *mode = argc > 1 ? argv[1] : "";
    bool links = strcmp(mode, "links") == 0, all_ops = strcmp(mode, "ops") == 0;
    for (int i = 2; i < argc; i++) take_argument(&k, argv[i]);
    bool complete = k.V && k.C && k.F && k.H && k.K && k.D && k.B && k.T;
    if ((!links && !all_ops && strcmp(mode, "device") != 0) || (all_ops && !complete)) {
        fprintf(stderr, "usage: gpu_kernels device|links|ops [name=number ...]: see the start of scripts/bench/gpu_kernels.c\n");
        return STATUS_USAGE;
    }
    if ((links && ranks_open(&k.world, &err)) || k.op->open(&k.b, 0, k.world.local_rank, &err)) die(&k, &err);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (links) {
        measure_links(&k);
    } else {
        lend_scratch(&k); /* what products need, whatever the shapes */
        measure_device(&k);
    }
    if (all_ops) {
        make_arrays(&k);
        lend_scratch(&k);
        measure_ops(&k);
    }
    wait_for_device(&k);
    k.op->close(k.b);
    ranks_close(&k.world);
    return 0;
}
