/* write.c: writing a checkpoint, by one rank or by all of them together.
 *
 * Each rank first sums its parts (CRC-32). Rank 0 alone then makes the whole file but for the elements (layout.h): the others
 * open it and all write their parts into it with collective calls. So whatever commonly fails (names, rights, a full disk) fails
 * on one rank before any other waits for it inside MPI-IO, and the structure of a file does not depend on how many ranks wrote
 * it. Bytes go from the rank that has them to the file: the calls are collective, but told not to exchange data between ranks
 * first, which for parts of this size would only gather them on a few. One rank alone needs neither, and writes by all its
 * threads (direct.h).
 *
 * What fails later (a disk that breaks) leaves the other ranks inside MPI-IO, so it ends the run instead of returning. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/crc.h"
#include "checkpoint/direct.h"
#include "checkpoint/directory.h"
#include "checkpoint/format.h"
#include "checkpoint/hdf5.h"
#include "checkpoint/layout.h"

/* Of one rank in one call, whose MPI counts are int. What lies in several parts is copied together for it. */
enum { CHUNK_BYTES = 64 << 20 };

typedef struct writing {
    const checkpoint_info *info;
    const ranks *r;
    dataset *sets; /* (n) */
    int n;
    char file[PATH_SIZE], temporary[PATH_SIZE];
    checkpoint_part histories[2];
    int64_t history_rows[2];
    void *staging; /* CHUNK_BYTES */
    int fd;        /* of the temporary file, beside MPI-IO's */
    h5_trouble trouble;
} writing;

static int64_t own_count(const dataset *d) {
    int64_t n = 0;
    for (int i = 0; i < d->n_parts; i++) n += d->parts[i].count;
    return n;
}

/* HDF5 failed on the temporary file: says why. Returns -1. */
static int h5_error(const writing *w, error *err) {
    if (w->trouble.code) return directory_error(err, w->temporary, w->trouble.code);
    return error_set(err, STATUS_RESOURCE,
                     "%s: HDF5 cannot write it: %s.\n"
                     "Is the filesystem full, or the disk failing? Earlier checkpoints are untouched.",
                     w->temporary, w->trouble.text);
}

static void add_history(writing *w, int which, const char *path, history_row *rows, int64_t n) {
    w->history_rows[which] = n;
    w->histories[which] = (checkpoint_part){.first = 0, .count = n, .data = rows};
    w->sets[w->n++] = (dataset){.path = path,
                                .n_axes = 1,
                                .shape = &w->history_rows[which],
                                .item = sizeof(history_row),
                                .is_history = true,
                                .parts = &w->histories[which],
                                .n_parts = w->r->rank == 0};
}

static int prepare(writing *w, const char *dir, const checkpoint_tensor *tensors, int n_tensors, error *err) {
    if (directory_names(w->file, w->temporary, dir, w->info->step, err)) return -1;
    w->sets = calloc((size_t)n_tensors + 2, sizeof *w->sets);
    w->staging = malloc(CHUNK_BYTES);
    if (!w->sets || !w->staging) return directory_error(err, w->file, ENOMEM);
    for (int i = 0; i < n_tensors; i++) {
        const checkpoint_tensor *t = &tensors[i];
        w->sets[w->n++] = (dataset){.path = t->path,
                                    .n_axes = t->n_axes,
                                    .shape = t->shape,
                                    .item = dtype_size(t->type),
                                    .type = t->type,
                                    .parts = t->parts,
                                    .memory = t->memory,
                                    .n_parts = t->n_parts};
    }
    add_history(w, 0, FORMAT_TRAIN, w->info->train, w->info->n_train);
    add_history(w, 1, FORMAT_HELDOUT, w->info->heldout, w->info->n_heldout);
    return 0;
}

/* Brings bytes of a part into host memory. */
static void copy_part(const dataset *d, void *to, const void *from, size_t bytes) {
    if (d->memory)
        d->memory->ops->copy_out(d->memory->backend, to, from, bytes);
    else
        memcpy(to, from, bytes);
}

static uint32_t part_crc(const writing *w, const dataset *d, const checkpoint_part *part) {
    size_t bytes = (size_t)part->count * d->item;
    uint32_t crc = 0;
    if (d->memory == NULL) return crc_of(part->data, bytes);
    for (size_t at = 0; at < bytes; at += CHUNK_BYTES) {
        size_t n = bytes - at < CHUNK_BYTES ? bytes - at : CHUNK_BYTES;
        copy_part(d, w->staging, (const char *)part->data + at, n);
        crc = crc_shift(crc, n) ^ crc_of(w->staging, n);
    }
    return crc;
}

/* Has the device done all that it was asked for? What it failed to give is not to be published. */
static int device_ok(const writing *w, error *err) {
    for (int i = 0; i < w->n; i++)
        if (w->sets[i].memory) return w->sets[i].memory->ops->sync(w->sets[i].memory->backend, err);
    return 0;
}

