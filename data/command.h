/* command.h: `mobilellm data pack` and `mobilellm data info`. */
#ifndef MOBILELLM_DATA_COMMAND_H
#define MOBILELLM_DATA_COMMAND_H

#include "ranks/ranks.h"
#include "util/error.h"

/* As every command: argv[0] is its name; returns the exit status, or -1 with *err. */
int data_command(int argc, char **argv, const ranks *world, error *err);

#endif
