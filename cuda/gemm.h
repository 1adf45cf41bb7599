/* gemm.h: what gemm.c, which multiplies, and gemm_choices.c, which remembers the algorithms chosen, share.
 *
 * Which algorithm a product uses decides its last bits. A choice by timing can fall differently each time, so it is made once for
 * a GPU model, a version of cuBLASLt and a shape, and kept in a file: $XDG_CACHE_HOME/mobilellm/gemm-GPU-VERSION.txt (or
 * ~/.cache). A training run makes all of its choices before its first step (`tune` in ops.h), and its ranks take those of rank 0:
 * so runs of the same work give the same bits, the one that fills the file and those that read it. MOBILELLM_GEMM_TIMING=0 times
 * nothing: the library's first proposals, which are the same each time as well. */
#ifndef MOBILELLM_CUDA_GEMM_H
#define MOBILELLM_CUDA_GEMM_H

#include "cuda/library_api.h"
#include "ranks/ranks.h"
#include "util/dtype.h"

/* d (m,n) = a (m,k) b (k,n), column-major as cuBLASLt sees it; a and b may lie transposed. */
typedef struct gemm_shape {
    int64_t m, n, k;
    bool a_transposed, b_transposed;
    dtype x, out;     /* of a and b; of d */
    int alignment[3]; /* of the addresses of a, b and d: the power of two, up to 256, that divides it */
} gemm_shape;

bool gemm_same_shape(const gemm_shape *p, const gemm_shape *q);

typedef struct gemm_choice {
    gemm_shape shape;
    lt_algorithm algorithm;
} gemm_choice;

typedef struct gemm_choices {
    gemm_choice *list; /* (n) */
    int n, room;
    char heading[352]; /* the first line of the file: what the choices are for */
    char path[600];    /* "": not kept */
    bool unsaved;      /* the file lacks some */
} gemm_choices;

/* Reads the file, if there is one; *c starts out all zero. A file that is damaged is not used, and a warning printed. */
void gemm_choices_open(gemm_choices *c, const char *gpu, int n_sm, size_t version);
void gemm_choices_close(gemm_choices *c);

const gemm_choice *gemm_choices_find(const gemm_choices *c, const gemm_shape *shape); /* NULL: none */

/* Adds a choice, or replaces the shape's. */
void gemm_choices_add(gemm_choices *c, const gemm_choice *choice);

/* Writes the file, if it lacks something. What cannot be written is kept in memory, and a warning printed once. */
void gemm_choices_save(gemm_choices *c);

/* Collective: all ranks take the choices of rank 0, which writes the file, from now on alone. */
int gemm_choices_share(gemm_choices *c, const ranks *world, error *err);

/* The file as text, allocated; NULL: no memory. Reading returns -1, and leaves no choices, when any of it is damaged. */
char *gemm_choices_print(const gemm_choices *c);
int gemm_choices_read(gemm_choices *c, const char *text);

#endif
