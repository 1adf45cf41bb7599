/* peak.h: how fast this machine multiplies matrices, measured with the run's own GEMM, for the share that log lines print. */
#ifndef MOBILELLM_TRAIN_PEAK_H
#define MOBILELLM_TRAIN_PEAK_H

#include "model/model.h"

/* FLOP/s of this rank: the best of the model's own forward products, each tried for a fraction of a second. To be called before
 * the first step, on a model opened for training: it overwrites activations. Fails as the products do. */
int peak_measure(model *m, double *flops, error *err);

#endif
