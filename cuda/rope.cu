/* rope.cu: the normalisation and rotation of query and key heads, forward and backward.
 *
 * Bound by memory: one pass over the heads, in place. A warp takes a token, whose cosines and sines its lanes keep for all the
 * heads; a head of 64 bf16 numbers is four lanes' work, so a warp has eight at a time. A lane holds whole pairs whichever way
 * they are laid out, and the arithmetic does not know the layout. The weight gradients of the rms norm are summed by a block over
 * a fixed number of tokens, and the blocks' sums are added in order by a second kernel. */
#include <assert.h>

#include "cuda/device.cuh"
#include "cuda/plan.h"

constexpr int BLOCK = block_threads(256);
constexpr int WARPS = BLOCK / WARP;
constexpr int MOST_D = CUDA_MOST_HEAD_DIM;

/* How many times W pairs a lane has of a head: with wide accesses a warp holds a head of MOST_D. */
template <int W>
constexpr int SLOTS = W == 1 ? MOST_D / 2 / WARP : 1;

constexpr int64_t NO_HEAD = -1; /* where a head starts that a lane has not: it reads zeros and writes nothing */

/* What the heads of one call have in common. */
typedef struct rope_call {
    qk_norm norm;
    rope_pairs pairs;
    float eps;
    int H, K, D;
    int lanes; /* of a warp that share a head: a power of two */
} rope_call;

/* What a lane holds of a head: both elements of its pairs, or a number for each of them. */
template <int W>
struct pairs_of {
    float first[SLOTS<W>][W], second[SLOTS<W>][W];
};

#define FOR_PAIRS(W, s, i) _Pragma("unroll") for (int s = 0; s < SLOTS<W>; s++) _Pragma("unroll") for (int i = 0; i < W; i++)

/* The first pair of a lane's slot; if it is D/2 or more, the slot is empty. */
template <int W>
static __device__ __forceinline__ int pair_of(int slot, const rope_call &call) {
    return (slot * call.lanes + (int)threadIdx.x % call.lanes) * W;
}

/* The pairs of the head that starts at `at`. Interleaved, two packs that lie together hold a b a b ..; else one holds the first
 * elements and one the second ones. */
template <typename A>
static __device__ __forceinline__ void load_pairs(pairs_of<A::W> &u, const void *array, int64_t at, const rope_call &call) {
    constexpr int W = A::W;
    bool apart = call.pairs == ROPE_HALF;
    int half = call.D / 2;
#pragma unroll
    for (int s = 0; s < SLOTS<W>; s++) {
        int p = pair_of<W>(s, call);
        bool mine = at != NO_HEAD && p < half;
        pack<A> low = mine ? load_pack<A>(array, at + (apart ? p : 2 * p)) : zero_pack<A>();
        pack<A> high = mine ? load_pack<A>(array, at + (apart ? p + half : 2 * p + W)) : zero_pack<A>();
        float f[2 * W];
#pragma unroll
        for (int i = 0; i < 2 * W; i++) f[i] = to_float(i < W ? low.element[i % W] : high.element[i % W]);
#pragma unroll
        for (int i = 0; i < W; i++) {
            u.first[s][i] = apart ? f[i] : f[2 * i];
            u.second[s][i] = apart ? f[W + i] : f[2 * i + 1];
        }
    }
}

template <typename A>
static __device__ __forceinline__ void store_pairs(void *array, int64_t at, const pairs_of<A::W> &u, const rope_call &call) {
    constexpr int W = A::W;
    bool apart = call.pairs == ROPE_HALF;
    int half = call.D / 2;
#pragma unroll
    for (int s = 0; s < SLOTS<W>; s++) {
        int p = pair_of<W>(s, call);
        if (at == NO_HEAD || p >= half) continue;
        float low[W], high[W];
#pragma unroll
        for (int i = 0; i < W; i++) {
            int j = W + i;
            low[i] = apart || i % 2 == 0 ? u.first[s][apart ? i : i / 2] : u.second[s][i / 2];
            high[i] = apart || j % 2 == 1 ? u.second[s][apart ? i : j / 2] : u.first[s][j / 2];
        }
        store<A>(array, at + (apart ? p : 2 * p), low);
        store<A>(array, at + (apart ? p + half : 2 * p + W), high);
    }
}

