/* gemm.c: the three products of a linear layer, by cuBLASLt.
 *
 * cuBLASLt counts columns first. A row-major matrix is its transpose read column-major, so the operands change places: y = in w^T
 * is computed as y^T = w in^T, and nothing is copied. bf16 and f32 products accumulate in fp32 (never TF32); weight gradients are
 * written, or added to, in fp32.
 *
 * Descriptors and the algorithm are kept for each shape. Of the algorithms that the library proposes, the fastest on this GPU is
 * taken, measured when a shape is first used, in place: the output is written anyway. What accumulates cannot be tried twice,
 * unless the backend is being tuned, and small products (decoding, whose lengths vary without end) are not worth it; they take
 * the first proposal, as does what first comes after tuning. Algorithms that add parts of a sum in place, in the order in which
 * they come, are excluded: every choice gives the same bits each time. */
#include "cuda/gemm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda.h"
#include "cuda/libraries.h"
#include "cuda/plan.h"

enum { MAX_PRODUCTS = 256, MAX_CANDIDATES = 8, TIMED_RUNS = 3, WORKSPACE_BYTES = CUDA_GEMM_WORKSPACE };
static const double worth_timing = 1e9;    /* multiplications; 0.1 ms of an A100 in f32, some microseconds in bf16 */
static const double worth_changing = 0.98; /* of the time of a better-placed proposal: what measurements differ by is luck */

/* d = a b, ready to run */
typedef struct product {
    gemm_shape shape;
    lt_matmul matmul;
    lt_layout layout_a, layout_b, layout_d;
    lt_algorithm algorithm;
    struct product *next;
} product;

struct gemm_cache {
    lt_handle handle;
    lt_preference preference;
    cudaEvent_t start, end; /* of a measurement */
    double worth_timing;
    bool tuning, tuned;
    gemm_choices choices;
    product *first; /* most recent first */
    int n;
};

typedef struct operands {
    void *d;
    const void *a, *b;
    bool accumulate;
} operands;

static cudaDataType data_type(dtype x) { return x == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF; }

/* ---- one product ---- */

static void product_destroy(const libraries *l, product *p) {
    if (p->matmul) l->cublasLtMatmulDescDestroy(p->matmul);
    if (p->layout_a) l->cublasLtMatrixLayoutDestroy(p->layout_a);
    if (p->layout_b) l->cublasLtMatrixLayoutDestroy(p->layout_b);
    if (p->layout_d) l->cublasLtMatrixLayoutDestroy(p->layout_d);
    free(p);
}

static lt_status make_layout(const libraries *l, lt_layout *layout, dtype x, int64_t rows, int64_t columns, bool transposed) {
    int64_t lines = transposed ? columns : rows, other = transposed ? rows : columns;
    return l->cublasLtMatrixLayoutCreate(layout, data_type(x), (uint64_t)lines, (uint64_t)other, lines);
}

static lt_status make_descriptors(const libraries *l, product *p) {
    const gemm_shape *s = &p->shape;
    int32_t op_a = s->a_transposed ? LT_OP_T : LT_OP_N, op_b = s->b_transposed ? LT_OP_T : LT_OP_N;
    lt_status failed = l->cublasLtMatmulDescCreate(&p->matmul, LT_COMPUTE_32F, CUDA_R_32F);
    if (!failed) failed = l->cublasLtMatmulDescSetAttribute(p->matmul, LT_MATMUL_TRANSA, &op_a, sizeof op_a);
    if (!failed) failed = l->cublasLtMatmulDescSetAttribute(p->matmul, LT_MATMUL_TRANSB, &op_b, sizeof op_b);
    if (!failed) failed = make_layout(l, &p->layout_a, s->x, s->m, s->k, s->a_transposed);
    if (!failed) failed = make_layout(l, &p->layout_b, s->x, s->k, s->n, s->b_transposed);
    if (!failed) failed = make_layout(l, &p->layout_d, s->out, s->m, s->n, false);
    return failed;
}

