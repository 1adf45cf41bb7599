/* opened.h: a checkpoint that is open, as those see it that read it: its structure (open.c), its elements (read.c). */
#ifndef MOBILELLM_CHECKPOINT_OPENED_H
#define MOBILELLM_CHECKPOINT_OPENED_H

#include "checkpoint/checkpoint.h"
#include "checkpoint/directory.h"
#include "checkpoint/hdf5.h"

/* A dataset as the file has it, and what this rank has read of it. */
typedef struct stored_set {
    checkpoint_tensor tensor;
    int64_t at;       /* its first byte in the file */
    uint32_t crc;     /* that was written with it */
    uint32_t sum;     /* of the elements read in parts: each part's CRC, moved to its place, added */
    int64_t n_summed; /* of these elements */
    bool checked;     /* read whole, and its CRC is right */
} stored_set;

struct checkpoint {
    hid_t file;
    int fd; /* of the same file, for elements */
    char path[PATH_SIZE];
    checkpoint_info info;
    stored_set *sets; /* (n) */
    int n, capacity;
    h5_trouble trouble;
};

/* Messages about what is damaged, and what to do then. Failures of the machine (c->trouble.code) are told apart from damage, of
 * which a bad disk sector is one. All return -1. */
int opened_damaged(const checkpoint *c, const char *what, error *err);
int opened_wrong_crc(const checkpoint *c, const char *path, uint32_t found, uint32_t expected, error *err);
int opened_no_memory(const checkpoint *c, error *err);

#endif
