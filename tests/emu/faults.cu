/* faults.cu: kernels and host code with planted faults, each beside its correct twin. test_emu.py knows who has to find which.
 *
 * faults NAME[!]...: runs these cases, with the fault where a ! follows, until one does not come out right. Exit status 0: all
 * did; 3: a result was wrong; 4: a call reported an error. Else the emulation or a sanitizer has ended the program.
 * faults alone: all, without their faults. */
#include <cuda_pipeline.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 256, OK = 0, WRONG = 3, REFUSED = 4 };

/* ---- missing barriers ---- */

__device__ float warp_sum(float value) {
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

enum missing { NONE, AFTER_WRITE, BEFORE_REUSE };

/* out = {sum, sum of squares}, through the same scratch memory. */
template <missing FAULT>
__global__ void two_sums(float *out, const float *in) {
    __shared__ float scratch[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float a = 0, b = 0;
    for (int i = threadIdx.x; i < N; i += blockDim.x) {
        a += in[i];
        b += in[i] * in[i];
    }
    a = warp_sum(a);
    if (lane == 0) scratch[warp] = a;
    if (FAULT != AFTER_WRITE) __syncthreads();
    a = warp_sum(lane < warps ? scratch[lane] : 0.f);
    if (FAULT != BEFORE_REUSE) __syncthreads();
    b = warp_sum(b);
    if (lane == 0) scratch[warp] = b;
    __syncthreads();
    b = warp_sum(lane < warps ? scratch[lane] : 0.f);
    if (threadIdx.x == blockDim.x - 1) {
        out[0] = a;
        out[1] = b;
    }
}

/* out[i] = in[0] + in[i] */
__global__ void broadcast(float *out, const float *in, bool fault) {
    __shared__ float first;
    if (threadIdx.x == 0) first = in[0];
    if (!fault) __syncthreads();
    out[threadIdx.x] = first + in[threadIdx.x];
}

/* out = in backwards, through shared memory */
__global__ void reverse_warp(float *out, const float *in, bool fault) {
    __shared__ float s[32];
    s[threadIdx.x] = in[threadIdx.x];
    if (!fault) __syncwarp();
    out[threadIdx.x] = s[31 - threadIdx.x];
}

/* ---- races between blocks ---- */

/* out[0] = sum of in, an element a block */
__global__ void sum_of_blocks(float *out, const float *in, bool fault) {
    __shared__ float mine;
    if (threadIdx.x == 0) mine = in[blockIdx.x];
    __syncthreads();
    if (threadIdx.x != blockDim.x - 1) return;
    if (fault)
        out[0] += mine;
    else
        atomicAdd(out, mine);
}

/* ---- bounds, alignment, what was never written ---- */

__global__ void copy_to(float *out, const float *in, int last) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= last) out[i] = in[i];
}

/* out = in, moved by `shift` in shared memory */
__global__ void through_static(float *out, const float *in, int shift) {
    __shared__ float s[64];
    s[threadIdx.x + shift] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}

__global__ void through_dynamic(float *out, const float *in, int shift) {
    float *s = static_cast<float *>(cuemu::dyn_smem());
    s[threadIdx.x + shift] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}

__global__ void through_local(float *out, const float *in, int which) {
    float local[8];
    for (int i = 0; i < 8; i++) local[i] = in[i];
    out[threadIdx.x] = local[which];
}

__global__ void first_of_four(float *out, const float *in, int shift) {
    float4 four = *reinterpret_cast<const float4 *>(in + shift + 4 * threadIdx.x);
    out[threadIdx.x] = four.x;
}

/* out[i] = 1 where in[63 - i] >= 0: right by luck where what was not written is a zero left behind */
__global__ void is_not_negative(float *out, const float *in, bool fault, bool dynamic) {
    __shared__ float fixed[64];
    float *s = dynamic ? static_cast<float *>(cuemu::dyn_smem()) : fixed;
    if (threadIdx.x < 63 || !fault) s[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x] >= 0 ? 1.f : 0.f;
}

/* out[i] = in[127 - i], through an asynchronous copy */
__global__ void reverse_async(float *out, const float *in, bool fault) {
    __shared__ __align__(16) float s[128];
    __pipeline_memcpy_async(s + 4 * threadIdx.x, in + 4 * threadIdx.x, 16);
    __pipeline_commit();
    if (!fault) __pipeline_wait_prior(0);
    __syncwarp();
    out[threadIdx.x] = s[127 - threadIdx.x];
    if (fault) __pipeline_wait_prior(0);
}

/* ---- tensor cores ---- */

