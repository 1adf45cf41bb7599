/* write.c: writing a checkpoint, by one rank or by all of them together.
 *
 * The parts are summed first (CRC-32, each rank its own). Rank 0 alone then lays out the file: groups, datasets, attributes,
 * checksums, and all its space on the disk. The other ranks open that file and all write their parts into it with collective
 * calls. So everything that commonly fails (names, rights, a full disk) fails on one rank, before any rank waits inside MPI-IO
 * for another, and the structure of the file never depends on how many ranks wrote it. Bytes go from the rank that has them to
 * the file: collective calls are told not to exchange data between ranks first, which for parts of this size would only gather
 * them on a few.
 *
 * What fails later (a disk that breaks) leaves the other ranks inside MPI-IO, so it ends the run instead of returning. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/crc.h"
#include "checkpoint/directory.h"
#include "checkpoint/format.h"
#include "checkpoint/hdf5.h"
#include "util/system.h"

enum {
    CHUNK_BYTES = 64 << 20
}; /* of one rank in one call, whose MPI counts are int; what lies in several parts is copied together */

/* A dataset being written: a tensor, or a history. */
typedef struct dataset {
    const char *path;
    int n_axes;
    const int64_t *shape;
    size_t item; /* bytes of an element */
    bool is_history;
    dtype type;
    const checkpoint_part *parts;
    int n_parts;
    uint32_t crc;
    int64_t calls; /* of H5Dwrite, the same on all ranks */
    hid_t id;
} dataset;

typedef struct writing {
    const checkpoint_info *info;
    const ranks *r;
    dataset *sets; /* (n) */
    int n;
    char file[PATH_SIZE], temporary[PATH_SIZE];
    checkpoint_part histories[2];
    int64_t history_rows[2];
    void *staging; /* CHUNK_BYTES */
    h5_trouble trouble;
} writing;

static int64_t count_of(const dataset *d) { return d->n_axes == 1 ? d->shape[0] : d->shape[0] * d->shape[1]; }

static int64_t own_count(const dataset *d) {
    int64_t n = 0;
    for (int i = 0; i < d->n_parts; i++) n += d->parts[i].count;
    return n;
}

/* HDF5 failed on the temporary file: says why. Returns -1. */
static int h5_error(const writing *w, error *err) {
    if (w->trouble.code) return directory_error(err, w->temporary, w->trouble.code);
    return error_set(err, STATUS_RESOURCE,
                     "%s: HDF5 cannot write it: %s.\nEarlier checkpoints are untouched. Check the filesystem.", w->temporary,
                     w->trouble.text);
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
                                    .n_parts = t->n_parts};
    }
    add_history(w, 0, FORMAT_TRAIN, w->info->train, w->info->n_train);
    add_history(w, 1, FORMAT_HELDOUT, w->info->heldout, w->info->n_heldout);
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
            int64_t after = count_of(d) - part->first - part->count;
            mine[i] ^= crc_shift(crc_of(part->data, (size_t)part->count * d->item), (uint64_t)after * d->item);
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
        assert(elements[i] == count_of(&w->sets[i]));
        w->sets[i].calls = calls[i];
    }
    free(calls);
    free(elements);
    return result;
}

/* Makes the groups that `path` lies in. They keep the order in which things were put into them. */
static int make_groups(hid_t file, const char *path) {
    char group[sizeof((checkpoint_tensor *)0)->path];
    hid_t properties = H5Pcreate(H5P_GROUP_CREATE);
    int result = properties < 0 || H5Pset_obj_track_times(properties, 0) < 0 ||
                         H5Pset_link_creation_order(properties, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED) < 0
                     ? -1
                     : 0;
    for (const char *slash = strchr(path, '/'); result == 0 && slash; slash = strchr(slash + 1, '/')) {
        snprintf(group, sizeof group, "%.*s", (int)(slash - path), path);
        if (H5Lexists(file, group, H5P_DEFAULT) > 0) continue;
        hid_t made = H5Gcreate2(file, group, H5P_DEFAULT, properties, H5P_DEFAULT);
        if (made < 0 || H5Gclose(made) < 0) result = -1;
    }
    if (properties >= 0) H5Pclose(properties);
    return result;
}

