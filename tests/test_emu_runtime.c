/* test_emu_runtime.c: the emulated GPU behaves as a GPU does where programs depend on it: memory that runs out, machines without
 * a GPU, failures that stay, streams that run late; and its cuBLASLt multiplies.
 *
 * The emulation reads its environment once, so each check runs in a child process with its own. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cuda/libraries.h"
#include "tests/emu/emu_host.h"
#include "util/dtype.h"

/* A child says what is wrong, and where. */
#define EXPECT(condition)                                                       \
    do {                                                                        \
        if (condition) break;                                                   \
        fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
        _exit(1);                                                               \
    } while (0)

static void in_child(void (*check)(void), const char *setting) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char text[128];
        snprintf(text, sizeof text, "%s", setting);
        if (*text) putenv(text);
        check();
        _exit(0);
    }
    int ended = 0;
    assert_int_equal(waitpid(child, &ended, 0), child);
    if (ended) fail_msg("with \"%s\" the check ended with status %d", setting, ended);
}

/* ---- the device ---- */

static void no_driver(void) {
    int n = 7;
    void *p = &n;
    cudaStream_t stream;
    EXPECT(cudaGetDeviceCount(&n) == cudaErrorInsufficientDriver);
    EXPECT(n == 7);
    EXPECT(cudaGetLastError() == cudaErrorInsufficientDriver);
    EXPECT(cudaMalloc(&p, 16) == cudaErrorInsufficientDriver);
    EXPECT(cudaMallocHost(&p, 16) == cudaErrorInsufficientDriver);
    EXPECT(cudaStreamCreate(&stream) == cudaErrorInsufficientDriver);
    EXPECT(cudaSetDevice(0) == cudaErrorInsufficientDriver);
    EXPECT(cudaDriverGetVersion(&n) == cudaSuccess && n == 0);
}

/* Without a driver every call says so, and the count is left alone, as the real runtime does. */
static void a_machine_without_a_gpu(void **state) {
    (void)state;
    in_child(no_driver, "CUEMU_DEVICES=0");
}

static void two_devices(void) {
    int n = 0, device = 7;
    char first[16], second[16];
    EXPECT(cudaGetDeviceCount(&n) == cudaSuccess && n == 2);
    EXPECT(cudaSetDevice(1) == cudaSuccess && cudaGetDevice(&device) == cudaSuccess && device == 1);
    EXPECT(cudaSetDevice(2) == cudaErrorInvalidDevice);
    EXPECT(cudaGetLastError() == cudaErrorInvalidDevice && cudaGetLastError() == cudaSuccess);
    EXPECT(cudaDeviceGetPCIBusId(first, sizeof first, 0) == cudaSuccess);
    EXPECT(cudaDeviceGetPCIBusId(second, sizeof second, 1) == cudaSuccess);
    EXPECT(strcmp(first, second) != 0);
}

static void as_many_gpus_as_it_is_told(void **state) {
    (void)state;
    in_child(two_devices, "CUEMU_DEVICES=2");
}

static void an_a100(void) {
    struct cudaDeviceProp gpu;
    int minor = 7;
    EXPECT(cudaGetDeviceProperties(&gpu, 0) == cudaSuccess);
    EXPECT(gpu.major == 8 && gpu.minor == 6);
    EXPECT(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) == cudaSuccess && minor == 6);
}

static void the_capability_it_is_told(void **state) {
    (void)state;
    in_child(an_a100, "CUEMU_CAPABILITY=8.6");
}

/* ---- memory ---- */

static void little_memory(void) {
    void *p, *q;
    size_t free_bytes, total;
    EXPECT(cudaMalloc(&p, 600) == cudaSuccess);
    EXPECT((uintptr_t)p % 256 == 0);
    EXPECT(cudaMemGetInfo(&free_bytes, &total) == cudaSuccess && free_bytes == 400 && total == 1000);
    EXPECT(cudaMalloc(&q, 401) == cudaErrorMemoryAllocation && q == NULL);
    EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation);
    EXPECT(cudaMallocHost(&q, 5000) == cudaSuccess && cudaFreeHost(q) == cudaSuccess);
    EXPECT(cudaMalloc(&q, 400) == cudaSuccess);
    EXPECT(cuemu_memory_peak() == 1000);
    EXPECT(cudaFree(q) == cudaSuccess && cudaFree(p) == cudaSuccess);
    EXPECT(cudaMalloc(&p, 1000) == cudaSuccess && cudaFree(p) == cudaSuccess);
    cuemu_forget_peak();
    EXPECT(cuemu_memory_peak() == 0);
    EXPECT(cudaFree(NULL) == cudaSuccess && cudaFree(&p) == cudaErrorInvalidValue);
}