/* out (16,8) = a b: a (16,16) and b (16,16), of which the first 8 columns, both hold `in` */
__global__ void product(float *out, const float *in, bool fault) {
    __shared__ __align__(16) __nv_bfloat16 s[16][16];
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) s[i / 16][i % 16] = __float2bfloat16(in[i]);
    __syncwarp();
    unsigned left[4], right[4];
    float d[4] = {0, 0, 0, 0};
    emu_ldmatrix_x4(left, &s[lane % 16][lane / 16 * 8]);
    emu_ldmatrix_x4_trans(right, &s[lane % 16][lane / 16 * 8]);
    emu_mma_m16n8k16_bf16(d, left, fault ? right + 2 : right, d);
    for (int i = 0; i < 4; i++) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

/* ---- threads that do not meet ---- */

__global__ void diverging(float *out, bool fault) {
    if (fault && threadIdx.x < 16) {
        out[0] = 1;
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

__global__ void returning(float *out, unsigned threads) {
    if (threadIdx.x >= threads) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void neighbours(float *out, const float *in, unsigned lanes) {
    if (threadIdx.x < lanes) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
}

__global__ void add(float *out, const float *in) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < N) out[i] += in[i];
}

__global__ void larger(float *out, const float *a, const float *b) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < N) out[i] = fmaxf(a[i], b[i]);
}

/* ---- the cases ---- */

struct device {
    float *out, *in;   // N, of the device
    float host_in[N];  // what `in` holds: 1 .. 17, again and again
    float result[N];   // what `out` held afterwards
    cudaStream_t stream;
};

static bool close_to(float value, double expected) { return fabs(value - expected) <= 1e-4 * fabs(expected); }

static int fetch(device *d) {
    if (cudaMemcpyAsync(d->result, d->out, sizeof d->result, cudaMemcpyDeviceToHost, d->stream)) return REFUSED;
    return cudaStreamSynchronize(d->stream) ? REFUSED : OK;
}

/* out[i] is expected(i) for i < n */
template <class F>
static int check(device *d, int n, F expected) {
    if (fetch(d)) return REFUSED;
    for (int i = 0; i < n; i++)
        if (!close_to(d->result[i], expected(i))) {
            printf("out[%d] is %g, expected %g\n", i, d->result[i], static_cast<double>(expected(i)));
            return WRONG;
        }
    return OK;
}

static int check_sums(device *d) {
    double sums[2] = {0, 0};
    for (float f : d->host_in) {
        sums[0] += f;
        sums[1] += f * f;
    }
    return check(d, 2, [&](int i) { return sums[i]; });
}

static int reduction(device *d, bool fault) {
    CUEMU_LAUNCH(fault ? two_sums<AFTER_WRITE> : two_sums<NONE>, 1, 128, 0, d->stream, d->out, d->in);
    return check_sums(d);
}

static int scratch_reuse(device *d, bool fault) {
    CUEMU_LAUNCH(fault ? two_sums<BEFORE_REUSE> : two_sums<NONE>, 1, 128, 0, d->stream, d->out, d->in);
    return check_sums(d);
}

static int one_to_all(device *d, bool fault) {
    CUEMU_LAUNCH(broadcast, 1, 64, 0, d->stream, d->out, d->in, fault);
    return check(d, 64, [&](int i) { return d->host_in[0] + d->host_in[i]; });
}

static int syncwarp(device *d, bool fault) {
    CUEMU_LAUNCH(reverse_warp, 1, 32, 0, d->stream, d->out, d->in, fault);
    return check(d, 32, [&](int i) { return d->host_in[31 - i]; });
}

static int between_blocks(device *d, bool fault) {
    CUEMU_LAUNCH(sum_of_blocks, N, 64, 0, d->stream, d->out, d->in, fault);
    double sum = 0;
    for (float f : d->host_in) sum += f;
    return check(d, 1, [&](int) { return sum; });
}

static int global_bounds(device *d, bool fault) {
    CUEMU_LAUNCH(copy_to, N / 64 + 1, 64, 0, d->stream, d->out, d->in, fault ? N : N - 1);
    return check(d, N, [&](int i) { return d->host_in[i]; });
}

static int static_bounds(device *d, bool fault) {
    CUEMU_LAUNCH(through_static, 1, 64, 0, d->stream, d->out, d->in, fault ? 1 : 0);
    return check(d, 64, [&](int i) { return fault ? (i ? d->host_in[i - 1] : d->result[0]) : d->host_in[i]; });
}

