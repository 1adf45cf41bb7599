/* loop.h: the steps of a training run. */
#ifndef MOBILELLM_TRAIN_LOOP_H
#define MOBILELLM_TRAIN_LOOP_H

#include "train/run.h"

/* Is an evaluation due at the run's step, and not in its history? So it is before it is made, and in the checkpoint of a run that
 * was stopped in it. */
bool train_owes_evaluation(const run *r);

/* Collective. Trains from r->progress.step to the end of the run, logging, evaluating and writing checkpoints on the way and at
 * the end; an evaluation that the run still owes comes first. 0: the run is complete, or has ended early, with a checkpoint
 * (*stopped: why, "train.stop_after" or a reason of stop.h; else NULL). */
int train_loop(run *r, const run_plan *plan, metrics *m, const char **stopped, error *err);

#endif
