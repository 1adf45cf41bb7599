/* backend.c: a GPU as a backend: finding and opening it, its memory, waiting for it, and the table of its ops.
 *
 * All work is enqueued on one stream and runs behind the host. A failure on the device is therefore seen late, at the next call
 * of the runtime; it is kept with the name of that call, and `sync` and `fetch` tell it. */
#include <assert.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda/cuda.h"
#include "cuda/libraries.h"
#include "cuda/named_ops.h"
#include "cuda/plan.h"
#include "util/system.h"

enum { LEAST_CAPABILITY = 80, POLL_US = 20 };
static const double spin_seconds = 100e-6; /* of a wait in which the host does not sleep */

/* ---- the GPU ---- */

/* The version of the driver as its makers write it, 580.82.07; "" if the kernel does not tell. */
static void driver_release(char *text, size_t size) {
    text[0] = '\0';
    FILE *file = fopen("/sys/module/nvidia/version", "r");
    if (file == NULL) return;
    if (fgets(text, (int)size, file)) text[strcspn(text, "\n")] = '\0';
    fclose(file);
}

static int no_gpu(error *err, cudaError_t why) {
    int driver = 0;
    char release[32];
    driver_release(release, sizeof release);
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    cudaGetLastError();
    if (driver == 0)
        return error_set(err, STATUS_RESOURCE,
                         "device: cuda needs an NVIDIA GPU, and this machine has no NVIDIA driver%s%s%s.\n"
                         "Install one for CUDA %d.%d or later, start the container with its GPUs, or use device: cpu.",
                         *release ? " in reach (release " : "", release,
                         *release ? " is loaded; the program finds no libcuda.so.1)" : "", CUDART_VERSION / 1000,
                         CUDART_VERSION % 1000 / 10);
    if (driver / 1000 < CUDART_VERSION / 1000)
        return error_set(err, STATUS_RESOURCE,
                         "the NVIDIA driver%s%s is for CUDA %d.%d, and this program was built with CUDA %d.%d.\n"
                         "Install a driver for CUDA %d.0 or later, or build with a toolkit of CUDA %d.",
                         *release ? " " : "", release, driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                         CUDART_VERSION % 1000 / 10, CUDART_VERSION / 1000, driver / 1000);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return error_set(err, STATUS_RESOURCE,
                     "device: cuda needs an NVIDIA GPU, and the driver shows none (%s; CUDA_VISIBLE_DEVICES %s%s).\n"
                     "See `nvidia-smi`, or use device: cpu.",
                     why == cudaSuccess ? "it counts 0" : cudaGetErrorString(why), visible ? "is " : "is not set",
                     visible && !*visible ? "empty"
                     : visible            ? visible
                                          : "");
}

/* GPUs in reach, or -1. Whatever keeps the runtime from counting them, none can be used. */
static int count_gpus(error *err) {
    int n = 0;
    cudaError_t failed = cudaGetDeviceCount(&n);
    if (failed) cudaGetLastError();
    return failed || n == 0 ? no_gpu(err, failed) : n;
}

bool cuda_available(void) {
    error err;
    return count_gpus(&err) > 0;
}

void cuda_report(FILE *to) {
    error err;
    int n = count_gpus(&err);
    fprintf(to, "CUDA %d.%d\n", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (n < 0) fprintf(to, "  GPU      none: %.*s\n", (int)strcspn(err.text, "\n"), err.text);
    for (int i = 0; i < n; i++) {
        struct cudaDeviceProp gpu;
        if (cudaGetDeviceProperties(&gpu, i) == cudaSuccess)
            fprintf(to, "  GPU %-4d %s, %d SMs, %.0f GiB\n", i, gpu.name, gpu.multiProcessorCount,
                    (double)gpu.totalGlobalMem * 0x1p-30);
    }
    libraries_report(to);
}

/* A launcher that gives each rank a GPU of its own shows it that one only. Two ranks on one GPU are found by cuda_connect. */
static int choose_device(int local_rank, int n, error *err) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (local_rank < n) return local_rank;
    if (n == 1 && visible && strchr(visible, ',') == NULL) return 0;
    return error_set(err, STATUS_RESOURCE,
                     "this is rank %d of its machine, counted from 0, and the machine has %d GPU%s for us: each rank needs one.\n"
                     "Start at most %d rank%s on a machine (mpirun -npernode, srun --ntasks-per-node).",
                     local_rank, n, n == 1 ? "" : "s", n, n == 1 ? "" : "s");
}

