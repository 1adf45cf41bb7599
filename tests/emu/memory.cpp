/* memory.cpp: memory of the device and pinned memory of the host, and copies between them.
 *
 * Device memory is the host's, with a list of what is allocated: copies and kernel arguments are checked against it. It starts
 * spoiled, pinned memory too. With CUEMU_GUARD each allocation has pages of its own, which can be touched only while work of a
 * stream runs. */
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "tests/emu/emu_host.h"
#include "tests/emu/runtime.h"

namespace cuemu {

enum { PAGE = 4096, ALIGNMENT = 256 };

struct allocation {
    size_t bytes;
    place_of_memory where;
    void *pages;  // with CUEMU_GUARD
    size_t page_bytes;
};

/* Never destroyed: the program may free memory after the destructors have run. */
static std::map<uintptr_t, allocation> &allocations() {
    static auto *all = new std::map<uintptr_t, allocation>;
    return *all;
}
static size_t in_use, peak;
static int times_opened;

static const allocation *find(const void *p) {
    uintptr_t address = reinterpret_cast<uintptr_t>(p);
    auto after = allocations().upper_bound(address);
    if (after == allocations().begin()) return nullptr;
    auto it = std::prev(after);
    return address <= it->first + it->second.bytes ? &it->second : nullptr;
}

place_of_memory find_memory(const void *p) {
    const allocation *a = find(p);
    return a ? a->where : place_of_memory::unknown;
}

/* NaN shows in whatever is computed from it, unless a comparison or fmaxf passes it over: hence the random bytes. */
void spoil(void *memory, size_t bytes) {
    memset(memory, 0xff, bytes);
    if (!settings().fresh_seed) return;
    static thread_local random_numbers numbers = {settings().fresh_seed};
    uint32_t word;
    for (size_t i = 0; i + sizeof word <= bytes; i += sizeof word) {
        word = numbers.below(~0u);
        memcpy(static_cast<char *>(memory) + i, &word, sizeof word);
    }
}

void check_pointer(const char *kernel, int argument, const void *p) {
    locked lock(api_lock());
    if (p && !unusable() && find_memory(p) != place_of_memory::device)
        fatal("kernel %s: argument %d (%p) is not a device pointer", kernel, argument, p);
}

/* ---- CUEMU_GUARD ---- */

static void protect(int how) {
    for (auto &it : allocations())
        if (it.second.pages) mprotect(it.second.pages, it.second.page_bytes, how);
}

open_memory::open_memory() {
    if (settings().guard && times_opened++ == 0) protect(PROT_READ | PROT_WRITE);
}

open_memory::~open_memory() {
    if (settings().guard && --times_opened == 0) protect(PROT_NONE);
}

/* The allocation ends, rounded to its alignment, where its pages end. */
static void *new_guarded(allocation *a) {
    a->page_bytes = (a->bytes + PAGE - 1) / PAGE * PAGE;
    a->pages = mmap(nullptr, a->page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a->pages == MAP_FAILED) return nullptr;
    void *memory = static_cast<char *>(a->pages) + (a->page_bytes - a->bytes) / ALIGNMENT * ALIGNMENT;
    spoil(memory, a->bytes);
    if (!times_opened) mprotect(a->pages, a->page_bytes, PROT_NONE);
    return memory;
}

static void *new_memory(allocation *a) {
    if (settings().guard && a->where == place_of_memory::device) return new_guarded(a);
    void *memory;
    if (posix_memalign(&memory, ALIGNMENT, a->bytes)) return nullptr;
    spoil(memory, a->bytes);
    return memory;
}

static cudaError_t allocate(void **p, size_t bytes, place_of_memory where) {
    locked lock(api_lock());
    *p = nullptr;
    if (unusable()) return failed(unusable());
    if (!bytes) return cudaSuccess;
    if (where == place_of_memory::device && (bytes > settings().memory - in_use || bytes > settings().largest))
        return failed(cudaErrorMemoryAllocation);
    allocation a = {bytes, where, nullptr, 0};
    void *memory = new_memory(&a);
    if (!memory) return failed(cudaErrorMemoryAllocation);
    if (where == place_of_memory::device) in_use += bytes;
    if (in_use > peak) peak = in_use;
    allocations()[reinterpret_cast<uintptr_t>(memory)] = a;
    *p = memory;
    return cudaSuccess;
}

static cudaError_t release(void *p, place_of_memory where) {
    locked lock(api_lock());
    if (!p) return cudaSuccess;
    wait_for_all_streams();
    auto it = allocations().find(reinterpret_cast<uintptr_t>(p));
    if (it == allocations().end() || it->second.where != where) return failed(cudaErrorInvalidValue);
    allocation a = it->second;
    allocations().erase(it);
    if (where == place_of_memory::device) in_use -= a.bytes;
    if (a.pages)
        munmap(a.pages, a.page_bytes);
    else
        free(p);
    return unusable();
}

/* ---- copies ---- */

static void check_copy(const void *to, const void *from, cudaMemcpyKind kind) {
    bool to_device = find_memory(to) == place_of_memory::device, from_device = find_memory(from) == place_of_memory::device;
    bool expect_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool expect_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) return;
    if (to_device != expect_to) fatal("copy: the destination %p is %sdevice memory", to, to_device ? "" : "not ");
    if (from_device != expect_from) fatal("copy: the source %p is %sdevice memory", from, from_device ? "" : "not ");
}

