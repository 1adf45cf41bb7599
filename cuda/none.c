/* none.c: stands for the whole of cuda/ in a build without the CUDA compiler. It can be planned for, but not opened. */
#include "cuda/plan.h"

static int open_none(backend **b, int threads, int local_rank, error *err) {
    (void)b, (void)threads, (void)local_rank;
    return error_set(err, STATUS_USAGE,
                     "device: cuda, but this program was built without CUDA. Build it again with a CUDA compiler:\n"
                     "make setup-cuda, then make. Or use device: cpu.");
}

static size_t scratch_bytes(backend *b, const op_limits *limits) {
    (void)b;
    return cuda_planned_scratch(limits);
}

static int check_sizes(backend *b, const op_limits *limits, error *err) {
    (void)b;
    return cuda_check_sizes(limits, err);
}

const ops *cuda_ops(void) {
    static const ops table = {.name = "cuda",
                              .run_ahead = 1,
                              .head_logits = CUDA_HEAD_LOGITS,
                              .overlap_tokens = CUDA_OVERLAP_TOKENS,
                              .open = open_none,
                              .check_sizes = check_sizes,
                              .scratch_bytes = scratch_bytes};
    return &table;
}

bool cuda_available(void) { return false; }

void cuda_report(FILE *to) { fprintf(to, "CUDA: not in this build (make setup-cuda, then make)\n"); }
