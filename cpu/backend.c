/* backend.c: the CPU as a backend: its memory, its state, and the table of its ops.
 *
 * Work is done when an op returns, so `sync` has only failures to report. Memory of more than a huge page is aligned to one and
 * asks for them: a model is gigabytes, and without them the processor spends its time on page tables. */
#include <assert.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "util/system.h"

enum { ALIGN = 256, HUGE_PAGE = 2 << 20, COPY_PART = 1 << 20 };

/* ---- the processor ---- */

static void processor_name(char *name, size_t size) {
    snprintf(name, size, "unknown processor");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (file == NULL) return;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (colon == NULL || strncmp(line, "model name", strlen("model name")) != 0) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(name, size, "%s", colon[1] == ' ' ? colon + 2 : colon + 1);
        break;
    }
    fclose(file);
}

/* The bits of an instruction set contain those of the sets it builds on. */
static bool has_isa(dnnl_cpu_isa_t isa) { return (dnnl_get_effective_cpu_isa() & isa) == (unsigned)isa; }

static const char *isa_name(void) {
    if (has_isa(dnnl_cpu_isa_avx512_core_amx)) return "AMX";
    if (has_isa(dnnl_cpu_isa_avx512_core_bf16)) return "AVX-512 BF16";
    if (has_isa(dnnl_cpu_isa_avx512_core)) return "AVX-512";
    if (has_isa(dnnl_cpu_isa_avx2)) return "AVX2, bf16 by way of f32";
    return "no AVX2, bf16 by way of f32";
}

static const char *describe(backend *b) { return b->description; }

static double peak_flops(backend *b, dtype x) {
    (void)b;
    (void)x;
    return 0;
}

/* ---- opening and closing ---- */

static void close_backend(backend *b) {
    cpu_attention_close(b);
    cpu_gemm_close(b);
    if (b->stream) dnnl_stream_destroy(b->stream);
    if (b->engine) dnnl_engine_destroy(b->engine);
    free(b);
}

static int open_onednn(backend *b, error *err) {
    if (dnnl_engine_create(&b->engine, dnnl_cpu, 0) || dnnl_stream_create(&b->stream, b->engine, dnnl_stream_default_flags))
        return error_set(err, STATUS_INTERNAL, "oneDNN does not start on this processor (%s)", isa_name());
    return 0;
}

static int open_backend(backend **opened, int threads, int local_rank, error *err) {
    (void)local_rank; /* ranks share a machine's cores as the launcher binds them */
    assert(threads >= 0);
    backend *b = calloc(1, sizeof *b);
    if (b == NULL) return error_set(err, STATUS_RESOURCE, "no memory for the CPU backend");
    b->threads = threads ? threads : omp_get_max_threads();
    omp_set_num_threads(b->threads);
    b->widens = !has_isa(dnnl_cpu_isa_avx512_core);
    if (open_onednn(b, err) || cpu_gemm_open(b, err) || cpu_attention_open(b, err)) {
        close_backend(b);
        return -1;
    }
    char processor[80];
    processor_name(processor, sizeof processor);
    const dnnl_version_t *version = dnnl_version();
    snprintf(b->description, sizeof b->description, "%s, %d thread%s, oneDNN %d.%d.%d (%s)", processor, b->threads,
             b->threads == 1 ? "" : "s", version->major, version->minor, version->patch, isa_name());
    *opened = b;
    return 0;
}

/* ---- failures ---- */

void cpu_fail(backend *b, status code, const char *what, const char *why) {
    if (b->failure.code == STATUS_OK) error_set(&b->failure, code, "%s: %s", what, why);
}

static int sync_backend(backend *b, error *err) {
    if (b->failure.code == STATUS_OK) return 0;
    *err = b->failure;
    b->failure.code = STATUS_OK;
    return -1;
}

/* ---- results for later, and collectives: done at once ---- */

static void post(backend *b, const void *device, size_t bytes) {
    assert(bytes <= POST_BYTES && b->n_posted - b->n_fetched < POSTS);
    memcpy(b->posts[b->n_posted++ % POSTS], device, bytes);
}

static int fetch(backend *b, void *host, size_t bytes, error *err) {
    assert(bytes <= POST_BYTES && b->n_fetched < b->n_posted);
    memcpy(host, b->posts[b->n_fetched++ % POSTS], bytes);
    return sync_backend(b, err);
}

static int connect_ranks(backend *b, const ranks *world, error *err) {
    (void)err;
    b->world = world;
    return 0;
}

static bool alone(const backend *b) { return b->world == NULL || b->world->size == 1; }

static int64_t reduce_scatter(backend *b, float *buffer, int64_t n) {
    if (!alone(b)) ranks_reduce_scatter(b->world, buffer, n);
    return 0;
}

static int64_t all_gather(backend *b, void *buffer, size_t bytes) {
    if (!alone(b)) ranks_all_gather(b->world, buffer, bytes);
    return 0;
}

static void join(backend *b, int64_t ticket) {
    (void)b;
    (void)ticket;
}

