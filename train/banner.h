/* banner.h: what a run says of itself before its first step; also what `mobilellm plan` prints. */
#ifndef MOBILELLM_TRAIN_BANNER_H
#define MOBILELLM_TRAIN_BANNER_H

#include <stdio.h>

#include "train/run.h"

/* The network, its parameters by part, the work of a step, the memory of a rank by part. */
void banner_plan(FILE *to, const run_config *c, const run_plan *plan);

/* The same as one JSON object, an allocated string. */
char *banner_plan_json(const run_config *c, const run_plan *plan);

/* Data: tokens and epochs by prefix. Opens the files, so that a missing one is noticed before the run has taken its memory. */
int banner_data(FILE *to, const run_config *c, error *err);

#endif
