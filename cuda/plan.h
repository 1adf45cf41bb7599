/* plan.h: what a plan must know of the CUDA backend, also in a build that has only cuda/none.c of it. Without CUDA's headers. */
#ifndef MOBILELLM_CUDA_PLAN_H
#define MOBILELLM_CUDA_PLAN_H

#include "ops.h"

/* cuBLASLt's workspace: NVIDIA's advice for Hopper. */
enum { CUDA_GEMM_WORKSPACE = 32 << 20 };

/* 8192 rows of the largest vocabulary: with fewer, adding up the head's gradient costs more than its products. */
#define CUDA_HEAD_LOGITS ((int64_t)8192 * 202048)

/* By arithmetic, not measured: while an H100's links move the 4 bytes of a gradient at 330 GB/s, its backward pass takes the 4
 * operations of that weight for 1,200 tokens at 400 TFLOP/s; and what runs beside something else slows both. The tests' networks
 * have few tokens: tests/emu/emu.mk. */
#ifndef CUDA_OVERLAP_TOKENS
#define CUDA_OVERLAP_TOKENS 3072
#endif

/* Scratch memory of the backend, nearly: of its ops, GEMMs and attention (two bounds and H sums a token) need the most. */
static inline size_t cuda_planned_scratch(const op_limits *limits) {
    size_t attention = (size_t)limits->B * (size_t)limits->T * (2 + (size_t)limits->H) * sizeof(float);
    return attention > CUDA_GEMM_WORKSPACE ? attention : CUDA_GEMM_WORKSPACE;
}

#endif
