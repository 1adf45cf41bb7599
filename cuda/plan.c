/* plan.c: what a run takes of a GPU that need not be here. In every build, beside the rest of cuda/ or cuda/none.c. */
#include "cuda/plan.h"

#include <limits.h>

bool cuda_asks_cudnn(const op_limits *l) {
    return l->x == DTYPE_BF16 && !l->documents && l->D % 8 == 0 && (l->full || l->window > 0);
}

static size_t tiled(int n) { return ((size_t)n + 63) / 64 * 64; }

/* Its deterministic backward pass holds the gradients of the scores in bf16, those of the queries (or, as many bytes, of the keys
 * and values of each query head) in fp32, and a sum a query; forward nearly nothing. `make cudnn-plans` compares this with what
 * cuDNN 9.19 says. */
double cuda_cudnn_workspace(const op_limits *l) {
    double T = (double)tiled(l->T), a_query = 2 * T + (double)sizeof(float) * (double)(tiled(l->D) + 1);
    return 1024 + (l->training ? (double)l->B * l->H * T * a_query : 0);
}

size_t cuda_planned_cudnn(const op_limits *l) {
    double bytes = cuda_asks_cudnn(l) ? cuda_cudnn_workspace(l) : 0;
    return bytes < CUDA_ATTENTION_WORKSPACE ? (size_t)bytes : CUDA_ATTENTION_WORKSPACE;
}

size_t cuda_planned_scratch(const op_limits *l) {
    size_t needs[] = {CUDA_GEMM_WORKSPACE, (size_t)l->B * (size_t)l->T * (2 + (size_t)l->H) * sizeof(float),
                      cuda_planned_cudnn(l)};
    size_t largest = 0;
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++)
        if (needs[i] > largest) largest = needs[i];
    return largest;
}

int cuda_check_sizes(const op_limits *l, error *err) {
    bool attention = l->full || l->window > 0;
    const struct {
        const char *key;
        int64_t found, most;
    } sizes[] = {{"model.d_model", l->C, CUDA_MOST_D_MODEL},
                 {"model.head_dim", attention ? l->D : 0, CUDA_MOST_HEAD_DIM},
                 {"batch.micro (of `eval`: --batch)", l->B, CUDA_MOST_ROWS},
                 {"data.seq_len (of `eval`: --seq-len)", l->T, CUDA_MOST_T},
                 {"the tokens of a micro-batch (batch.micro x data.seq_len)", (int64_t)l->B * l->T, INT_MAX}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].found > sizes[i].most)
            return error_set(err, STATUS_USAGE,
                             "%s: found %lld, and the kernels for GPUs take at most %lld. Use less, or device: cpu.",
                             sizes[i].key, (long long)sizes[i].found, (long long)sizes[i].most);
    if (!attention || l->D <= CUDA_OWN_HEAD_DIM || cuda_asks_cudnn(l)) return 0;
    return error_set(
        err, STATUS_USAGE,
        "model.head_dim: found %d, and our attention kernels for GPUs take at most %d. cuDNN may take more, where it is\n"
        "asked: with dtype: bf16, data.mask_documents: false, and a multiple of 8. Or use device: cpu.",
        l->D, CUDA_OWN_HEAD_DIM);
}
