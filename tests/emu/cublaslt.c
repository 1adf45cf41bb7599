/* cublaslt.c: stands in for cuBLASLt: the functions that cuda/gemm.c calls, by oneDNN's sgemm.
 *
 * Stricter than the real one: operands must be in device memory and as large as the layouts say, and the workspace an algorithm
 * asked for is overwritten, so that what should not have been in it shows. There are two algorithms, whose sums differ in order,
 * as those of the real one do: their results differ in the last bits. A shared library of its own, never under a sanitizer. */
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/library_api.h"
#include "tests/emu/emu_host.h"
#include "util/dtype.h"

#define PROTOTYPE(result, name, arguments) result name arguments;
CUBLASLT_FUNCTIONS(PROTOTYPE)

enum { INVALID_VALUE = 7, NOT_SUPPORTED = 15, EXECUTION_FAILED = 13 };
enum { N_ALGORITHMS = 2 };
static const uint64_t algorithm_mark = 0x656d75206c742031;
static const size_t workspace_of[N_ALGORITHMS] = {0, 1 << 20};

struct lt_matmul_opaque {
    int32_t transposed_a, transposed_b;
};
struct lt_layout_opaque {
    cudaDataType type;
    int64_t rows, columns, line; /* column-major: element (i, j) is at i + j * line */
};
struct lt_preference_opaque {
    uint64_t workspace_bytes;
};

size_t cublasLtGetVersion(void) { return CUDART_VERSION / 1000 * 10000; }

const char *cublasLtGetStatusString(lt_status status) {
    return status == LT_SUCCESS         ? "CUBLAS_STATUS_SUCCESS"
           : status == INVALID_VALUE    ? "CUBLAS_STATUS_INVALID_VALUE"
           : status == EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED"
                                        : "CUBLAS_STATUS_NOT_SUPPORTED";
}

lt_status cublasLtCreate(lt_handle *handle) {
    *handle = malloc(1);
    return LT_SUCCESS;
}

lt_status cublasLtDestroy(lt_handle handle) {
    free(handle);
    return LT_SUCCESS;
}

/* ---- descriptors ---- */

lt_status cublasLtMatmulDescCreate(lt_matmul *matmul, lt_compute compute, cudaDataType scale) {
    if (compute != LT_COMPUTE_32F || scale != CUDA_R_32F) return NOT_SUPPORTED;
    *matmul = calloc(1, sizeof **matmul);
    return LT_SUCCESS;
}

lt_status cublasLtMatmulDescDestroy(lt_matmul matmul) {
    free(matmul);
    return LT_SUCCESS;
}

lt_status cublasLtMatmulDescSetAttribute(lt_matmul matmul, lt_matmul_attribute which, const void *value, size_t bytes) {
    int32_t *attribute = which == LT_MATMUL_TRANSA ? &matmul->transposed_a : &matmul->transposed_b;
    if (which != LT_MATMUL_TRANSA && which != LT_MATMUL_TRANSB) return NOT_SUPPORTED;
    if (bytes != sizeof *attribute) return INVALID_VALUE;
    memcpy(attribute, value, bytes);
    return *attribute == LT_OP_N || *attribute == LT_OP_T ? LT_SUCCESS : INVALID_VALUE;
}

lt_status cublasLtMatrixLayoutCreate(lt_layout *layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t line) {
    if (type != CUDA_R_32F && type != CUDA_R_16BF) return NOT_SUPPORTED;
    if (line < (int64_t)rows) return INVALID_VALUE;
    *layout = malloc(sizeof **layout);
    **layout = (struct lt_layout_opaque){type, (int64_t)rows, (int64_t)columns, line};
    return LT_SUCCESS;
}

lt_status cublasLtMatrixLayoutDestroy(lt_layout layout) {
    free(layout);
    return LT_SUCCESS;
}

lt_status cublasLtMatmulPreferenceCreate(lt_preference *preference) {
    *preference = calloc(1, sizeof **preference);
    return LT_SUCCESS;
}