static void memory_runs_out_and_comes_back(void **state) {
    (void)state;
    in_child(little_memory, "CUEMU_MEMORY=1000");
}

static void fresh_memory(void) {
    float *p, values[16];
    EXPECT(cudaMalloc((void **)&p, sizeof values) == cudaSuccess);
    EXPECT(cudaMemcpy(values, p, sizeof values, cudaMemcpyDeviceToHost) == cudaSuccess);
    for (int i = 0; i < 16; i++) EXPECT(isnan(values[i]));
    EXPECT(cuemu_room(p) == 64 && cuemu_room(p + 5) == 44 && cuemu_room(values) == 0);
}

static void fresh_memory_is_nan(void **state) {
    (void)state;
    in_child(fresh_memory, "");
    in_child(fresh_memory, "CUEMU_GUARD=1");
}

/* ---- failures ---- */

static void third_fails(void) {
    char *p, byte;
    cudaStream_t stream;
    EXPECT(cudaMalloc((void **)&p, 16) == cudaSuccess &&
           cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    EXPECT(cudaMemsetAsync(p, 1, 16, stream) == cudaSuccess && cudaMemsetAsync(p, 2, 16, stream) == cudaSuccess);
    EXPECT(cudaStreamSynchronize(stream) == cudaSuccess);
    EXPECT(cudaMemsetAsync(p, 3, 16, stream) == cudaSuccess); /* whose call does not know yet */
    EXPECT(cudaStreamSynchronize(stream) == cudaErrorIllegalAddress);
    EXPECT(cudaGetLastError() == cudaErrorIllegalAddress && cudaGetLastError() == cudaErrorIllegalAddress);
    EXPECT(cudaMemcpy(&byte, p, 1, cudaMemcpyDeviceToHost) == cudaErrorIllegalAddress);
    EXPECT(cudaFree(p) == cudaErrorIllegalAddress);
}

/* A kernel that fails is noticed by the next call that waits, and every call after it fails alike. */
static void a_failure_is_seen_late_and_stays(void **state) {
    (void)state;
    in_child(third_fails, "CUEMU_FAIL=3");
}

/* ---- streams ---- */

static void poll_until_done(void) {
    char *p, *pinned;
    cudaStream_t first, second;
    cudaEvent_t between, done;
    int polls = 0;
    EXPECT(cudaMalloc((void **)&p, 16) == cudaSuccess && cudaMallocHost((void **)&pinned, 16) == cudaSuccess);
    EXPECT(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking) == cudaSuccess);
    EXPECT(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking) == cudaSuccess);
    EXPECT(cudaEventCreate(&between) == cudaSuccess && cudaEventCreate(&done) == cudaSuccess);
    pinned[0] = 0;
    EXPECT(cudaEventQuery(done) == cudaSuccess); /* never recorded */
    EXPECT(cudaMemsetAsync(p, 5, 16, first) == cudaSuccess && cudaEventRecord(between, first) == cudaSuccess);
    EXPECT(cudaStreamWaitEvent(second, between, 0) == cudaSuccess);
    EXPECT(cudaMemcpyAsync(pinned, p, 16, cudaMemcpyDeviceToHost, second) == cudaSuccess);
    EXPECT(cudaEventRecord(done, second) == cudaSuccess);
    EXPECT(pinned[0] == 0);
    for (; cudaEventQuery(done) == cudaErrorNotReady; polls++) EXPECT(cudaGetLastError() == cudaErrorNotReady);
    EXPECT(polls == 4 && pinned[0] == 5); /* clear, record, wait, copy; the fifth records */
    float ms = -1;
    EXPECT(cudaEventElapsedTime(&ms, between, done) == cudaSuccess && ms >= 0);
}

