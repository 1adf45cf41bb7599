/* emu.h: CUDA on the CPU. Included before everything else when g++ or clang++ compiles a .cu file of cuda/ (with -DCUEMU).
 *
 * Types and prototypes are those of NVIDIA's own headers; this file takes over where nvcc would: the qualifiers, the built-in
 * variables, launches, and (in the three headers at the end) what only a GPU has. Each thread of a block runs as a fiber, one
 * block at a time on an OS thread, so that every barrier, shuffle and race of a kernel is a real one, in an order we choose.
 *
 * The environment of the program decides how (in brackets: otherwise; the first two differ by flavour, see emu.mk):
 *   CUEMU_ORDER=fwd|rev|rand[:SEED]    in which order threads run between barriers, and blocks of a grid
 *   CUEMU_STREAMS=eager|lazy|rand[:SEED] when work on a stream runs: at once; only when something waits for it; or between
 *   CUEMU_SEED=N                       the SEED of "rand" without one (1; tests/run.py draws it anew each time and prints it)
 *   CUEMU_FRESH=SEED                   fresh memory holds random bytes, not NaN
 *   CUEMU_THREADS=N                    OS threads that share the blocks of a grid (OpenMP's number; 1 under sanitizers)
 *   CUEMU_GUARD=1                      the host cannot touch device memory: SIGSEGV
 *   CUEMU_STACK=BYTES                  stack of a CUDA thread (64 KiB; 256 KiB under sanitizers)
 *   CUEMU_DEVICES=N                    GPUs of the machine (1); 0: as without a driver
 *   CUEMU_MEMORY=BYTES                 memory of the GPU (8 GiB)
 *   CUEMU_LARGEST=BYTES                the largest piece that it gives of it (all)
 *   CUEMU_NAME=TEXT, CUEMU_CAPABILITY=MAJOR.MINOR, CUEMU_MULTIPROCESSORS=N   what the GPU says it is (9.0, 4)
 *   CUEMU_TIMES=SEED                   the time between two events is drawn, other on each GPU, and not measured
 *   CUEMU_FAIL=N                       the Nth operation of a stream fails, and with it every call after it, as on a GPU
 * README.md tells what finds what. */
#ifndef MOBILELLM_EMU_H
#define MOBILELLM_EMU_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* ---- qualifiers ---- */

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __grid_constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#undef __shared__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

/* Static shared memory. Where several OS threads run blocks, each has its own. Under sanitizers one does, and a plain static is
 * what AddressSanitizer puts guards around; a section of its own (clang only) lets the runtime forget it between blocks. */
#if defined(CUEMU_SECTION)
#define __shared__ __attribute__((section("cuemu_shared"))) static
#elif defined(CUEMU_CHECKED)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

inline thread_local uint3 threadIdx = {0, 0, 0}, blockIdx = {0, 0, 0};
inline thread_local dim3 blockDim(1, 1, 1), gridDim(1, 1, 1);
static constexpr int warpSize = 32;

/* ---- launches ---- */

namespace cuemu {

/* Where in the source a barrier or a collective is: a default argument of each. */
struct place {
    const char *file;
    int line;
};
#define CUEMU_HERE ::cuemu::place at = {__builtin_FILE(), __builtin_LINE()}

/* Ends the program with "cuemu: " and the message. */
[[noreturn]] void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A launch, with the arguments bound: `run` is called once for each CUDA thread. */
struct launch_call {
    const char *name;
    const void *kernel;
    dim3 grid, block;
    size_t shared;
    void (*run)(const void *bound);
    void (*release)(const void *bound);
    const void *bound;
};

/* Takes over `bound`. The error a real launch would give. */
cudaError_t submit(const launch_call &call, cudaStream_t stream);

/* Ends the program if p is not NULL and not of device memory. */
void check_pointer(const char *kernel, int argument, const void *p);

/* Dynamic shared memory of the running block: exactly as many bytes as it was launched with. */
void *dyn_smem();

template <class T>
struct exactly {  // arguments become what the kernel takes, as in a real launch
    using type = T;
};

template <class T>
void check_argument(const char *kernel, int index, const T &value) {
    if constexpr (std::is_pointer<T>::value) check_pointer(kernel, index, reinterpret_cast<const void *>(value));
}

template <class... P>
cudaError_t launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                   typename exactly<P>::type... arguments) {
    int index = 0;
    (check_argument(name, index++, arguments), ...);
    auto body = [=] { kernel(arguments...); };
    using bound = decltype(body);
    launch_call call = {name,
                        reinterpret_cast<const void *>(kernel),
                        grid,
                        block,
                        shared,
                        [](const void *p) { (*static_cast<const bound *>(p))(); },
                        [](const void *p) { delete static_cast<const bound *>(p); },
                        new bound(body)};
    return submit(call, stream);
}

}  // namespace cuemu

#define CUEMU_LAUNCH(kernel, grid, block, shared, stream, ...) \
    ::cuemu::launch(#kernel, kernel, dim3(grid), dim3(block), (shared), (stream), ##__VA_ARGS__)

template <class... P>
static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), attribute, value);
}

#include "tests/emu/emu_math.h"
#include "tests/emu/emu_sync.h"

#endif
