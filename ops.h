/* ops.h: what a backend must do. Every operation of the network, its formula, shapes and dtypes.
 *
 * B sequences  T positions  N = B*T tokens  C d_model  F d_ffn  V vocabulary  H query heads  K key/value heads  D head size
 * I, O: inputs and outputs of a linear layer   n: any number of elements
 *
 * Arrays are row-major and live in the backend's memory. "x" arrays (void *) have the dtype named by the argument `x`; float
 * arrays are fp32 whatever x is; all arithmetic accumulates in fp32 or better. Outputs come first, then inputs, then sizes.
 * Gradients of parameters are added to (+=) unless `accumulate` is given and false; gradients of activations are written (=).
 *
 * A backend has one stream of work: ops run in the order of the calls, and may return before they are done. A failure inside an
 * op (a library refused a shape, memory ran out) is kept, later ops do nothing harmful, and `sync` reports the first one.
 * The same calls on the same data give the same bits, for a given number of threads. */
#ifndef MOBILELLM_OPS_H
#define MOBILELLM_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "util/dtype.h"
#include "util/error.h"

struct ranks; /* ranks/ranks.h */

typedef struct backend backend; /* a device with its stream, its prepared GEMMs and its scratch memory */

typedef enum qk_norm { QK_NORM_NONE, QK_NORM_L2, QK_NORM_RMS } qk_norm;
typedef enum rope_pairs { ROPE_INTERLEAVED, ROPE_HALF } rope_pairs;

/* The largest shapes a run will use: what scratch memory is sized by. Zero where an op is not used. */
typedef struct op_limits {
    dtype x;
    int B, T, C, F, H, K, D;
    int64_t V, head_rows; /* rows of the largest logits chunk */
    bool training;        /* backward passes too */
    bool full;            /* attention over whole rows occurs */
    int window;           /* attention over so many keys occurs; 0: it does not */
    bool documents;       /* attention always gets `doc` */
} op_limits;

typedef struct adamw_step {
    float lr, beta1, beta2, eps, weight_decay;
    bool stochastic; /* p is master rounded up or down by chance, not to nearest: only with x bf16. What chance is made from: */
    uint64_t key;    /* of the tensor that the arrays are a piece of */
    int64_t first;   /* where in that tensor the piece begins */
} adamw_step;

/* What AdamW takes from the gradients of a step as a whole. It lives on the device, so that no step waits for the host to see its
 * norm. */
typedef struct adamw_state {
    int64_t t;         /* steps taken, skipped ones not counted */
    double rate, root; /* 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t) */
    float scale;       /* of the gradients; NaN: the step is skipped */
} adamw_state;