static int dynamic_bounds(device *d, bool fault) {
    CUEMU_LAUNCH(through_dynamic, 1, 64, 64 * sizeof(float), d->stream, d->out, d->in, fault ? 1 : 0);
    return check(d, 64, [&](int i) { return fault ? (i ? d->host_in[i - 1] : d->result[0]) : d->host_in[i]; });
}

static int local_bounds(device *d, bool fault) {
    CUEMU_LAUNCH(through_local, 1, 64, 0, d->stream, d->out, d->in, fault ? 8 : 7);
    return fault ? fetch(d) : check(d, 64, [&](int) { return d->host_in[7]; });
}

static int alignment(device *d, bool fault) {
    CUEMU_LAUNCH(first_of_four, 1, 32, 0, d->stream, d->out, d->in, fault ? 1 : 4);
    return check(d, 32, [&](int i) { return d->host_in[(fault ? 1 : 4) + 4 * i]; });
}

static int unwritten_static(device *d, bool fault) {
    CUEMU_LAUNCH(is_not_negative, 1, 64, 0, d->stream, d->out, d->in, fault, false);
    return check(d, 64, [](int) { return 1; });
}

static int unwritten_dynamic(device *d, bool fault) {
    CUEMU_LAUNCH(is_not_negative, 1, 64, 64 * sizeof(float), d->stream, d->out, d->in, fault, true);
    return check(d, 64, [](int) { return 1; });
}

static int unwritten_global(device *d, bool fault) {
    float *fresh;
    cudaMalloc(&fresh, N * sizeof *fresh);
    if (!fault) cudaMemsetAsync(fresh, 0, N * sizeof *fresh, d->stream);
    CUEMU_LAUNCH(add, N / 64, 64, 0, d->stream, d->out, fresh);
    int result = check(d, N, [](int) { return 0; });
    cudaFree(fresh);
    return result;
}

/* What NaN does not show, because fmaxf passes it over; random bytes do. */
static int unwritten_maximum(device *d, bool fault) {
    float *fresh;
    cudaMalloc(&fresh, N * sizeof *fresh);
    if (!fault) cudaMemsetAsync(fresh, 0, N * sizeof *fresh, d->stream);
    CUEMU_LAUNCH(larger, N / 64, 64, 0, d->stream, d->out, d->in, fresh);
    int result = check(d, N, [&](int i) { return d->host_in[i]; });
    cudaFree(fresh);
    return result;
}

static int async_copy(device *d, bool fault) {
    CUEMU_LAUNCH(reverse_async, 1, 32, 0, d->stream, d->out, d->in, fault);
    return check(d, 32, [&](int i) { return d->host_in[127 - i]; });
}

static int tensor_core(device *d, bool fault) {
    CUEMU_LAUNCH(product, 1, 32, 0, d->stream, d->out, d->in, fault);
    return check(d, 128, [&](int i) {
        double sum = 0;
        for (int k = 0; k < 16; k++) sum += d->host_in[i / 8 * 16 + k] * d->host_in[k * 16 + i % 8];
        return sum;
    });
}

static int divergent_barrier(device *d, bool fault) {
    CUEMU_LAUNCH(diverging, 1, 32, 0, d->stream, d->out, fault);
    return check(d, 32, [](int) { return 1; });
}

static int early_return(device *d, bool fault) {
    CUEMU_LAUNCH(returning, 1, 64, 0, d->stream, d->out, fault ? 40 : 64);
    return check(d, 40, [](int) { return 1; });
}

static int absent_lanes(device *d, bool fault) {
    CUEMU_LAUNCH(neighbours, 1, 32, 0, d->stream, d->out, d->in, fault ? 16 : 32);
    return check(d, 16, [&](int i) { return d->host_in[i ^ 1]; });
}

static int host_pointer(device *d, bool fault) {
    CUEMU_LAUNCH(add, N / 64, 64, 0, d->stream, d->out, fault ? d->host_in : d->in);
    return check(d, N, [&](int i) { return d->host_in[i]; });
}

