/* stop.h: the wishes of the world outside to end a run early: SIGTERM, SIGINT, SIGUSR1 (what Slurm and mpirun send), a time
 * limit.
 *
 * While a run comes up it has nothing to lose: a signal ends the program where it is, with STATUS_AGAIN. From stop_defer on a
 * wish is only noted; the ranks ask each other for it between steps, and within long ones and evaluations, write a checkpoint
 * and end with STATUS_AGAIN. A second SIGINT then ends the program at once. */
#ifndef MOBILELLM_TRAIN_STOP_H
#define MOBILELLM_TRAIN_STOP_H

#include <stdbool.h>

#include "ranks/ranks.h"

/* From now on the three signals are ours, and the time limit counts. speaks: this rank says why it ends. */
void stop_watch(bool speaks);

/* yes: signals are noted. no: they end the program at once, and so does one that was noted before. */
void stop_defer(bool yes);

/* Seconds from stop_watch on; 0: no limit. */
void stop_limit(double seconds);

/* Collective: why any rank wishes to stop ("SIGTERM"), the same on all of them, or NULL. */
const char *stop_agreed(const ranks *r);

/* Asking in the midst of long work of which no rank knows how long it takes: a message for each piece of it would slow short
 * pieces down. So it is asked at the first, and then, the pieces between doubling, some five times a second. */
typedef struct stop_pace {
    const ranks *ranks;
    int64_t every, left; /* pieces between two questions, and until the next */
    double asked_at;
    const char *reason;
} stop_pace;
stop_pace stop_pace_start(const ranks *r);

/* Collective: called by every rank before the same pieces of work. Whether all leave it, and then p->reason. pace: a stop_pace *;
 * failed: this rank cannot go on, and wants the others to hear of it where it says so. */
bool stop_paced(void *pace, bool failed);

#endif
