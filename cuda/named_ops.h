/* named_ops.h: the ops of this backend under their names, so that Nsight Systems shows which op a kernel or a wait belongs to. Of
 * backend.c alone, which puts them into its table.
 *
 * The names go to NVTX, which is headers only: where no tool has come with the program, a call is a comparison of a pointer with
 * NULL. A toolkit without these headers makes a program without names. */
#ifndef MOBILELLM_CUDA_NAMED_OPS_H
#define MOBILELLM_CUDA_NAMED_OPS_H

#include <stdio.h>

#include "cuda/cuda.h"

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#else
static inline int nvtxRangePushA(const char *name) { return name == NULL; }
static inline int nvtxRangePop(void) { return 0; }
#endif

static void range_begin(backend *b, const char *name, int64_t number) {
    char numbered[64];
    (void)b;
    if (number >= 0) snprintf(numbered, sizeof numbered, "%s %lld", name, (long long)number);
    nvtxRangePushA(number >= 0 ? numbered : name);
}

static void range_end(backend *b) {
    (void)b;
    nvtxRangePop();
}

/* named_OP: cuda_OP with these parameters, called with these arguments, under its name. */
#define NAMED_OP(op, parameters, arguments) \
    static void named_##op parameters {     \
        nvtxRangePushA(#op);                \
        cuda_##op arguments;                \
        nvtxRangePop();                     \
    }
#define NAMED_RESULT(type, op, parameters, arguments) \
    static type named_##op parameters {               \
        nvtxRangePushA(#op);                          \
        type result = cuda_##op arguments;            \
        nvtxRangePop();                               \
        return result;                                \
    }

/* clang-format off */
NAMED_OP(copy_in, (backend *b, void *device, const void *host, size_t bytes), (b, device, host, bytes))
NAMED_OP(copy_out, (backend *b, void *host, const void *device, size_t bytes), (b, host, device, bytes))
NAMED_OP(post, (backend *b, const void *device, size_t bytes), (b, device, bytes))
NAMED_RESULT(int, fetch, (backend *b, void *host, size_t bytes, error *err), (b, host, bytes, err))
NAMED_RESULT(int64_t, reduce_scatter, (backend *b, float *buffer, int64_t n), (b, buffer, n))
NAMED_RESULT(int64_t, all_gather, (backend *b, void *buffer, size_t bytes), (b, buffer, bytes))
NAMED_OP(all_sum, (backend *b, double *values, int n), (b, values, n))
NAMED_OP(embedding_forward,
         (backend *b, void *y, const int32_t *tokens, const void *w, dtype x, int64_t N, int C),
         (b, y, tokens, w, x, N, C))
NAMED_OP(embedding_backward,
         (backend *b, float *dw, const void *dy, const int32_t *tokens, dtype x, int64_t N, int C, int64_t first, int64_t V),
         (b, dw, dy, tokens, x, N, C, first, V))
NAMED_OP(rmsnorm_forward,
         (backend *b, void *y, float *rstd, void *h_out, const void *h, const void *delta, const void *w, float eps, dtype x,
          int64_t N, int C),
         (b, y, rstd, h_out, h, delta, w, eps, x, N, C))
NAMED_OP(rmsnorm_backward,
         (backend *b, void *dh, float *dw, const void *dy, const void *h, const float *rstd, const void *w, bool accumulate,
          dtype x, int64_t N, int C),
         (b, dh, dw, dy, h, rstd, w, accumulate, x, N, C))
NAMED_OP(linear_forward,
         (backend *b, void *y, const void *in, const void *w, dtype x, int64_t N, int I, int64_t O),
         (b, y, in, w, x, N, I, O))
NAMED_OP(linear_backward_input,
         (backend *b, void *din, const void *dy, const void *w, dtype x, int64_t N, int I, int64_t O),
         (b, din, dy, w, x, N, I, O))
NAMED_OP(linear_backward_weight,
         (backend *b, float *dw, const void *dy, const void *in, bool accumulate, dtype x, int64_t N, int I, int64_t O),
         (b, dw, dy, in, accumulate, x, N, I, O))
NAMED_OP(qk_rope_forward,
         (backend *b, void *qkv, void *raw, float *rstd, const void *wq, const void *wk, const float *cosines,
          const float *sines, const int32_t *pos, qk_norm norm, rope_pairs pairs, float eps, dtype x, int64_t N, int H, int K, int D),
         (b, qkv, raw, rstd, wq, wk, cosines, sines, pos, norm, pairs, eps, x, N, H, K, D))
NAMED_OP(qk_rope_backward,
         (backend *b, void *dqkv, float *dwq, float *dwk, const void *qkv, const void *raw, const float *rstd, const void *wq,
          const void *wk, const float *cosines, const float *sines, const int32_t *pos, bool accumulate, qk_norm norm,
          rope_pairs pairs, dtype x, int64_t N, int H, int K, int D),
         (b, dqkv, dwq, dwk, qkv, raw, rstd, wq, wk, cosines, sines, pos, accumulate, norm, pairs, x, N, H, K, D))
NAMED_OP(attention_forward,
         (backend *b, void *o, float *lse, const void *qkv, const int32_t *doc, int window, dtype x, int B, int T, int H, int K, int D),
         (b, o, lse, qkv, doc, window, x, B, T, H, K, D))
NAMED_OP(attention_backward,
         (backend *b, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv, const int32_t *doc, int window,
          dtype x, int B, int T, int H, int K, int D),
         (b, dqkv, d_o, o, lse, qkv, doc, window, x, B, T, H, K, D))
NAMED_OP(swiglu_forward, (backend *b, void *y, const void *gate_up, dtype x, int64_t N, int F), (b, y, gate_up, x, N, F))
NAMED_OP(swiglu_backward, (backend *b, void *gate_up, void *dy_y, dtype x, int64_t N, int F), (b, gate_up, dy_y, x, N, F))
NAMED_OP(cross_entropy,
         (backend *b, float *losses, float *z_losses, void *z, const int32_t *targets, float scale, float z_loss, bool backward,
          dtype x, int64_t N, int64_t V),
         (b, losses, z_losses, z, targets, scale, z_loss, backward, x, N, V))
NAMED_OP(sum, (backend *b, double *total, const float *values, int64_t n), (b, total, values, n))
NAMED_OP(sum_squares, (backend *b, double *total, const float *values, int64_t n), (b, total, values, n))
NAMED_OP(adamw_begin,
         (backend *b, adamw_state *state, const double *sum_squares, float max_norm, float beta1, float beta2),
         (b, state, sum_squares, max_norm, beta1, beta2))
NAMED_OP(adamw,
         (backend *b, void *p, float *master, float *m, float *v, const float *g, const adamw_state *state,
          const adamw_step *step, dtype x, int64_t n),
         (b, p, master, m, v, g, state, step, x, n))
NAMED_OP(to_float, (backend *b, float *y, const void *in, dtype x, int64_t n), (b, y, in, x, n))
NAMED_OP(from_float, (backend *b, void *y, const float *in, dtype x, int64_t n), (b, y, in, x, n))
/* clang-format on */

#endif
