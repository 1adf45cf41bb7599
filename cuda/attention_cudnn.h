/* attention_cudnn.h: attention by cuDNN: plans for one shape each, made once and run often.
 *
 * bf16, rows of one document, causal, with or without a sliding window, grouped heads, D a multiple of 8; the backward pass by
 * the algorithm that gives the same bits each time. What cuDNN has no plan for it refuses, with its reason. */
#ifndef MOBILELLM_CUDA_ATTENTION_CUDNN_H
#define MOBILELLM_CUDA_ATTENTION_CUDNN_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#include "cuda/libraries.h"
#include "util/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cudnn_attention cudnn_attention; /* cuDNN, open for a GPU */
typedef struct cudnn_plan cudnn_plan;

typedef struct cudnn_shape {
    bool backward;
    int B, T, H, K, D;
    int window; /* keys that a query sees, itself included; T: all before it */
} cudnn_shape;

/* A table, because it may be missing: a program is built with it where cuDNN's headers are (scripts/cuda.mk). */
typedef struct cudnn_functions {
    /* l has LIBRARY_CUDNN open, and stays open. The GPU is the current one, work goes to the stream. In a process all of l are
     * the same library: cuDNN's frontend calls it by its functions' names, which lead to the one found last. */
    int (*open)(cudnn_attention **c, const libraries *l, cudaStream_t stream, error *err);

    /* For a GPU that is not here, by cuDNN's own description of it (JSON) and its compute capability: plans can be made, not run.
     */
    int (*open_described)(cudnn_attention **c, const libraries *l, const char *description, int capability, error *err);
    void (*close)(cudnn_attention *c);

    /* NULL: refused, for the reason in *err. Takes about half a second of the host. */
    cudnn_plan *(*plan)(cudnn_attention *c, const cudnn_shape *shape, error *err);
    void (*destroy)(cudnn_plan *plan);
    size_t (*workspace)(const cudnn_plan *plan); /* bytes it runs with */
    const char *(*name)(const cudnn_plan *plan); /* of cuDNN's engine */

    /* Arrays as in ops.h, of the shape's B rows. */
    int (*forward)(cudnn_plan *plan, void *o, float *lse, const void *qkv, void *workspace, error *err);
    int (*backward)(cudnn_plan *plan, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv,
                    void *workspace, error *err);
} cudnn_functions;

extern const cudnn_functions attention_by_cudnn;

#ifdef __cplusplus
}
#endif
#endif
