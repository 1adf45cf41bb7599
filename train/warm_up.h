/* warm_up.h: what a run would otherwise decide when a shape first comes, decided before its first step. */
#ifndef MOBILELLM_TRAIN_WARM_UP_H
#define MOBILELLM_TRAIN_WARM_UP_H

#include "train/run.h"

/* Shows a backend that has something to choose (ops.h: tune) every shape of the run, those of the other ranks too: a micro-batch
 * of each number of rows, and what the evaluation adds. Before `connect`, and before the weights are set: it leaves weights,
 * gradients and sums zero. */
int run_warm_up(run *r, error *err);

#endif