/* The CRC-32 of each dataset, from what the ranks hold of it. */
static int sum_parts(writing *w, error *err) {
    const ranks *r = w->r;
    uint32_t *mine = calloc((size_t)w->n, sizeof *mine), *all = calloc((size_t)w->n * (size_t)r->size, sizeof *all);
    int result = mine && all ? 0 : directory_error(err, w->file, ENOMEM);
    result = ranks_share(r, result, err);
    for (int i = 0; result == 0 && i < w->n; i++) {
        dataset *d = &w->sets[i];
        for (int p = 0; p < d->n_parts; p++) {
            const checkpoint_part *part = &d->parts[p];
            int64_t after = dataset_count(d) - part->first - part->count;
            mine[i] ^= crc_shift(part_crc(w, d, part), (uint64_t)after * d->item);
        }
    }
    if (result == 0) ranks_gather(r, all, mine, (size_t)w->n * sizeof *mine);
    for (int rank = 0; result == 0 && rank < r->size; rank++)
        for (int i = 0; i < w->n; i++) w->sets[i].crc ^= all[(size_t)rank * (size_t)w->n + (size_t)i];
    free(mine);
    free(all);
    return result;
}

/* How many calls each dataset takes: as many as the rank with the most of it needs. Also that no element is missing. */
static int plan_calls(writing *w, error *err) {
    int64_t *calls = calloc((size_t)w->n, sizeof *calls), *elements = calloc((size_t)w->n, sizeof *elements);
    int result = calls && elements ? 0 : directory_error(err, w->file, ENOMEM);
    result = ranks_share(w->r, result, err);
    for (int i = 0; result == 0 && i < w->n; i++) {
        int64_t a_call = CHUNK_BYTES / (int64_t)w->sets[i].item;
        elements[i] = own_count(&w->sets[i]);
        calls[i] = (elements[i] + a_call - 1) / a_call;
    }
    if (result == 0) {
        ranks_max_int64(w->r, calls, w->n);
        ranks_sum_int64(w->r, elements, w->n);
    }
    for (int i = 0; result == 0 && i < w->n; i++) {
        assert(elements[i] == dataset_count(&w->sets[i]));
        w->sets[i].calls = calls[i];
    }
    free(calls);
    free(elements);
    return result;
}

static int make_file(const writing *w, const char *dir, error *err) {
    if (directory_make(dir, err) || directory_clean(dir, err)) return -1;
    return layout_write(w->temporary, w->info, w->sets, w->n, err);
}

/* One rank alone. */
static int fill_alone(const writing *w, error *err) {
    int n = 0;
    for (int i = 0; i < w->n; i++) n += w->sets[i].n_parts;
    direct_range *ranges = malloc((size_t)n * sizeof *ranges + 1), *next = ranges;
    for (int i = 0; ranges && i < w->n; i++)
        for (int p = 0; p < w->sets[i].n_parts; p++) {
            const dataset *d = &w->sets[i];
            const checkpoint_part *part = &d->parts[p];
            int64_t item = (int64_t)d->item;
            *next++ = (direct_range){d->at + part->first * item, part->count * item, part->data, d->memory};
        }
    int code = ranges ? direct_write(w->temporary, ranges, n) : ENOMEM;
    free(ranges);
    return code ? directory_error(err, w->temporary, code) : 0;
}

/* Opening the file by its name first says more about what is wrong than MPI-IO can. */
static int open_by_name(writing *w, error *err) {
    w->fd = open(w->temporary, O_RDWR | O_CLOEXEC);
    return w->fd < 0 ? directory_error(err, w->temporary, errno) : 0;
}

/* Has the kernel begin to write what it was given, instead of when memory is full of it: the sync at the end then has little
 * left. */
static void begin_write_back(const writing *w) { sync_file_range(w->fd, 0, 0, SYNC_FILE_RANGE_WRITE); }

static hid_t open_file(const writing *w) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), file = -1;
    /* No sieve: what is written leaves HDF5 at once, and nothing is left that could fail in closing. */
    if (access >= 0 && H5Pset_file_locking(access, 0, 1) >= 0 && H5Pset_sieve_buf_size(access, 0) >= 0 &&
        H5Pset_fapl_mpio(access, *(MPI_Comm *)w->r->comm, MPI_INFO_NULL) >= 0)
        file = H5Fopen(w->temporary, H5F_ACC_RDWR, access);
    if (access >= 0) H5Pclose(access);
    return file;
}

static hid_t transfer_properties(void) {
    hid_t properties = H5Pcreate(H5P_DATASET_XFER);
    if (properties < 0) return properties;
    if (H5Pset_dxpl_mpio(properties, H5FD_MPIO_COLLECTIVE) >= 0 &&
        H5Pset_dxpl_mpio_collective_opt(properties, H5FD_MPIO_INDIVIDUAL_IO) >= 0)
        return properties;
    H5Pclose(properties);
    return -1;
}

/* A place in a rank's parts of a dataset. */
typedef struct cursor {
    int part;
    int64_t within;
} cursor;

/* Selects up to CHUNK_BYTES of the rank's elements from the cursor on, and moves it. *data is where they lie: in the caller's
 * memory if in one part, else copied together. Returns their number, -1 if HDF5 fails. */
