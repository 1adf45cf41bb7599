/* direct.c: pieces of ranges, dealt to the threads, from aligned buffers.
 *
 * What is not a whole page, at the ends of a range, goes by way of the page cache; so does everything where the filesystem knows
 * no other. No page gets bytes both ways. From a device one thread copies a batch of pieces while the others write the one
 * before. */
#include "checkpoint/direct.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PIECE = 4 << 20,  /* bytes: a thread's turn */
    BATCH = 8,        /* pieces */
    MOST_THREADS = 16 /* no disk needs more at a time, and each has a buffer */
};

typedef struct piece {
    const direct_range *of;
    int64_t first, bytes; /* of its bytes */
} piece;

typedef struct writing {
    int direct, plain; /* the file, opened twice; direct -1: it cannot be */
    int64_t page;
    piece *pieces;
    int64_t n_pieces, batch; /* batch: how many are written before others begin */
    char *buffers;           /* (threads, PIECE) or, for a device, (2, BATCH, PIECE) */
    bool device;
    int code; /* errno of the first failure, 0: none */
} writing;

static int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* Pieces end where a multiple of PIECE is in the file. Returns their number; pieces NULL: only that. */
static int64_t cut(piece *pieces, const direct_range *r) {
    int64_t n = 0;
    for (int64_t first = 0, end; first < r->bytes; first = end, n++) {
        end = up(r->at + first + 1, PIECE) - r->at;
        if (end > r->bytes) end = r->bytes;
        if (pieces) pieces[n] = (piece){r, first, end - first};
    }
    return n;
}

static int open_files(writing *w, const char *path) {
    w->plain = open(path, O_WRONLY | O_CLOEXEC);
    if (w->plain < 0) return errno;
    w->direct = open(path, O_WRONLY | O_CLOEXEC | O_DIRECT);
    return 0;
}

static int n_threads(void) { return omp_get_max_threads() < MOST_THREADS ? omp_get_max_threads() : MOST_THREADS; }

static int open_writing(writing *w, const char *path, const direct_range *ranges, int n) {
    *w = (writing){.direct = -1, .plain = -1, .page = sysconf(_SC_PAGESIZE)};
    for (int i = 0; i < n; i++) {
        w->n_pieces += cut(NULL, &ranges[i]);
        w->device = w->device || ranges[i].memory;
    }
    w->batch = w->device ? BATCH : w->n_pieces;
    w->pieces = malloc((size_t)w->n_pieces * sizeof *w->pieces + 1);
    w->buffers = aligned_alloc((size_t)w->page, (size_t)(w->device ? 2 * BATCH : n_threads()) * PIECE);
    if (!w->pieces || !w->buffers) return ENOMEM;
    piece *next = w->pieces;
    for (int i = 0; i < n; i++) next += cut(next, &ranges[i]);
    return open_files(w, path);
}

/* Closing tells nothing that a sync of the file would not. */
static void close_writing(writing *w) {
    if (w->plain >= 0) close(w->plain);
    if (w->direct >= 0) close(w->direct);
    free(w->pieces);
    free(w->buffers);
}

static int write_bytes(int fd, const char *from, int64_t bytes, int64_t at) {
    for (int64_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, from + done, (size_t)(bytes - done), (off_t)(at + done));
        if (n == 0) return EIO;
        if (n < 0 && errno != EINTR) return errno;
        if (n > 0) done += n;
    }
    return 0;
}

/* Whole pages, from memory that begins at one. Of what a filesystem refuses, or leaves half done, nothing is known but that it
 * can be written the other way: EINVAL is said of lengths and places that it does not like. */
static int write_pages(const writing *w, const char *from, int64_t bytes, int64_t at) {
    ssize_t n = -1;
    errno = EINVAL;
    if (w->direct >= 0) n = pwrite(w->direct, from, (size_t)bytes, (off_t)at);
    if (n < 0 && errno != EINVAL && errno != EINTR) return errno;
    if (n < 0) n = 0;
    return write_bytes(w->plain, from + n, bytes - n, at + n);
}

/* The piece's bytes are at `from`, which lies in its page as the piece does in the file's. */
static int write_piece(const writing *w, const piece *p, const char *from) {
    int64_t at = p->of->at + p->first, end = at + p->bytes;
    int64_t first = up(at, w->page), last = end / w->page * w->page;
    if (first >= last) return write_bytes(w->plain, from, p->bytes, at);
    int code = write_pages(w, from + (first - at), last - first, first);
    if (code == 0) code = write_bytes(w->plain, from, first - at, at);
    return code ? code : write_bytes(w->plain, from + (last - at), end - last, last);
}

static const char *source(const piece *p) { return (const char *)p->of->from + p->first; }

/* Where piece i's bytes go in a buffer, so that its pages are pages there. A piece that does not begin at a page is shorter than
 * PIECE by as much, at least. */
static char *place(const writing *w, int64_t buffer, const piece *p) {
    return w->buffers + buffer * PIECE + (p->of->at + p->first) % w->page;
}

static void take_piece(writing *w, int64_t i) {
    int code;
#pragma omp atomic read
    code = w->code;
    if (code) return;
    const piece *p = &w->pieces[i];
    const char *from = source(p);
    int64_t in_page = (p->of->at + p->first) % w->page;
    if (w->device) {
        from = place(w, i % (2 * BATCH), p);
    } else if (w->direct >= 0 && (int64_t)((uintptr_t)from % (uintptr_t)w->page) != in_page) {
        from = memcpy(place(w, omp_get_thread_num(), p), from, (size_t)p->bytes);
    }
    code = write_piece(w, p, from);
    if (code == 0) return;
#pragma omp atomic write
    w->code = code;
}

/* Pieces of the host's memory may be among them. */
static void copy_out(const writing *w, int64_t first) {
    for (int64_t i = first; i < w->n_pieces && i < first + BATCH; i++) {
        const piece *p = &w->pieces[i];
        const checkpoint_memory *m = p->of->memory;
        char *to = place(w, i % (2 * BATCH), p);
        if (m)
            m->ops->copy_out(m->backend, to, source(p), (size_t)p->bytes);
        else
            memcpy(to, source(p), (size_t)p->bytes);
    }
}

static void write_all(writing *w) {
    if (w->device) copy_out(w, 0);
#pragma omp parallel num_threads(n_threads())
    for (int64_t first = 0; first < w->n_pieces; first += w->batch) {
        int64_t end = w->n_pieces - first < w->batch ? w->n_pieces : first + w->batch;
#pragma omp master
        if (w->device) copy_out(w, end);
#pragma omp for schedule(dynamic)
        for (int64_t i = first; i < end; i++) take_piece(w, i);
    }
}

int direct_write(const char *path, const direct_range *ranges, int n) {
    writing w;
    int code = open_writing(&w, path, ranges, n);
    if (code == 0) {
        write_all(&w);
        code = w.code;
    }
    close_writing(&w);
    return code;
}
