/* convert.cu: arrays of floats from and to the run's number format. Bound by memory. */
#include "cuda/device.cuh"

constexpr int THREADS = block_threads(256);

/* A thread converts one pack; the last one of an array that does not divide, element by element. */
template <typename A>
__global__ void __launch_bounds__(THREADS) to_floats(float *__restrict__ y, const void *__restrict__ in, int64_t n) {
    int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * A::W;
    float f[A::W];
    if (at + A::W <= n) {
        load<A>(f, in, at);
        store<access<float, A::W>>(y, at, f);
    } else {
        for (; at < n; at++) y[at] = to_float(static_cast<const typename A::X *>(in)[at]);
    }
}

template <typename A>
__global__ void __launch_bounds__(THREADS) from_floats(void *__restrict__ y, const float *__restrict__ in, int64_t n) {
    int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * A::W;
    float f[A::W];
    if (at + A::W <= n) {
        load<access<float, A::W>>(f, in, at);
        store<A>(y, at, f);
    } else {
        for (; at < n; at++) store<access<typename A::X, 1>>(y, at, {in[at]});
    }
}

void cuda_to_float(backend *b, float *y, const void *in, dtype x, int64_t n) {
    if (n == 0) return;
    with_access(x, wide_rows(x, 0, y, in), [&](auto a) {
        typedef decltype(a) A;
        LAUNCH(b, to_floats<A>, blocks_of(n, THREADS * A::W), THREADS, 0, y, in, n);
    });
}

void cuda_from_float(backend *b, void *y, const float *in, dtype x, int64_t n) {
    if (n == 0) return;
    with_access(x, wide_rows(x, 0, y, in), [&](auto a) {
        typedef decltype(a) A;
        LAUNCH(b, from_floats<A>, blocks_of(n, THREADS * A::W), THREADS, 0, y, in, n);
    });
}
