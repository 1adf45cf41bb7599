/* lock.h: one training run at a time in a run's directory.
 *
 * DIR/lock is held by rank 0 (flock) for as long as the process lives, whichever way it ends, and says who that is. The file
 * stays; without a holder it means nothing. */
#ifndef MOBILELLM_TRAIN_LOCK_H
#define MOBILELLM_TRAIN_LOCK_H

#include "util/error.h"

/* Takes the lock of the directory, which must exist; *lock: for lock_release. A run that was killed may take a moment to be gone,
 * so a holder is given some seconds; if it stays, the error (STATUS_RESOURCE) says its process, machine and start. A filesystem
 * without locks is an error too. */
int lock_take(int *lock, const char *dir, error *err);

/* lock: of lock_take, or -1 for none. */
void lock_release(int lock);

#endif