/* Contiguous, its space taken now, nothing written to it: all of it will be, by the ranks. */
static int make_dataset(hid_t file, const dataset *d) {
    hsize_t shape[2] = {(hsize_t)d->shape[0], d->n_axes == 2 ? (hsize_t)d->shape[1] : 1};
    hid_t type = d->is_history ? h5_history_type() : h5_type(d->type);
    hid_t space = H5Screate_simple(d->n_axes, shape, NULL), properties = H5Pcreate(H5P_DATASET_CREATE), id = -1;
    int result = -1;
    if (type >= 0 && space >= 0 && properties >= 0 && make_groups(file, d->path) == 0 &&
        H5Pset_obj_track_times(properties, 0) >= 0 && H5Pset_layout(properties, H5D_CONTIGUOUS) >= 0 &&
        H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY) >= 0 && H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER) >= 0)
        id = H5Dcreate2(file, d->path, type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    if (id >= 0) {
        result = h5_put_crc(id, FORMAT_CRC, d->crc);
        if (H5Dclose(id) < 0) result = -1;
    }
    if (properties >= 0) H5Pclose(properties);
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return result;
}

static int put_info(hid_t root, const writing *w) {
    const checkpoint_info *info = w->info;
    const char **paths = malloc((size_t)w->n * sizeof *paths);
    if (!paths) return -1;
    for (int i = 0; i < w->n; i++) paths[i] = w->sets[i].path;
    uint32_t names = format_names_crc(paths, w->n);
    free(paths);

    int failed = h5_put_string(root, "format", FORMAT_NAME) < 0 || h5_put_int64(root, "version", FORMAT_VERSION) < 0 ||
                 h5_put_int64(root, FORMAT_N_DATASETS, w->n) < 0 || h5_put_crc(root, FORMAT_NAMES_CRC, names) < 0 ||
                 h5_put_crc(root, FORMAT_CONFIG_CRC, crc_of(info->config, strlen(info->config))) < 0;
    for (int i = 0; i < FORMAT_N_STRINGS && !failed; i++)
        failed = h5_put_string(root, format_strings[i].name, *format_string((checkpoint_info *)info, i)) < 0;
    for (int i = 0; i < FORMAT_N_NUMBERS && !failed; i++)
        failed = h5_put_int64(root, format_numbers[i].name, *format_number((checkpoint_info *)info, i)) < 0;
    return failed ? -1 : 0;
}

/* The newest form of the file that HDF5 1.8 reads: its metadata carry checksums. */
static hid_t create_file(const char *path) {
    enum { ATTRIBUTES = 64 }; /* this many stay in the root's header, where everyone finds them at once */
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), creation = H5Pcreate(H5P_FILE_CREATE), file = -1;
    if (access >= 0 && creation >= 0 && H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V18) >= 0 &&
        H5Pset_file_locking(access, 0, 1) >= 0 && H5Pset_attr_phase_change(creation, ATTRIBUTES, 0) >= 0 &&
        H5Pset_obj_track_times(creation, 0) >= 0 &&
        H5Pset_link_creation_order(creation, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED) >= 0)
        file = H5Fcreate(path, H5F_ACC_TRUNC, creation, access);
    if (access >= 0) H5Pclose(access);
    if (creation >= 0) H5Pclose(creation);
    return file;
}

static int out_of_space(error *err, const char *path, int64_t bytes, int64_t available, int code) {
    char needed[16], there[16];
    return error_set(err, STATUS_RESOURCE,
                     "%s: the checkpoint needs %s, the filesystem has %s free (%s).\n"
                     "Free space there or keep fewer checkpoints, then resume: earlier checkpoints are untouched.",
                     path, format_bytes(needed, (double)bytes), format_bytes(there, (double)available), strerror(code));
}

static int64_t available_bytes(const char *path) {
    struct statvfs s;
    return statvfs(path, &s) == 0 ? (int64_t)s.f_bavail * (int64_t)s.f_frsize : INT64_MAX;
}

/* Takes the file's space on the disk, so that no write can find it full. Filesystems that cannot do this are let be. */
static int reserve(const writing *w, error *err) {
    int fd = open(w->temporary, O_WRONLY | O_CLOEXEC);
    struct stat s;
    if (fd < 0 || fstat(fd, &s) != 0) {
        int code = errno;
        if (fd >= 0) close(fd);
        return directory_error(err, w->temporary, code);
    }
    int code = fallocate(fd, 0, 0, s.st_size) == 0 ? 0 : errno;
    close(fd);
    if (code == ENOSPC || code == EDQUOT || code == EFBIG)
        return out_of_space(err, w->file, s.st_size, available_bytes(w->temporary), code);
    return directory_sync(w->temporary, err);
}

/* Rank 0: the file, complete but for the elements of its datasets. */
static int lay_out(const writing *w, const char *dir, error *err) {
    if (directory_make(dir, err) || directory_clean(dir, err)) return -1;
    int64_t bytes = 0, available = available_bytes(dir);
    for (int i = 0; i < w->n; i++) bytes += count_of(&w->sets[i]) * (int64_t)w->sets[i].item;
    if (bytes > available) return out_of_space(err, w->file, bytes, available, ENOSPC);

    hid_t file = create_file(w->temporary);
    if (file < 0) return h5_error(w, err);
    int result = put_info(file, w);
    for (int i = 0; result == 0 && i < w->n; i++) result = make_dataset(file, &w->sets[i]);
    if (result) h5_error(w, err);
    if (H5Fclose(file) < 0 && result == 0) result = h5_error(w, err);
    return result ? -1 : reserve(w, err);
}