/* The cosines and sines of the lane's pairs, as first and second. */
template <int W>
static __device__ __forceinline__ pairs_of<W> load_angles(const float *cosines, const float *sines, int32_t pos,
                                                          const rope_call &call) {
    pairs_of<W> angles = {};
    int half = call.D / 2;
#pragma unroll
    for (int s = 0; s < SLOTS<W>; s++) {
        int p = pair_of<W>(s, call);
        if (p >= half) continue;
        load<access<float, W>>(angles.first[s], cosines, (int64_t)pos * half + p);
        load<access<float, W>>(angles.second[s], sines, (int64_t)pos * half + p);
    }
    return angles;
}

/* u = R u; with -1 for `direction`, u = R^-1 u. */
template <int W>
static __device__ __forceinline__ void rotate(pairs_of<W> &u, const pairs_of<W> &angles, float direction) {
    FOR_PAIRS(W, s, i) {
        float a = u.first[s][i], b = u.second[s][i], cosine = angles.first[s][i], sine = direction * angles.second[s][i];
        u.first[s][i] = a * cosine - b * sine;
        u.second[s][i] = b * cosine + a * sine;
    }
}

/* u *= v, number by number */
template <int W>
static __device__ __forceinline__ void multiply(pairs_of<W> &u, const pairs_of<W> &v) {
    FOR_PAIRS(W, s, i) {
        u.first[s][i] *= v.first[s][i];
        u.second[s][i] *= v.second[s][i];
    }
}

/* The mean over the head of u * v. */
template <int W>
static __device__ __forceinline__ float mean_product(const pairs_of<W> &u, const pairs_of<W> &v, const rope_call &call) {
    float total = 0;
    FOR_PAIRS(W, s, i) total += u.first[s][i] * v.first[s][i] + u.second[s][i] * v.second[s][i];
    return group_sum(total, call.lanes) / (float)call.D;
}

/* Calls f(call, a) with the access and the number of lanes that suit heads of D. */
template <typename F>
static void with_lanes(dtype x, bool wide, rope_call call, F f) {
    assert(call.D <= MOST_D && call.D % 2 == 0);
    with_access(x, wide, [&](auto a) {
        call.lanes = 1;
        while (call.lanes < WARP && call.lanes * decltype(a)::W < call.D / 2) call.lanes *= 2;
        f(call, a);
    });
}

/* ---- forward ---- */

template <typename A>
__global__ void __launch_bounds__(BLOCK, 3)
    rope_forward(void *qkv, void *__restrict__ raw, float *__restrict__ rstd, const void *__restrict__ wq,
                 const void *__restrict__ wk, const float *__restrict__ cosines, const float *__restrict__ sines,
                 const int32_t *__restrict__ pos, rope_call call, int64_t N) {
    constexpr int W = A::W;
    int64_t n = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (n >= N) return;
    pairs_of<W> angles = load_angles<W>(cosines, sines, pos[n], call);
    int heads = call.H + call.K, D = call.D;
    for (int first = 0; first < heads; first += WARP / call.lanes) {
        int head = first + (int)threadIdx.x % WARP / call.lanes;
        bool mine = head < heads;
        int64_t index = n * heads + head, at = mine ? (n * (heads + call.K) + head) * D : NO_HEAD;
        pairs_of<W> u, w;
        load_pairs<A>(u, qkv, at, call);
        if (call.norm == QK_NORM_RMS) store_pairs<A>(raw, mine ? index * D : NO_HEAD, u, call);
        if (call.norm != QK_NORM_NONE) {
            float r = 1.0f / sqrtf(mean_product(u, u, call) + call.eps);
            if (mine && threadIdx.x % call.lanes == 0) rstd[index] = r;
            FOR_PAIRS(W, s, i) u.first[s][i] *= r, u.second[s][i] *= r;
        }
        if (call.norm == QK_NORM_RMS) {
            load_pairs<A>(w, head < call.H ? wq : wk, 0, call);
            multiply(u, w);
        }
        rotate(u, angles, 1);
        store_pairs<A>(qkv, at, u, call);
    }
}

