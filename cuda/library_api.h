/* library_api.h: our own declarations of what is called of cuBLASLt and NCCL, so that building needs no header of theirs.
 *
 * NVIDIA ships these headers only together with the libraries, hundreds of megabytes that a machine without a GPU has no use
 * for. Handles are pointers to structs that nobody looks into, enumerations are ints; tests/test_cuda_libraries compares every
 * value, size and signature with NVIDIA's headers where they are found. [cuBLASLt 12 and 13; NCCL 2] */
#ifndef MOBILELLM_CUDA_LIBRARY_API_H
#define MOBILELLM_CUDA_LIBRARY_API_H

#include <cuda_runtime_api.h>
#include <library_types.h>
#include <stddef.h>
#include <stdint.h>

/* ---- cuBLASLt ---- */

typedef int lt_status, lt_compute;
typedef int lt_matmul_attribute, lt_preference_attribute;
typedef struct lt_context *lt_handle;
typedef struct lt_matmul_opaque *lt_matmul;         /* which operands are transposed */
typedef struct lt_layout_opaque *lt_layout;         /* a matrix: type, rows, columns, leading dimension; column-major */
typedef struct lt_preference_opaque *lt_preference; /* what the heuristic may choose from */

/* A kernel and how it is launched; may be kept in a file for the same version of the library. */
typedef struct lt_algorithm {
    uint64_t data[8];
} lt_algorithm;

typedef struct lt_candidate {
    lt_algorithm algorithm;
    size_t workspace_bytes;
    lt_status state;
    float waves;
    int reserved[4];
} lt_candidate;

enum { LT_SUCCESS = 0 };
enum { LT_OP_N = 0, LT_OP_T = 1 };
enum { LT_COMPUTE_32F = 68 };
enum { LT_MATMUL_TRANSA = 3, LT_MATMUL_TRANSB = 4 };
enum {
    LT_PREFERENCE_MAX_WORKSPACE_BYTES = 1,
    LT_PREFERENCE_REDUCTION_SCHEME_MASK = 3,
    LT_PREFERENCE_MIN_ALIGNMENT_A_BYTES = 5,
    LT_PREFERENCE_MIN_ALIGNMENT_B_BYTES = 6,
    LT_PREFERENCE_MIN_ALIGNMENT_C_BYTES = 7,
    LT_PREFERENCE_MIN_ALIGNMENT_D_BYTES = 8
};
enum { LT_REDUCTION_NONE = 0, LT_REDUCTION_COMPUTE_TYPE = 2 };

#define CUBLASLT_FUNCTIONS(X)                                                                                          \
    X(lt_status, cublasLtCreate, (lt_handle *))                                                                        \
    X(lt_status, cublasLtDestroy, (lt_handle))                                                                         \
    X(size_t, cublasLtGetVersion, (void))                                                                              \
    X(const char *, cublasLtGetStatusString, (lt_status))                                                              \
    X(lt_status, cublasLtMatmulDescCreate, (lt_matmul *, lt_compute, cudaDataType))                                    \
    X(lt_status, cublasLtMatmulDescDestroy, (lt_matmul))                                                               \
    X(lt_status, cublasLtMatmulDescSetAttribute, (lt_matmul, lt_matmul_attribute, const void *, size_t))               \
    X(lt_status, cublasLtMatrixLayoutCreate, (lt_layout *, cudaDataType, uint64_t, uint64_t, int64_t))                 \
    X(lt_status, cublasLtMatrixLayoutDestroy, (lt_layout))                                                             \
    X(lt_status, cublasLtMatmulPreferenceCreate, (lt_preference *))                                                    \
    X(lt_status, cublasLtMatmulPreferenceDestroy, (lt_preference))                                                     \
    X(lt_status, cublasLtMatmulPreferenceSetAttribute, (lt_preference, lt_preference_attribute, const void *, size_t)) \
    X(lt_status, cublasLtMatmulAlgoGetHeuristic,                                                                       \
      (lt_handle, lt_matmul, lt_layout, lt_layout, lt_layout, lt_layout, lt_preference, int, lt_candidate *, int *))   \
    X(lt_status, cublasLtMatmulAlgoCheck,                                                                              \
      (lt_handle, lt_matmul, lt_layout, lt_layout, lt_layout, lt_layout, const lt_algorithm *, lt_candidate *))        \
    X(lt_status, cublasLtMatmul,                                                                                       \
      (lt_handle, lt_matmul, const void *alpha, const void *a, lt_layout, const void *b, lt_layout, const void *beta,  \
       const void *c, lt_layout, void *d, lt_layout, const lt_algorithm *, void *workspace, size_t, cudaStream_t))

/* ---- NCCL ---- */

typedef int nccl_result, nccl_type, nccl_op;
typedef struct nccl_comm_opaque *nccl_comm;

typedef struct nccl_id {
    char bytes[128];
} nccl_id;

enum { NCCL_SUCCESS = 0, NCCL_SYSTEM_ERROR = 2, NCCL_REMOTE_ERROR = 6, NCCL_IN_PROGRESS = 7 };
enum { NCCL_INT8 = 0, NCCL_FLOAT32 = 7, NCCL_FLOAT64 = 8 };
enum { NCCL_SUM = 0 };

#define NCCL_FUNCTIONS(X)                                                                                          \
    X(nccl_result, ncclGetVersion, (int *))                                                                        \
    X(nccl_result, ncclGetUniqueId, (nccl_id *))                                                                   \
    X(nccl_result, ncclCommInitRank, (nccl_comm *, int, nccl_id, int))                                             \
    X(nccl_result, ncclCommDestroy, (nccl_comm))                                                                   \
    X(nccl_result, ncclCommAbort, (nccl_comm))                                                                     \
    X(nccl_result, ncclCommGetAsyncError, (nccl_comm, nccl_result *))                                              \
    X(const char *, ncclGetErrorString, (nccl_result))                                                             \
    X(const char *, ncclGetLastError, (nccl_comm))                                                                 \
    X(nccl_result, ncclReduceScatter, (const void *, void *, size_t, nccl_type, nccl_op, nccl_comm, cudaStream_t)) \
    X(nccl_result, ncclAllGather, (const void *, void *, size_t, nccl_type, nccl_comm, cudaStream_t))              \
    X(nccl_result, ncclAllReduce, (const void *, void *, size_t, nccl_type, nccl_op, nccl_comm, cudaStream_t))

#endif
