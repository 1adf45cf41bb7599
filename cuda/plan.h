/* plan.h: what a plan must know of the CUDA backend, also in a build that has only cuda/none.c of it. Without CUDA's headers. */
#ifndef MOBILELLM_CUDA_PLAN_H
#define MOBILELLM_CUDA_PLAN_H

#include "ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cuBLASLt's workspace, NVIDIA's advice for Hopper; the most that cuDNN's may be. */
enum { CUDA_GEMM_WORKSPACE = 32 << 20, CUDA_ATTENTION_WORKSPACE = 512 << 20 };

/* What the kernels take. Heads above CUDA_OWN_HEAD_DIM are for cuDNN's attention alone. */
enum {
    CUDA_MOST_D_MODEL = 8192,
    CUDA_MOST_HEAD_DIM = 256,
    CUDA_OWN_HEAD_DIM = 128,
    CUDA_MOST_ROWS = 65535,
    CUDA_MOST_T = 1 << 20
};

/* 8192 rows of the largest vocabulary: with fewer, adding up the head's gradient costs more than its products. */
#define CUDA_HEAD_LOGITS ((int64_t)8192 * 202048)

/* By arithmetic, not measured: while an H100's links move the 4 bytes of a gradient at 330 GB/s, its backward pass takes the 4
 * operations of that weight for 1,200 tokens at 400 TFLOP/s; and what runs beside something else slows both. The tests' networks
 * have few tokens: tests/emu/emu.mk. */
#ifndef CUDA_OVERLAP_TOKENS
#define CUDA_OVERLAP_TOKENS 3072
#endif

/* Is there anything in such a run that cuDNN is asked for? */
bool cuda_asks_cudnn(const op_limits *limits);

/* Bytes that cuDNN wants for all rows of these sizes at once, at most. */
double cuda_cudnn_workspace(const op_limits *limits);

/* What such a run gives it, at most: with less than all rows want, it takes fewer at once. */
size_t cuda_planned_cudnn(const op_limits *limits);

/* Scratch memory of the backend, nearly: of its ops, GEMMs and attention (two bounds and H sums a token) need the most. */
size_t cuda_planned_scratch(const op_limits *limits);

/* -1: sizes that the kernels do not take. What only a GPU with cuDNN can tell is let pass. */
int cuda_check_sizes(const op_limits *limits, error *err);

#ifdef __cplusplus
}
#endif
#endif
