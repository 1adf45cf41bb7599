/* none.c: stands for the whole of cuda/ in a build without the CUDA compiler. */
#include "ops.h"

static int open_none(backend **b, int threads, int local_rank, error *err) {
    (void)b, (void)threads, (void)local_rank;
    return error_set(err, STATUS_USAGE,
                     "device: cuda, but this program was built without CUDA. Build it again with a CUDA compiler:\n"
                     "make setup-cuda, then make. Or use device: cpu.");
}

const ops *cuda_ops(void) {
    static const ops table = {.name = "cuda", .open = open_none};
    return &table;
}

bool cuda_available(void) { return false; }

void cuda_report(FILE *to) { fprintf(to, "CUDA: not in this build (make setup-cuda, then make)\n"); }
