/* command.h: `mobilellm train` and `mobilellm plan`. */
#ifndef MOBILELLM_TRAIN_COMMAND_H
#define MOBILELLM_TRAIN_COMMAND_H

#include "ranks/ranks.h"
#include "util/error.h"

/* As every command: argv[0] is its name; returns the exit status (STATUS_OK, STATUS_AGAIN), or -1 with *err. */
int train_command(int argc, char **argv, const ranks *world, error *err);
int plan_command(int argc, char **argv, const ranks *world, error *err);

#endif
