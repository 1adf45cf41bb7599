/* attention.c: attention by cuDNN where it has a plan for the shape, by our own kernels otherwise, and the memory of both.
 *
 * cuDNN is asked in bf16, for rows of one document, and head sizes that are multiples of 8; packed documents are our own kernels'.
 * Its backward pass that gives the same bits each time sums dq of every 128 keys in memory of its own, in proportion to T^2:
 * 285 MB for a row of 2,048 positions and 32 heads of 64. So it takes as many rows at once as WORKSPACE has room for, and if
 * that is none, our own backward pass, which needs no such memory, runs. The plans of the largest shape are made when scratch
 * memory is planned, those of another (a window, fewer rows) when it comes first: half a second of the host each.
 *
 * The environment variable MOBILELLM_ATTENTION says `own` or `cudnn`, for tests and comparisons: one of them always, and with
 * cudnn a failure where it refuses what it would have been asked for. */
#include "cuda/attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/attention_cudnn.h"
#include "util/arena.h"

static const size_t WORKSPACE = (size_t)512 << 20; /* bytes that a plan may run with */

enum { MAX_PLANS = 64 }; /* shapes of a run: each window, and its last batch, forward and backward */

/* What cuDNN has said to a shape. */
typedef struct answer {
    cudnn_shape shape; /* of the whole call */
    cudnn_plan *plan;  /* for `rows` of its B rows at once; NULL: refused */
    int rows;
} answer;

struct attention_plans {
    bool only_cudnn;
    cudnn_attention *cudnn; /* NULL: our own kernels only */
    int n;
    answer answers[MAX_PLANS];
    char notice[400]; /* why our own kernels run where cuDNN was asked; the first reason */
};

/* ---- opening ---- */

#ifdef MOBILELLM_CUDNN
static int open_cudnn(backend *b, error *err) {
    error none;
    (void)libraries_open(b->libraries, LIBRARY_NVRTC, &none); /* cuDNN opens it by its bare name, and so finds this one */
    if (libraries_open(b->libraries, LIBRARY_CUDNN, err)) return -1;
    return cudnn_attention_open(&b->attention->cudnn, b->libraries, b->stream, err);
}
#else
static int open_cudnn(backend *b, error *err) {
    (void)b;
    return error_set(err, STATUS_RESOURCE, "this program was built without cuDNN (make setup-cuda says what it lacked)");
}
void cudnn_attention_close(cudnn_attention *c) { (void)c; }
cudnn_plan *cudnn_plan_create(cudnn_attention *c, const cudnn_shape *shape, error *err) {
    (void)c, (void)shape, (void)err;
    return NULL;
}
void cudnn_plan_destroy(cudnn_plan *plan) { (void)plan; }
size_t cudnn_plan_workspace(const cudnn_plan *plan) { return (void)plan, 0; }
int cudnn_plan_forward(cudnn_plan *plan, void *o, float *lse, const void *qkv, void *workspace, error *err) {
    return (void)plan, (void)o, (void)lse, (void)qkv, (void)workspace, (void)err, -1;
}
int cudnn_plan_backward(cudnn_plan *plan, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv,
                        void *workspace, error *err) {
    return (void)plan, (void)dqkv, (void)d_o, (void)o, (void)lse, (void)qkv, (void)workspace, (void)err, -1;
}
#endif
