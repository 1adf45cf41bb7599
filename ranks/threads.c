/* threads.c: how many OpenMP threads a rank should use, so that the ranks of a machine do not compete for its processors. */
#include <stdlib.h>

#include "ranks/ranks.h"
#include "util/system.h"

int ranks_threads(const ranks *r) {
    const char *asked = getenv("OMP_NUM_THREADS");
    if (asked && atoi(asked) > 0) return atoi(asked);
    int allowed = system_processors_allowed();
    if (r->local_size == 1 || allowed < system_processors()) return allowed;
    return allowed > r->local_size ? allowed / r->local_size : 1;
}
