/* runtime.h: what the files of the runtime share. Nothing here is seen by kernels.
 *
 *   config.cpp   the environment              fiber.cpp    stacks, and the switch between them
 *   device.cpp   what the GPU says it is      schedule.cpp which thread of a block is next
 *   memory.cpp   device and pinned memory     block.cpp    one block: threads and barriers
 *   stream.cpp   streams and events           warp.cpp     shuffles, votes, tensor cores
 *   grid.cpp     launches
 *
 * The runtime itself is compiled without sanitizers, and told which one the kernels are under (CUEMU_ASAN, CUEMU_TSAN): it would
 * be slow, and to ThreadSanitizer only what CUDA says orders threads may look like order, which is told to it at each barrier. */
#ifndef MOBILELLM_EMU_RUNTIME_H
#define MOBILELLM_EMU_RUNTIME_H

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>

namespace cuemu {

/* Ends the program with "cuemu: " and the message. */
[[noreturn]] void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- config.cpp ---- */

enum class order { forward, reverse, random };  // CUEMU_ORDER
enum class timing { eager, lazy, random };      // CUEMU_STREAMS

struct config {
    order threads;
    timing streams;
    uint64_t order_seed, stream_seed, fresh_seed;
    uint64_t time_seed;  // 0: times are measured
    int os_threads;
    bool guard;
    size_t stack, memory, largest;
    int devices, major, minor, multiprocessors;
    const char *name;
    uint64_t fail;
};
const config &settings();

/* xorshift64*: the same numbers on every machine. */
struct random_numbers {
    uint64_t state;  // not 0
    unsigned below(unsigned n) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<unsigned>(((state * 0x2545F4914F6CDD1Dull) >> 33) % n);
    }
};

/* ---- device.cpp ---- */

/* Keeps the error for cudaGetLastError and returns it. */
cudaError_t failed(cudaError_t status);

/* What every call returns instead of working: there is no driver, or an operation of a stream has failed. cudaSuccess else. */
cudaError_t unusable();
void break_device(cudaError_t status);

enum { MAX_SHARED = 48 << 10, MAX_SHARED_OPTIN = 227 << 10, MAX_THREADS = 1024 };

/* Dynamic shared memory that a kernel may be launched with. */
size_t shared_limit(const void *kernel);

/* ---- memory.cpp ---- */

enum class place_of_memory { unknown, device, host };
place_of_memory find_memory(const void *p);

/* What memory holds before it is written: NaN in every format, or random bytes (CUEMU_FRESH). */
void spoil(void *memory, size_t bytes);

/* While one lives, device memory can be touched (CUEMU_GUARD). */
struct open_memory {
    open_memory();
    ~open_memory();
};

/* ---- stream.cpp ---- */

void enqueue(cudaStream_t stream, std::function<void()> work);
void wait_for_all_streams();

/* Calls of the API may come from several threads of the host. */
std::recursive_mutex &api_lock();
using locked = std::lock_guard<std::recursive_mutex>;

}  // namespace cuemu

#endif
