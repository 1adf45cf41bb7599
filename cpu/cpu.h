/* cpu.h: what the files of the CPU backend share. Nothing outside cpu/ includes it; the contract is ops.h.
 *
 * GEMMs are oneDNN's, everything else is OpenMP loops that compilers vectorise (built for the machine: see ARCH in the Makefile).
 * oneDNN creates a primitive for the number of OpenMP threads it sees; primitives are made once per shape and kept. */
#ifndef MOBILELLM_CPU_CPU_H
#define MOBILELLM_CPU_CPU_H

#include <dnnl.h>

#include "ops.h"
#include "ranks/ranks.h"

struct gemm_cache;       /* cpu/gemm.c: whole-matrix products, all threads on one */
struct block_gemm_cache; /* cpu/block_gemm.c: small products called by each thread for itself */

struct backend {
    int threads;
    bool widens; /* no products in bf16 on this processor: they are made in fp32 */
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct gemm_cache *gemms;
    struct block_gemm_cache *block_gemms;
    char *scratch; /* lent by the caller: attention's tiles, partial sums */
    size_t scratch_bytes;
    const ranks *world; /* NULL: not connected */
    char posts[POSTS][POST_BYTES];
    int64_t n_posted, n_fetched;
    error failure; /* the first one since the last sync; code STATUS_OK if none */
    char description[160];
};

/* Keeps the first failure for `sync` to report. */
void cpu_fail(backend *b, status code, const char *what, const char *why);

/* The ops, by file. */
int cpu_gemm_open(backend *b, error *err);
void cpu_gemm_close(backend *b);
size_t cpu_gemm_scratch(const backend *b, const op_limits *limits);
void cpu_linear_forward(backend *b, void *y, const void *in, const void *w, dtype x, int64_t N, int I, int64_t O);
void cpu_linear_backward_input(backend *b, void *din, const void *dy, const void *w, dtype x, int64_t N, int I, int64_t O);
void cpu_linear_backward_weight(backend *b, float *dw, const void *dy, const void *in, bool accumulate, dtype x, int64_t N, int I,
                                int64_t O);

int cpu_attention_open(backend *b, error *err); /* makes block_gemms */
void cpu_attention_close(backend *b);
size_t cpu_attention_scratch(const backend *b, const op_limits *limits);
void cpu_attention_forward(backend *b, void *o, float *lse, const void *qkv, const int32_t *doc, int window, dtype x, int B,
                           int T, int H, int K, int D);
void cpu_attention_backward(backend *b, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv,
                            const int32_t *doc, int window, dtype x, int B, int T, int H, int K, int D);

/* Sums over tokens are taken in blocks of this many, each block by one thread, and the blocks' sums added in order: the bits
 * depend on N and not on the number of threads. */
enum { TOKEN_BLOCK = 32 };
static inline int64_t cpu_token_blocks(int64_t N) { return (N + TOKEN_BLOCK - 1) / TOKEN_BLOCK; }

/* The first `bytes` of scratch memory. */
void *cpu_scratch(backend *b, size_t bytes);

/* dw (+)= partials[0] + partials[1] + ..., in this order; n floats each, `stride` floats apart. */
void cpu_add_partials(backend *b, float *dw, const float *partials, int64_t n_partials, int64_t stride, int n, bool accumulate);

void cpu_embedding_forward(backend *b, void *y, const int32_t *tokens, const void *w, dtype x, int64_t N, int C);
void cpu_embedding_backward(backend *b, float *dw, const void *dy, const int32_t *tokens, dtype x, int64_t N, int C,
                            int64_t first, int64_t V);

size_t cpu_rmsnorm_scratch(const op_limits *limits);
void cpu_rmsnorm_forward(backend *b, void *y, float *rstd, void *h_out, const void *h, const void *delta, const void *w,
                         float eps, dtype x, int64_t N, int C);
void cpu_rmsnorm_backward(backend *b, void *dh, float *dw, const void *dy, const void *h, const float *rstd, const void *w,
                          bool accumulate, dtype x, int64_t N, int C);

size_t cpu_qk_rope_scratch(const op_limits *limits);
void cpu_qk_rope_forward(backend *b, void *qkv, void *raw, float *rstd, const void *wq, const void *wk, const float *cosines,
                         const float *sines, const int32_t *pos, qk_norm norm, rope_pairs pairs, float eps, dtype x, int64_t N,
                         int H, int K, int D);
void cpu_qk_rope_backward(backend *b, void *dqkv, float *dwq, float *dwk, const void *qkv, const void *raw, const float *rstd,
                          const void *wq, const void *wk, const float *cosines, const float *sines, const int32_t *pos,
                          bool accumulate, qk_norm norm, rope_pairs pairs, dtype x, int64_t N, int H, int K, int D);

void cpu_swiglu_forward(backend *b, void *y, const void *gate_up, dtype x, int64_t N, int F);
void cpu_swiglu_backward(backend *b, void *gate_up, void *dy_y, dtype x, int64_t N, int F);

size_t cpu_cross_entropy_scratch(const backend *b, const op_limits *limits);
void cpu_cross_entropy(backend *b, float *losses, float *z_losses, void *z, const int32_t *targets, float scale, float z_loss,
                       bool backward, dtype x, int64_t N, int64_t V);

void cpu_sum(backend *b, double *total, const float *values, int64_t n);
void cpu_sum_squares(backend *b, double *total, const float *values, int64_t n);
void cpu_to_float(backend *b, float *y, const void *in, dtype x, int64_t n);
void cpu_from_float(backend *b, void *y, const float *in, dtype x, int64_t n);

void cpu_adamw_begin(backend *b, adamw_state *state, const double *sum_squares, float max_norm, float beta1, float beta2);
void cpu_adamw(backend *b, void *p, float *master, float *m, float *v, const float *g, const adamw_state *state,
               const adamw_step *step, dtype x, int64_t n);

#endif
