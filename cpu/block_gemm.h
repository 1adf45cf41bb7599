/* block_gemm.h: small matrix products that one thread computes for itself, inside an OpenMP region. Blocked attention is made of
 * them.
 *
 * c (M,N) is fp32 and dense; a (M,K) and b (K,N) are of dtype x and dense; transposed, they lie as (K,M) and (N,K). Dense is what
 * oneDNN has its fast kernels for: from 64 rows and columns on they reach 90 % and more of what large products do.
 *
 * A product is prepared once per shape, outside any OpenMP region, and kept; every thread may then run it, all of them at once.
 */
#ifndef MOBILELLM_CPU_BLOCK_GEMM_H
#define MOBILELLM_CPU_BLOCK_GEMM_H

#include <dnnl.h>
#include <stdbool.h>

#include "util/dtype.h"
#include "util/error.h"

typedef struct block_gemm_shape {
    int M, N, K;
    bool transpose_a, transpose_b;
    bool accumulate; /* c += a b rather than c = a b */
    dtype x;
} block_gemm_shape;

typedef struct block_gemm block_gemm;             /* one product, ready to run */
typedef struct block_gemm_cache block_gemm_cache; /* all of them, with each thread's stream and working memory */

/* Returns 0 with *cache made, or -1 with *err filled. widens: products in bf16 are made in fp32. */
int block_gemm_open(block_gemm_cache **cache, dnnl_engine_t engine, int threads, bool widens, error *err);
void block_gemm_close(block_gemm_cache *cache); /* NULL: nothing to do */

/* The product of this shape, the cache's for as long as it lives; NULL if oneDNN or memory refused it. */
const block_gemm *block_gemm_prepare(block_gemm_cache *cache, const block_gemm_shape *shape, error *err);

/* By thread `thread` of those the cache was opened for, which must have called omp_set_num_threads(1) in its region: oneDNN asks
 * for the number when the region has one thread only. Returns 0, or oneDNN's status. */
int block_gemm_run(const block_gemm *g, int thread, float *c, const void *a, const void *b);

#endif