/* Memory of the host that is not pinned is read at once and written at once. */
static cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    if (!bytes) return cudaSuccess;
    check_copy(to, from, kind);
    if (find_memory(from) == place_of_memory::unknown) {
        const char *start = static_cast<const char *>(from);
        auto staged = std::make_shared<std::vector<char>>(start, start + bytes);
        enqueue(stream, [=] { memcpy(to, staged->data(), bytes); });
    } else {
        enqueue(stream, [=] { memmove(to, from, bytes); });
    }
    return find_memory(to) == place_of_memory::unknown ? cudaStreamSynchronize(stream) : cudaSuccess;
}

static cudaError_t fill(void *to, int value, size_t bytes, cudaStream_t stream) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    if (bytes && find_memory(to) != place_of_memory::device) fatal("cudaMemset: %p is not device memory", to);
    if (bytes) enqueue(stream, [=] { memset(to, value, bytes); });
    return cudaSuccess;
}

}  // namespace cuemu

using namespace cuemu;

size_t cuemu_memory_peak() { return peak; }
void cuemu_forget_peak() { peak = in_use; }

size_t cuemu_room(const void *p) {
    locked lock(api_lock());
    uintptr_t address = reinterpret_cast<uintptr_t>(p);
    auto after = allocations().upper_bound(address);
    if (find_memory(p) != place_of_memory::device) return 0;
    return std::prev(after)->first + std::prev(after)->second.bytes - address;
}

cudaError_t cudaMalloc(void **p, size_t bytes) { return allocate(p, bytes, place_of_memory::device); }
cudaError_t cudaFree(void *p) { return release(p, place_of_memory::device); }
cudaError_t cudaMallocHost(void **p, size_t bytes) { return allocate(p, bytes, place_of_memory::host); }
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) { return allocate(p, bytes, place_of_memory::host); }
cudaError_t cudaFreeHost(void *p) { return release(p, place_of_memory::host); }

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    if (unusable()) return failed(unusable());
    *total = settings().memory;
    *free_bytes = settings().memory - in_use;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *p) {
    locked lock(api_lock());
    *attributes = {};
    place_of_memory where = find_memory(p);
    attributes->type = where == place_of_memory::device ? cudaMemoryTypeDevice
                       : where == place_of_memory::host ? cudaMemoryTypeHost
                                                        : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, bytes, kind, stream);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    cudaError_t status = copy(to, from, bytes, kind, nullptr);
    return status ? status : cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) { return fill(to, value, bytes, stream); }
cudaError_t cudaMemset(void *to, int value, size_t bytes) { return fill(to, value, bytes, nullptr); }
