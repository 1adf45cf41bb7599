/* block_gemm.c: oneDNN matmuls small enough for one core, shared by all threads.
 *
 * A primitive is immutable and may be executed by many threads at once as long as each brings its own working memory; memory
 * objects and streams may not be shared. So a primitive is made once, for one thread, and every thread has its own memory objects
 * (whose data pointers are set before each call, which costs nothing beside the product), its own stream and its own scratchpad.
 * On processors where oneDNN has no products in bf16 each thread widens its two blocks to fp32 before (cpu/gemm.c). */
#include "cpu/block_gemm.h"

#include <assert.h>
#include <omp.h>
#include <stdlib.h>

#include "cpu/onednn.h"

enum { ARGUMENTS = 4, A = 0, B = 1, C = 2, SCRATCHPAD = 3 };

typedef struct worker {
    dnnl_stream_t stream;
    void *scratchpad; /* of the cache's scratchpad_bytes */
    float *widened;   /* of its widened_bytes: a, then b */
} worker;

struct block_gemm_cache {
    dnnl_engine_t engine; /* the backend's */
    int threads;
    bool widens;
    worker *workers; /* (threads) */
    size_t scratchpad_bytes, widened_bytes;
    block_gemm *products;
};

typedef dnnl_exec_arg_t arguments[ARGUMENTS];

struct block_gemm {
    block_gemm_shape shape;
    bool widened;
    block_gemm_cache *cache;
    dnnl_primitive_t matmul;
    int n_arguments;      /* 3 where no scratchpad is needed */
    arguments *of_thread; /* (threads) */
    block_gemm *next;
};

int block_gemm_open(block_gemm_cache **cache, dnnl_engine_t engine, int threads, bool widens, error *err) {
    block_gemm_cache *c = calloc(1, sizeof *c);
    if (c)
        *c = (block_gemm_cache){
            .engine = engine, .threads = threads, .widens = widens, .workers = calloc((size_t)threads, sizeof *c->workers)};
    if (!c || !c->workers) {
        free(c);
        return error_set(err, STATUS_RESOURCE, "no memory for the streams of %d threads", threads);
    }
    for (int i = 0; i < threads; i++) {
        dnnl_status_t failed = dnnl_stream_create(&c->workers[i].stream, engine, dnnl_stream_default_flags);
        if (failed) {
            block_gemm_close(c);
            return error_set(err, STATUS_INTERNAL, "oneDNN refused a stream (status %d)", (int)failed);
        }
    }
    *cache = c;
    return 0;
}

static void product_free(block_gemm *g) {
    for (int i = 0; g->of_thread && i < g->cache->threads; i++)
        for (int arg = 0; arg < ARGUMENTS; arg++)
            if (g->of_thread[i][arg].memory) dnnl_memory_destroy(g->of_thread[i][arg].memory);
    free(g->of_thread);
    if (g->matmul) dnnl_primitive_destroy(g->matmul);
    free(g);
}

void block_gemm_close(block_gemm_cache *cache) {
    if (!cache) return;
    while (cache->products) {
        block_gemm *g = cache->products;
        cache->products = g->next;
        product_free(g);
    }
    for (int i = 0; i < cache->threads; i++) {
        if (cache->workers[i].stream) dnnl_stream_destroy(cache->workers[i].stream);
        free(cache->workers[i].scratchpad);
        free(cache->workers[i].widened);
    }
    free(cache->workers);
    free(cache);
}

static bool same_shape(const block_gemm_shape *p, const block_gemm_shape *q) {
    return p->M == q->M && p->N == q->N && p->K == q->K && p->transpose_a == q->transpose_a && p->transpose_b == q->transpose_b &&
           p->accumulate == q->accumulate && p->x == q->x;
}

/* A dense matrix; transposed, its columns lie one after the other. */
static onednn_matrix dense(int rows, int columns, bool transposed, dtype x) {
    return (onednn_matrix){rows, columns, transposed ? 1 : columns, transposed ? rows : 1, x};
}

static int grow_scratchpads(block_gemm_cache *cache, size_t bytes) {
    if (bytes <= cache->scratchpad_bytes) return 0;
    bytes = (bytes + 4095) / 4096 * 4096;
    for (int i = 0; i < cache->threads; i++) {
        void *larger = aligned_alloc(4096, bytes);
        if (!larger) return -1;
        free(cache->workers[i].scratchpad);
        cache->workers[i].scratchpad = larger;
    }
    cache->scratchpad_bytes = bytes;
    return 0;
}

