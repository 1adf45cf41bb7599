/* transfers.c: copies between host and device, and the results that the host reads later.
 *
 * The device copies beside the host's work only from and to pinned memory, so everything goes through a ring of it: a copy to the
 * device is done for the caller as soon as the bytes lie in the ring, and the ring's bytes are free again when the device has
 * passed the event behind them. The ring holds the tokens of many micro-batches; only copies of whole models wait for it.
 * Results (post) have slots of their own, so that a fetch waits for one small copy and not for what was enqueued behind it. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda.h"

enum {
    RING_BYTES = 32 << 20,
    PIECE = 4 << 20, /* of a large copy: one is filled while another is on its way */
    ALIGN = 256,
    N_MARKS = 512
};

/* A piece of the ring in use: up to `end`, until `passed`. */
typedef struct mark {
    int64_t end;
    cudaEvent_t passed;
} mark;

struct transfers {
    char *ring;             /* pinned */
    int64_t given, free_to; /* bytes handed out and taken back since the start; at ring[n % RING_BYTES] */
    mark marks[N_MARKS];    /* of pieces in use: [first_mark, next_mark), modulo N_MARKS */
    int64_t first_mark, next_mark;
    char (*posts)[POST_BYTES]; /* (POSTS) pinned */
    cudaEvent_t posted[POSTS];
    int64_t n_posted, n_fetched;
};

/* ---- opening and closing ---- */

static cudaError_t make_events(struct transfers *t) {
    cudaError_t failed = cudaSuccess;
    for (int i = 0; i < N_MARKS && !failed; i++) failed = cudaEventCreateWithFlags(&t->marks[i].passed, cudaEventDisableTiming);
    for (int i = 0; i < POSTS && !failed; i++) failed = cudaEventCreateWithFlags(&t->posted[i], cudaEventDisableTiming);
    return failed;
}

int cuda_transfers_open(backend *b, error *err) {
    struct transfers *t = b->transfers = calloc(1, sizeof *t);
    if (t == NULL) return error_set(err, STATUS_RESOURCE, "no memory for the CUDA backend");
    void *ring = NULL, *posts = NULL;
    cudaError_t failed = cudaMallocHost(&ring, RING_BYTES);
    if (!failed) failed = cudaMallocHost(&posts, sizeof *t->posts * POSTS);
    t->ring = ring;
    t->posts = posts;
    if (!failed) failed = make_events(t);
    if (!failed) return 0;
    return error_set(err, STATUS_RESOURCE,
                     "cannot pin %d MiB of host memory for copies to the GPU: %s.\n"
                     "Is `ulimit -l` (or the container's memory limit) that low?",
                     RING_BYTES >> 20, cudaGetErrorString(failed));
}

void cuda_transfers_close(backend *b) {
    struct transfers *t = b->transfers;
    if (t == NULL) return;
    for (int i = 0; i < N_MARKS; i++)
        if (t->marks[i].passed) cudaEventDestroy(t->marks[i].passed);
    for (int i = 0; i < POSTS; i++)
        if (t->posted[i]) cudaEventDestroy(t->posted[i]);
    cudaFreeHost(t->ring);
    cudaFreeHost(t->posts);
    free(t);
    b->transfers = NULL;
}

/* ---- the ring ---- */

/* Takes back the oldest piece. -1: the wait failed. */
static int release_oldest(backend *b) {
    struct transfers *t = b->transfers;
    assert(t->first_mark < t->next_mark);
    mark *oldest = &t->marks[t->first_mark++ % N_MARKS];
    t->free_to = oldest->end;
    return cuda_wait(b, oldest->passed);
}

/* `bytes` of the ring in one piece. NULL: the device has failed, and what is copied no longer matters. */
static char *take_piece(backend *b, size_t bytes) {
    struct transfers *t = b->transfers;
    int64_t size = ((int64_t)bytes + ALIGN - 1) / ALIGN * ALIGN, at = t->given % RING_BYTES;
    int64_t skipped = at + size > RING_BYTES ? RING_BYTES - at : 0; /* a piece does not wrap around */
    while (t->given + skipped + size - t->free_to > RING_BYTES || t->next_mark - t->first_mark == N_MARKS)
        if (release_oldest(b)) return NULL;
    t->given += skipped + size;
    return t->ring + (t->given - size) % RING_BYTES;
}

/* The piece taken last is free again when the device has come to here. */
static cudaEvent_t end_piece(backend *b) {
    struct transfers *t = b->transfers;
    mark *m = &t->marks[t->next_mark++ % N_MARKS];
    m->end = t->given;
    cuda_check(b, "cudaEventRecord", cudaEventRecord(m->passed, b->stream));
    return m->passed;
}

static size_t piece_at(size_t at, size_t bytes) { return bytes - at < PIECE ? bytes - at : PIECE; }

void cuda_copy_in(backend *b, void *device, const void *host, size_t bytes) {
    for (size_t at = 0; at < bytes; at += PIECE) {
        size_t n = piece_at(at, bytes);
        char *piece = take_piece(b, n);
        if (piece == NULL) return;
        memcpy(piece, (const char *)host + at, n);
        cuda_check(b, "copy_in", cudaMemcpyAsync((char *)device + at, piece, n, cudaMemcpyHostToDevice, b->stream));
        end_piece(b);
    }
}

/* A piece on its way to the host; none of it is reused before it has been read, for the ring holds many. */
typedef struct arrival {
    char *host, *piece; /* piece NULL: nothing is on its way */
    size_t bytes;
    cudaEvent_t passed;
} arrival;

static arrival send_out(backend *b, char *host, const char *device, size_t bytes) {
    arrival a = {.host = host, .piece = take_piece(b, bytes), .bytes = bytes};
    if (a.piece == NULL) return a;
    cuda_check(b, "copy_out", cudaMemcpyAsync(a.piece, device, bytes, cudaMemcpyDeviceToHost, b->stream));
    a.passed = end_piece(b);
    return a;
}

static void receive(backend *b, const arrival *a) {
    if (a->piece && cuda_wait(b, a->passed) == 0) memcpy(a->host, a->piece, a->bytes);
}

/* While the host reads one piece, the device writes the next. */
void cuda_copy_out(backend *b, void *host, const void *device, size_t bytes) {
    arrival before = {0};
    for (size_t at = 0; at < bytes; at += PIECE) {
        arrival next = send_out(b, (char *)host + at, (const char *)device + at, piece_at(at, bytes));
        receive(b, &before);
        before = next;
    }
    receive(b, &before);
}

/* ---- results ---- */

void cuda_post(backend *b, const void *device, size_t bytes) {
    struct transfers *t = b->transfers;
    assert(bytes <= POST_BYTES && t->n_posted - t->n_fetched < POSTS);
    int64_t slot = t->n_posted++ % POSTS;
    cuda_check(b, "post", cudaMemcpyAsync(t->posts[slot], device, bytes, cudaMemcpyDeviceToHost, b->stream));
    cuda_check(b, "cudaEventRecord", cudaEventRecord(t->posted[slot], b->stream));
}

int cuda_fetch(backend *b, void *host, size_t bytes, error *err) {
    struct transfers *t = b->transfers;
    assert(bytes <= POST_BYTES && t->n_fetched < t->n_posted);
    int64_t slot = t->n_fetched++ % POSTS;
    cuda_enter_wait(b);
    int failed = cuda_wait(b, t->posted[slot]);
    cuda_leave_wait(b);
    if (cuda_report_failure(b, err)) return -1;
    assert(!failed);
    memcpy(host, t->posts[slot], bytes);
    return 0;
}
