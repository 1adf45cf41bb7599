/* ranges.h: ranges of a file's elements, read by all threads and summed as they come.
 *
 * Past HDF5, which reads by one thread and does not let a byte be seen twice while it is in the cache. */
#ifndef MOBILELLM_CHECKPOINT_RANGES_H
#define MOBILELLM_CHECKPOINT_RANGES_H

#include "checkpoint/checkpoint.h"

typedef struct range {
    int64_t at, count;               /* its first byte in the file, its elements */
    dtype stored, wanted;            /* in the file, in memory */
    void *to;                        /* (count) wanted; NULL: it is only summed */
    const checkpoint_memory *memory; /* where `to` is; NULL: the host's */
    uint32_t crc;                    /* out: of its bytes as they are stored */
} range;

/* Returns 0, or what errno says of the range *failed; ENODATA where the file ends before it does. What has been read until then
 * is in memory. Copies into a device's memory may be under way: its sync tells whether they failed. */
int ranges_read(int fd, range *ranges, int n, int *failed);

#endif
