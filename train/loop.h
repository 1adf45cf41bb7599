/* loop.h: the steps of a training run. */
#ifndef MOBILELLM_TRAIN_LOOP_H
#define MOBILELLM_TRAIN_LOOP_H

#include "train/run.h"

/* Collective. Trains from r->progress.step to the end of the run, logging, evaluating and writing checkpoints on the way and at
 * the end. 0: the run is complete, or has reached train.stop_after (*stopped: why it ended early, else NULL). */
int train_loop(run *r, const run_plan *plan, metrics *m, const char **stopped, error *err);

#endif
