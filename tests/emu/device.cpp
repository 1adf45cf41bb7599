/* device.cpp: what the GPU says it is, errors, and attributes of kernels. */
#include <cstdio>
#include <cstring>
#include <map>

#include "tests/emu/runtime.h"

namespace cuemu {

static thread_local cudaError_t last_error;
static thread_local int device;
static cudaError_t broken;

cudaError_t failed(cudaError_t status) { return last_error = status; }

cudaError_t unusable() { return settings().devices ? broken : cudaErrorInsufficientDriver; }

void break_device(cudaError_t status) { broken = status; }

static std::map<const void *, int> &raised_limits() {
    static auto *limits = new std::map<const void *, int>;
    return *limits;
}

size_t shared_limit(const void *kernel) {
    auto it = raised_limits().find(kernel);
    return static_cast<size_t>(it == raised_limits().end() ? +MAX_SHARED : it->second);
}

static int attribute(cudaDeviceAttr which) {
    switch (which) {
        case cudaDevAttrMultiProcessorCount:
            return settings().multiprocessors;
        case cudaDevAttrComputeCapabilityMajor:
            return settings().major;
        case cudaDevAttrComputeCapabilityMinor:
            return settings().minor;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            return MAX_SHARED;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            return MAX_SHARED_OPTIN;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            return MAX_SHARED_OPTIN + 1024;
        case cudaDevAttrMaxThreadsPerBlock:
            return MAX_THREADS;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            return 2 * MAX_THREADS;
        case cudaDevAttrWarpSize:
            return 32;
        case cudaDevAttrL2CacheSize:
            return 50 << 20;
        case cudaDevAttrClockRate:
            return 1980000;  // kHz
        default:
            fatal("cudaDeviceGetAttribute: attribute %d is not in tests/emu/device.cpp", which);
    }
}

}  // namespace cuemu

using namespace cuemu;

/* ---- errors ---- */

cudaError_t cudaPeekAtLastError() { return last_error ? last_error : broken; }

cudaError_t cudaGetLastError() {
    cudaError_t status = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return status;
}

static const struct {
    cudaError_t status;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
};

const char *cudaGetErrorName(cudaError_t status) {
    for (const auto &e : errors)
        if (e.status == status) return e.name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t status) {
    for (const auto &e : errors)
        if (e.status == status) return e.text;
    return "unrecognized error code";
}

/* ---- the device ---- */

cudaError_t cudaGetDeviceCount(int *n) {
    if (unusable()) return failed(unusable());  // as the real one, leaves *n as it was
    *n = settings().devices;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int number) {
    if (unusable()) return failed(unusable());
    if (number < 0 || number >= settings().devices) return failed(cudaErrorInvalidDevice);
    device = number;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *number) {
    *number = device;
    return unusable();
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int number) {
    if (unusable()) return failed(unusable());
    if (number < 0 || number >= settings().devices) return failed(cudaErrorInvalidDevice);
    *value = attribute(which);
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int number) {
    if (unusable()) return failed(unusable());
    if (number < 0 || number >= settings().devices) return failed(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", settings().name);
    p->totalGlobalMem = settings().memory;
    p->major = settings().major;
    p->minor = settings().minor;
    p->multiProcessorCount = settings().multiprocessors;
    p->sharedMemPerBlock = MAX_SHARED;
    p->sharedMemPerBlockOptin = MAX_SHARED_OPTIN;
    p->warpSize = 32;
    p->maxThreadsPerBlock = MAX_THREADS;
    p->maxThreadsPerMultiProcessor = 2 * MAX_THREADS;
    p->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int number) {
    if (unusable()) return failed(unusable());
    if (number < 0 || number >= settings().devices) return failed(cudaErrorInvalidDevice);
    snprintf(id, static_cast<size_t>(bytes), "0000:%02X:00.0", number + 1);
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = settings().devices ? CUDART_VERSION : 0;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceReset() { return unusable(); }

/* ---- kernels ---- */

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute which, int value) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > MAX_SHARED_OPTIN) return failed(cudaErrorInvalidValue);
    raised_limits()[kernel] = value;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    *attributes = {};
    attributes->maxThreadsPerBlock = MAX_THREADS;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(shared_limit(kernel));
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads, size_t shared) {
    if (unusable()) return failed(unusable());
    int by_threads = threads > 0 ? 2 * MAX_THREADS / threads : 0;
    int by_memory = shared ? static_cast<int>((MAX_SHARED_OPTIN + 1024) / (shared + 1024)) : by_threads;
    *blocks = by_threads < by_memory ? by_threads : by_memory;
    return cudaSuccess;
}
