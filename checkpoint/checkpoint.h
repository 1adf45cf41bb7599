/* checkpoint.h: a training run's state in one HDF5 file, as docs/checkpoint.md describes it.
 *
 * A file holds logical tensors under their registry names, whatever the ranks that wrote it: all ranks write at once, each its
 * own parts, and each reads those that it needs. A file is written under a temporary name, with a CRC-32 beside each dataset,
 * fsynced, then renamed: a name that looks like a checkpoint is one. */
#ifndef MOBILELLM_CHECKPOINT_CHECKPOINT_H
#define MOBILELLM_CHECKPOINT_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "ops.h"
#include "ranks/ranks.h"
#include "util/dtype.h"
#include "util/error.h"

/* The memory of a device, where parts lie that the host cannot read. */
typedef struct checkpoint_memory {
    const ops *ops;
    backend *backend;
} checkpoint_memory;

/* Elements [first, first + count) of a tensor in row-major order. */
typedef struct checkpoint_part {
    int64_t first, count;
    void *data;
} checkpoint_part;

/* One dataset, "params/model.embed_tokens.weight" or "optimizer/m/...", and the parts of it that this rank holds. Over all ranks
 * the parts cover each element exactly once when writing; when reading they may overlap. Parts are in ascending order. */
typedef struct checkpoint_tensor {
    char path[160];
    dtype type;
    int n_axes;
    int64_t shape[2];
    int n_parts;
    checkpoint_part *parts;
    const checkpoint_memory *memory; /* of the parts; NULL: the host's */
} checkpoint_tensor;

/* A line of history/train or history/heldout. Fields that do not apply are NaN. */
typedef struct history_row {
    int64_t step, tokens;
    double loss, lr, grad_norm;
} history_row;

/* What a file says of itself, as attributes of its root. Strings are allocated. */
typedef struct checkpoint_info {
    char *model;                   /* the network, as YAML that model/config.h reads */
    char *config;                  /* the resolved YAML of the run that wrote the file; "" where no run did */
    char *tokenizer_hash;          /* "" when unknown */
    char *lineage;                 /* what its weights came from: "random, seed 1", "pruned from ..." */
    char *created_by;              /* program and version */
    int64_t step, tokens, samples; /* done so far; samples is the data position */
    int64_t skipped_steps, nonfinite_in_a_row;
    int64_t optimizer_step; /* AdamW's t: steps that were not skipped */
    int64_t data_seed;
    int64_t seq_len; /* tokens that a row had in training */
    history_row *train, *heldout;
    int64_t n_train, n_heldout;
} checkpoint_info;

void checkpoint_info_free(checkpoint_info *info);

/* Collective; info and the tensors' names, types and shapes are the same on all ranks. Writes DIR/step_%010d.h5 for info->step,
 * points DIR/latest at it, and removes all but the `keep` newest (keep 0: all are kept). DIR is made if it is missing. On failure
 * the file is not there, the previous ones are untouched, and the rank that failed has the reason in *err, the others "rank N: "
 * and that reason, with STATUS_RANK. A disk that fails while several ranks write ends the run instead, with the reason. path (if
 * not NULL): the name written. */
int checkpoint_write(const char *dir, int keep, const checkpoint_info *info, const checkpoint_tensor *tensors, int n_tensors,
                     const ranks *r, char path[4096], error *err);

/* A checkpoint open for reading by one rank. path: a file, or a run directory whose `latest` is meant. */
typedef struct checkpoint checkpoint;
int checkpoint_open(checkpoint **c, const char *path, error *err);
void checkpoint_close(checkpoint *c);
const char *checkpoint_path(const checkpoint *c);
const checkpoint_info *checkpoint_about(const checkpoint *c);

/* The datasets below params/ and optimizer/, in the order of the file. */
int checkpoint_n_tensors(const checkpoint *c);
const checkpoint_tensor *checkpoint_tensor_at(const checkpoint *c, int i); /* n_parts 0 */
uint32_t checkpoint_crc_at(const checkpoint *c, int i);

/* A result beside 0 and -1: elements in the file are not those that were written. The reason is in *err, with STATUS_INPUT. */
enum { CHECKPOINT_DAMAGED = 1 };

/* Reads the parts of n tensors into their memory, converted to the tensors' types, by all threads. Names and shapes are checked
 * before. What is read is summed: a tensor read whole, in one part, must have its checksum (else CHECKPOINT_DAMAGED, the memory
 * overwritten); sums of parts are kept for checkpoint_check. */
int checkpoint_read(checkpoint *c, const checkpoint_tensor *tensors, int n, error *err);

/* Collective, after each rank has read its parts of the same file: has every element of the file the checksum that it was written
 * with? Tensors whose parts, over all ranks, were every element once are known from that; those that a rank has not read, or not
 * so, are read for it, shared by the ranks. 0, -1 or CHECKPOINT_DAMAGED on all ranks, as checkpoint_share has it. */
int checkpoint_check(checkpoint *c, const ranks *r, error *err);

/* Reads datasets i with i % of == part and compares their checksums; all with (0, 1). 0, -1 or CHECKPOINT_DAMAGED. */
int checkpoint_verify(checkpoint *c, int part, int of, error *err);

/* Collective, ranks_share for three results: 0 when every rank comes with 0, -1 when one comes with -1, else CHECKPOINT_DAMAGED.
 */
int checkpoint_share(const ranks *r, int result, error *err);

/* Takes what an open checkpoint holds. Called by all ranks, and returns the same on all: 0, -1, or CHECKPOINT_DAMAGED. */
typedef int checkpoint_take(void *context, checkpoint *c, error *err);

/* Collective: has the newest file of DIR taken that is not damaged: path is its name, "" when there is none. Those that do not
 * open as they should, and those that `take` finds damaged, are named on stderr by rank 0, with the reason, and passed over; one
 * that only cannot be read (rights, memory) is an error, and so is any other failure of `take`. Left-over temporary files are
 * removed.
 */
int checkpoint_newest(const char *dir, const ranks *r, checkpoint_take *take, void *context, char path[4096], error *err);

#endif
