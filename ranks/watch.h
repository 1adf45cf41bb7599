/* watch.h: finds out that a rank hangs, and which. For ranks.c; what users see is ranks_watch in ranks.h.
 *
 * A rank's position is how often it entered and left a collective: odd inside one, even outside. All ranks go through the same
 * collectives, so of ranks that make no progress the one with the lowest position is who the others wait for. */
#ifndef MOBILELLM_RANKS_WATCH_H
#define MOBILELLM_RANKS_WATCH_H

#include "ranks/ranks.h"

typedef struct watch watch;

/* NULL: no memory. Until watch_start the marks below are only counted. All take NULL: nothing is watched. */
watch *watch_open(void);
void watch_close(watch *w);

void watch_enter(watch *w, const char *call); /* call: its name, a literal */
void watch_leave(watch *w);
void watch_progress(watch *w); /* work goes on between two collectives */

/* Asks all other ranks whether they are there, for up to two seconds, and names those that do not answer: "rank 3 (HOST)"; "" if
 * all do, or where no watch was started. lowest: is no rank below this one there? */
void watch_ask(watch *w, char *names, size_t size, bool *lowest);

/* Collective: as ranks_watch. */
int watch_start(watch *w, const ranks *r, double limit, const char *advice, error *err);

#endif
