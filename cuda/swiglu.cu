/* swiglu.cu: the gated activation of the feed-forward network, forward and backward.
 *
 * Bound by memory. The backward pass reads gate, up and dy once and has everything at hand that the next two products need: the
 * gradients of gate and up, and y, which is cheaper to make again than to keep from the forward pass. */
#include "cuda/device.cuh"

constexpr int THREADS = block_threads(256);

static __device__ __forceinline__ float sigmoid(float a) { return 1.0f / (1.0f + expf(-a)); }

/* Block n takes token n. */
template <typename A>
__global__ void __launch_bounds__(THREADS) swiglu_forward(void *__restrict__ y, const void *__restrict__ gate_up, int F) {
    int64_t y_at = (int64_t)blockIdx.x * F, gate_at = 2 * y_at, up_at = gate_at + F;
    for (int f = threadIdx.x * A::W; f < F; f += THREADS * A::W) {
        float gate[A::W], up[A::W];
        load<A>(gate, gate_up, gate_at + f);
        load<A>(up, gate_up, up_at + f);
#pragma unroll
        for (int i = 0; i < A::W; i++) gate[i] = gate[i] * sigmoid(gate[i]) * up[i];
        store<A>(y, y_at + f, gate);
    }
}

template <typename A>
__global__ void __launch_bounds__(THREADS) swiglu_backward(void *gate_up, void *dy_y, int F) {
    int64_t y_at = (int64_t)blockIdx.x * F, gate_at = 2 * y_at, up_at = gate_at + F;
    for (int f = threadIdx.x * A::W; f < F; f += THREADS * A::W) {
        float gate[A::W], up[A::W], dy[A::W];
        load<A>(gate, gate_up, gate_at + f);
        load<A>(up, gate_up, up_at + f);
        load<A>(dy, dy_y, y_at + f);
#pragma unroll
        for (int i = 0; i < A::W; i++) {
            float s = sigmoid(gate[i]), silu = gate[i] * s, d = dy[i];
            dy[i] = silu * up[i];
            gate[i] = d * up[i] * s * (1.0f + gate[i] * (1.0f - s));
            up[i] = d * silu;
        }
        store<A>(gate_up, gate_at + f, gate);
        store<A>(gate_up, up_at + f, up);
        store<A>(dy_y, y_at + f, dy);
    }
}

void cuda_swiglu_forward(backend *b, void *y, const void *gate_up, dtype x, int64_t N, int F) {
    with_access(x, wide_rows(x, F, y, gate_up),
                [&](auto a) { LAUNCH(b, swiglu_forward<decltype(a)>, (unsigned)N, THREADS, 0, y, gate_up, F); });
}

void cuda_swiglu_backward(backend *b, void *gate_up, void *dy_y, dtype x, int64_t N, int F) {
    with_access(x, wide_rows(x, F, gate_up, dy_y),
                [&](auto a) { LAUNCH(b, swiglu_backward<decltype(a)>, (unsigned)N, THREADS, 0, gate_up, dy_y, F); });
}
