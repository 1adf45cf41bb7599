/* attention.c: attention by our own kernels: what a call is for them, and their scratch memory. */
#include <math.h>
#include <stdio.h>

#include "cuda/attention.h"
#include "util/arena.h"

int cuda_attention_open(backend *b, error *err) {
    (void)b, (void)err;
    return 0;
}

void cuda_attention_close(backend *b) { (void)b; }

/* What the kernels share between them. */
typedef struct statistics {
    int32_t *first, *last; /* (B,T) */
    float *delta;          /* (B,H,T) */
} statistics;

static statistics allocate(arena *memory, int B, int T, int H) {
    size_t N = (size_t)B * (size_t)T;
    statistics s;
    s.first = arena_alloc(memory, "attention", N * sizeof *s.first);
    s.last = arena_alloc(memory, "attention", N * sizeof *s.last);
    s.delta = arena_alloc(memory, "attention", N * (size_t)H * sizeof *s.delta);
    return s;
}

size_t cuda_attention_scratch(const backend *b, const op_limits *limits) {
    (void)b;
    if (limits->K == 0) return 0;
    arena dry = arena_dry();
    allocate(&dry, limits->B, limits->T, limits->H);
    return dry.peak;
}

/* A call for the kernels, with its memory, and the bounds of its documents found. False, and the failure kept: not a head size
 * of theirs. */
static bool begin(backend *b, attention *a, statistics *s, const int32_t *doc, int window, int B, int T, int H, int K, int D) {
    if (D > ATTENTION_MAX_D) {
        char why[80];
        snprintf(why, sizeof why, "model.head_dim is %d, and the CUDA backend takes at most %d", D, ATTENTION_MAX_D);
        cuda_fail(b, "attention", why);
        return false;
    }
    *a = (attention){.B = B, .T = T, .H = H, .K = K, .D = D, .window = window > 0 && window < T ? window : T};
    a->row = (int64_t)(H + 2 * K) * D;
    a->scale = 1.0f / sqrtf((float)D);
    arena scratch = arena_on(b->scratch, b->scratch_bytes);
    *s = allocate(&scratch, B, T, H);
    if (doc) {
        cuda_attention_bounds(b, s->first, s->last, doc, a);
        a->first = s->first, a->last = s->last;
    }
    return true;
}

void cuda_attention_forward(backend *b, void *o, float *lse, const void *qkv, const int32_t *doc, int window, dtype x, int B,
                            int T, int H, int K, int D) {
    attention a;
    statistics s;
    if (!begin(b, &a, &s, doc, window, B, T, H, K, D)) return;
    if (x == DTYPE_F32)
        cuda_attention_forward_f32(b, o, lse, qkv, &a);
    else
        cuda_attention_forward_bf16(b, o, lse, qkv, &a);
}

void cuda_attention_backward(backend *b, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv,
                             const int32_t *doc, int window, dtype x, int B, int T, int H, int K, int D) {
    attention a;
    statistics s;
    if (!begin(b, &a, &s, doc, window, B, T, H, K, D)) return;
    cuda_attention_delta(b, s.delta, d_o, o, x, &a);
    if (x == DTYPE_F32)
        cuda_attention_backward_f32(b, dqkv, d_o, lse, s.delta, qkv, &a);
    else
        cuda_attention_backward_bf16(b, dqkv, d_o, lse, s.delta, qkv, &a);
}