static int open_gpu(backend *b, int local_rank, error *err) {
    struct cudaDeviceProp gpu;
    int n = count_gpus(err);
    if (n < 0) return -1;
    b->device = choose_device(local_rank, n, err);
    if (b->device < 0) return -1;
    cudaError_t failed = cudaSetDevice(b->device);
    if (!failed) failed = cudaGetDeviceProperties(&gpu, b->device);
    if (failed)
        return error_set(err, STATUS_RESOURCE,
                         "GPU %d does not open: %s. Is it in use by another, or has it failed? See `nvidia-smi`.", b->device,
                         cudaGetErrorString(failed));
    snprintf(b->name, sizeof b->name, "%s", gpu.name);
    b->n_sm = gpu.multiProcessorCount;
    b->capability = 10 * gpu.major + gpu.minor;
    if (b->capability < LEAST_CAPABILITY)
        return error_set(err, STATUS_RESOURCE,
                         "GPU %d, %s, has compute capability %d.%d, and our kernels need %d.%d (A100) or later. Use device: cpu.",
                         b->device, b->name, gpu.major, gpu.minor, LEAST_CAPABILITY / 10, LEAST_CAPABILITY % 10);
    failed = cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking);
    if (!failed) failed = cudaEventCreateWithFlags(&b->all_done, cudaEventDisableTiming);
    return failed ? error_set(err, STATUS_RESOURCE, "GPU %d, %s: no stream: %s", b->device, b->name, cudaGetErrorString(failed))
                  : 0;
}

static void describe_gpu(backend *b) {
    size_t free_bytes = 0, bytes = 0;
    char release[32], lt[48], dnn[48];
    int driver = 0;
    driver_release(release, sizeof release);
    cudaMemGetInfo(&free_bytes, &bytes);
    cudaDriverGetVersion(&driver);
    snprintf(b->description, sizeof b->description, "%s, %d SMs, %.0f GiB, driver %s%sCUDA %d.%d%s, %s, %s", b->name, b->n_sm,
             (double)bytes * 0x1p-30, release, *release ? " (" : "", driver / 1000, driver % 1000 / 10, *release ? ")" : "",
             libraries_name(lt, b->libraries, LIBRARY_CUBLASLT), libraries_name(dnn, b->libraries, LIBRARY_CUDNN));
}

static const char *describe(backend *b) { return b->description; }

/* Heads that only cuDNN takes need a plan of it. */
static int check_sizes(backend *b, const op_limits *limits, error *err) {
    if (cuda_check_sizes(limits, err)) return -1;
    return b ? cuda_attention_check(b, limits, err) : 0;
}

/* Dense tensor throughput with fp32 accumulation, as data sheets give it; the first name that is a word of the GPU's. */
static const struct known_gpu {
    const char *name;
    double bf16;
} known_gpus[] = {
    {"H100 PCIe", 756e12}, {"H100 NVL", 835e12}, {"H100", 989e12},  {"H200 NVL", 835e12}, {"H200", 989e12}, {"H800", 989e12},
    {"H20", 148e12},       {"GB200", 2500e12},   {"B200", 2250e12}, {"A100", 312e12},     {"A800", 312e12}, {"A30", 165e12},
    {"A40", 149.7e12},     {"A10G", 70e12},      {"A10", 125e12},   {"L40S", 362e12},     {"L40", 181e12},  {"L4", 121e12},
};

