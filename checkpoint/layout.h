/* layout.h: a checkpoint file complete but for the elements of its datasets. */
#ifndef MOBILELLM_CHECKPOINT_LAYOUT_H
#define MOBILELLM_CHECKPOINT_LAYOUT_H

#include <stdbool.h>

#include "checkpoint/checkpoint.h"

/* A dataset being written: a tensor, or a history. */
typedef struct dataset {
    const char *path;
    int n_axes;
    const int64_t *shape;
    size_t item; /* bytes of an element */
    bool is_history;
    dtype type;
    const checkpoint_part *parts;    /* (n_parts) of this rank */
    const checkpoint_memory *memory; /* where they lie; NULL: the host's */
    int n_parts;
    uint32_t crc; /* of the whole */
    int64_t at;   /* its first byte in the file, where it has been laid out */
} dataset;

int64_t dataset_count(const dataset *d);

/* Makes the file at `path` with everything in it (attributes, groups, datasets, their checksums) and all its space taken on the
 * disk, and waits until that is there. What is left to do is to write each dataset's elements, at set->at. By one rank. */
int layout_write(const char *path, const checkpoint_info *info, dataset *sets, int n, error *err);

#endif