static int grow_widened(block_gemm_cache *cache, const block_gemm_shape *s) {
    size_t bytes = (size_t)s->K * (size_t)(s->M + s->N) * sizeof(float);
    if (bytes <= cache->widened_bytes) return 0;
    for (int i = 0; i < cache->threads; i++) {
        float *larger = realloc(cache->workers[i].widened, bytes);
        if (!larger) return -1;
        cache->workers[i].widened = larger;
    }
    cache->widened_bytes = bytes;
    return 0;
}

static dnnl_status_t make_arguments(arguments args, dnnl_engine_t engine, const onednn_matrix matrices[3],
                                    size_t scratchpad_bytes) {
    static const int names[ARGUMENTS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
    dnnl_status_t failed = dnnl_success;
    for (int arg = A; arg <= C && !failed; arg++) {
        args[arg].arg = names[arg];
        failed = onednn_memory(&args[arg].memory, engine, &matrices[arg]);
    }
    if (failed || scratchpad_bytes == 0) return failed;
    args[SCRATCHPAD].arg = names[SCRATCHPAD];
    return onednn_scratchpad(&args[SCRATCHPAD].memory, engine, scratchpad_bytes);
}

static dnnl_status_t make_product(block_gemm *g) {
    const block_gemm_shape *s = &g->shape;
    dtype x = g->widened ? DTYPE_F32 : s->x;
    onednn_matrix matrices[3] = {dense(s->M, s->K, s->transpose_a, x), dense(s->K, s->N, s->transpose_b, x),
                                 dense(s->M, s->N, false, DTYPE_F32)};
    size_t scratchpad_bytes = 0;
    int threads = omp_get_max_threads();
    omp_set_num_threads(1); /* what the primitive is made for */
    dnnl_status_t failed =
        onednn_matmul(&g->matmul, &scratchpad_bytes, g->cache->engine, &matrices[A], &matrices[B], &matrices[C], s->accumulate);
    omp_set_num_threads(threads);

    g->n_arguments = scratchpad_bytes > 0 ? 4 : 3;
    for (int i = 0; i < g->cache->threads && !failed; i++)
        failed = make_arguments(g->of_thread[i], g->cache->engine, matrices, scratchpad_bytes);
    if (!failed && grow_scratchpads(g->cache, scratchpad_bytes)) failed = dnnl_out_of_memory;
    if (!failed && g->widened && grow_widened(g->cache, s)) failed = dnnl_out_of_memory;
    return failed;
}

const block_gemm *block_gemm_prepare(block_gemm_cache *cache, const block_gemm_shape *shape, error *err) {
    for (block_gemm *g = cache->products; g; g = g->next)
        if (same_shape(&g->shape, shape)) return g;

    block_gemm *g = calloc(1, sizeof *g);
    if (g)
        *g = (block_gemm){.shape = *shape,
                          .widened = shape->x == DTYPE_BF16 && cache->widens,
                          .cache = cache,
                          .of_thread = calloc((size_t)cache->threads, sizeof *g->of_thread)};
    dnnl_status_t failed = g && g->of_thread ? make_product(g) : dnnl_out_of_memory;
    if (failed) {
        if (g) product_free(g);
        error_set(err, failed == dnnl_out_of_memory ? STATUS_RESOURCE : STATUS_INTERNAL,
                  "oneDNN refused a product of %d x %d x %d in %s (status %d)", shape->M, shape->K, shape->N,
                  dtype_name(shape->x), (int)failed);
        return NULL;
    }
    g->next = cache->products;
    cache->products = g;
    return g;
}

static const float *widen(float *to, const bf16 *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = bf16_to_float(from[i]);
    return to;
}

int block_gemm_run(const block_gemm *g, int thread, float *c, const void *a, const void *b) {
    assert(thread >= 0 && thread < g->cache->threads);
    const dnnl_exec_arg_t *args = g->of_thread[thread];
    const worker *w = &g->cache->workers[thread];
    const block_gemm_shape *s = &g->shape;
    if (g->widened) {
        b = widen(w->widened + s->M * s->K, b, (int64_t)s->K * s->N);
        a = widen(w->widened, a, (int64_t)s->M * s->K);
    }
    /* oneDNN's memory objects know no const; sources are only read. */
    void *data[ARGUMENTS] = {(void *)a, (void *)b, c, w->scratchpad};
    for (int arg = 0; arg < g->n_arguments; arg++) {
        dnnl_status_t failed = dnnl_memory_set_data_handle(args[arg].memory, data[arg]);
        if (failed) return (int)failed;
    }
    return (int)dnnl_primitive_execute(g->matmul, w->stream, g->n_arguments, args);
}