lt_status cublasLtMatmulPreferenceDestroy(lt_preference preference) {
    free(preference);
    return LT_SUCCESS;
}

lt_status cublasLtMatmulPreferenceSetAttribute(lt_preference preference, lt_preference_attribute which, const void *value,
                                               size_t bytes) {
    if (which != LT_PREFERENCE_MAX_WORKSPACE_BYTES) return bytes == sizeof(uint32_t) ? LT_SUCCESS : INVALID_VALUE;
    if (bytes != sizeof preference->workspace_bytes) return INVALID_VALUE;
    memcpy(&preference->workspace_bytes, value, bytes);
    return LT_SUCCESS;
}

/* ---- algorithms ---- */

static int algorithm_number(const lt_algorithm *a) {
    return a->data[0] == algorithm_mark && a->data[1] < N_ALGORITHMS ? (int)a->data[1] : -1;
}

static lt_candidate candidate(int number) {
    return (lt_candidate){.algorithm = {{algorithm_mark, (uint64_t)number}}, .workspace_bytes = workspace_of[number], .waves = 1};
}

static int sizes_match(lt_matmul matmul, lt_layout a, lt_layout b, lt_layout c, lt_layout d) {
    int64_t m = matmul->transposed_a ? a->columns : a->rows, k = matmul->transposed_a ? a->rows : a->columns;
    int64_t n = matmul->transposed_b ? b->rows : b->columns, other_k = matmul->transposed_b ? b->columns : b->rows;
    return k == other_k && m == d->rows && n == d->columns && a->type == b->type && c->type == d->type && c->rows == d->rows &&
           c->columns == d->columns && (a->type == d->type || d->type == CUDA_R_32F);
}

lt_status cublasLtMatmulAlgoGetHeuristic(lt_handle handle, lt_matmul matmul, lt_layout a, lt_layout b, lt_layout c, lt_layout d,
                                         lt_preference preference, int most, lt_candidate *candidates, int *n) {
    (void)handle;
    *n = 0;
    if (!sizes_match(matmul, a, b, c, d)) return INVALID_VALUE;
    for (int i = 0; i < N_ALGORITHMS && *n < most; i++)
        if (workspace_of[i] <= preference->workspace_bytes) candidates[(*n)++] = candidate(i);
    return LT_SUCCESS;
}

lt_status cublasLtMatmulAlgoCheck(lt_handle handle, lt_matmul matmul, lt_layout a, lt_layout b, lt_layout c, lt_layout d,
                                  const lt_algorithm *algorithm, lt_candidate *result) {
    (void)handle;
    int number = algorithm_number(algorithm);
    if (number < 0 || !sizes_match(matmul, a, b, c, d)) return INVALID_VALUE;
    *result = candidate(number);
    return LT_SUCCESS;
}

/* ---- multiplication ---- */

typedef struct job {
    struct lt_matmul_opaque matmul;
    struct lt_layout_opaque layout_a, layout_b, layout_d;
    const void *a, *b, *c;
    void *d, *workspace;
    float alpha, beta;
    int algorithm;
} job;

static size_t bytes_of(const struct lt_layout_opaque *l) {
    return (size_t)(l->line * l->columns) * (l->type == CUDA_R_32F ? sizeof(float) : sizeof(bf16));
}

/* The matrix as floats: itself, or *copy, which the caller frees. */
static const float *as_floats(const void *matrix, const struct lt_layout_opaque *l, float **copy) {
    *copy = NULL;
    if (l->type == CUDA_R_32F) return matrix;
    int64_t n = l->line * l->columns;
    *copy = malloc((size_t)n * sizeof **copy);
    for (int64_t i = 0; i < n; i++) (*copy)[i] = bf16_to_float(((const bf16 *)matrix)[i]);
    return *copy;
}

/* out (m,n) = alpha op(a) op(b) + beta out, by products over parts of k. A column-major matrix is its transpose row-major, and
 * sgemm takes row-major ones: so b comes first. By one thread, because with several sgemm may cut up k, and the bits would depend
 * on their number. */