/* fp32 does not use the tensor cores: 2 operations in each of an SM's 64 (8.0) or 128 lanes and clocks. */
static double peak_flops(backend *b, dtype x) {
    int khz = 0;
    if (x == DTYPE_F32) {
        cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, b->device);
        return 2.0 * (b->capability == 80 ? 64 : 128) * b->n_sm * khz * 1e3;
    }
    for (size_t i = 0; i < sizeof known_gpus / sizeof *known_gpus; i++) {
        const char *at = strstr(b->name, known_gpus[i].name);
        if (at && !isalnum((unsigned char)at[strlen(known_gpus[i].name)])) return known_gpus[i].bf16;
    }
    return 0;
}

/* ---- opening and closing ---- */

static void close_backend(backend *b) {
    if (b->stream && b->failure.code == STATUS_OK) cudaStreamSynchronize(b->stream);
    cuda_disconnect(b);
    cuda_attention_close(b);
    cuda_gemm_close(b);
    cuda_transfers_close(b);
    if (b->all_done) cudaEventDestroy(b->all_done);
    if (b->stream) cudaStreamDestroy(b->stream);
    free(b->libraries);
    free(b);
}

static int open_libraries(backend *b, error *err) {
    error none;
    b->libraries = calloc(1, sizeof *b->libraries);
    if (b->libraries == NULL) return error_set(err, STATUS_RESOURCE, "no memory for the CUDA backend");
    if (libraries_open(b->libraries, LIBRARY_CUBLASLT, err)) return -1;
    (void)libraries_open(b->libraries, LIBRARY_CUDNN, &none); /* without it our own attention runs; the banner tells */
    return 0;
}

static int open_backend(backend **opened, int threads, int local_rank, error *err) {
    (void)threads;
    backend *b = calloc(1, sizeof *b);
    if (b == NULL) return error_set(err, STATUS_RESOURCE, "no memory for the CUDA backend");
    if (open_gpu(b, local_rank, err) || open_libraries(b, err) || cuda_transfers_open(b, err) || cuda_gemm_open(b, err) ||
        cuda_attention_open(b, err)) {
        close_backend(b);
        return -1;
    }
    describe_gpu(b);
    *opened = b;
    return 0;
}

/* ---- failures and waiting ---- */

void cuda_fail(backend *b, const char *what, const char *why) {
    if (b->failure.code == STATUS_OK) error_set(&b->failure, STATUS_INTERNAL, "%s: %s", what, why);
}

void cuda_check(backend *b, const char *what, cudaError_t result) {
    if (result == cudaSuccess) return;
    cudaGetLastError(); /* or the next call would report it again */
    cuda_fail(b, what, cudaGetErrorString(result));
}

int cuda_wait(backend *b, cudaEvent_t event) {
    double start = seconds_now();
    cudaError_t result;
    while ((result = cudaEventQuery(event)) == cudaErrorNotReady) {
        cudaGetLastError(); /* "not ready" counts as an error there, which the next launch would find */
        if (cuda_poll_collectives(b)) return -1;
        if (seconds_now() - start > spin_seconds) usleep(POLL_US);
    }
    cuda_check(b, "the GPU's work failed", result);
    return result == cudaSuccess ? 0 : -1;
}

int cuda_report_failure(backend *b, error *err) {
    if (b->failure.code == STATUS_OK) return 0;
    *err = b->failure;
    b->failure.code = STATUS_OK;
    return -1;
}

static int sync_backend(backend *b, error *err) {
    cuda_join_all(b);
    cuda_check(b, "cudaEventRecord", cudaEventRecord(b->all_done, b->stream));
    (void)cuda_wait(b, b->all_done);
    return cuda_report_failure(b, err);
}

/* ---- memory ---- */

/* Each rank has a GPU of its own. */
static size_t memory_available(backend *b, int local_size) {
    size_t available = 0, all = 0;
    (void)local_size;
    cuda_check(b, "cudaMemGetInfo", cudaMemGetInfo(&available, &all));
    return available;
}

/* By whomever: the driver's own and a neighbour's too. */
static size_t memory_used(backend *b) {
    size_t available = 0, all = 0;
    cuda_check(b, "cudaMemGetInfo", cudaMemGetInfo(&available, &all));
    return all - available;
}