static lt_status run(backend *b, const product *p, const lt_algorithm *algorithm, const operands *at) {
    float one = 1, beta = at->accumulate ? 1 : 0;
    return b->libraries->cublasLtMatmul(b->gemms->handle, p->matmul, &one, at->a, p->layout_a, at->b, p->layout_b, &beta, at->d,
                                        p->layout_d, at->d, p->layout_d, algorithm, cuda_scratch(b, WORKSPACE_BYTES),
                                        WORKSPACE_BYTES, b->stream);
}

/* ---- which algorithm ---- */

/* What the library proposes for these alignments, best first. */
static lt_status propose(backend *b, const product *p, lt_candidate candidates[MAX_CANDIDATES], int *n) {
    const libraries *l = b->libraries;
    struct gemm_cache *g = b->gemms;
    const int *alignment = p->shape.alignment;
    const struct {
        lt_preference_attribute name;
        int alignment;
    } wanted[] = {{LT_PREFERENCE_MIN_ALIGNMENT_A_BYTES, alignment[0]},
                  {LT_PREFERENCE_MIN_ALIGNMENT_B_BYTES, alignment[1]},
                  {LT_PREFERENCE_MIN_ALIGNMENT_C_BYTES, alignment[2]},
                  {LT_PREFERENCE_MIN_ALIGNMENT_D_BYTES, alignment[2]}};
    lt_status failed = LT_SUCCESS;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted && !failed; i++) {
        uint32_t bytes = (uint32_t)wanted[i].alignment;
        failed = l->cublasLtMatmulPreferenceSetAttribute(g->preference, wanted[i].name, &bytes, sizeof bytes);
    }
    if (failed) return failed;
    return l->cublasLtMatmulAlgoGetHeuristic(g->handle, p->matmul, p->layout_a, p->layout_b, p->layout_d, p->layout_d,
                                             g->preference, MAX_CANDIDATES, candidates, n);
}

/* Does the library still take an algorithm from the file? */
static bool usable(backend *b, const product *p, const lt_algorithm *algorithm) {
    lt_candidate checked = {0};
    lt_status failed = b->libraries->cublasLtMatmulAlgoCheck(b->gemms->handle, p->matmul, p->layout_a, p->layout_b, p->layout_d,
                                                             p->layout_d, algorithm, &checked);
    return !failed && checked.workspace_bytes <= WORKSPACE_BYTES;
}

/* Seconds of one run after another; infinite if it does not run. */
static double measure(backend *b, const product *p, const lt_algorithm *algorithm, const operands *at) {
    struct gemm_cache *g = b->gemms;
    float ms = 0;
    if (run(b, p, algorithm, at)) return INFINITY; /* the first one loads the kernel */
    cuda_check(b, "cudaEventRecord", cudaEventRecord(g->start, b->stream));
    for (int i = 0; i < TIMED_RUNS; i++)
        if (run(b, p, algorithm, at)) return INFINITY;
    cuda_check(b, "cudaEventRecord", cudaEventRecord(g->end, b->stream));
    if (cuda_wait(b, g->end)) return INFINITY;
    cuda_check(b, "cudaEventElapsedTime", cudaEventElapsedTime(&ms, g->start, g->end));
    return (double)ms * 1e-3 / TIMED_RUNS;
}

static int fastest(backend *b, const product *p, const lt_candidate *candidates, int n, const operands *at) {
    int best = 0;
    double least = INFINITY;
    for (int i = 0; i < n; i++) {
        double seconds = measure(b, p, &candidates[i].algorithm, at);
        if (seconds >= least * worth_changing) continue;
        best = i;
        least = seconds;
    }
    return best;
}

