/* run.h: everything a training run holds, from its config to its open files, and its state in a checkpoint. */
#ifndef MOBILELLM_TRAIN_RUN_H
#define MOBILELLM_TRAIN_RUN_H

#include "checkpoint/checkpoint.h"
#include "data/loader.h"
#include "model/model.h"
#include "ranks/ranks.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/profile.h"
#include "util/arena.h"

/* One rank's rows of a step, and what it takes to compute them. */
typedef struct run {
    run_config config;
    const ranks *ranks;
    const ops *ops;
    backend *backend;
    profile *profile; /* stands before the backend; NULL: not profiled */
    arena arena;      /* all of the backend's memory: see run_plan */
    void *memory;
    model model;
    optimizer optimizer;
    loader *loader;
    checkpoint_info progress; /* counters and history: what the next checkpoint says; config and lineage filled in */
    double gemm_peak;         /* FLOP/s of all ranks together, measured at start */
} run;

/* The memory and the work of a run, known before anything is allocated. */
typedef struct run_plan {
    arena arena; /* dry: peak and parts */
    param_counts params;
    double flops_per_token; /* of a training step */
    int rows_per_rank;      /* sequences of a step, of the rank with the most */
    int micro_steps;        /* of that rank */
    int64_t n_steps;
    int ranks;
    bool elsewhere; /* made without the device: its libraries may need less memory than said, not more */
} run_plan;

/* What each of so many ranks will need on this backend. b NULL: on a device that is not here. */
int run_plan_make(run_plan *plan, const run_config *c, int n_ranks, const ops *op, backend *b, error *err);

/* Everything that has memory, after checking that it fits; weights are not set. The open backend is the run's from now on, also
 * when this fails. Each rank calls it, and no rank waits for another in it. profiled: with r->profile. */
int run_open(run *r, const run_config *c, const ranks *world, const run_plan *plan, const ops *op, backend *b, bool profiled,
             error *err);
void run_close(run *r);

/* Random weights, or those of init.checkpoint; m and v are zero. */
int run_init(run *r, error *err);

/* Collective: writes a checkpoint of the run as it is. path: its name. */
int run_save(run *r, char path[4096], error *err);

/* Collective: weights, optimizer state, counters and history of the newest checkpoint of checkpoint.dir that is not damaged,
 * whatever the ranks that wrote it. path: its name, "" when there is none; then the state is not set. */
int run_resume(run *r, char path[4096], error *err);

int64_t run_steps(const run_config *c);

#endif
