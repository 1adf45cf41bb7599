/* direct.h: ranges of bytes into a file, by all threads of one rank, past the page cache.
 *
 * Nobody reads a checkpoint soon after it was written, and memory for gigabytes of it has to be found, filled and written from:
 * what is left out costs more than the disk does (docs/results.md). */
#ifndef MOBILELLM_CHECKPOINT_DIRECT_H
#define MOBILELLM_CHECKPOINT_DIRECT_H

#include "checkpoint/checkpoint.h"

typedef struct direct_range {
    int64_t at, bytes; /* in the file */
    const void *from;
    const checkpoint_memory *memory; /* of `from`; NULL: the host's */
} direct_range;

/* Writes the ranges, which do not overlap, into a file that has its length. Returns 0 or what errno says. Nothing is on the disk
 * for certain before the file has been synced. */
int direct_write(const char *path, const direct_range *ranges, int n);

#endif