/* A host that asks whether work is done finds it further each time, or it would ask for ever; no further than it must be. */
static void asking_lets_lazy_work_go_on(void **state) {
    (void)state;
    in_child(poll_until_done, "CUEMU_STREAMS=lazy");
}

static void held_stream(void) {
    char *p, *pinned;
    cudaStream_t stream;
    EXPECT(cudaMalloc((void **)&p, 16) == cudaSuccess && cudaMallocHost((void **)&pinned, 16) == cudaSuccess);
    EXPECT(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    pinned[0] = 0;
    EXPECT(cudaMemsetAsync(p, 5, 16, stream) == cudaSuccess);
    void *hold = cuemu_hold(stream);
    EXPECT(cudaMemcpyAsync(pinned, p, 16, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    for (int i = 0; i < 10; i++) EXPECT(cudaStreamQuery(stream) == cudaErrorNotReady && pinned[0] == 0);
    cuemu_release(hold);
    EXPECT(cudaStreamSynchronize(stream) == cudaSuccess && pinned[0] == 5);
}

static void a_held_stream_waits(void **state) {
    (void)state;
    in_child(held_stream, "");
    in_child(held_stream, "CUEMU_STREAMS=lazy");
    in_child(held_stream, "CUEMU_STREAMS=rand:3");
}

/* ---- cuBLASLt ---- */

enum { M = 7, N = 5, K = 13 };

typedef struct problem {
    bool a_transposed, b_transposed, accumulate;
    dtype x, out;
    int algorithm;
} problem;

static void *on_device(const float *values, int n, dtype x) {
    float memory[M * K];
    for (int i = 0; i < n; i++)
        if (x == DTYPE_F32)
            memory[i] = values[i];
        else
            ((bf16 *)memory)[i] = bf16_from_float(values[i]);
    void *p;
    EXPECT(cudaMalloc(&p, (size_t)n * dtype_size(x)) == cudaSuccess);
    EXPECT(cudaMemcpy(p, memory, (size_t)n * dtype_size(x), cudaMemcpyHostToDevice) == cudaSuccess);
    return p;
}

static float element(const void *array, dtype x, int i) {
    return x == DTYPE_F32 ? ((const float *)array)[i] : bf16_to_float(((const bf16 *)array)[i]);
}

static lt_layout layout_of(const libraries *l, dtype x, int rows, int columns) {
    lt_layout layout;
    EXPECT(l->cublasLtMatrixLayoutCreate(&layout, x == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF, (uint64_t)rows, (uint64_t)columns,
                                         rows) == LT_SUCCESS);
    return layout;
}

static void multiply(const libraries *l, const problem *p, const void *a, const void *b, void *d) {
    lt_handle handle;
    lt_matmul matmul;
    lt_preference preference;
    lt_candidate found[4];
    int n = 0, op_a = p->a_transposed, op_b = p->b_transposed;
    uint64_t workspace_bytes = 4 << 20;
    void *workspace;
    float one = 1, beta = p->accumulate;
    lt_layout layout_a = p->a_transposed ? layout_of(l, p->x, K, M) : layout_of(l, p->x, M, K);
    lt_layout layout_b = p->b_transposed ? layout_of(l, p->x, N, K) : layout_of(l, p->x, K, N),
              layout_d = layout_of(l, p->out, M, N);
    EXPECT(cudaMalloc(&workspace, workspace_bytes) == cudaSuccess);
    EXPECT(l->cublasLtCreate(&handle) == LT_SUCCESS);
    EXPECT(l->cublasLtMatmulDescCreate(&matmul, LT_COMPUTE_32F, CUDA_R_32F) == LT_SUCCESS);
    EXPECT(l->cublasLtMatmulDescSetAttribute(matmul, LT_MATMUL_TRANSA, &op_a, sizeof op_a) == LT_SUCCESS);
    EXPECT(l->cublasLtMatmulDescSetAttribute(matmul, LT_MATMUL_TRANSB, &op_b, sizeof op_b) == LT_SUCCESS);
    EXPECT(l->cublasLtMatmulPreferenceCreate(&preference) == LT_SUCCESS);
    EXPECT(l->cublasLtMatmulPreferenceSetAttribute(preference, LT_PREFERENCE_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                                   sizeof workspace_bytes) == LT_SUCCESS);
    EXPECT(l->cublasLtMatmulAlgoGetHeuristic(handle, matmul, layout_a, layout_b, layout_d, layout_d, preference, 4, found, &n) ==
           LT_SUCCESS);
    EXPECT(n == 2);
    EXPECT(l->cublasLtMatmul(handle, matmul, &one, a, layout_a, b, layout_b, &beta, d, layout_d, d, layout_d,
                             &found[p->algorithm].algorithm, workspace, workspace_bytes, NULL) == LT_SUCCESS);
    EXPECT(cudaDeviceSynchronize() == cudaSuccess && cudaFree(workspace) == cudaSuccess);
    l->cublasLtMatrixLayoutDestroy(layout_a);
    l->cublasLtMatrixLayoutDestroy(layout_b);
    l->cublasLtMatrixLayoutDestroy(layout_d);
    l->cublasLtMatmulPreferenceDestroy(preference);
    l->cublasLtMatmulDescDestroy(matmul);
    l->cublasLtDestroy(handle);
}

/* Small integers, so that every order of summation gives the exact product. */
static void check_product(const libraries *l, const problem *p) {
    float a[M * K], b[K * N], d[M * N];
    float result[M * N];
    for (int i = 0; i < M * K; i++) a[i] = (float)(i * 7 % 11 - 5);
    for (int i = 0; i < K * N; i++) b[i] = (float)(i * 5 % 13 - 6);
    for (int i = 0; i < M * N; i++) d[i] = (float)(i % 3);
    void *dev_a = on_device(a, M * K, p->x), *dev_b = on_device(b, K * N, p->x), *dev_d = on_device(d, M * N, p->out);
    multiply(l, p, dev_a, dev_b, dev_d);
    EXPECT(cudaMemcpy(result, dev_d, (size_t)(M * N) * dtype_size(p->out), cudaMemcpyDeviceToHost) == cudaSuccess);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float sum = p->accumulate ? d[i + j * M] : 0;
            for (int k = 0; k < K; k++)
                sum += a[p->a_transposed ? k + i * K : i + k * M] * b[p->b_transposed ? j + k * N : k + j * K];
            EXPECT(element(result, p->out, i + j * M) == (p->out == DTYPE_F32 ? sum : bf16_to_float(bf16_from_float(sum))));
        }
    EXPECT(cudaFree(dev_a) == cudaSuccess && cudaFree(dev_b) == cudaSuccess && cudaFree(dev_d) == cudaSuccess);
}

static void all_products(void) {
    libraries l = {0};
    error err = {0};
    if (libraries_open(&l, LIBRARY_CUBLASLT, &err)) fprintf(stderr, "%s\n", err.text);
    EXPECT(l.of[LIBRARY_CUBLASLT].handle);
    EXPECT(strstr(l.of[LIBRARY_CUBLASLT].path, "emu/lib"));
    for (int i = 0; i < 48; i++) {
        static const dtype in_out[3][2] = {{DTYPE_F32, DTYPE_F32}, {DTYPE_BF16, DTYPE_F32}, {DTYPE_BF16, DTYPE_BF16}};
        problem p = {i & 1, i >> 1 & 1, i >> 2 & 1, in_out[i % 3][0], in_out[i % 3][1], i >> 3 & 1};
        check_product(&l, &p);
    }
}

static void cublaslt_multiplies(void **state) {
    (void)state;
    in_child(all_products, "");
    in_child(all_products, "CUEMU_STREAMS=lazy");
    in_child(all_products, "CUEMU_GUARD=1");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_machine_without_a_gpu),     cmocka_unit_test(as_many_gpus_as_it_is_told),
        cmocka_unit_test(the_capability_it_is_told),   cmocka_unit_test(memory_runs_out_and_comes_back),
        cmocka_unit_test(fresh_memory_is_nan),         cmocka_unit_test(a_failure_is_seen_late_and_stays),
        cmocka_unit_test(asking_lets_lazy_work_go_on), cmocka_unit_test(a_held_stream_waits),
        cmocka_unit_test(cublaslt_multiplies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