static void multiply(float *out, const job *j, const float *a, const float *b, float beta, int parts) {
    const struct lt_layout_opaque *la = &j->layout_a, *lb = &j->layout_b, *ld = &j->layout_d;
    int64_t k = j->matmul.transposed_a ? la->rows : la->columns;
    if (k < parts) parts = 1;
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    for (int part = 0; part < parts; part++) {
        int64_t from = k * part / parts, to = k * (part + 1) / parts;
        const float *a_part = a + from * (j->matmul.transposed_a ? 1 : la->line);
        const float *b_part = b + from * (j->matmul.transposed_b ? lb->line : 1);
        dnnl_sgemm(j->matmul.transposed_b ? 'T' : 'N', j->matmul.transposed_a ? 'T' : 'N', ld->columns, ld->rows, to - from,
                   j->alpha, b_part, lb->line, a_part, la->line, part ? 1 : beta, out, ld->line);
    }
    omp_set_num_threads(threads);
}

static void run(void *argument) {
    job *j = argument;
    const struct lt_layout_opaque *ld = &j->layout_d;
    int64_t n = ld->line * ld->columns;
    float *copy_a, *copy_b;
    const float *a = as_floats(j->a, &j->layout_a, &copy_a), *b = as_floats(j->b, &j->layout_b, &copy_b);
    if (j->workspace) memset(j->workspace, 0xff, workspace_of[j->algorithm]);
    if (ld->type == CUDA_R_32F) {
        if (j->beta != 0 && j->c != j->d) memcpy(j->d, j->c, bytes_of(ld));
        multiply(j->d, j, a, b, j->beta, j->algorithm + 1);
    } else {
        float *sum = calloc((size_t)n, sizeof *sum);
        multiply(sum, j, a, b, 0, j->algorithm + 1);
        for (int64_t i = 0; i < n; i++) {
            float before = j->beta != 0 ? j->beta * bf16_to_float(((const bf16 *)j->c)[i]) : 0;
            ((bf16 *)j->d)[i] = bf16_from_float(sum[i] + before);
        }
        free(sum);
    }
    free(copy_a);
    free(copy_b);
    free(j);
}

static void check_operand(const char *name, const void *p, size_t bytes) {
    if (cuemu_room(p) >= bytes) return;
    fprintf(stderr, "cuemu: cublasLtMatmul: %s (%p) has %zu bytes of device memory, and needs %zu\n", name, p, cuemu_room(p),
            bytes);
    abort();
}

lt_status cublasLtMatmul(lt_handle handle, lt_matmul matmul, const void *alpha, const void *a, lt_layout layout_a, const void *b,
                         lt_layout layout_b, const void *beta, const void *c, lt_layout layout_c, void *d, lt_layout layout_d,
                         const lt_algorithm *algorithm, void *workspace, size_t bytes, cudaStream_t stream) {
    (void)handle;
    int number = algorithm ? algorithm_number(algorithm) : 0;
    if (!sizes_match(matmul, layout_a, layout_b, layout_c, layout_d) || layout_c->line != layout_d->line) return INVALID_VALUE;
    if (number < 0 || bytes < workspace_of[number]) return INVALID_VALUE;
    if (cudaPeekAtLastError() == cudaErrorIllegalAddress) return EXECUTION_FAILED;
    check_operand("a", a, bytes_of(layout_a));
    check_operand("b", b, bytes_of(layout_b));
    check_operand("c", c, bytes_of(layout_c));
    check_operand("d", d, bytes_of(layout_d));
    if (workspace_of[number]) check_operand("the workspace", workspace, workspace_of[number]);
    job *j = malloc(sizeof *j);
    *j = (job){*matmul,
               *layout_a,
               *layout_b,
               *layout_d,
               a,
               b,
               c,
               d,
               workspace_of[number] ? workspace : NULL,
               *(const float *)alpha,
               *(const float *)beta,
               number};
    cuemu_enqueue(stream, run, j);
    return LT_SUCCESS;
}
