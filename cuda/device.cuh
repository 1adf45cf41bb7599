/* device.cuh: what every kernel file includes: how to launch, shared memory, 128-bit accesses, sums over warps and blocks.
 *
 * The sources compile in two ways. nvcc makes GPU code of them; g++ with tests/emu in front makes a program that runs each thread
 * of a block on the CPU (CUEMU defined there), in any order, under sanitizers. LAUNCH and DYN_SMEM are what differs. */
#ifndef MOBILELLM_CUDA_DEVICE_CUH
#define MOBILELLM_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#include "cuda/cuda.h"

/* LAUNCH(b, kernel, grid, block, shared bytes, arguments...): on the stream of b, its failure kept. Templates in parentheses:
 * LAUNCH(b, (kernel<128>), ...). */
#ifndef CUEMU
#define LAUNCH(b, kernel, grid, block, shared, ...) \
    (kernel<<<(grid), (block), (shared), (b)->stream>>>(__VA_ARGS__), cuda_check((b), #kernel, cudaPeekAtLastError()))
/* Dynamic shared memory, aligned for 128-bit accesses. */
#define DYN_SMEM(type, name)                                          \
    extern __shared__ __align__(128) unsigned char dynamic_shared_[]; \
    type *name = reinterpret_cast<type *>(dynamic_shared_)
#else
#define LAUNCH(b, kernel, grid, block, shared, ...) \
    cuda_check((b), #kernel, CUEMU_LAUNCH(kernel, grid, block, shared, (b)->stream, ##__VA_ARGS__))
#define DYN_SMEM(type, name) type *name = reinterpret_cast<type *>(::cuemu::dyn_smem())
#endif

/* ---- sizes of blocks ----
 *
 * A kernel wishes for a number of threads. The race detector of the tests follows few threads, and is built with a limit. What a
 * kernel computes may depend on the size of its blocks, never on how many of them run at once. */
#ifndef BLOCK_LIMIT
#define BLOCK_LIMIT 1024
#endif
constexpr int block_threads(int wish) { return wish < BLOCK_LIMIT ? wish : BLOCK_LIMIT; }

constexpr int WARP = 32;

/* How many blocks of `size` hold n. */
static inline unsigned blocks_of(int64_t n, int64_t size) { return (unsigned)((n + size - 1) / size); }

/* ---- arrays of x, read and written several elements at a time ----
 *
 * access<X, W> says that elements of type X are accessed W at a time, all W aligned together; the hot paths take 16 bytes at
 * once. Kernels are templates of an access A. They hold what they have read in packs (bf16 then takes half the registers) and
 * compute in floats. Rows whose lengths or addresses allow no wide access are taken element by element. */
template <typename X_, int W_>
struct access {
    typedef X_ X;
    static constexpr int W = W_;
};

template <typename A>
struct alignas(A::W * sizeof(typename A::X) < 16 ? A::W * sizeof(typename A::X) : 16) pack {
    typename A::X element[A::W];
};

/* Copies of BYTES, one access each. */
template <int BYTES>
struct word_of;
template <>
struct word_of<16> {
    typedef uint4 type;
};
template <>
struct word_of<8> {
    typedef uint2 type;
};
template <>
struct word_of<4> {
    typedef uint32_t type;
};
template <>
struct word_of<2> {
    typedef uint16_t type;
};

/* Elements at .. at + W of the array. */
template <typename A>
__device__ __forceinline__ pack<A> load_pack(const void *array, int64_t at) {
    constexpr int BYTES = sizeof(pack<A>) < 16 ? sizeof(pack<A>) : 16;
    typedef typename word_of<BYTES>::type word;
    const word *from = reinterpret_cast<const word *>(static_cast<const typename A::X *>(array) + at);
    pack<A> p;
#pragma unroll
    for (int i = 0; i < (int)sizeof p / BYTES; i++) {
        word w = from[i];
        memcpy(reinterpret_cast<char *>(&p) + i * BYTES, &w, BYTES);
    }
    return p;
}

template <typename A>
__device__ __forceinline__ void store_pack(void *array, int64_t at, const pack<A> &p) {
    constexpr int BYTES = sizeof(pack<A>) < 16 ? sizeof(pack<A>) : 16;
    typedef typename word_of<BYTES>::type word;
    word *to = reinterpret_cast<word *>(static_cast<typename A::X *>(array) + at);
#pragma unroll
    for (int i = 0; i < (int)sizeof p / BYTES; i++) {
        word w;
        memcpy(&w, reinterpret_cast<const char *>(&p) + i * BYTES, BYTES);
        to[i] = w;
    }
}

template <typename A>
__device__ __forceinline__ pack<A> zero_pack() {
    pack<A> p;
#pragma unroll
    for (int i = 0; i < A::W; i++) p.element[i] = typename A::X(0.0f);
    return p;
}

__device__ __forceinline__ float to_float(float f) { return f; }
__device__ __forceinline__ float to_float(__nv_bfloat16 b) { return __bfloat162float(b); }

/* f rounded to X: to nearest even. Two at once where the format has an instruction for it. */
template <int W>
__device__ __forceinline__ void round_to(float (&element)[W], const float (&f)[W]) {
#pragma unroll
    for (int i = 0; i < W; i++) element[i] = f[i];
}
template <int W>
__device__ __forceinline__ void round_to(__nv_bfloat16 (&element)[W], const float (&f)[W]) {
    if constexpr (W == 1) {
        element[0] = __float2bfloat16_rn(f[0]);
    } else {
#pragma unroll
        for (int i = 0; i < W; i += 2) {
            __nv_bfloat162 two = __floats2bfloat162_rn(f[i], f[i + 1]);
            element[i] = two.x;
            element[i + 1] = two.y;
        }
    }
}

template <typename A>
__device__ __forceinline__ void unpack(float (&f)[A::W], const pack<A> &p) {
#pragma unroll
    for (int i = 0; i < A::W; i++) f[i] = to_float(p.element[i]);
}

template <typename A>
__device__ __forceinline__ void load(float (&f)[A::W], const void *array, int64_t at) {
    unpack<A>(f, load_pack<A>(array, at));
}

template <typename A>
__device__ __forceinline__ void store(void *array, int64_t at, const float (&f)[A::W]) {
    pack<A> p;
    round_to(p.element, f);
    store_pack<A>(array, at, p);
}

/* Do rows of `length` elements of x, in arrays that start there, all start at multiples of 16 bytes? NULL is no obstacle. */
template <typename... P>
static bool wide_rows(dtype x, int64_t length, const P *...arrays) {
    return length * (int64_t)dtype_size(x) % 16 == 0 && (reinterpret_cast<uintptr_t>(arrays) | ...) % 16 == 0;
}

/* Calls f with the access for arrays of floats, or of x: with_access(x, wide, [&](auto a) { LAUNCH(b, kernel<decltype(a)>, ...);
 * }) */
template <typename F>
static void with_float_access(bool wide, F f) {
    if (wide)
        f(access<float, 4>());
    else
        f(access<float, 1>());
}

template <typename F>
static void with_access(dtype x, bool wide, F f) {
    if (x == DTYPE_F32)
        with_float_access(wide, f);
    else if (wide)
        f(access<__nv_bfloat16, 8>());
    else
        f(access<__nv_bfloat16, 1>());
}

/* ---- sums and maxima over threads, in a fixed order; every thread takes part and gets the result ---- */

/* Over groups of `lanes` neighbours, a power of two. */
template <typename T>
__device__ __forceinline__ T group_sum(T value, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

/* Over a block of THREADS; with a warp's worth of threads, over each warp of the block for itself. */
template <int THREADS, typename T>
__device__ __forceinline__ T block_sum(T value) {
    value = warp_sum(value);
    if constexpr (THREADS > WARP) {
        __shared__ T sums[THREADS / WARP];
        int lane = threadIdx.x % WARP;
        __syncthreads(); /* the sums of the last call may still be being read */
        if (lane == 0) sums[threadIdx.x / WARP] = value;
        __syncthreads();
        value = warp_sum(lane < THREADS / WARP ? sums[lane] : T(0));
    }
    return value;
}

template <int THREADS>
__device__ __forceinline__ float block_max(float value) {
    value = warp_max(value);
    if constexpr (THREADS > WARP) {
        __shared__ float maxima[THREADS / WARP];
        int lane = threadIdx.x % WARP;
        __syncthreads();
        if (lane == 0) maxima[threadIdx.x / WARP] = value;
        __syncthreads();
        value = warp_max(maxima[lane < THREADS / WARP ? lane : 0]);
    }
    return value;
}

#endif
