/* load.h: a checkpoint's network made ready to run forward. */
#ifndef MOBILELLM_EVAL_LOAD_H
#define MOBILELLM_EVAL_LOAD_H

#include "checkpoint/checkpoint.h"
#include "model/model.h"

typedef struct loaded_model {
    checkpoint *checkpoint;
    const ops *ops;
    backend *backend;
    void *memory;
    model model;
} loaded_model;

typedef struct load_options {
    const char *device; /* of ops_named; NULL: "auto" */
    int local_rank;     /* picks the GPU */
    int x;              /* the dtype to compute in; -1: that of the file */
    int B, T;           /* T 0: the seq_len of training */
    int threads;        /* 0: as OMP_NUM_THREADS or the machine says */
} load_options;

/* path: a file or a run directory. The parameters' checksums are compared. */
int loaded_model_open(loaded_model *l, const char *path, const load_options *o, error *err);
void loaded_model_close(loaded_model *l);

#endif