static int shared_limit(device *d, bool fault) {
    int bytes = 60000;
    if (!fault) cudaFuncSetAttribute(through_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (CUEMU_LAUNCH(through_dynamic, 1, 64, bytes, d->stream, d->out, d->in, 0)) return REFUSED;
    return check(d, 64, [&](int i) { return d->host_in[i]; });
}

static int host_reads_device(device *d, bool fault) {
    float read = fault ? static_cast<volatile float *>(d->in)[3] : d->host_in[3];
    return close_to(read, d->host_in[3]) ? OK : WRONG;
}

static int stream_sync(device *d, bool fault) {
    float *pinned;
    cudaMallocHost(&pinned, N * sizeof *pinned);
    memset(pinned, 0, N * sizeof *pinned);
    cudaMemcpyAsync(pinned, d->in, N * sizeof *pinned, cudaMemcpyDeviceToHost, d->stream);
    if (!fault) cudaStreamSynchronize(d->stream);
    int result = memcmp(pinned, d->host_in, sizeof d->host_in) ? WRONG : OK;
    cudaFreeHost(pinned);
    return result;
}

static int pinned_reuse(device *d, bool fault) {
    float *pinned;
    cudaMallocHost(&pinned, N * sizeof *pinned);
    memcpy(pinned, d->host_in, N * sizeof *pinned);
    cudaMemcpyAsync(d->out, pinned, N * sizeof *pinned, cudaMemcpyHostToDevice, d->stream);
    if (!fault) cudaStreamSynchronize(d->stream);
    memset(pinned, 0, N * sizeof *pinned);
    int result = check(d, N, [&](int i) { return d->host_in[i]; });
    cudaFreeHost(pinned);
    return result;
}

static int event_wait(device *d, bool fault) {
    float *between;
    cudaMalloc(&between, N * sizeof *between);
    cudaMemset(between, 0, N * sizeof *between);
    cudaDeviceSynchronize();
    cudaStream_t second;
    cudaEvent_t done;
    cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
    CUEMU_LAUNCH(add, N / 64, 64, 0, d->stream, between, d->in);
    cudaEventRecord(done, d->stream);
    if (!fault) cudaStreamWaitEvent(second, done, 0);
    CUEMU_LAUNCH(add, N / 64, 64, 0, second, d->out, between);
    cudaStreamSynchronize(second);
    int result = check(d, N, [&](int i) { return d->host_in[i]; });
    cudaEventDestroy(done);
    cudaStreamDestroy(second);
    cudaFree(between);
    return result;
}

static const struct {
    const char *name;
    int (*run)(device *d, bool fault);
} cases[] = {
    {"reduction", reduction},
    {"scratch_reuse", scratch_reuse},
    {"broadcast", one_to_all},
    {"syncwarp", syncwarp},
    {"between_blocks", between_blocks},
    {"global_bounds", global_bounds},
    {"static_bounds", static_bounds},
    {"dynamic_bounds", dynamic_bounds},
    {"local_bounds", local_bounds},
    {"alignment", alignment},
    {"unwritten_static", unwritten_static},
    {"unwritten_dynamic", unwritten_dynamic},
    {"unwritten_global", unwritten_global},
    {"unwritten_maximum", unwritten_maximum},
    {"async_copy", async_copy},
    {"tensor_core", tensor_core},
    {"divergent_barrier", divergent_barrier},
    {"early_return", early_return},
    {"absent_lanes", absent_lanes},
    {"host_pointer", host_pointer},
    {"shared_limit", shared_limit},
    {"host_reads_device", host_reads_device},
    {"stream_sync", stream_sync},
    {"pinned_reuse", pinned_reuse},
    {"event_wait", event_wait},
};

static int run_case(int (*run)(device *d, bool fault), bool fault) {
    device d = {};
    for (int i = 0; i < N; i++) d.host_in[i] = static_cast<float>(i % 17 + 1);
    if (cudaStreamCreateWithFlags(&d.stream, cudaStreamNonBlocking) || cudaMalloc(&d.out, sizeof d.result) ||
        cudaMalloc(&d.in, sizeof d.host_in))
        return REFUSED;
    cudaMemcpy(d.in, d.host_in, sizeof d.host_in, cudaMemcpyHostToDevice);
    cudaMemset(d.out, 0, sizeof d.result);
    cudaDeviceSynchronize();
    int result = run(&d, fault);
    cudaFree(d.in);
    cudaFree(d.out);
    cudaStreamDestroy(d.stream);
    return result;
}

static int run_named(const char *name) {
    size_t length = strcspn(name, "!");
    for (const auto &c : cases)
        if (strlen(c.name) == length && !strncmp(c.name, name, length)) return run_case(c.run, name[length] == '!');
    fprintf(stderr, "faults: %s is not a case\n", name);
    return 2;
}

int main(int argc, char **argv) {
    int result = OK;
    for (int i = 1; i < argc && !result; i++) result = run_named(argv[i]);
    for (size_t i = 0; argc == 1 && i < sizeof cases / sizeof *cases && !result; i++) {
        result = run_case(cases[i].run, false);
        printf("%s %s\n", cases[i].name, result ? "failed" : "ok");
    }
    return result;
}
