/* gemm.c: the three products of a linear layer, by oneDNN, all threads on one product.
 *
 * Transposes are strides: y = in w^T, din = dy w and dw = dy^T in each run at 95 % of the machine's peak or more as they lie in
 * memory. Making a primitive takes milliseconds (it compiles machine code), executing one microseconds: they are kept, most
 * recent first. A run has a few dozen shapes; the list is bounded for callers whose lengths vary without end.
 *
 * oneDNN has no products in bf16 for processors without AVX-512. There their factors are widened to fp32, a panel of outputs at a
 * time so that a head of 202,048 needs no copy of its own, and a result is rounded once: slower than f32, but the same numbers.
 */
#include <dnnl_debug.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/onednn.h"
#include "util/arena.h"

enum { MAX_PRODUCTS = 256 };

/* c (+)= a b, ready to run */
typedef struct product {
    onednn_matrix a, b, c;
    bool accumulate;
    dnnl_primitive_t matmul;
    dnnl_memory_t memory_a, memory_b, memory_c;
    struct product *next;
} product;

struct gemm_cache {
    product *first;
    int n;
};

static void product_destroy(product *p) {
    if (p->memory_a) dnnl_memory_destroy(p->memory_a);
    if (p->memory_b) dnnl_memory_destroy(p->memory_b);
    if (p->memory_c) dnnl_memory_destroy(p->memory_c);
    if (p->matmul) dnnl_primitive_destroy(p->matmul);
    free(p);
}

static dnnl_status_t product_create(product **created, backend *b, const product *shape) {
    product *p = calloc(1, sizeof *p);
    if (p == NULL) return dnnl_out_of_memory;
    *p = *shape;
    dnnl_status_t failed = onednn_matmul(&p->matmul, NULL, b->engine, &p->a, &p->b, &p->c, p->accumulate);
    if (!failed) failed = onednn_memory(&p->memory_a, b->engine, &p->a);
    if (!failed) failed = onednn_memory(&p->memory_b, b->engine, &p->b);
    if (!failed) failed = onednn_memory(&p->memory_c, b->engine, &p->c);
    if (failed) {
        product_destroy(p);
        return failed;
    }
    *created = p;
    return failed;
}

static bool same_matrix(const onednn_matrix *p, const onednn_matrix *q) {
    return p->rows == q->rows && p->columns == q->columns && p->row_stride == q->row_stride &&
           p->column_stride == q->column_stride && p->x == q->x;
}

static bool same_product(const product *p, const product *q) {
    return same_matrix(&p->a, &q->a) && same_matrix(&p->b, &q->b) && same_matrix(&p->c, &q->c) && p->accumulate == q->accumulate;
}

static void drop_last(struct gemm_cache *cache) {
    product **at = &cache->first;
    while ((*at)->next) at = &(*at)->next;
    product_destroy(*at);
    *at = NULL;
    cache->n--;
}

/* The product of this shape, found or made, at the front of the list. */
static dnnl_status_t find_product(product **found, backend *b, const product *shape) {
    struct gemm_cache *cache = b->gemms;
    product **at = &cache->first, *p;
    while (*at && !same_product(*at, shape)) at = &(*at)->next;
    if (*at) {
        p = *at;
        *at = p->next;
    } else {
        if (cache->n == MAX_PRODUCTS) drop_last(cache);
        dnnl_status_t failed = product_create(&p, b, shape);
        if (failed) return failed;
        cache->n++;
    }
    p->next = cache->first;
    cache->first = p;
    *found = p;
    return dnnl_success;
}

static dnnl_status_t execute(backend *b, const product *shape, void *c, const void *a, const void *w) {
    product *p = NULL;
    omp_set_num_threads(b->threads); /* what oneDNN looks at, here and when it runs; the program may have changed it since */
    dnnl_status_t failed = find_product(&p, b, shape);
    if (!failed) failed = dnnl_memory_set_data_handle(p->memory_a, (void *)a);
    if (!failed) failed = dnnl_memory_set_data_handle(p->memory_b, (void *)w);
    if (!failed) failed = dnnl_memory_set_data_handle(p->memory_c, c);
    if (failed) return failed;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->memory_a}, {DNNL_ARG_WEIGHTS, p->memory_b}, {DNNL_ARG_DST, p->memory_c}};
    failed = dnnl_primitive_execute(p->matmul, b->stream, 3, args);
    return failed ? failed : dnnl_stream_wait(b->stream);
}

static void multiply(backend *b, const char *op, const product *shape, void *c, const void *a, const void *w) {
    if (shape->c.rows == 0 || shape->c.columns == 0) return;
    if (shape->a.columns == 0) { /* a sum of nothing; oneDNN would leave c as it is */
        if (!shape->accumulate) memset(c, 0, (size_t)shape->c.rows * (size_t)shape->c.columns * dtype_size(shape->c.x));
        return;
    }
    dnnl_status_t failed = execute(b, shape, c, a, w);
    if (failed) cpu_fail(b, failed == dnnl_out_of_memory ? STATUS_RESOURCE : STATUS_INTERNAL, op, dnnl_status2str(failed));
}

/* A row-major matrix, and the transpose of one that has `columns` rows. */
static onednn_matrix plain(int64_t rows, int64_t columns, dtype x) { return (onednn_matrix){rows, columns, columns, 1, x}; }
static onednn_matrix transposed(int64_t rows, int64_t columns, dtype x) { return (onednn_matrix){rows, columns, 1, rows, x}; }

/* ---- bf16 by way of fp32 ---- */

enum { PANEL = 1024 }; /* outputs at a time */

typedef struct panels {
    float *in;      /* (N,I) */
    float *weights; /* (PANEL,I) */
    float *out;     /* (N,PANEL) */
} panels;

