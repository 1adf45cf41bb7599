/* tensorboard.h: writes the event files that TensorBoard reads.
 *
 * A file is a sequence of TFRecords; each holds one `Event` protocol buffer [tensorflow/core/util/event.proto]: a file version
 * first, then the start of a session, then scalars by step. A resumed run adds a file to the directory; its session start tells
 * TensorBoard to forget what earlier files hold from that step on. */
#ifndef MOBILELLM_TRAIN_TENSORBOARD_H
#define MOBILELLM_TRAIN_TENSORBOARD_H

#include <stdint.h>

#include "util/error.h"

typedef struct tensorboard tensorboard;

enum { TENSORBOARD_TAG = 512 }; /* longest tag, its end included */

typedef struct tensorboard_scalar {
    char tag[TENSORBOARD_TAG]; /* "train/loss": TensorBoard groups its charts by what stands before the first slash */
    double value;              /* stored as fp32 */
} tensorboard_scalar;

/* Makes a new file DIR/events.out.tfevents.SECONDS.HOST. What earlier files of DIR hold of steps >= purge_step is void. */
int tensorboard_open(tensorboard **t, const char *dir, int64_t purge_step, error *err);

/* Closes and frees. Safe on NULL. */
void tensorboard_close(tensorboard *t);

/* Writes n scalars as one record, which is in the file when this returns. n <= 16. */
int tensorboard_write(tensorboard *t, int64_t step, const tensorboard_scalar *scalars, int n, error *err);

#endif