static void *alloc_memory(backend *b, size_t bytes, error *err) {
    void *memory = NULL;
    if (bytes == 0) return NULL;
    cudaError_t failed = cudaMalloc(&memory, bytes);
    if (!failed) {
        cuda_check(b, "zero", cudaMemsetAsync(memory, 0, bytes, b->stream));
        return memory;
    }
    size_t free_bytes = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &total);
    error_set(err, STATUS_RESOURCE,
              "the GPU refused %.2f GiB of memory: %.2f of its %.2f GiB are free%s (%s).\n"
              "Ask for less, or end what else has memory there: `nvidia-smi` shows it.",
              (double)bytes * 0x1p-30, (double)free_bytes * 0x1p-30, (double)total * 0x1p-30,
              free_bytes < bytes ? "" : ", and not in one piece", cudaGetErrorString(failed));
    return NULL;
}

static void free_memory(backend *b, void *memory) { cuda_check(b, "cudaFree", cudaFree(memory)); }

static void copy_memory(backend *b, void *to, const void *from, size_t bytes) {
    if (bytes) cuda_check(b, "copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, b->stream));
}

static void zero_memory(backend *b, void *memory, size_t bytes) {
    if (bytes) cuda_check(b, "zero", cudaMemsetAsync(memory, 0, bytes, b->stream));
}

static size_t scratch_bytes(backend *b, const op_limits *limits) {
    size_t needs[] = {cuda_gemm_scratch(),          cuda_attention_scratch(b, limits), cuda_embedding_scratch(limits),
                      cuda_rmsnorm_scratch(limits), cuda_qk_rope_scratch(limits),      cuda_reduce_scratch()};
    size_t largest = 0;
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++)
        if (needs[i] > largest) largest = needs[i];
    return largest;
}

static void set_scratch(backend *b, void *memory, size_t bytes) {
    b->scratch = memory;
    b->scratch_bytes = bytes;
}

void *cuda_scratch(backend *b, size_t bytes) {
    assert(bytes <= b->scratch_bytes);
    return b->scratch;
}

/* ---- the table ---- */

const ops *cuda_ops(void) {
    static const ops table = {
        .name = "cuda",
        .host_memory = false,
        .run_ahead = 1,
        .head_logits = CUDA_HEAD_LOGITS,
        .overlap_tokens = CUDA_OVERLAP_TOKENS,
        .open = open_backend,
        .close = close_backend,
        .describe = describe,
        .check_sizes = check_sizes,
        .describe_attention = cuda_attention_describe,
        .peak_flops = peak_flops,
        .memory_available = memory_available,
        .memory_used = memory_used,
        .alloc = alloc_memory,
        .free = free_memory,
        .copy_in = named_copy_in,
        .copy_out = named_copy_out,
        .copy = copy_memory,
        .zero = zero_memory,
        .post = named_post,
        .fetch = named_fetch,
        .sync = sync_backend,
        .connect = cuda_connect,
        .reduce_scatter = named_reduce_scatter,
        .all_gather = named_all_gather,
        .all_sum = named_all_sum,
        .join = cuda_join,
        .range_begin = range_begin,
        .range_end = range_end,
        .scratch_bytes = scratch_bytes,
        .set_scratch = set_scratch,
        .tune = cuda_gemm_tune,
        .embedding_forward = named_embedding_forward,
        .embedding_backward = named_embedding_backward,
        .rmsnorm_forward = named_rmsnorm_forward,
        .rmsnorm_backward = named_rmsnorm_backward,
        .linear_forward = named_linear_forward,
        .linear_backward_input = named_linear_backward_input,
        .linear_backward_weight = named_linear_backward_weight,
        .qk_rope_forward = named_qk_rope_forward,
        .qk_rope_backward = named_qk_rope_backward,
        .attention_forward = named_attention_forward,
        .attention_backward = named_attention_backward,
        .swiglu_forward = named_swiglu_forward,
        .swiglu_backward = named_swiglu_backward,
        .cross_entropy = named_cross_entropy,
        .sum = named_sum,
        .sum_squares = named_sum_squares,
        .adamw_begin = named_adamw_begin,
        .adamw = named_adamw,
        .to_float = named_to_float,
        .from_float = named_from_float,
    };
    return &table;
}
