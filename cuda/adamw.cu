/* adamw.cu: one step of AdamW over a flat array of parameters, and what it needs to know of all gradients.
 *
 * Bound by memory (30 bytes an element with bf16 parameters and a master copy, 28 without), so everything is one pass. The
 * clipping factor and the step's number stay on the device: the host never waits for the norm of the gradients. */
#include <assert.h>

#include <type_traits>

#include "cuda/device.cuh"
#include "util/philox.h"

static __global__ void begin_step(adamw_state *state, const double *sum_squares, float max_norm, float beta1, float beta2) {
    double squares = *sum_squares;
    if (!isfinite(squares)) {
        state->scale = NAN;
        return;
    }
    state->scale = max_norm == 0 ? 1.0f : (float)fmin(1.0, (double)max_norm / (sqrt(squares) + 1e-6));
    double t = (double)++state->t;
    state->rate = 1.0 / (1.0 - pow((double)beta1, t));
    state->root = 1.0 / sqrt(1.0 - pow((double)beta2, t));
}

void cuda_adamw_begin(backend *b, adamw_state *state, const double *sum_squares, float max_norm, float beta1, float beta2) {
    LAUNCH(b, begin_step, 1, 1, 0, state, sum_squares, max_norm, beta1, beta2);
}

constexpr int THREADS = block_threads(256);

/* What is the same for all elements and steps, worked out in double. */
typedef struct adamw_factors {
    float lr, keep, beta1, new1, beta2, new2, eps;
} adamw_factors;

/* Which random bits p is rounded with; t is known on the device. */
typedef struct rounding {
    uint64_t key;
    int64_t first, t;
} rounding;

/* The new value of w; m and v on the way. */
static __device__ __forceinline__ float update(float w, float &m, float &v, float gradient, float rate, float root,
                                               const adamw_factors &f) {
    m = f.beta1 * m + f.new1 * gradient;
    v = f.beta2 * v + f.new2 * gradient * gradient;
    return w * f.keep - rate * m / (sqrtf(v) * root + f.eps);
}

/* p = w rounded by chance. Eight elements begin where a block of random bits does. */
template <typename A>
static __device__ __forceinline__ void store_stochastic(void *p, int64_t at, const float (&w)[A::W], const rounding &r) {
    static_assert(A::W == 1 || A::W == PHILOX_HALVES, "a block of random bits, or one element's part of it");
    int64_t i = r.first + at;
    uint32_t words[4];
    philox(words, r.key, (uint64_t)r.t, (uint64_t)(i / PHILOX_HALVES));
    pack<A> rounded;
    if constexpr (A::W == 1) {
        uint32_t word = i & 4 ? (i & 2 ? words[3] : words[2]) : (i & 2 ? words[1] : words[0]);
        rounded.element[0] = __ushort_as_bfloat16(bf16_stochastic(w[0], philox_half(word, (uint32_t)i)));
    } else {
#pragma unroll
        for (int k = 0; k < A::W; k++)
            rounded.element[k] = __ushort_as_bfloat16(bf16_stochastic(w[k], philox_half(words[k / 2], (uint32_t)k)));
    }
    store_pack<A>(p, at, rounded);
}

/* A thread has the elements at .. at + W; the last one of an array that does not divide takes its few one by one. */
template <typename A, bool STOCHASTIC>
static __device__ __forceinline__ void update_pack(void *p, float *master, float *m, float *v, const float *g, int64_t at,
                                                   float scale, float rate, float root, const adamw_factors &factors,
                                                   const rounding &r) {
    typedef access<float, A::W> floats;
    float *weights = master ? master : static_cast<float *>(p);
    float w[A::W], m_pack[A::W], v_pack[A::W], g_pack[A::W];
    load<floats>(w, weights, at);
    load<floats>(m_pack, m, at);
    load<floats>(v_pack, v, at);
    load<floats>(g_pack, g, at);
#pragma unroll
    for (int i = 0; i < A::W; i++) w[i] = update(w[i], m_pack[i], v_pack[i], g_pack[i] * scale, rate, root, factors);
    store<floats>(m, at, m_pack);
    store<floats>(v, at, v_pack);
    if constexpr (STOCHASTIC)
        store_stochastic<A>(p, at, w, r);
    else
        store<A>(p, at, w);
    if (master) store<floats>(master, at, w);
}

template <typename A, bool STOCHASTIC>
__global__ void __launch_bounds__(THREADS)
    adamw(void *p, float *master, float *m, float *v, const float *g, const adamw_state *__restrict__ state,
          adamw_factors factors, rounding r, int64_t n) {
    float scale = state->scale, rate = (float)((double)factors.lr * state->rate), root = (float)state->root;
    if (!isfinite(scale)) return;
    if (STOCHASTIC) r.t = state->t;
    int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * A::W;
    if (at + A::W <= n)
        update_pack<A, STOCHASTIC>(p, master, m, v, g, at, scale, rate, root, factors, r);
    else
        for (; at < n; at++)
            update_pack<access<typename A::X, 1>, STOCHASTIC>(p, master, m, v, g, at, scale, rate, root, factors, r);
}

void cuda_adamw(backend *b, void *p, float *master, float *m, float *v, const float *g, const adamw_state *state,
                const adamw_step *step, dtype x, int64_t n) {
    assert(master || x == DTYPE_F32);
    if (n == 0) return;
    double beta1 = (double)step->beta1, beta2 = (double)step->beta2, decay = (double)step->lr * (double)step->weight_decay;
    adamw_factors factors = {step->lr,    (float)(1.0 - decay), step->beta1, (float)(1.0 - beta1),
                             step->beta2, (float)(1.0 - beta2), step->eps};
    rounding r = {step->key, step->first, 0};
    bool wide = wide_rows(DTYPE_F32, 0, p, master, m, v, g);
    auto launch = [&](auto a, auto stochastic) {
        typedef decltype(a) A;
        constexpr bool STOCHASTIC = decltype(stochastic)::value;
        LAUNCH(b, (adamw<A, STOCHASTIC>), blocks_of(n, THREADS * A::W), THREADS, 0, p, master, m, v, g, state, factors, r, n);
    };
    /* Four at a time in both formats: more of m, v and g in registers make no more bytes move. Eight where they share random
     * bits. */
    if (x == DTYPE_F32)
        wide ? launch(access<float, 4>(), std::false_type()) : launch(access<float, 1>(), std::false_type());
    else if (!step->stochastic)
        wide ? launch(access<__nv_bfloat16, 4>(), std::false_type()) : launch(access<__nv_bfloat16, 1>(), std::false_type());
    else if (wide && step->first % PHILOX_HALVES == 0)
        launch(access<__nv_bfloat16, 8>(), std::true_type());
    else
        launch(access<__nv_bfloat16, 1>(), std::true_type());
}
