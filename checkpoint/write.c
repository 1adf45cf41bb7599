/* write.c: writing a checkpoint, by one rank or by all of them together.
 *
 * Each rank first sums its parts (CRC-32). Rank 0 alone then makes the whole file but for the elements (layout.h), and says where
 * those of each dataset go: each rank writes its parts there by itself, past the page cache (direct.h). So names, rights and full
 * disks fail on one rank before the others begin, the structure of a file does not depend on how many ranks wrote it, and no
 * rank waits for another inside a library that cannot tell it of a failure, as collective calls of MPI-IO do: what fails on one
 * is agreed upon between two steps, and all return. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/crc.h"
#include "checkpoint/direct.h"
#include "checkpoint/directory.h"
#include "checkpoint/format.h"
#include "checkpoint/layout.h"

/* Of a device's memory, brought to the host at a time to be summed. */
enum { STAGING_BYTES = 64 << 20 };

typedef struct writing {
    const checkpoint_info *info;
    const ranks *r;
    dataset *sets; /* (n) */
    int n;
    char file[PATH_SIZE], temporary[PATH_SIZE];
    checkpoint_part histories[2];
    int64_t history_rows[2];
    void *staging; /* STAGING_BYTES */
} writing;

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
    w->staging = malloc(STAGING_BYTES);
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

static uint32_t part_crc(const writing *w, const dataset *d, const checkpoint_part *part) {
    size_t bytes = (size_t)part->count * d->item;
    uint32_t crc = 0;
    if (d->memory == NULL) return crc_of(part->data, bytes);
    for (size_t at = 0; at < bytes; at += STAGING_BYTES) {
        size_t n = bytes - at < STAGING_BYTES ? bytes - at : STAGING_BYTES;
        d->memory->ops->copy_out(d->memory->backend, w->staging, (const char *)part->data + at, n);
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

/* Of a dataset, what one rank holds. */
typedef struct share {
    int64_t count;
    uint32_t crc; /* of the dataset with zeros for what others hold */
} share;

static share sum_share(const writing *w, const dataset *d) {
    share s = {0};
    for (int p = 0; p < d->n_parts; p++) {
        const checkpoint_part *part = &d->parts[p];
        int64_t after = dataset_count(d) - part->first - part->count;
        s.count += part->count;
        s.crc ^= crc_shift(part_crc(w, d, part), (uint64_t)after * d->item);
    }
    return s;
}

/* The CRC-32 of each dataset, from what the ranks hold of it. */
static int sum_parts(writing *w, error *err) {
    const ranks *r = w->r;
    share *mine = calloc((size_t)w->n, sizeof *mine), *all = calloc((size_t)w->n * (size_t)r->size, sizeof *all);
    int result = ranks_share(r, mine && all ? 0 : directory_error(err, w->file, ENOMEM), err);
    if (result == 0) {
        for (int i = 0; i < w->n; i++) mine[i] = sum_share(w, &w->sets[i]);
        ranks_gather(r, all, mine, (size_t)w->n * sizeof *mine);
    }
    for (int i = 0; result == 0 && i < w->n; i++) {
        int64_t count = 0;
        for (int rank = 0; rank < r->size; rank++) {
            const share *s = &all[(size_t)rank * (size_t)w->n + (size_t)i];
            count += s->count;
            w->sets[i].crc ^= s->crc;
        }
        assert(count == dataset_count(&w->sets[i])); /* no element is missing */
        (void)count;
    }
    free(mine);
    free(all);
    return result;
}

static int make_file(const writing *w, const char *dir, error *err) {
    if (directory_make(dir, err) || directory_clean(dir, err)) return -1;
    return layout_write(w->temporary, w->info, w->sets, w->n, err);
}

/* Tells all ranks where rank 0 has laid out the datasets. */
static int share_places(writing *w, error *err) {
    int64_t *places = calloc((size_t)w->n, sizeof *places);
    int result = ranks_share(w->r, places ? 0 : directory_error(err, w->file, ENOMEM), err);
    if (result == 0) {
        for (int i = 0; i < w->n; i++) places[i] = w->sets[i].at;
        ranks_broadcast(w->r, places, (size_t)w->n * sizeof *places, 0);
        for (int i = 0; i < w->n; i++) w->sets[i].at = places[i];
    }
    free(places);
    return result;
}

/* This rank's parts. */
static int fill(const writing *w, error *err) {
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

static int write_all(writing *w, const char *dir, int keep, error *err) {
    const ranks *r = w->r;
    if (sum_parts(w, err)) return -1;
    if (ranks_share(r, r->rank == 0 ? make_file(w, dir, err) : 0, err) || share_places(w, err)) return -1;
    if (ranks_share(r, fill(w, err) || device_ok(w, err) || directory_sync(w->temporary, err) ? -1 : 0, err)) return -1;
    return ranks_share(r, r->rank == 0 ? directory_publish(dir, w->info->step, keep, err) : 0, err);
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
        result = write_all(w, dir, keep, err);
        if (result && r->rank == 0) unlink(w->temporary);
        ranks_barrier(r); /* what rank 0 renamed or removed is so for all when they return */
        if (path) snprintf(path, PATH_SIZE, "%s", w->file);
    }
    if (w) {
        free(w->sets);
        free(w->staging);
    }
    free(w);
    return result;
}