static panels allocate(arena *memory, int64_t N, int64_t I) {
    panels p;
    p.in = arena_alloc(memory, "widened", (size_t)(N * I) * sizeof *p.in);
    p.weights = arena_alloc(memory, "widened", (size_t)(PANEL * I) * sizeof *p.weights);
    p.out = arena_alloc(memory, "widened", (size_t)(N * PANEL) * sizeof *p.out);
    return p;
}

size_t cpu_gemm_scratch(const backend *b, const op_limits *l) {
    if (l->x == DTYPE_F32 || !b->widens) return 0;
    int64_t N = (int64_t)l->B * l->T, attention = (int64_t)l->H * l->D, widest = l->C > l->F ? l->C : l->F;
    arena dry = arena_dry();
    allocate(&dry, N > l->head_rows ? N : l->head_rows, widest > attention ? widest : attention);
    return dry.peak;
}

static panels allocate_here(backend *b, int64_t N, int64_t I) {
    arena scratch = arena_on(b->scratch, b->scratch_bytes);
    return allocate(&scratch, N, I);
}

/* Between columns [first, first + columns) of a matrix in bf16 and a dense one in fp32. */
static void widen(backend *b, float *dense, const bf16 *matrix, int64_t row_stride, int64_t first, int64_t rows,
                  int64_t columns) {
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) dense[r * columns + c] = bf16_to_float(matrix[r * row_stride + first + c]);
}

static void narrow(backend *b, bf16 *matrix, int64_t row_stride, int64_t first, const float *dense, int64_t rows,
                   int64_t columns) {
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) matrix[r * row_stride + first + c] = bf16_from_float(dense[r * columns + c]);
}

static int64_t panel_from(int64_t first, int64_t O) { return O - first < PANEL ? O - first : PANEL; }

static void forward_widened(backend *b, bf16 *y, const bf16 *in, const bf16 *w, int64_t N, int I, int64_t O) {
    panels p = allocate_here(b, N, I);
    widen(b, p.in, in, I, 0, N, I);
    for (int64_t o = 0; o < O; o += PANEL) {
        int64_t n = panel_from(o, O);
        widen(b, p.weights, w + o * I, I, 0, n, I);
        cpu_linear_forward(b, p.out, p.in, p.weights, DTYPE_F32, N, I, n);
        narrow(b, y, O, o, p.out, N, n);
    }
}

static void backward_input_widened(backend *b, bf16 *din, const bf16 *dy, const bf16 *w, int64_t N, int I, int64_t O) {
    panels p = allocate_here(b, N, I);
    memset(p.in, 0, (size_t)(N * I) * sizeof *p.in);
    for (int64_t o = 0; o < O; o += PANEL) {
        int64_t n = panel_from(o, O);
        widen(b, p.out, dy, O, o, N, n);
        widen(b, p.weights, w + o * I, I, 0, n, I);
        product shape = {
            .a = plain(N, n, DTYPE_F32), .b = plain(n, I, DTYPE_F32), .c = plain(N, I, DTYPE_F32), .accumulate = true};
        multiply(b, "linear_backward_input", &shape, p.in, p.out, p.weights);
    }
    narrow(b, din, I, 0, p.in, N, I);
}

static void backward_weight_widened(backend *b, float *dw, const bf16 *dy, const bf16 *in, bool accumulate, int64_t N, int I,
                                    int64_t O) {
    panels p = allocate_here(b, N, I);
    widen(b, p.in, in, I, 0, N, I);
    for (int64_t o = 0; o < O; o += PANEL) {
        int64_t n = panel_from(o, O);
        widen(b, p.out, dy, O, o, N, n);
        cpu_linear_backward_weight(b, dw + o * I, p.out, p.in, accumulate, DTYPE_F32, N, I, n);
    }
}

/* ---- the ops ---- */

void cpu_linear_forward(backend *b, void *y, const void *in, const void *w, dtype x, int64_t N, int I, int64_t O) {
    if (x == DTYPE_BF16 && b->widens) {
        forward_widened(b, y, in, w, N, I, O);
        return;
    }
    product shape = {.a = plain(N, I, x), .b = transposed(I, O, x), .c = plain(N, O, x)};
    multiply(b, "linear_forward", &shape, y, in, w);
}

void cpu_linear_backward_input(backend *b, void *din, const void *dy, const void *w, dtype x, int64_t N, int I, int64_t O) {
    if (x == DTYPE_BF16 && b->widens) {
        backward_input_widened(b, din, dy, w, N, I, O);
        return;
    }
    product shape = {.a = plain(N, O, x), .b = plain(O, I, x), .c = plain(N, I, x)};
    multiply(b, "linear_backward_input", &shape, din, dy, w);
}

void cpu_linear_backward_weight(backend *b, float *dw, const void *dy, const void *in, bool accumulate, dtype x, int64_t N, int I,
                                int64_t O) {
    if (x == DTYPE_BF16 && b->widens) {
        backward_weight_widened(b, dw, dy, in, accumulate, N, I, O);
        return;
    }
    product shape = {.a = transposed(O, N, x), .b = plain(N, I, x), .c = plain(O, I, DTYPE_F32), .accumulate = accumulate};
    multiply(b, "linear_backward_weight", &shape, dw, dy, in);
}

int cpu_gemm_open(backend *b, error *err) {
    b->gemms = calloc(1, sizeof *b->gemms);
    return b->gemms ? 0 : error_set(err, STATUS_RESOURCE, "no memory to keep matrix products in");
}

void cpu_gemm_close(backend *b) {
    if (b->gemms == NULL) return;
    for (product *p = b->gemms->first, *next; p; p = next) {
        next = p->next;
        product_destroy(p);
    }
    free(b->gemms);
    b->gemms = NULL;
}
