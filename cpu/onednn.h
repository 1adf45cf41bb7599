/* onednn.h: matrix products of oneDNN, as functions that compile with its version 2 (Debian 12) and 3 (later), whose C interfaces
 * differ in just these calls. Everything else (engines, streams, executing, destroying) is called directly.
 *
 * A matmul writes c (+)= a b. It is created for the number of OpenMP threads at that moment, and may be executed by any one
 * thread that then leads that many. Arguments: DNNL_ARG_SRC is a, DNNL_ARG_WEIGHTS b, DNNL_ARG_DST c. */
#ifndef MOBILELLM_CPU_ONEDNN_H
#define MOBILELLM_CPU_ONEDNN_H

#include <dnnl.h>
#include <stdbool.h>
#include <stdint.h>

#include "util/dtype.h"

/* Element (r, c) lies at r * row_stride + c * column_stride, counted in elements. One of the strides is 1. */
typedef struct onednn_matrix {
    int64_t rows, columns, row_stride, column_stride;
    dtype x;
} onednn_matrix;

#if DNNL_VERSION_MAJOR >= 3

typedef const_dnnl_memory_desc_t onednn_desc;

static inline dnnl_status_t onednn_desc_create(dnnl_memory_desc_t *desc, int n_dims, const dnnl_dims_t dims,
                                               dnnl_data_type_t type, const dnnl_dims_t strides) {
    return dnnl_memory_desc_create_with_strides(desc, n_dims, dims, type, strides);
}

static inline void onednn_desc_destroy(dnnl_memory_desc_t *desc) { dnnl_memory_desc_destroy(*desc); }

static inline onednn_desc onednn_desc_view(const dnnl_memory_desc_t *desc) { return *desc; }

static inline dnnl_status_t onednn_append_sum(dnnl_post_ops_t post_ops) {
    return dnnl_post_ops_append_sum(post_ops, 1.0f, 0, dnnl_data_type_undef);
}

static inline dnnl_status_t onednn_matmul_desc(dnnl_primitive_desc_t *desc, dnnl_engine_t engine, onednn_desc a, onednn_desc b,
                                               onednn_desc c, const_dnnl_primitive_attr_t attr) {
    return dnnl_matmul_primitive_desc_create(desc, engine, a, b, NULL, c, attr);
}

#else

typedef const dnnl_memory_desc_t *onednn_desc;

static inline dnnl_status_t onednn_desc_create(dnnl_memory_desc_t *desc, int n_dims, const dnnl_dims_t dims,
                                               dnnl_data_type_t type, const dnnl_dims_t strides) {
    return dnnl_memory_desc_init_by_strides(desc, n_dims, dims, type, strides);
}

static inline void onednn_desc_destroy(dnnl_memory_desc_t *desc) { (void)desc; } /* a plain struct in version 2 */

static inline onednn_desc onednn_desc_view(const dnnl_memory_desc_t *desc) { return desc; }

static inline dnnl_status_t onednn_append_sum(dnnl_post_ops_t post_ops) { return dnnl_post_ops_append_sum(post_ops, 1.0f); }

static inline dnnl_status_t onednn_matmul_desc(dnnl_primitive_desc_t *desc, dnnl_engine_t engine, onednn_desc a, onednn_desc b,
                                               onednn_desc c, const_dnnl_primitive_attr_t attr) {
    dnnl_matmul_desc_t matmul;
    dnnl_status_t failed = dnnl_matmul_desc_init(&matmul, a, b, NULL, c);
    return failed ? failed : dnnl_primitive_desc_create(desc, &matmul, attr, engine, NULL);
}

#endif

static inline dnnl_status_t onednn_matrix_desc(dnnl_memory_desc_t *desc, const onednn_matrix *m) {
    dnnl_dims_t dims = {m->rows, m->columns}, strides = {m->row_stride, m->column_stride};
    return onednn_desc_create(desc, 2, dims, m->x == DTYPE_F32 ? dnnl_f32 : dnnl_bf16, strides);
}

