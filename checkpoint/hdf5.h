/* hdf5.h: the little of HDF5 that checkpoints use.
 *
 * Functions return what HDF5 does: an identifier, or negative on failure, and the cause goes to the h5_trouble that listens.
 * HDF5 itself prints nothing. */
#ifndef MOBILELLM_CHECKPOINT_HDF5_H
#define MOBILELLM_CHECKPOINT_HDF5_H

#include <hdf5.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/dtype.h"
#include "util/error.h"

/* The first failure since h5_listen: its innermost cause, and the errno in it (0: none). */
typedef struct h5_trouble {
    char text[512];
    int code;
} h5_trouble;

/* From now on failures are noted in *t, which is cleared; NULL: nowhere. Called before anything else of HDF5. */
void h5_listen(h5_trouble *t);

/* File types, which are the memory types too (little endian): closed by the caller. A bf16 is a floating-point number of 16 bits,
 * sign at 15, 8 bits of exponent at 7 (bias 127), 7 of mantissa at 0: known to HDF5 by these figures, not by a name. */
hid_t h5_type(dtype type);
hid_t h5_history_type(void);

/* Do the dataset's `bytes` bytes lie in its file, one after another? Not so if they are in chunks, in another file, or nowhere
 * yet: then a few bytes of a file could stand for any number of them. */
bool h5_is_whole(hid_t dataset, int64_t bytes);

/* Is `name` a member of the group itself, and no link to one elsewhere or in another file? */
bool h5_is_member(hid_t group, const char *name);

/* Attributes: 64-bit integers, 32-bit checksums, and UTF-8 strings. A string has its own length, so that it lies in the object
 * header, under that one's checksum; one of variable length lies in a heap without, where damage hangs HDF5, and is not read
 * (NULL on failure, with t->code ENOMEM where there is no memory for it; else freed by the caller). */
int h5_put_int64(hid_t object, const char *name, int64_t value);
int h5_put_crc(hid_t object, const char *name, uint32_t value);
int h5_put_string(hid_t object, const char *name, const char *text);
int h5_get_int64(hid_t object, const char *name, int64_t *value);
int h5_get_crc(hid_t object, const char *name, uint32_t *value);
char *h5_get_string(hid_t object, const char *name, h5_trouble *t);

#endif
