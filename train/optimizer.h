/* optimizer.h: a training step's end: gradients reduced over the ranks, clipped, AdamW on this rank's shard, parameters gathered.
 *
 * ZeRO-1 [Rajbhandari et al. 2020]: each rank owns an equal part of every bucket of the registry, and keeps master weights, m and
 * v of that part alone. */
#ifndef MOBILELLM_TRAIN_OPTIMIZER_H
#define MOBILELLM_TRAIN_OPTIMIZER_H

#include "model/model.h"
#include "ranks/ranks.h"
#include "train/config.h"
#include "train/profile.h"

typedef struct optimizer {
    model *model;
    const ranks *ranks;
    profile *profile; /* NULL: not profiled */
    piece *pieces;    /* what this rank owns */
    int n_pieces;
    float *master; /* (shard) in the backend's memory; NULL when the parameters are fp32 themselves */
    float *m, *v;  /* (shard) */
    double *sum_squares;
    double *own_squares; /* of this rank's gradient before the reduction: says whose it was when the sum is not finite */
    float *clip_scale;
    int64_t t; /* steps taken, skipped ones not counted */
} optimizer;

/* On a dry arena only the memory is counted. m and v are zero; master is not set. */
int optimizer_open(optimizer *o, model *m, const ranks *r, arena *device, error *err);
void optimizer_close(optimizer *o);

/* Sums the gradients of a group over the ranks: what model_hooks.gradients_final calls in the last micro-batch of a step. */
void optimizer_reduce_group(void *optimizer, int group);

/* After all groups were reduced: clips, updates, gathers. grad_norm: before clipping, over all ranks. When it is not finite
 * nothing is changed and *stepped is false. */
int optimizer_step(optimizer *o, const run_config *c, double lr, double *grad_norm, bool *stepped, error *err);

/* Collective, after a step that was not taken: says whose own gradient was not finite, as "rank 2's own gradient is not finite".
 * "" when there is one rank. */
void optimizer_name_nonfinite(optimizer *o, char text[100]);

/* fp32 master weights from the parameters as they are (exact where those were just read from fp32). */
void optimizer_master_from_params(optimizer *o);

/* fp32 master weights as model_init made them, before rounding. */
int optimizer_master_from_init(optimizer *o, uint64_t seed, float stddev, error *err);

#endif
