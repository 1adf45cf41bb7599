/* optimizer.h: a training step's end: gradients reduced over the ranks, clipped, AdamW on this rank's shard, parameters gathered.
 *
 * ZeRO-1 [Rajbhandari et al. 2020]: each rank owns an equal part of every bucket of the registry, and keeps master weights, m and
 * v of that part alone. */
#ifndef MOBILELLM_TRAIN_OPTIMIZER_H
#define MOBILELLM_TRAIN_OPTIMIZER_H

#include "model/model.h"
#include "ranks/ranks.h"
#include "train/config.h"
#include "train/token_rows.h"

/* What a step was like, over all ranks. On the device while it is being made, then posted to the host. */
typedef struct step_report {
    double losses, z_losses; /* sums over the valid tokens */
    double sum_squares;      /* of the gradient, before clipping */
    double own_squares;      /* of this rank's part of it before the reduction: says whose it is when the sum is not finite */
    adamw_state adamw;       /* after the step; its scale is NaN when the step was skipped */
} step_report;

typedef struct optimizer {
    model *model;
    const ranks *ranks;
    piece *pieces; /* what this rank owns */
    int n_pieces;
    float *master; /* (shard) in the backend's memory; NULL when the parameters are fp32 themselves */
    float *m, *v;  /* (shard) */
    step_report *report;
    token_rows token_rows;
    int64_t reduced;   /* ticket of the last reduction */
    int64_t *gathered; /* (n_layers + 2): of each group's parameters */
    int64_t t;         /* steps taken, skipped ones not counted, as far as reports were read */
} optimizer;

/* On a dry arena only the memory is counted. The arena's memory is cleared (ops->alloc): m and v are zero; master is not set. */
int optimizer_open(optimizer *o, model *m, const ranks *r, arena *device, error *err);
void optimizer_close(optimizer *o);

/* m and v are zero again. */
void optimizer_clear(optimizer *o);

/* Sums the gradients of a group over the ranks: what model_hooks.gradients_final calls in the last micro-batch of a step. */
void optimizer_reduce_group(void *optimizer, int group);

/* As model_hooks.rows_final calls it, in steps that are reduced in two parts (token_rows_apart): adds the rows of the last N
 * tokens, summed over the ranks, to the embedding's reduced gradient. */
void optimizer_reduce_rows(void *optimizer, int64_t N);

/* Parameters of a group are there before what follows: what model_hooks.weights_needed calls in the first micro-batch. */
void optimizer_need_group(void *optimizer, int group);
void optimizer_need_all(optimizer *o);

/* After all groups were reduced: clips, updates, gathers. When the gradient's norm is not finite nothing is changed. Nothing is
 * waited for: the report is posted. */
void optimizer_step(optimizer *o, const run_config *c, double lr);

/* Waits for the oldest report that has not been read. */
int optimizer_report(optimizer *o, step_report *report, error *err);

/* Goes on after step t of another run. */
void optimizer_resume(optimizer *o, int64_t t);

/* Collective, after a step that was not taken: says whose own gradient was not finite, as "rank 2's own gradient is not finite".
 * "" when there is one rank. */
void optimizer_name_nonfinite(const optimizer *o, const step_report *report, char text[100]);

/* fp32 master weights from the parameters as they are (exact where those were just read from fp32). */
void optimizer_master_from_params(optimizer *o);

/* fp32 master weights as model_init made them, before rounding. */
int optimizer_master_from_init(optimizer *o, uint64_t seed, float stddev, error *err);

#endif
