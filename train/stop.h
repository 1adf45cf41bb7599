/* stop.h: the wishes of the world outside to end a run early: SIGTERM, SIGINT, SIGUSR1 (what Slurm and mpirun send), a time
 * limit.
 *
 * A wish is only noted; the loop looks between steps, agrees with the other ranks, writes a checkpoint and exits with
 * STATUS_AGAIN. A second SIGINT ends the program at once. */
#ifndef MOBILELLM_TRAIN_STOP_H
#define MOBILELLM_TRAIN_STOP_H

#include <stdbool.h>

/* Notes signals from now on; time_limit: seconds from now, 0: none. */
void stop_watch(double time_limit);

/* Why this rank would stop, or NULL: "SIGTERM", ... */
const char *stop_reason(void);

#endif