static void all_sum(backend *b, double *values, int n) {
    if (!alone(b)) ranks_sum_double(b->world, values, n);
}

/* ---- ranges: nobody watches ---- */

static void range_begin(backend *b, const char *name, int64_t number) {
    (void)b;
    (void)name;
    (void)number;
}

static void range_end(backend *b) { (void)b; }

/* ---- memory ---- */

static size_t memory_available(backend *b, int local_size) {
    (void)b;
    return system_memory_available() / (size_t)local_size;
}

static size_t memory_used(backend *b) {
    (void)b;
    return process_memory();
}

/* Large memory is the kernel's, which clears a page as it is first touched: calloc knows, and clears it no second time. What
 * calloc gave stands before the block. */
static void *alloc_memory(backend *b, size_t bytes, error *err) {
    (void)b;
    if (bytes == 0) return NULL;
    size_t align = bytes > HUGE_PAGE ? HUGE_PAGE : ALIGN;
    void **given = calloc(bytes + sizeof *given + align, 1);
    if (given == NULL) {
        double installed = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGE_SIZE);
        error_set(err, STATUS_RESOURCE,
                  "the machine refused %.2f GiB of memory; it has %.2f GiB in all. Use smaller micro-batches.",
                  (double)bytes * 0x1p-30, installed * 0x1p-30);
        return NULL;
    }
    void **memory = (void **)(((uintptr_t)(given + 1) + align - 1) / align * align);
    memory[-1] = given;
    if (bytes > HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE); /* a wish: without it things are slower, not wrong */
    return memory;
}

static void free_memory(backend *b, void *memory) {
    (void)b;
    if (memory) free(((void **)memory)[-1]);
}

static void copy_memory(backend *b, void *to, const void *from, size_t bytes) {
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (size_t at = 0; at < bytes; at += COPY_PART)
        memcpy((char *)to + at, (const char *)from + at, bytes - at < COPY_PART ? bytes - at : COPY_PART);
}

static void zero_memory(backend *b, void *memory, size_t bytes) {
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (size_t at = 0; at < bytes; at += COPY_PART)
        memset((char *)memory + at, 0, bytes - at < COPY_PART ? bytes - at : COPY_PART);
}

static size_t larger(size_t p, size_t q) { return p > q ? p : q; }

static size_t scratch_bytes(backend *b, const op_limits *limits) {
    size_t norms = larger(cpu_rmsnorm_scratch(limits), cpu_qk_rope_scratch(limits));
    return larger(larger(cpu_gemm_scratch(b, limits), norms),
                  larger(cpu_attention_scratch(b, limits), cpu_cross_entropy_scratch(b, limits)));
}

static void set_scratch(backend *b, void *memory, size_t bytes) {
    b->scratch = memory;
    b->scratch_bytes = bytes;
}

void *cpu_scratch(backend *b, size_t bytes) {
    assert(bytes <= b->scratch_bytes);
    return b->scratch;
}

/* ---- the table ---- */

const ops *cpu_ops(void) {
    static const ops table = {
        .name = "cpu",
        .host_memory = true,
        .head_logits = (int64_t)1 << 26,
        .open = open_backend,
        .close = close_backend,
        .describe = describe,
        .peak_flops = peak_flops,
        .memory_available = memory_available,
        .memory_used = memory_used,
        .alloc = alloc_memory,
        .free = free_memory,
        .copy_in = copy_memory,
        .copy_out = copy_memory,
        .copy = copy_memory,
        .zero = zero_memory,
        .sync = sync_backend,
        .post = post,
        .fetch = fetch,
        .range_begin = range_begin,
        .range_end = range_end,
        .scratch_bytes = scratch_bytes,
        .set_scratch = set_scratch,
        .connect = connect_ranks,
        .reduce_scatter = reduce_scatter,
        .all_gather = all_gather,
        .join = join,
        .all_sum = all_sum,
        .embedding_forward = cpu_embedding_forward,
        .embedding_backward = cpu_embedding_backward,
        .rmsnorm_forward = cpu_rmsnorm_forward,
        .rmsnorm_backward = cpu_rmsnorm_backward,
        .linear_forward = cpu_linear_forward,
        .linear_backward_input = cpu_linear_backward_input,
        .linear_backward_weight = cpu_linear_backward_weight,
        .qk_rope_forward = cpu_qk_rope_forward,
        .qk_rope_backward = cpu_qk_rope_backward,
        .attention_forward = cpu_attention_forward,
        .attention_backward = cpu_attention_backward,
        .swiglu_forward = cpu_swiglu_forward,
        .swiglu_backward = cpu_swiglu_backward,
        .cross_entropy = cpu_cross_entropy,
        .sum = cpu_sum,
        .sum_squares = cpu_sum_squares,
        .adamw_begin = cpu_adamw_begin,
        .adamw = cpu_adamw,
        .to_float = cpu_to_float,
        .from_float = cpu_from_float,
    };
    return &table;
}
