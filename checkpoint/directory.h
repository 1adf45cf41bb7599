/* directory.h: the names in a run's directory of checkpoints, and making a finished file one of them.
 *
 *   step_0000001000.h5       a checkpoint, complete: it was renamed to this name after fsync
 *   latest                   a symbolic link to the one written last
 *   step_0000002000.h5.tmp   one being written, or left over from a run that was killed; latest.tmp likewise */
#ifndef MOBILELLM_CHECKPOINT_DIRECTORY_H
#define MOBILELLM_CHECKPOINT_DIRECTORY_H

#include <stdint.h>

#include "util/error.h"

enum { PATH_SIZE = 4096 };

/* Writes the two names of a step's file; fails if they do not fit. */
int directory_names(char file[PATH_SIZE], char temporary[PATH_SIZE], const char *dir, int64_t step, error *err);

/* Makes the directory and those above it, and removes temporary files in it (none if it does not exist). */
int directory_make(const char *dir, error *err);
int directory_clean(const char *dir, error *err);

/* Renames the finished temporary to the step's name, points `latest` at it, and removes all but the `keep` newest files up to
 * this step (keep 0: none). Files of later steps are left: this run will come to them. On failure the step's file is not there,
 * and `latest` names what it named before. */
int directory_publish(const char *dir, int64_t step, int keep, error *err);

/* The steps that have a file, from the newest: *steps is allocated. A directory that does not exist has none. */
int directory_steps(const char *dir, int64_t **steps, int *n, error *err);

/* The file that `latest` names. */
int directory_latest(const char *dir, char file[PATH_SIZE], error *err);

/* Waits until what was written to the file (or the names in the directory) is on the disk. */
int directory_sync(const char *path, error *err);

/* Puts a failed system call on `path` into words, with what to do about it. Returns -1. */
int directory_error(error *err, const char *path, int code);

#endif
