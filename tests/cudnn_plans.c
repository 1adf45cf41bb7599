/* cudnn_plans.c: asks cuDNN for a plan of every attention shape of the model files named, for GPUs that are not here.
 *
 * cuDNN plans for a GPU by its description alone, if only the loader finds a driver: `make cudnn-plans` gives it one that does
 * nothing (tests/cudnn_plans_driver.c). A line for each plan, with engine and workspace, or the reason of a refusal. It proves
 * that the graphs are such as cuDNN accepts, and that they want no more memory than `mobilellm plan` counts for them; neither
 * numbers nor speed. A refused forward pass is an error; of a backward pass it is not, since our own needs no workspace. */
#include <stdio.h>
#include <stdlib.h>

#include "cuda/attention_cudnn.h"
#include "cuda/plan.h"
#include "model/config.h"

/* As cuDNN describes them itself: CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION. */
static const struct gpu {
    const char *name;
    int capability;
    const char *description;
} gpus[] = {
    {"H100", 90,
     "{\"deviceVer\":900,\"deviceName\":\"NVIDIA H100 80GB HBM3\",\"driverVer\":13000,\"cudaDeviceId\":0,"
     "\"totalGlobalMem\":85029158912,\"multiProcessorCount\":132,\"maxGridSize\":[2147483647,65535,65535],"
     "\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
     "\"maxSharedMemoryPerBlockOptin\":232448,\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,"
     "\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\"isTccDriver\":0,"
     "\"supportCoopLaunch\":1,\"smClockRateKHz\":1980000,\"memClockRateKHz\":2619000,\"l2CacheSize\":52428800}"},
    {"A100", 80,
     "{\"deviceVer\":800,\"deviceName\":\"NVIDIA A100-SXM4-80GB\",\"driverVer\":13000,\"cudaDeviceId\":0,"
     "\"totalGlobalMem\":85029158912,\"multiProcessorCount\":108,\"maxGridSize\":[2147483647,65535,65535],"
     "\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
     "\"maxSharedMemoryPerBlockOptin\":166912,\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,"
     "\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\"isTccDriver\":0,"
     "\"supportCoopLaunch\":1,\"smClockRateKHz\":1410000,\"memClockRateKHz\":1593000,\"l2CacheSize\":41943040}"},
};

enum { TOKENS = 8192, MAX_SHAPES = 256 };
static const int lengths[] = {2048, 8192};

/* Of no model: lengths that fill no tile, large and odd heads, as many of keys as of queries. */
static const cudnn_shape odd_shapes[] = {{1, 4, 2000, 32, 8, 64, 2000},  {1, 3, 100, 4, 4, 64, 100}, {1, 5, 1, 8, 8, 64, 1},
                                         {1, 2, 1025, 12, 12, 128, 300}, {1, 1, 65, 3, 1, 96, 64},   {1, 7, 33, 2, 2, 8, 33},
                                         {1, 64, 256, 16, 16, 128, 256}, {1, 1, 300, 2, 1, 72, 300}};

static int fail(const error *err) {
    fprintf(stderr, "cudnn_plans: %s\n", err->text);
    return -1;
}

static bool same(const cudnn_shape *a, const cudnn_shape *b) {
    return a->backward == b->backward && a->T == b->T && a->H == b->H && a->K == b->K && a->D == b->D && a->window == b->window;
}

static int add_shape(cudnn_shape *shapes, int n, const cudnn_shape *shape) {
    for (int i = 0; i < n; i++)
        if (same(&shapes[i], shape)) return n;
    if (n < MAX_SHAPES) shapes[n++] = *shape;
    return n;
}

/* Both passes at each length, of full attention and of the file's window. Returns how many there are now, or -1. */
static int add_model(cudnn_shape *shapes, int n, const char *path) {
    model_config c;
    error err;
    if (model_config_read(&c, path, &err)) return fail(&err);
    for (size_t i = 0; i < 2 * sizeof lengths / sizeof *lengths; i++) {
        int T = lengths[i / 2];
        cudnn_shape s = {i % 2, TOKENS / T, T, c.n_heads, c.n_kv_heads, c.head_dim, T};
        n = add_shape(shapes, n, &s);
        s.window = c.window;
        if (c.window < T) n = add_shape(shapes, n, &s);
    }
    model_config_free(&c);
    return n;
}

/* 1: cuDNN refused a forward pass, or wants more memory than is planned. */
static int print_plan(cudnn_attention *c, const char *gpu, const cudnn_shape *s) {
    error err;
    cudnn_plan *plan = attention_by_cudnn.plan(c, s, &err);
    printf("%-5s %-8s %3d %4d %4d %4d %4d %7d  ", gpu, s->backward ? "backward" : "forward", s->B, s->T, s->H, s->K, s->D,
           s->window);
    if (!plan) {
        printf("refused: %s\n", err.text);
        return !s->backward;
    }
    op_limits limits = {.x = DTYPE_BF16, .B = s->B, .T = s->T, .H = s->H, .K = s->K, .D = s->D, .training = s->backward};
    double taken = (double)attention_by_cudnn.workspace(plan), most = cuda_cudnn_workspace(&limits);
    bool more = taken > most;
    printf("%8.1f  %s%s\n", taken * 1e-6, attention_by_cudnn.name(plan), more ? ": more than is counted on" : "");
    fflush(stdout);
    attention_by_cudnn.destroy(plan);
    return more;
}

int main(int argc, char **argv) {
    static cudnn_shape shapes[MAX_SHAPES];
    libraries l = {0};
    error err;
    int n = 0, refused = 0;
    for (int i = 1; i < argc; i++)
        if ((n = add_model(shapes, n, argv[i])) < 0) return 1;
    (void)libraries_open(&l, LIBRARY_NVRTC, &err); /* cuDNN compiles with it */
    if (libraries_open(&l, LIBRARY_CUDNN, &err)) return printf("cudnn_plans: skipped: %s\n", err.text) < 0;
    char name[48];
    printf("%s, plans that repeat bit for bit\ngpu   pass       B    T    H    K    D  window        MB  engine\n",
           libraries_name(name, &l, LIBRARY_CUDNN));
    for (size_t g = 0; g < sizeof gpus / sizeof *gpus; g++) {
        cudnn_attention *c;
        if (attention_by_cudnn.open_described(&c, &l, gpus[g].description, gpus[g].capability, &err)) return fail(&err), 1;
        for (int i = 0; i < n; i++) refused += print_plan(c, gpus[g].name, &shapes[i]);
        for (size_t i = 0; i < sizeof odd_shapes / sizeof *odd_shapes; i++)
            refused += print_plan(c, gpus[g].name, &odd_shapes[i]);
        attention_by_cudnn.close(c);
    }
    if (refused) fprintf(stderr, "cudnn_plans: %d plans are not as they are counted on\n", refused);
    return refused > 0;
}