static lt_status choose(backend *b, product *p, const operands *at) {
    struct gemm_cache *g = b->gemms;
    const gemm_choice *known = gemm_choices_find(&g->choices, &p->shape);
    if (known && usable(b, p, &known->algorithm)) {
        p->algorithm = known->algorithm;
        return LT_SUCCESS;
    }
    lt_candidate candidates[MAX_CANDIDATES];
    int n = 0;
    lt_status failed = propose(b, p, candidates, &n);
    if (failed) return failed;
    double work = (double)p->shape.m * (double)p->shape.n * (double)p->shape.k;
    bool may_try = g->tuning || (!g->tuned && !at->accumulate), timed = work >= g->worth_timing && may_try && n > 1;
    p->algorithm = candidates[timed ? fastest(b, p, candidates, n, at) : 0].algorithm;
    if (timed) gemm_choices_add(&g->choices, &(gemm_choice){p->shape, p->algorithm});
    if (timed && !g->tuning) gemm_choices_save(&g->choices);
    return LT_SUCCESS;
}

/* ---- the products that are kept ---- */

static void drop_last(backend *b) {
    product **at = &b->gemms->first;
    while ((*at)->next) at = &(*at)->next;
    product_destroy(b->libraries, *at);
    *at = NULL;
    b->gemms->n--;
}

static lt_status make_product(product **made, backend *b, const gemm_shape *shape, const operands *at) {
    product *p = calloc(1, sizeof *p);
    *made = p;
    if (p == NULL) return -1;
    p->shape = *shape;
    lt_status failed = make_descriptors(b->libraries, p);
    if (!failed) failed = choose(b, p, at);
    if (failed) product_destroy(b->libraries, p);
    return failed;
}

/* The product of this shape, found or made, at the front of the list. */
static lt_status find_product(product **found, backend *b, const gemm_shape *shape, const operands *at) {
    struct gemm_cache *g = b->gemms;
    product **place = &g->first, *p;
    while (*place && !gemm_same_shape(&(*place)->shape, shape)) place = &(*place)->next;
    if (*place) {
        p = *place;
        *place = p->next;
    } else {
        lt_status failed = make_product(&p, b, shape, at);
        if (failed) return failed;
        if (g->n == MAX_PRODUCTS) drop_last(b);
        g->n++;
    }
    p->next = g->first;
    g->first = p;
    *found = p;
    return LT_SUCCESS;
}

static int alignment_of(const void *address) {
    int alignment = 256;
    while ((uintptr_t)address % (uintptr_t)alignment) alignment /= 2;
    return alignment;
}

static void multiply(backend *b, const char *op, gemm_shape *shape, const operands *at) {
    product *p = NULL;
    if (shape->m == 0 || shape->n == 0) return;
    if (shape->k == 0) { /* a sum of nothing */
        size_t bytes = (size_t)shape->m * (size_t)shape->n * dtype_size(shape->out);
        if (!at->accumulate) cuda_check(b, op, cudaMemsetAsync(at->d, 0, bytes, b->stream));
        return;
    }
    shape->alignment[0] = alignment_of(at->a);
    shape->alignment[1] = alignment_of(at->b);
    shape->alignment[2] = alignment_of(at->d);
    lt_status failed = find_product(&p, b, shape, at);
    if (!failed) failed = run(b, p, &p->algorithm, at);
    if (!failed) return;
    char what[160];
    snprintf(what, sizeof what, "%s (%s, %lld x %lld x %lld)", op, dtype_name(shape->x), (long long)shape->m, (long long)shape->n,
             (long long)shape->k);
    cuda_fail(b, what, failed < 0 ? "no memory for its descriptors" : b->libraries->cublasLtGetStatusString(failed));
}

/* ---- the ops ---- */

void cuda_linear_forward(backend *b, void *y, const void *in, const void *w, dtype x, int64_t N, int I, int64_t O) {
    gemm_shape shape = {.m = O, .n = N, .k = I, .a_transposed = true, .x = x, .out = x};
    multiply(b, "linear_forward", &shape, &(operands){.d = y, .a = w, .b = in});
}

