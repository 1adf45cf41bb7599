/* params.h: a model's parameters out of a checkpoint. */
#ifndef MOBILELLM_CHECKPOINT_PARAMS_H
#define MOBILELLM_CHECKPOINT_PARAMS_H

#include "checkpoint/checkpoint.h"
#include "model/model.h"

/* Reads every tensor of the model's registry, whole and rounded to the model's dtype, into m->params; what is damaged is told as
 * by checkpoint_read. folder: "params", or "optimizer/master" for the fp32 weights behind a bf16 file. */
int checkpoint_read_params(checkpoint *c, model *m, const char *folder, error *err);

#endif