void cuda_qk_rope_forward(backend *b, void *qkv, void *raw, float *rstd, const void *wq, const void *wk, const float *cosines,
                          const float *sines, const int32_t *pos, qk_norm norm, rope_pairs pairs, float eps, dtype x, int64_t N,
                          int H, int K, int D) {
    rope_call all = {norm, pairs, eps, H, K, D, 0};
    with_lanes(x, wide_rows(x, D / 2, qkv, raw, wq, wk, cosines, sines), all, [&](rope_call call, auto a) {
        LAUNCH(b, rope_forward<decltype(a)>, blocks_of(N, WARPS), BLOCK, 0, qkv, raw, rstd, wq, wk, cosines, sines, pos, call, N);
    });
}

/* ---- backward ---- */

size_t cuda_qk_rope_scratch(const op_limits *limits) {
    return (size_t)cuda_token_blocks((int64_t)limits->B * limits->T) * 2 * (size_t)limits->D * sizeof(float);
}

/* g = r * (g - u * pull): what a norm leaves of a gradient */
template <int W>
static __device__ __forceinline__ void norm_gradient(pairs_of<W> &g, const pairs_of<W> &u, float r, float pull) {
    FOR_PAIRS(W, s, i) {
        g.first[s][i] = r * (g.first[s][i] - u.first[s][i] * pull);
        g.second[s][i] = r * (g.second[s][i] - u.second[s][i] * pull);
    }
}

/* dw += g * u * factor */
template <int W>
static __device__ __forceinline__ void add_products(pairs_of<W> &dw, const pairs_of<W> &g, const pairs_of<W> &u, float factor) {
    FOR_PAIRS(W, s, i) {
        dw.first[s][i] += g.first[s][i] * u.first[s][i] * factor;
        dw.second[s][i] += g.second[s][i] * u.second[s][i] * factor;
    }
}

/* du from dy, in place in dqkv. l2 goes through the output, y = R u * rstd: du = R^-1 (rstd * (dy - y * mean(dy*y))), for which
 * the head before the norm need not be kept. rms: g = R^-1 dy, n = u*rstd; du = rstd * (g*w - n * mean(g*w*n)), dw += g*n. */
template <typename A>
static __device__ __forceinline__ void head_backward(void *dqkv, const void *qkv, int64_t at, const void *raw, int64_t raw_at,
                                                     float r, const void *w, pairs_of<A::W> &dwq, pairs_of<A::W> &dwk, bool query,
                                                     const pairs_of<A::W> &angles, const rope_call &call) {
    pairs_of<A::W> g, u, weight;
    load_pairs<A>(g, dqkv, at, call);
    if (call.norm == QK_NORM_RMS) {
        load_pairs<A>(u, raw, raw_at, call);
        load_pairs<A>(weight, w, 0, call);
        rotate(g, angles, -1);
        add_products(dwq, g, u, query ? r : 0); /* both, so that they stay in registers */
        add_products(dwk, g, u, query ? 0 : r);
        multiply(g, weight);
        norm_gradient(g, u, r, mean_product(g, u, call) * r * r);
    } else if (call.norm == QK_NORM_L2) {
        load_pairs<A>(u, qkv, at, call);
        norm_gradient(g, u, r, mean_product(g, u, call));
        rotate(g, angles, -1);
    } else {
        rotate(g, angles, -1);
    }
    store_pairs<A>(dqkv, at, g, call);
}

