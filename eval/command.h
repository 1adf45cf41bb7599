/* command.h: `mobilellm eval`, `generate` and `inspect`. */
#ifndef MOBILELLM_EVAL_COMMAND_H
#define MOBILELLM_EVAL_COMMAND_H

#include "ranks/ranks.h"
#include "util/error.h"

/* As every command: argv[0] is its name; returns the exit status, or -1 with *err. */
int eval_command(int argc, char **argv, const ranks *world, error *err);
int generate_command(int argc, char **argv, const ranks *world, error *err);
int inspect_command(int argc, char **argv, const ranks *world, error *err);

#endif