static int64_t take(const writing *w, const dataset *d, cursor *at, hid_t space, const void **data) {
    int64_t room = CHUNK_BYTES / (int64_t)d->item, taken = 0;
    *data = w->staging;
    if (H5Sselect_none(space) < 0) return -1;
    for (; at->part < d->n_parts && taken < room; at->part++, at->within = 0) {
        const checkpoint_part *part = &d->parts[at->part];
        int64_t n = part->count - at->within < room - taken ? part->count - at->within : room - taken;
        const char *from = (const char *)part->data + (size_t)at->within * d->item;
        if (n > 0 && h5_select(space, d->n_axes, d->shape, part->first + at->within, n) < 0) return -1;
        bool alone = d->memory == NULL && taken == 0 && n > 0 && (n == room || at->part == d->n_parts - 1);
        if (alone) *data = from;
        if (!alone && n > 0) copy_part(d, (char *)w->staging + (size_t)taken * d->item, from, (size_t)n * d->item);
        taken += n;
        at->within += n;
        if (at->within < part->count) break;
    }
    return taken;
}

static int write_chunk(hid_t id, hid_t type, hid_t space, int64_t n, const void *data, hid_t properties) {
    hsize_t size = n > 0 ? (hsize_t)n : 1;
    hid_t memory = H5Screate_simple(1, &size, NULL);
    if (memory < 0) return -1;
    int result = n > 0 ? 0 : H5Sselect_none(memory);
    if (result >= 0) result = H5Dwrite(id, type, memory, space, properties, data);
    H5Sclose(memory);
    return result;
}

static int write_dataset(const writing *w, const dataset *d, hid_t id, hid_t properties) {
    cursor at = {0};
    const void *data;
    hid_t type = H5Dget_type(id), space = H5Dget_space(id);
    int result = type >= 0 && space >= 0 ? 0 : -1;
    for (int64_t call = 0; result >= 0 && call < d->calls; call++) {
        int64_t n = take(w, d, &at, space, &data);
        result = n < 0 ? -1 : write_chunk(id, type, space, n, data, properties);
        begin_write_back(w);
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return result;
}

/* A rank that fails among others inside a collective call ends all of them. If several do, the one that removes the file speaks.
 */
static int fail_together(const writing *w, error *err) {
    h5_error(w, err);
    if (unlink(w->temporary) != 0 && errno == ENOENT) err->code = STATUS_RANK;
    ranks_abort(w->r, err);
}

/* All ranks: their parts of all datasets into the open file. */
static int write_parts(writing *w, hid_t file) {
    hid_t properties = transfer_properties();
    int result = properties < 0 ? -1 : 0;
    for (int i = 0; result >= 0 && i < w->n; i++) {
        hid_t id = H5Dopen2(file, w->sets[i].path, H5P_DEFAULT);
        result = id < 0 ? -1 : write_dataset(w, &w->sets[i], id, properties);
        if (id >= 0 && H5Dclose(id) < 0) result = -1;
    }
    if (properties >= 0) H5Pclose(properties);
    return result;
}

static int fill_together(writing *w, error *err) {
    if (ranks_share(w->r, open_by_name(w, err), err)) return -1;
    h5_listen(&w->trouble);
    hid_t file = open_file(w);
    int result = file < 0 || write_parts(w, file) < 0 ? fail_together(w, err) : 0;
    if (file >= 0 && H5Fclose(file) < 0 && result == 0) result = fail_together(w, err);
    h5_listen(NULL);
    return result;
}

static int write_all(writing *w, const char *dir, int keep, error *err) {
    if (sum_parts(w, err) || plan_calls(w, err)) return -1;
    if (ranks_share(w->r, w->r->rank == 0 ? make_file(w, dir, err) : 0, err)) return -1;
    if ((w->r->size == 1 ? fill_alone(w, err) : fill_together(w, err)) || ranks_share(w->r, device_ok(w, err), err)) return -1;
    if (ranks_share(w->r, directory_sync(w->temporary, err), err)) return -1;
    return ranks_share(w->r, w->r->rank == 0 ? directory_publish(dir, w->info->step, keep, err) : 0, err);
}

int checkpoint_write(const char *dir, int keep, const checkpoint_info *info, const checkpoint_tensor *tensors, int n_tensors,
                     const ranks *r, char path[4096], error *err) {
    writing *w = calloc(1, sizeof *w);
    int result = w ? 0 : error_set(err, STATUS_RESOURCE, "%s: no memory to write a checkpoint", dir);
    if (w) {
        w->info = info;
        w->r = r;
        w->fd = -1;
        result = prepare(w, dir, tensors, n_tensors, err);
    }
    result = ranks_share(r, result, err);
    if (result == 0) {
        result = write_all(w, dir, keep, err);
        if (result && r->rank == 0) unlink(w->temporary);
        ranks_barrier(r); /* what rank 0 renamed or removed is so for all when they return */
        if (path) snprintf(path, PATH_SIZE, "%s", w->file);
    }
    if (w) {
        if (w->fd >= 0) close(w->fd);
        free(w->sets);
        free(w->staging);
    }
    free(w);
    return result;
}