/* Opening the file by its name first says more about what is wrong than MPI-IO can. */
static int can_open(const writing *w, error *err) {
    int fd = open(w->temporary, O_RDWR | O_CLOEXEC);
    if (fd < 0) return directory_error(err, w->temporary, errno);
    close(fd);
    return 0;
}

static hid_t open_file(const writing *w) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), file = -1;
    int ready = access >= 0 && H5Pset_file_locking(access, 0, 1) >= 0;
    if (ready && w->r->size > 1) ready = H5Pset_fapl_mpio(access, *(MPI_Comm *)w->r->comm, MPI_INFO_NULL) >= 0;
    if (ready) file = H5Fopen(w->temporary, H5F_ACC_RDWR, access);
    if (access >= 0) H5Pclose(access);
    return file;
}

static hid_t transfer_properties(const writing *w) {
    hid_t properties = H5Pcreate(H5P_DATASET_XFER);
    if (properties < 0 || w->r->size == 1) return properties;
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
        bool alone = taken == 0 && n > 0 && (n == room || at->part == d->n_parts - 1);
        if (alone) *data = from;
        if (!alone && n > 0) memcpy((char *)w->staging + (size_t)taken * d->item, from, (size_t)n * d->item);
        taken += n;
        at->within += n;
        if (at->within < part->count) break;
    }
    return taken;
}

static int write_chunk(const dataset *d, hid_t type, hid_t space, int64_t n, const void *data, hid_t properties) {
    hsize_t size = n > 0 ? (hsize_t)n : 1;
    hid_t memory = H5Screate_simple(1, &size, NULL);
    if (memory < 0) return -1;
    int result = n > 0 ? 0 : H5Sselect_none(memory);
    if (result >= 0) result = H5Dwrite(d->id, type, memory, space, properties, data);
    H5Sclose(memory);
    return result;
}

static int write_dataset(const writing *w, const dataset *d, hid_t properties) {
    cursor at = {0};
    const void *data;
    hid_t type = H5Dget_type(d->id), space = H5Dget_space(d->id);
    int result = type >= 0 && space >= 0 ? 0 : -1;
    for (int64_t call = 0; result >= 0 && call < d->calls; call++) {
        int64_t n = take(w, d, &at, space, &data);
        result = n < 0 ? -1 : write_chunk(d, type, space, n, data, properties);
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return result;
}

/* A rank that fails among others inside a collective call ends all of them. */
static int fail_together(const writing *w, error *err) {
    h5_error(w, err);
    if (w->r->size == 1) return -1;
    unlink(w->temporary);
    ranks_abort(w->r, err);
}

/* All ranks: their parts of all datasets into the open file. */
static int write_parts(writing *w, hid_t file) {
    hid_t properties = transfer_properties(w);
    int result = properties < 0 ? -1 : 0;
    for (int i = 0; result >= 0 && i < w->n; i++) {
        dataset *d = &w->sets[i];
        d->id = H5Dopen2(file, d->path, H5P_DEFAULT);
        result = d->id < 0 ? -1 : write_dataset(w, d, properties);
        if (d->id >= 0 && H5Dclose(d->id) < 0) result = -1;
    }
    if (properties >= 0) H5Pclose(properties);
    return result;
}

static int fill(writing *w, error *err) {
    if (ranks_share(w->r, can_open(w, err), err)) return -1;
    hid_t file = open_file(w);
    if (file < 0) return fail_together(w, err);
    int result = write_parts(w, file) < 0 ? fail_together(w, err) : 0;
    if (H5Fclose(file) < 0 && result == 0) result = fail_together(w, err);
    return result;
}

static int write_all(writing *w, const char *dir, int keep, error *err) {
    if (sum_parts(w, err) || plan_calls(w, err)) return -1;
    if (ranks_share(w->r, w->r->rank == 0 ? lay_out(w, dir, err) : 0, err)) return -1;
    if (fill(w, err)) return -1;
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
        result = prepare(w, dir, tensors, n_tensors, err);
    }
    result = ranks_share(r, result, err);
    if (result == 0) {
        h5_listen(&w->trouble);
        result = write_all(w, dir, keep, err);
        h5_listen(NULL);
        if (result && r->rank == 0) unlink(w->temporary);
        if (path) snprintf(path, PATH_SIZE, "%s", w->file);
    }
    if (w) {
        free(w->sets);
        free(w->staging);
    }
    free(w);
    return result;
}
