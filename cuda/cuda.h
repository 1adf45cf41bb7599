/* cuda.h: what the files of the CUDA backend share. Nothing outside cuda/ includes it; the contract is ops.h.
 *
 * GEMMs are cuBLASLt's, attention cuDNN's where it has a plan and our own otherwise, collectives NCCL's; everything else are our
 * kernels (*.cu), each launched on the one stream of ops. None of these libraries is linked: see libraries.h. */
#ifndef MOBILELLM_CUDA_CUDA_H
#define MOBILELLM_CUDA_CUDA_H

#include <cuda_runtime_api.h>

#include "ops.h"

#ifdef __cplusplus
extern "C" {
#endif

struct libraries;       /* cuda/libraries.c: the libraries opened at run time, and their functions */
struct gemm_cache;      /* cuda/gemm.c: descriptors and algorithms by shape */
struct attention_plans; /* cuda/attention.c: what cuDNN has been asked for */
struct collectives;     /* cuda/collectives.c: the communicator and its stream */
struct transfers;       /* cuda/transfers.c: pinned memory between host and device */

struct backend {
    int device;
    int n_sm;       /* multiprocessors: what a grid that strides is sized by */
    int capability; /* compute capability, 90 for 9.0 */
    cudaStream_t stream;
    cudaEvent_t all_done; /* of sync */
    struct libraries *libraries;
    struct gemm_cache *gemms;
    struct attention_plans *attention;
    struct collectives *collectives; /* NULL: one rank */
    struct transfers *transfers;
    char *scratch; /* lent by the caller */
    size_t scratch_bytes;
    error failure;  /* the first one since the last sync; code STATUS_OK if none */
    char name[256]; /* of the GPU */
    char description[512];
};

/* ---- failures ---- */

/* Keeps the first failure for `sync` and `fetch` to report. */
void cuda_fail(backend *b, const char *what, const char *why);

/* After a launch or a call of the runtime: keeps its error, if it is one. */
void cuda_check(backend *b, const char *what, cudaError_t result);

/* Gives the failure that is kept, and forgets it. 0: there is none. */
int cuda_report_failure(backend *b, error *err);

/* The host waits until the device has passed the event. It asks again and again rather than sleep in the runtime, because work
 * that waits for a rank that is gone never ends: a failure of the collectives ends the wait. -1: it ended so, or the work of the
 * device failed. */
int cuda_wait(backend *b, cudaEvent_t event);

/* The first `bytes` of scratch memory. Ops run one after the other, so all use it from its start. */
void *cuda_scratch(backend *b, size_t bytes);

/* ---- memory and transfers (transfers.c) ---- */

int cuda_transfers_open(backend *b, error *err);
void cuda_transfers_close(backend *b);
void cuda_copy_in(backend *b, void *device, const void *host, size_t bytes);
void cuda_copy_out(backend *b, void *host, const void *device, size_t bytes);
void cuda_post(backend *b, const void *device, size_t bytes);
int cuda_fetch(backend *b, void *host, size_t bytes, error *err);

/* ---- collectives (collectives.c) ---- */

int cuda_connect(backend *b, const struct ranks *world, error *err);
void cuda_disconnect(backend *b);
int64_t cuda_reduce_scatter(backend *b, float *buffer, int64_t n);
int64_t cuda_all_gather(backend *b, void *buffer, size_t bytes);
void cuda_all_sum(backend *b, double *values, int n);
void cuda_join(backend *b, int64_t ticket);
void cuda_join_all(backend *b);

/* 0, or -1 when a collective has failed: keeps the reason, and ends what the device still has of them. */
int cuda_poll_collectives(backend *b);

/* Around the host's wait for a result, which depends on all ranks: see ranks_enter. */
void cuda_enter_wait(backend *b);
void cuda_leave_wait(backend *b);

/* ---- linear layers (gemm.c) ---- */

int cuda_gemm_open(backend *b, error *err);
void cuda_gemm_close(backend *b);
size_t cuda_gemm_scratch(void);
void cuda_gemm_tune(backend *b, bool on);                               /* see tune in ops.h */
int cuda_gemm_share(backend *b, const struct ranks *world, error *err); /* collective: see gemm_choices_share */
void cuda_linear_forward(backend *b, void *y, const void *in, const void *w, dtype x, int64_t N, int I, int64_t O);
void cuda_linear_backward_input(backend *b, void *din, const void *dy, const void *w, dtype x, int64_t N, int I, int64_t O);
void cuda_linear_backward_weight(backend *b, float *dw, const void *dy, const void *in, bool accumulate, dtype x, int64_t N,
                                 int I, int64_t O);

/* ---- attention (attention.c) ---- */

int cuda_attention_open(backend *b, error *err);
void cuda_attention_close(backend *b);
const char *cuda_attention_describe(backend *b);                                 /* see describe_attention in ops.h */
int cuda_attention_check(const backend *b, const op_limits *limits, error *err); /* see check_sizes in ops.h */
size_t cuda_attention_scratch(const backend *b, const op_limits *limits); /* b NULL: the most it may be on a GPU with cuDNN */
void cuda_attention_forward(backend *b, void *o, float *lse, const void *qkv, const int32_t *doc, int window, dtype x, int B,
                            int T, int H, int K, int D);
void cuda_attention_backward(backend *b, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv,
                             const int32_t *doc, int window, dtype x, int B, int T, int H, int K, int D);

/* ---- kernels of our own, by file; each says how much scratch memory it needs ---- */

/* Sums over tokens are taken in blocks of this many, and the blocks' sums added in order: bits depend on N, not on the device. */
enum { TOKEN_BLOCK = 32 };
static inline int64_t cuda_token_blocks(int64_t N) { return (N + TOKEN_BLOCK - 1) / TOKEN_BLOCK; }

/* dw (+)= the sum of the partials, in a fixed order; n floats each, `stride` floats apart. */
void cuda_add_partials(backend *b, float *dw, const float *partials, int64_t n_partials, int64_t stride, int n, bool accumulate);

size_t cuda_embedding_scratch(const op_limits *limits);
void cuda_embedding_forward(backend *b, void *y, const int32_t *tokens, const void *w, dtype x, int64_t N, int C);
void cuda_embedding_backward(backend *b, float *dw, const void *dy, const int32_t *tokens, dtype x, int64_t N, int C,
                             int64_t first, int64_t V);

size_t cuda_rmsnorm_scratch(const op_limits *limits); /* C: up to CUDA_MOST_D_MODEL */
void cuda_rmsnorm_forward(backend *b, void *y, float *rstd, void *h_out, const void *h, const void *delta, const void *w,
                          float eps, dtype x, int64_t N, int C);
void cuda_rmsnorm_backward(backend *b, void *dh, float *dw, const void *dy, const void *h, const float *rstd, const void *w,
                           bool accumulate, dtype x, int64_t N, int C);

size_t cuda_qk_rope_scratch(const op_limits *limits); /* D: even, up to CUDA_MOST_HEAD_DIM */
void cuda_qk_rope_forward(backend *b, void *qkv, void *raw, float *rstd, const void *wq, const void *wk, const float *cosines,
                          const float *sines, const int32_t *pos, qk_norm norm, rope_pairs pairs, float eps, dtype x, int64_t N,
                          int H, int K, int D);
void cuda_qk_rope_backward(backend *b, void *dqkv, float *dwq, float *dwk, const void *qkv, const void *raw, const float *rstd,
                           const void *wq, const void *wk, const float *cosines, const float *sines, const int32_t *pos,
                           bool accumulate, qk_norm norm, rope_pairs pairs, dtype x, int64_t N, int H, int K, int D);

void cuda_swiglu_forward(backend *b, void *y, const void *gate_up, dtype x, int64_t N, int F);
void cuda_swiglu_backward(backend *b, void *gate_up, void *dy_y, dtype x, int64_t N, int F);

void cuda_cross_entropy(backend *b, float *losses, float *z_losses, void *z, const int32_t *targets, float scale, float z_loss,
                        bool backward, dtype x, int64_t N, int64_t V);

size_t cuda_reduce_scratch(void); /* of sum and sum_squares */
void cuda_sum(backend *b, double *total, const float *values, int64_t n);
void cuda_sum_squares(backend *b, double *total, const float *values, int64_t n);
void cuda_to_float(backend *b, float *y, const void *in, dtype x, int64_t n);
void cuda_from_float(backend *b, void *y, const float *in, dtype x, int64_t n);

void cuda_adamw_begin(backend *b, adamw_state *state, const double *sum_squares, float max_norm, float beta1, float beta2);
void cuda_adamw(backend *b, void *p, float *master, float *m, float *v, const float *g, const adamw_state *state,
                const adamw_step *step, dtype x, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
