/* attention.h: what the files of CUDA attention share. The formula is in ops.h, the choice between cuDNN and the kernels here in
 * attention.c.
 *
 * The keys that a query sees are an interval, from `first` to itself, and the queries that see a key are one, from itself to
 * `last`; all ends grow with the position. So the keys of consecutive queries are one interval too, tiles begin at its first
 * key, and none is empty. */
#ifndef MOBILELLM_CUDA_ATTENTION_H
#define MOBILELLM_CUDA_ATTENTION_H

#include "cuda/cuda.h"
#include "cuda/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ATTENTION_MAX_D = CUDA_OWN_HEAD_DIM }; /* head sizes of the kernels here: what the registers of a thread hold */

/* One call. */
typedef struct attention {
    int B, T, H, K, D;
    int window;                  /* keys that a query sees, itself included; T: all before it */
    const int32_t *first, *last; /* (B,T): the first key that query t sees, the last query that sees key t; NULL: one document a
                                    row, and the window alone says */
    int64_t row;                 /* elements of a token in qkv: (H+2K)*D */
    float scale;                 /* 1 / sqrt(D) */
} attention;

/* first and last, from doc and the window. */
void cuda_attention_bounds(backend *b, int32_t *first, /* (B,T) */
                           int32_t *last,              /* (B,T) */
                           const int32_t *doc,         /* (B,T) */
                           const attention *a);

/* delta = rowsum(dO * O) */
void cuda_attention_delta(backend *b, float *delta, /* (B,H,T) */
                          const void *d_o,          /* (N,H*D) x */
                          const void *o,            /* (N,H*D) x */
                          dtype x, const attention *a);

void cuda_attention_forward_bf16(backend *b, void *o, /* (N,H*D) */
                                 float *lse,          /* (B,H,T) */
                                 const void *qkv,     /* (N,(H+2K)*D) */
                                 const attention *a);
void cuda_attention_backward_bf16(backend *b, void *dqkv,               /* (N,(H+2K)*D) */
                                  const void *d_o,                      /* (N,H*D) */
                                  const float *lse, const float *delta, /* (B,H,T) */
                                  const void *qkv, const attention *a);

void cuda_attention_forward_f32(backend *b, void *o, float *lse, const void *qkv, const attention *a);
void cuda_attention_backward_f32(backend *b, void *dqkv, const void *d_o, const float *lse, const float *delta, const void *qkv,
                                 const attention *a);

#ifdef __cplusplus
}
#endif
#endif