typedef struct ops {
    const char *name;    /* "cpu", "cuda" */
    bool host_memory;    /* the host may read and write what `alloc` gives */
    int run_ahead;       /* steps that are worth starting before the result of the oldest is fetched */
    int64_t head_logits; /* logits held at a time unless the config says how many: enough for efficient products */
    /* In micro-batches of so many tokens the layers' backward pass hides that gradients are reduced beside it. 0: no collective
     * runs beside the ops that follow it. */
    int64_t overlap_tokens;

    /* ---- the device and its memory ---- */

    /* threads: 0 means what OMP_NUM_THREADS or the machine says (cpu); local_rank picks the device (cuda). */
    int (*open)(backend **b, int threads, int local_rank, error *err);
    void (*close)(backend *b);
    const char *(*describe)(backend *b); /* one line for the banner: processor, threads, instruction set */
    /* By what the attention since `open` was done, and why: a line, "" if there was none. NULL: there is only one way. */
    const char *(*describe_attention)(backend *b);
    /* Do the kernels take these sizes? b NULL: for a device that is not here. NULL: they take all. */
    int (*check_sizes)(backend *b, const op_limits *limits, error *err);
    double (*peak_flops)(backend *b, dtype x); /* FLOP/s by its data sheet; 0: unknown, measure a GEMM */
    /* Bytes that each of local_size ranks of this machine may count on. */
    size_t (*memory_available)(backend *b, int local_size);
    size_t (*memory_used)(backend *b);                    /* bytes: resident in this process (cpu), taken of the device (cuda) */
    void *(*alloc)(backend *b, size_t bytes, error *err); /* aligned to 256 bytes, cleared */
    void (*free)(backend *b, void *memory);
    void (*copy_in)(backend *b, void *device, const void *host, size_t bytes);
    void (*copy_out)(backend *b, void *host, const void *device, size_t bytes); /* waits for the work before it */
    void (*copy)(backend *b, void *to, const void *from, size_t bytes);
    void (*zero)(backend *b, void *device, size_t bytes);
    int (*sync)(backend *b, error *err); /* waits for all work; the first failure since the last sync */

    /* Small results that the host reads later. `post` sends up to POST_BYTES to the host, in the order of the ops, and returns;
     * `fetch` waits for the oldest that has not been fetched, and reports failures as sync does. At most POSTS are on their way.
     */
    void (*post)(backend *b, const void *device, size_t bytes);
    int (*fetch)(backend *b, void *host, size_t bytes, error *err);

    /* The calls in between are a part of the work that has a name, and a number unless it is -1: for a profiler that looks on.
     * Ranges nest. */
    void (*range_begin)(backend *b, const char *name, int64_t number);
    void (*range_end)(backend *b);

    /* Scratch memory of the ops below: `scratch_bytes` says how much the limits need, `set_scratch` lends it. */
    size_t (*scratch_bytes)(backend *b, const op_limits *limits);
    void (*set_scratch)(backend *b, void *memory, size_t bytes);

    /* Between tune(true) and tune(false) the results of ops are of no account, and each may be run more than once to find its
     * fastest algorithm. Afterwards nothing is tried out any more, so that whoever shows the backend all shapes of a run in
     * between, before `connect`, has the same algorithms on all ranks, and in each run. NULL: a backend with nothing to choose.
     */
    void (*tune)(backend *b, bool on);

    /* ---- collectives: all ranks call them in the same order ----
     *
     * They start after the ops before them, and may run beside those that follow. What they return is a ticket: ops after
     * `join(ticket)` wait for that collective and for all before it; the host never does. Before `connect`, and with one rank,
     * they do nothing. */

    /* All ranks take the algorithms that rank 0 has chosen. world stays the caller's, and must stay. */
    int (*connect)(backend *b, const struct ranks *world, error *err);
    /* buffer holds size * n floats; afterwards part `rank` holds the sum over ranks of that part, the others are undefined. */
    int64_t (*reduce_scatter)(backend *b, float *buffer, int64_t n);
    /* buffer holds size * bytes; part `rank` is given, the others are filled in. */
    int64_t (*all_gather)(backend *b, void *buffer, size_t bytes);
    void (*join)(backend *b, int64_t ticket);
    /* values: their sums over ranks. n <= 8. Needs no join. */
    void (*all_sum)(backend *b, double *values, int n);

    /* ---- embedding ---- */

    /* y[n] = w[tokens[n]] */
    void (*embedding_forward)(backend *b, void *y,   /* (N,C) x */
                              const int32_t *tokens, /* (N), each in [0, V) */
                              const void *w,         /* (V,C) x */
                              dtype x, int64_t N, int C);
    /* dw[tokens[n] - first] += dy[n] for each token in [first, first + V), in the order of n; others add nothing. A backend may
     * take the rows of a frequent token in parts of at least 1,024, and add these parts' sums in order. */
    void (*embedding_backward)(backend *b, float *dw, /* (V,C) += */
                               const void *dy,        /* (N,C) x */
                               const int32_t *tokens, /* (N) */
                               dtype x, int64_t N, int C, int64_t first, int64_t V);

    /* ---- residual + RMSNorm [Zhang & Sennrich 2019, eq. 4] ---- */

    /* h_out = h + delta; y = h_out * rstd * w, rstd = 1 / sqrt(mean(h_out^2) + eps), one per token, from the rounded h_out.
     * delta NULL: nothing to add, and h_out (then usually NULL) is not written. h_out may be h. */
    void (*rmsnorm_forward)(backend *b, void *y, /* (N,C) x */
                            float *rstd,         /* (N) */
                            void *h_out,         /* (N,C) x */
                            const void *h,       /* (N,C) x */
                            const void *delta,   /* (N,C) x or NULL */
                            const void *w,       /* (C) x */
                            float eps, dtype x, int64_t N, int C);
    /* dh += rstd * (dy*w - h*rstd * mean(dy*w * h*rstd)); dw += sum over tokens of dy * h * rstd */
    void (*rmsnorm_backward)(backend *b, void *dh, /* (N,C) x, in and out: the gradient of the residual stream */
                             float *dw,            /* (C) */
                             const void *dy,       /* (N,C) x */
                             const void *h,        /* (N,C) x */
                             const float *rstd,    /* (N) */
                             const void *w,        /* (C) x */
                             bool accumulate, dtype x, int64_t N, int C);

    /* ---- linear layers without bias: y = x w^T ---- */

    void (*linear_forward)(backend *b, void *y, /* (N,O) x */
                           const void *in,      /* (N,I) x */
                           const void *w,       /* (O,I) x */
                           dtype x, int64_t N, int I, int64_t O);
    void (*linear_backward_input)(backend *b, void *din, /* (N,I) x */
                                  const void *dy,        /* (N,O) x */
                                  const void *w,         /* (O,I) x */
                                  dtype x, int64_t N, int I, int64_t O);
    /* dw (+)= dy^T in; accumulate false: dw need not be cleared before. */
    void (*linear_backward_weight)(backend *b, float *dw, /* (O,I) */
                                   const void *dy,        /* (N,O) x */
                                   const void *in,        /* (N,I) x */
                                   bool accumulate, dtype x, int64_t N, int I, int64_t O);

    /* ---- QK-norm and rotary embedding [Su et al. 2021], in place on the query and key heads of qkv ----
     *
     * For each token and each of its H query and K key heads u (D):  none: y = R u;  l2: y = R u * rstd;  rms: y = R (u * rstd *
     * w), rstd = 1 / sqrt(mean(u^2) + eps) (l2 commutes with the rotation R, which keeps lengths). R turns pair p of position pos
     * by the angle pos * theta^(-2p/D); a pair is (2p, 2p+1) when interleaved, (p, p + D/2) when half. The V heads are untouched.
     */
    void (*qk_rope_forward)(backend *b, void *qkv,          /* (N,(H+2K)*D) x, in and out: query, key, value heads */
                            void *raw,                      /* (N,(H+K)*D) x: the heads before, for backward; only for rms */
                            float *rstd,                    /* (N,H+K); not for none */
                            const void *wq, const void *wk, /* (D) x; only for rms */
                            const float *cosines, const float *sines, /* (positions, D/2) */
                            const int32_t *pos,                       /* (N) */
                            qk_norm norm, rope_pairs pairs, float eps, dtype x, int64_t N, int H, int K, int D);
    void (*qk_rope_backward)(backend *b, void *dqkv, /* (N,(H+2K)*D) x, in: of the output, out: of the input */
                             float *dwq, float *dwk, /* (D); only for rms */
                             const void *qkv,        /* (N,(H+2K)*D) x: the output of forward */
                             const void *raw, const float *rstd, const void *wq, const void *wk, /* as in forward */
                             const float *cosines, const float *sines, const int32_t *pos, bool accumulate, qk_norm norm,
                             rope_pairs pairs, dtype x, int64_t N, int H, int K, int D);

    /* ---- attention [Dao et al. 2022] ----
     *
     * Query i of a row sees key j when j <= i, doc[i] == doc[j], and window == 0 or i - j < window (so W keys, itself included).
     * s = q.k / sqrt(D); o = softmax(s) v; query head h reads key/value head h / (H/K). Memory is linear in T; blocks that the
     * mask leaves empty are skipped. doc: equal numbers are next to each other; NULL: one document a row. */
    void (*attention_forward)(backend *b, void *o, /* (N,H*D) x */
                              float *lse,          /* (B,H,T): log of the sum of exp(s) */
                              const void *qkv,     /* (N,(H+2K)*D) x */
                              const int32_t *doc,  /* (N) or NULL */
                              int window, dtype x, int B, int T, int H, int K, int D);
    void (*attention_backward)(backend *b, void *dqkv,                                               /* (N,(H+2K)*D) x */
                               const void *d_o,                                                      /* (N,H*D) x */
                               const void *o, const float *lse, const void *qkv, const int32_t *doc, /* as in forward */
                               int window, dtype x, int B, int T, int H, int K, int D);

    /* ---- SwiGLU [Shazeer 2020]: y = silu(gate) * up ---- */

    void (*swiglu_forward)(backend *b, void *y, /* (N,F) x */
                           const void *gate_up, /* (N,2F) x: a row is gate (F), then up (F) */
                           dtype x, int64_t N, int F);
    /* One pass: gate_up becomes its own gradient, and dy becomes y again (which the down projection's weight gradient needs). */
    void (*swiglu_backward)(backend *b, void *gate_up, /* (N,2F) x, in and out */
                            void *dy_y,                /* (N,F) x, in dy, out y */
                            dtype x, int64_t N, int F);

    /* ---- loss over a chunk of rows of logits ----
     *
     * lse = log sum exp z;  losses = lse - z[target];  z_losses = z_loss * lse^2.  With backward, z becomes
     * dz = scale * ((1 + 2 z_loss lse) softmax(z) - onehot(target)). A row whose target is negative has losses 0 and dz 0. */
    void (*cross_entropy)(backend *b, float *losses, /* (N) */
                          float *z_losses,           /* (N) or NULL */
                          void *z,                   /* (N,V) x, in and out */
                          const int32_t *targets,    /* (N) */
                          float scale, float z_loss, bool backward, dtype x, int64_t N, int64_t V);

    /* ---- reductions and the optimizer ---- */

    void (*sum)(backend *b, double *total /* (1) += */, const float *values, int64_t n);
    void (*sum_squares)(backend *b, double *total /* (1) += */, const float *values, int64_t n);

    /* t += 1 and what follows from it; scale = min(1, max_norm / (sqrt(sum_squares) + 1e-6)), 1 when max_norm is 0. When
     * sum_squares is not finite, scale is NaN and the rest stays. */
    void (*adamw_begin)(backend *b, adamw_state *state /* (1) */, const double *sum_squares /* (1) */, float max_norm,
                        float beta1, float beta2);

    /* AdamW [Loshchilov & Hutter 2019] on g * scale, decay decoupled: w *= 1 - lr*wd; m, v; w -= lr * m^ / (sqrt(v^) + eps).
     * w is master where there is one, else p; p is then master rounded to x: to nearest, or by chance (bf16_stochastic), with the
     * 16 bits that Philox has for (key, counter t, first + i) (philox_half). A scale that is NaN changes nothing. */
    void (*adamw)(backend *b, void *p,      /* (n) x */
                  float *master,            /* (n), or NULL when x is f32 */
                  float *m, float *v,       /* (n) */
                  const float *g,           /* (n) */
                  const adamw_state *state, /* (1) */
                  const adamw_step *step, dtype x, int64_t n);

    void (*to_float)(backend *b, float *y, const void *in, dtype x, int64_t n);
    void (*from_float)(backend *b, void *y, const float *in, dtype x, int64_t n);
} ops;

enum { POST_BYTES = 64, POSTS = 8 };

const ops *cpu_ops(void);
const ops *cuda_ops(void);

/* The ops of device "cpu", "cuda", or "auto": cuda where this build has it and a GPU answers, else cpu. */
int ops_named(const ops **op, const char *device, error *err);

bool cuda_available(void);  /* does a GPU answer? */
void cuda_report(FILE *to); /* what this machine has of CUDA, for people: driver, GPUs, libraries and where they were found */

#endif