static inline dnnl_status_t onednn_empty_memory(dnnl_memory_t *memory, dnnl_engine_t engine, dnnl_memory_desc_t *desc) {
    dnnl_status_t failed = dnnl_memory_create(memory, onednn_desc_view(desc), engine, DNNL_MEMORY_NONE);
    onednn_desc_destroy(desc);
    return failed;
}

/* A memory object of the matrix's shape without data: give it some by dnnl_memory_set_data_handle before each execution. */
static inline dnnl_status_t onednn_memory(dnnl_memory_t *memory, dnnl_engine_t engine, const onednn_matrix *m) {
    dnnl_memory_desc_t desc;
    dnnl_status_t failed = onednn_matrix_desc(&desc, m);
    return failed ? failed : onednn_empty_memory(memory, engine, &desc);
}

/* Likewise for the argument DNNL_ARG_SCRATCHPAD. */
static inline dnnl_status_t onednn_scratchpad(dnnl_memory_t *memory, dnnl_engine_t engine, size_t bytes) {
    dnnl_dims_t dims = {(dnnl_dim_t)bytes}, strides = {1};
    dnnl_memory_desc_t desc;
    dnnl_status_t failed = onednn_desc_create(&desc, 1, dims, dnnl_u8, strides);
    return failed ? failed : onednn_empty_memory(memory, engine, &desc);
}

static inline dnnl_status_t onednn_matmul_attr(dnnl_primitive_attr_t *attr, bool accumulate, bool user_scratchpad) {
    dnnl_status_t failed = dnnl_primitive_attr_create(attr);
    if (!failed && user_scratchpad) failed = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
    if (failed || !accumulate) return failed;
    dnnl_post_ops_t sum;
    failed = dnnl_post_ops_create(&sum);
    if (failed) return failed;
    failed = onednn_append_sum(sum);
    if (!failed) failed = dnnl_primitive_attr_set_post_ops(*attr, sum);
    dnnl_post_ops_destroy(sum);
    return failed;
}

/* c = a b, or c += a b. With scratchpad_bytes NULL the library keeps the working memory, and the primitive must not be executed
 * by two threads at once; otherwise each execution brings that many bytes (possibly 0, then no argument). */
static inline dnnl_status_t onednn_matmul(dnnl_primitive_t *matmul, size_t *scratchpad_bytes, dnnl_engine_t engine,
                                          const onednn_matrix *a, const onednn_matrix *b, const onednn_matrix *c,
                                          bool accumulate) {
    dnnl_memory_desc_t a_desc, b_desc, c_desc;
    dnnl_status_t failed = onednn_matrix_desc(&a_desc, a);
    if (failed) return failed;
    failed = onednn_matrix_desc(&b_desc, b);
    if (failed) goto no_b;
    failed = onednn_matrix_desc(&c_desc, c);
    if (failed) goto no_c;

    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t desc = NULL;
    failed = onednn_matmul_attr(&attr, accumulate, scratchpad_bytes != NULL);
    if (!failed)
        failed = onednn_matmul_desc(&desc, engine, onednn_desc_view(&a_desc), onednn_desc_view(&b_desc),
                                    onednn_desc_view(&c_desc), attr);
    if (!failed) failed = dnnl_primitive_create(matmul, desc);
    if (!failed && scratchpad_bytes) {
        onednn_desc scratchpad = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
        *scratchpad_bytes = scratchpad ? dnnl_memory_desc_get_size(scratchpad) : 0;
    }
    if (desc) dnnl_primitive_desc_destroy(desc);
    if (attr) dnnl_primitive_attr_destroy(attr);
    onednn_desc_destroy(&c_desc);
no_c:
    onednn_desc_destroy(&b_desc);
no_b:
    onednn_desc_destroy(&a_desc);
    return failed;
}

#endif
