/* libraries.h: NVIDIA's libraries, opened at run time: where they are looked for, and the functions called of them.
 *
 * None is linked, so that one program starts on every machine, and says in words which library a run lacks. The runtime (cudart)
 * is linked statically; the driver is found by the runtime. cuBLASLt is needed always, NCCL by several ranks; cuDNN and NVRTC,
 * which it compiles kernels with, where they are found. */
#ifndef MOBILELLM_CUDA_LIBRARIES_H
#define MOBILELLM_CUDA_LIBRARIES_H

#include <stdio.h>

#include "cuda/library_api.h"
#include "util/error.h"

typedef enum library { LIBRARY_CUBLASLT, LIBRARY_NCCL, LIBRARY_CUDNN, LIBRARY_NVRTC, N_LIBRARIES } library;

#define LIBRARY_POINTER(result, name, arguments) result(*name) arguments;
typedef struct libraries {
    struct opened_library {
        void *handle; /* NULL: not open */
        char path[512], version[24];
    } of[N_LIBRARIES];
    CUBLASLT_FUNCTIONS(LIBRARY_POINTER) /* once LIBRARY_CUBLASLT is open: l->cublasLtMatmul(...) */
    NCCL_FUNCTIONS(LIBRARY_POINTER)     /* once LIBRARY_NCCL is open */
} libraries;
#undef LIBRARY_POINTER

#ifdef __cplusplus
extern "C" {
#endif

/* Opens the library, if it is not open; its major version must be the one this program was compiled for. The structure starts
 * out all zero; libraries are never closed. */
int libraries_open(libraries *l, library which, error *err);

/* A function of an open library; NULL: it has none of this name. */
void *libraries_symbol(const libraries *l, library which, const char *name);

/* "cuBLASLt 13.1.0", or "no cuDNN", written into text and returned. */
const char *libraries_name(char text[48], const libraries *l, library which);

/* Opens the first file of this name in the loader's own path (LD_LIBRARY_PATH included), in CUDA_HOME and /usr/local/cuda, in
 * lib/ beside the program's own folder, and in the packages of a Python environment (VIRTUAL_ENV, CONDA_PREFIX). The message of a
 * failure says what was looked for and where, and what to install: title and package are for it. */
int libraries_find(void **handle, const char *file, const char *title, const char *package, error *err);

/* The path that an open library was loaded from. */
void libraries_path(char *path, size_t size, void *handle);

/* A line each: version and path, or that it was not found. Opens all that are there. */
void libraries_report(FILE *to);

#ifdef __cplusplus
}
#endif
#endif
