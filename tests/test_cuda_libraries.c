/* test_cuda_libraries.c: our declarations of NVIDIA's libraries are theirs, and the libraries are found.
 *
 * With arguments it opens one (open NVRTC) or finds any file (find FILE) and says which, for test_cuda_libraries.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cuda/libraries.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#endif
#if __has_include(<nccl.h>)
#include <nccl.h>
#endif

#define SAME(ours, theirs)                                                                        \
    do {                                                                                          \
        if ((long long)(ours) != (long long)(theirs))                                             \
            fail_msg(#ours " is %lld, " #theirs " %lld", (long long)(ours), (long long)(theirs)); \
    } while (0)

/* What NVIDIA's headers declare under our names is of the type that follows from the table when its types are theirs. */
#define CHECK_SIGNATURE(result, name, arguments) \
    if (!__builtin_types_compatible_p(__typeof__(name), result arguments)) fail_msg("%s has another signature", #name);

static void cublaslt_is_declared_as_nvidia_does(void **state) {
    (void)state;
#ifdef CUBLAS_VER_MAJOR
    SAME(sizeof(lt_status), sizeof(cublasStatus_t));
    SAME(sizeof(lt_compute), sizeof(cublasComputeType_t));
    SAME(sizeof(lt_matmul_attribute), sizeof(cublasLtMatmulDescAttributes_t));
    SAME(sizeof(lt_preference_attribute), sizeof(cublasLtMatmulPreferenceAttributes_t));
    SAME(sizeof(lt_algorithm), sizeof(cublasLtMatmulAlgo_t));
    SAME(sizeof(lt_candidate), sizeof(cublasLtMatmulHeuristicResult_t));
    SAME(offsetof(lt_candidate, algorithm), offsetof(cublasLtMatmulHeuristicResult_t, algo));
    SAME(offsetof(lt_candidate, workspace_bytes), offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
    SAME(offsetof(lt_candidate, state), offsetof(cublasLtMatmulHeuristicResult_t, state));
    SAME(offsetof(lt_candidate, waves), offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));
    SAME(sizeof(lt_handle), sizeof(cublasLtHandle_t));
    SAME(LT_SUCCESS, CUBLAS_STATUS_SUCCESS);
    SAME(LT_OP_N, CUBLAS_OP_N);
    SAME(LT_OP_T, CUBLAS_OP_T);
    SAME(LT_COMPUTE_32F, CUBLAS_COMPUTE_32F);
    SAME(LT_MATMUL_TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
    SAME(LT_MATMUL_TRANSB, CUBLASLT_MATMUL_DESC_TRANSB);
    SAME(LT_PREFERENCE_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
    SAME(LT_PREFERENCE_REDUCTION_SCHEME_MASK, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
    SAME(LT_PREFERENCE_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
    SAME(LT_PREFERENCE_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
    SAME(LT_PREFERENCE_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
    SAME(LT_PREFERENCE_MIN_ALIGNMENT_D_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
    SAME(LT_REDUCTION_NONE, CUBLASLT_REDUCTION_SCHEME_NONE);
    SAME(LT_REDUCTION_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
#define lt_status               cublasStatus_t
#define lt_compute              cublasComputeType_t
#define lt_matmul_attribute     cublasLtMatmulDescAttributes_t
#define lt_preference_attribute cublasLtMatmulPreferenceAttributes_t
#define lt_handle               cublasLtHandle_t
#define lt_matmul               cublasLtMatmulDesc_t
#define lt_layout               cublasLtMatrixLayout_t
#define lt_preference           cublasLtMatmulPreference_t
#define lt_algorithm            cublasLtMatmulAlgo_t
#define lt_candidate            cublasLtMatmulHeuristicResult_t
    CUBLASLT_FUNCTIONS(CHECK_SIGNATURE)
#undef lt_status
#else
    print_message("cublasLt.h is not on this machine\n");
    skip();
#endif
}

static void nccl_is_declared_as_nvidia_does(void **state) {
    (void)state;
#ifdef NCCL_VERSION_CODE
    SAME(sizeof(nccl_result), sizeof(ncclResult_t));
    SAME(sizeof(nccl_type), sizeof(ncclDataType_t));
    SAME(sizeof(nccl_op), sizeof(ncclRedOp_t));
    SAME(sizeof(nccl_comm), sizeof(ncclComm_t));
    SAME(sizeof(nccl_id), sizeof(ncclUniqueId));
    SAME(_Alignof(nccl_id), _Alignof(ncclUniqueId));
    SAME(NCCL_SUCCESS, ncclSuccess);
    SAME(NCCL_REMOTE_ERROR, ncclRemoteError);
    SAME(NCCL_IN_PROGRESS, ncclInProgress);
    SAME(NCCL_INT8, ncclInt8);
    SAME(NCCL_FLOAT32, ncclFloat32);
    SAME(NCCL_FLOAT64, ncclFloat64);
    SAME(NCCL_SUM, ncclSum);
#define nccl_result ncclResult_t
#define nccl_type   ncclDataType_t
#define nccl_op     ncclRedOp_t
#define nccl_comm   ncclComm_t
#define nccl_id     ncclUniqueId
    NCCL_FUNCTIONS(CHECK_SIGNATURE)
#undef nccl_result
#else
    print_message("nccl.h is not on this machine\n");
    skip();
#endif
}

/* Opening twice is opening once, and gives the functions of the library. */
static void a_library_is_opened_once(void **state) {
    (void)state;
    libraries l = {0};
    error err;
    char text[48];
    assert_string_equal(libraries_name(text, &l, LIBRARY_CUBLASLT), "no cuBLASLt");
    if (libraries_open(&l, LIBRARY_CUBLASLT, &err)) {
        print_message("not tested: %s\n", err.text);
        skip();
    }
    void *handle = l.of[LIBRARY_CUBLASLT].handle;
    assert_int_equal(libraries_open(&l, LIBRARY_CUBLASLT, &err), 0);
    assert_ptr_equal(l.of[LIBRARY_CUBLASLT].handle, handle);
    assert_true((void *)l.cublasLtMatmul == libraries_symbol(&l, LIBRARY_CUBLASLT, "cublasLtMatmul"));
    assert_null(libraries_symbol(&l, LIBRARY_CUBLASLT, "cublasLtNothing"));
    assert_int_equal(strncmp(libraries_name(text, &l, LIBRARY_CUBLASLT), "cuBLASLt 1", strlen("cuBLASLt 1")), 0);
}

static int open_one(const char *name) {
    static const char *const names[N_LIBRARIES] = {"cuBLASLt", "NCCL", "cuDNN", "NVRTC"};
    libraries l = {0};
    error err;
    int which = 0;
    while (which < N_LIBRARIES && strcmp(names[which], name)) which++;
    if (which == N_LIBRARIES || libraries_open(&l, (library)which, &err)) {
        printf("%s\n", which == N_LIBRARIES ? name : err.text);
        return 1;
    }
    printf("%s %s\n", l.of[which].version, l.of[which].path);
    return 0;
}

static int find_one(const char *file) {
    void *handle;
    error err;
    char path[512];
    if (libraries_find(&handle, file, "The Library", "the-package", &err)) {
        printf("%s\n", err.text);
        return 1;
    }
    libraries_path(path, sizeof path, handle);
    printf("%s\n", path);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "open") == 0) return open_one(argv[2]);
    if (argc == 3 && strcmp(argv[1], "find") == 0) return find_one(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cublaslt_is_declared_as_nvidia_does),
        cmocka_unit_test(nccl_is_declared_as_nvidia_does),
        cmocka_unit_test(a_library_is_opened_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