void cuda_linear_backward_input(backend *b, void *din, const void *dy, const void *w, dtype x, int64_t N, int I, int64_t O) {
    gemm_shape shape = {.m = I, .n = N, .k = O, .x = x, .out = x};
    multiply(b, "linear_backward_input", &shape, &(operands){.d = din, .a = w, .b = dy});
}

void cuda_linear_backward_weight(backend *b, float *dw, const void *dy, const void *in, bool accumulate, dtype x, int64_t N,
                                 int I, int64_t O) {
    gemm_shape shape = {.m = I, .n = O, .k = N, .b_transposed = true, .x = x, .out = DTYPE_F32};
    multiply(b, "linear_backward_weight", &shape, &(operands){.d = dw, .a = in, .b = dy, .accumulate = accumulate});
}

/* ---- opening and closing ---- */

size_t cuda_gemm_scratch(void) { return WORKSPACE_BYTES; }

/* MOBILELLM_GEMM_TIMING: multiplications from which a product is timed; 0: none is. */
static double timed_from(void) {
    const char *text = getenv("MOBILELLM_GEMM_TIMING");
    if (text == NULL || *text == '\0') return worth_timing;
    double from = strtod(text, NULL);
    return from > 0 ? from : INFINITY;
}

static lt_status make_preference(const libraries *l, struct gemm_cache *g) {
    uint64_t bytes = WORKSPACE_BYTES;
    uint32_t reductions = LT_REDUCTION_NONE | LT_REDUCTION_COMPUTE_TYPE;
    lt_status failed = l->cublasLtMatmulPreferenceCreate(&g->preference);
    if (!failed)
        failed = l->cublasLtMatmulPreferenceSetAttribute(g->preference, LT_PREFERENCE_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    if (!failed)
        failed = l->cublasLtMatmulPreferenceSetAttribute(g->preference, LT_PREFERENCE_REDUCTION_SCHEME_MASK, &reductions,
                                                         sizeof reductions);
    return failed;
}

int cuda_gemm_open(backend *b, error *err) {
    struct gemm_cache *g = b->gemms = calloc(1, sizeof *g);
    const libraries *l = b->libraries;
    if (g == NULL) return error_set(err, STATUS_RESOURCE, "no memory to keep matrix products in");
    g->worth_timing = timed_from();
    lt_status failed = l->cublasLtCreate(&g->handle);
    if (!failed) failed = make_preference(l, g);
    if (failed)
        return error_set(err, STATUS_RESOURCE, "cuBLASLt does not start: %s. Has the GPU any memory free?",
                         l->cublasLtGetStatusString(failed));
    cudaError_t no_event = cudaEventCreate(&g->start);
    if (!no_event) no_event = cudaEventCreate(&g->end);
    if (no_event) return error_set(err, STATUS_RESOURCE, "the GPU has no events to give: %s", cudaGetErrorString(no_event));
    gemm_choices_open(&g->choices, b->name, b->n_sm, l->cublasLtGetVersion());
    return 0;
}

void cuda_gemm_tune(backend *b, bool on) {
    b->gemms->tuning = on;
    b->gemms->tuned = !on;
}

static void drop_products(backend *b) {
    struct gemm_cache *g = b->gemms;
    while (g->first) {
        product *p = g->first;
        g->first = p->next;
        product_destroy(b->libraries, p);
    }
    g->n = 0;
}

/* What is prepared is prepared anew, with the choices that are now all ranks'. */
int cuda_gemm_share(backend *b, const ranks *world, error *err) {
    drop_products(b);
    return gemm_choices_share(&b->gemms->choices, world, err);
}

void cuda_gemm_close(backend *b) {
    struct gemm_cache *g = b->gemms;
    if (g == NULL) return;
    drop_products(b);
    if (g->preference) b->libraries->cublasLtMatmulPreferenceDestroy(g->preference);
    if (g->handle) b->libraries->cublasLtDestroy(g->handle);
    if (g->start) cudaEventDestroy(g->start);
    if (g->end) cudaEventDestroy(g->end);
    gemm_choices_close(&g->choices);
    free(g);
    b->gemms = NULL;
}
