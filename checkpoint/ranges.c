/* ranges.c: pieces of ranges, dealt to the threads.
 *
 * Bounded by memory when the file is in it: a piece is read right to its place, a step at a time, and summed while it is in the
 * cache. Where it has to change its dtype it comes by way of a buffer; where it goes to a device, of one of two batches of
 * pieces: one thread, which a device's library may insist on, copies a batch while the others read the next. */
#include "checkpoint/ranges.h"

#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <unistd.h>

#include "checkpoint/crc.h"

enum {
    PIECE = 1 << 20, /* elements: a thread's turn, of two huge pages in f32, so that no two threads make the same one */
    STEP = 1 << 17,  /* elements: half a MiB in f32, what a core's cache holds */
    BATCH = 16,      /* pieces */
    WIDEST = sizeof(float)
};

typedef struct piece {
    range *of;
    int64_t first, count; /* of its elements */
} piece;

typedef struct reading {
    int fd;
    piece *pieces;
    int64_t n_pieces, batch; /* batch: how many are read before others begin */
    char *buffers;           /* (threads, STEP) */
    char *staging;           /* (2, BATCH, PIECE) for a device, else NULL */
    int code;                /* the first failure, and whose; 0: none */
    const range *failed;
} reading;

static int64_t pieces_of(const range *r) { return (r->count + PIECE - 1) / PIECE; }

static int64_t cut(piece *pieces, range *r) {
    for (int64_t i = 0; i < pieces_of(r); i++) {
        int64_t first = i * PIECE, left = r->count - first;
        pieces[i] = (piece){r, first, left < PIECE ? left : PIECE};
    }
    return pieces_of(r);
}

static int open_reading(reading *job, int fd, range *ranges, int n) {
    bool device = false;
    *job = (reading){.fd = fd};
    for (int i = 0; i < n; i++) {
        ranges[i].crc = 0;
        job->n_pieces += pieces_of(&ranges[i]);
        device = device || (ranges[i].to && ranges[i].memory);
    }
    job->batch = device ? BATCH : job->n_pieces;
    job->pieces = malloc((size_t)job->n_pieces * sizeof *job->pieces + 1);
    job->buffers = malloc((size_t)omp_get_max_threads() * STEP * WIDEST);
    if (device) job->staging = malloc((size_t)2 * BATCH * PIECE * WIDEST);
    if (!job->pieces || !job->buffers || (device && !job->staging)) return ENOMEM;
    piece *next = job->pieces;
    for (int i = 0; i < n; i++) next += cut(next, &ranges[i]);
    return 0;
}

static void close_reading(reading *job) {
    free(job->pieces);
    free(job->buffers);
    free(job->staging);
}

static int read_bytes(int fd, void *to, size_t bytes, int64_t at) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, (char *)to + done, bytes - done, (off_t)(at + (int64_t)done));
        if (n == 0) return ENODATA;
        if (n < 0 && errno != EINTR) return errno;
        if (n > 0) done += (size_t)n;
    }
    return 0;
}

static void convert(void *to, dtype wanted, const void *from, int64_t n) {
    if (wanted == DTYPE_F32)
        for (int64_t i = 0; i < n; i++) ((float *)to)[i] = bf16_to_float(((const bf16 *)from)[i]);
    else
        for (int64_t i = 0; i < n; i++) ((bf16 *)to)[i] = bf16_from_float(((const float *)from)[i]);
}

/* to: the piece's place in host memory, or NULL. */
static int read_piece(int fd, const piece *p, char *to, void *buffer, uint32_t *crc) {
    const range *r = p->of;
    size_t item = dtype_size(r->stored);
    bool direct = to && r->stored == r->wanted;
    *crc = 0;
    for (int64_t at = 0; at < p->count; at += STEP) {
        int64_t n = p->count - at < STEP ? p->count - at : STEP;
        char *place = to ? to + (size_t)at * dtype_size(r->wanted) : NULL;
        void *read = direct ? place : buffer;
        int code = read_bytes(fd, read, (size_t)n * item, r->at + (p->first + at) * (int64_t)item);
        if (code) return code;
        *crc = crc_shift(*crc, (uint64_t)n * item) ^ crc_of(read, (size_t)n * item);
        if (place && !direct) convert(place, r->wanted, read, n);
    }
    return 0;
}

static char *final_place(const piece *p) {
    return p->of->to ? (char *)p->of->to + (size_t)p->first * dtype_size(p->of->wanted) : NULL;
}

/* Where piece i waits for its copy to the device. */
static char *staged_place(const reading *job, int64_t i) { return job->staging + (size_t)(i % (2 * BATCH)) * PIECE * WIDEST; }

static bool is_staged(const piece *p) { return p->of->to && p->of->memory; }

static void take_piece(reading *job, int64_t i) {
    int code;
    uint32_t crc;
    const piece *p = &job->pieces[i];
    range *r = p->of;
#pragma omp atomic read
    code = job->code;
    if (code) return;
    char *to = is_staged(p) ? staged_place(job, i) : final_place(p);
    code = read_piece(job->fd, p, to, job->buffers + (size_t)omp_get_thread_num() * STEP * WIDEST, &crc);
    if (code) {
#pragma omp critical(checkpoint_ranges)
        if (job->code == 0) {
            job->failed = r;
#pragma omp atomic write
            job->code = code;
        }
        return;
    }
    crc = crc_shift(crc, (uint64_t)(r->count - p->first - p->count) * dtype_size(r->stored));
#pragma omp atomic
    r->crc ^= crc;
}

static void copy_in(const reading *job, int64_t i) {
    const piece *p = &job->pieces[i];
    const checkpoint_memory *m = p->of->memory;
    if (is_staged(p))
        m->ops->copy_in(m->backend, final_place(p), staged_place(job, i), (size_t)p->count * dtype_size(p->of->wanted));
}

/* A batch's copies are made while the next is read, into other places; that one does not end before they do. */
static void read_all(reading *job) {
#pragma omp parallel
    for (int64_t first = 0; first < job->n_pieces; first += job->batch) {
        int64_t end = job->n_pieces - first < job->batch ? job->n_pieces : first + job->batch;
#pragma omp for schedule(dynamic)
        for (int64_t i = first; i < end; i++) take_piece(job, i);
#pragma omp master
        for (int64_t i = first; i < end && job->staging; i++) copy_in(job, i);
    }
}

int ranges_read(int fd, range *ranges, int n, int *failed) {
    reading job;
    int code = open_reading(&job, fd, ranges, n);
    *failed = 0;
    if (code == 0) {
        read_all(&job);
        code = job.code;
        if (code) *failed = (int)(job.failed - ranges);
    }
    close_reading(&job);
    return code;
}