/* sums (D) = dw, over the heads that the warp had at the same time */
template <int W>
static __device__ __forceinline__ void add_groups(float *sums, pairs_of<W> &dw, const rope_call &call) {
    for (int step = call.lanes; step < WARP; step *= 2) FOR_PAIRS(W, s, i) {
            dw.first[s][i] += __shfl_xor_sync(0xffffffffu, dw.first[s][i], step);
            dw.second[s][i] += __shfl_xor_sync(0xffffffffu, dw.second[s][i], step);
        }
    store_pairs<access<float, W>>(sums, (int)threadIdx.x % WARP < call.lanes ? 0 : NO_HEAD, dw, call);
}

/* Block i takes the tokens of token block i; for rms, its sums for wq and wk become partials[i]. */
template <typename A>
__global__ void __launch_bounds__(BLOCK, 2)
    rope_backward(void *dqkv, float *__restrict__ partials /* (blocks,2,D) */, const void *__restrict__ qkv,
                  const void *__restrict__ raw, const float *__restrict__ rstd, const void *__restrict__ wq,
                  const void *__restrict__ wk, const float *__restrict__ cosines, const float *__restrict__ sines,
                  const int32_t *__restrict__ pos, rope_call call, int64_t N) {
    DYN_SMEM(float, sums); /* (WARPS,2,D) */
    constexpr int W = A::W;
    int heads = call.H + call.K, D = call.D, warp = threadIdx.x / WARP;
    int64_t start = (int64_t)blockIdx.x * TOKEN_BLOCK, end = start + TOKEN_BLOCK < N ? start + TOKEN_BLOCK : N;
    pairs_of<W> dwq = {}, dwk = {};
    for (int64_t n = start + warp; n < end; n += WARPS) {
        pairs_of<W> angles = load_angles<W>(cosines, sines, pos[n], call);
        for (int first = 0; first < heads; first += WARP / call.lanes) {
            int head = first + (int)threadIdx.x % WARP / call.lanes;
            bool mine = head < heads, query = head < call.H;
            int64_t index = n * heads + head;
            head_backward<A>(dqkv, qkv, mine ? (n * (heads + call.K) + head) * D : NO_HEAD, raw, mine ? index * D : NO_HEAD,
                             mine && rstd ? rstd[index] : 0, query ? wq : wk, dwq, dwk, query, angles, call);
        }
    }
    if (call.norm != QK_NORM_RMS) return;
    add_groups(sums + warp * 2 * D, dwq, call);
    add_groups(sums + warp * 2 * D + D, dwk, call);
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * D; i += BLOCK) {
        float total = 0;
        for (int w = 0; w < WARPS; w++) total += sums[w * 2 * D + i];
        partials[(int64_t)blockIdx.x * 2 * D + i] = total;
    }
}

void cuda_qk_rope_backward(backend *b, void *dqkv, float *dwq, float *dwk, const void *qkv, const void *raw, const float *rstd,
                           const void *wq, const void *wk, const float *cosines, const float *sines, const int32_t *pos,
                           bool accumulate, qk_norm norm, rope_pairs pairs, dtype x, int64_t N, int H, int K, int D) {
    rope_call all = {norm, pairs, 0, H, K, D, 0};
    bool rms = norm == QK_NORM_RMS;
    int64_t blocks = cuda_token_blocks(N);
    float *partials = rms ? (float *)cuda_scratch(b, (size_t)blocks * 2 * (size_t)D * sizeof(float)) : nullptr;
    with_lanes(x, wide_rows(x, D / 2, dqkv, qkv, raw, wq, wk, cosines, sines), all, [&](rope_call call, auto a) {
        LAUNCH(b, rope_backward<decltype(a)>, (unsigned)blocks, BLOCK, rms ? WARPS * 2 * (size_t)D * sizeof(float) : 0, dqkv,
               partials, qkv, raw, rstd, wq, wk, cosines, sines, pos, call, N);
    });
    if (!rms) return;
    cuda_add_partials(b, dwq, partials, blocks, 2 * D, D, accumulate);
    cuda_add_partials(b, dwk, partials + D, blocks, 2 * D, D, accumulate);
}
