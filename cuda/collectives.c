/* collectives.c: the collectives between GPUs, by NCCL, beside the ops.
 *
 * One communicator, and one stream of its own for all its work: collectives run in the order of the calls, which is the same on
 * all ranks, so that no two of them can wait for each other crosswise. Each starts after the ops enqueued before it; the ops
 * after it go on beside it until `join` makes them wait. A ticket is the number of a collective. Its event may since have been
 * recorded again by a later one: waiting for that one includes it. NCCL's sums are added in an order that its rings fix: the same
 * ranks on the same machines give the same bits. */
#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda/cuda.h"
#include "cuda/libraries.h"
#include "ranks/ranks.h"

enum { N_TICKETS = 64 };

struct collectives {
    ranks world;
    nccl_comm comm; /* NULL: it failed, and was aborted */
    cudaStream_t stream;
    cudaEvent_t before;            /* the ops that a collective comes after */
    cudaEvent_t passed[N_TICKETS]; /* of ticket t: passed[t % N_TICKETS] */
    int64_t n;                     /* tickets given out: 1, 2, ...; 0 is before all of them */
};

/* ---- connecting ---- */

/* What the ranks must have alike, and what each must have for itself. */
typedef struct card {
    char host[64], gpu[256], bus[16];
    char cublaslt[24], nccl[24];
    char cudnn[24]; /* "": none */
    int n_sm;
} card;

static card own_card(const backend *b) {
    const libraries *l = b->libraries;
    card c = {.n_sm = b->n_sm};
    gethostname(c.host, sizeof c.host - 1);
    snprintf(c.gpu, sizeof c.gpu, "%s", b->name);
    cudaDeviceGetPCIBusId(c.bus, (int)sizeof c.bus, b->device);
    snprintf(c.cublaslt, sizeof c.cublaslt, "%s", l->of[LIBRARY_CUBLASLT].version);
    snprintf(c.nccl, sizeof c.nccl, "%s", l->of[LIBRARY_NCCL].version);
    snprintf(c.cudnn, sizeof c.cudnn, "%s", l->of[LIBRARY_CUDNN].version);
    return c;
}

static void print_card(char text[512], const card *c) {
    snprintf(text, 512, "%s (%d SMs), cuBLASLt %s, NCCL %s, cuDNN %s", c->gpu, c->n_sm, c->cublaslt, c->nccl,
             *c->cudnn ? c->cudnn : "none");
}

static bool alike(const card *p, const card *q) {
    return strcmp(p->gpu, q->gpu) == 0 && p->n_sm == q->n_sm && strcmp(p->cublaslt, q->cublaslt) == 0 &&
           strcmp(p->nccl, q->nccl) == 0 && strcmp(p->cudnn, q->cudnn) == 0;
}

/* All ranks look at the same cards, and come to the same result. */
static int compare_cards(const card *cards, int size, error *err) {
    char first[512], other[512];
    for (int i = 0; i < size; i++) {
        for (int k = 0; k < i; k++)
            if (strcmp(cards[i].host, cards[k].host) == 0 && strcmp(cards[i].bus, cards[k].bus) == 0)
                return error_set(err, STATUS_RESOURCE,
                                 "ranks %d and %d share one GPU (%s, %s): each rank needs its own.\n"
                                 "Start no more ranks on a machine than it has GPUs, and show each rank all of them or its own.",
                                 k, i, cards[i].host, cards[i].bus);
        if (alike(&cards[0], &cards[i])) continue;
        print_card(first, &cards[0]);
        print_card(other, &cards[i]);
        return error_set(err, STATUS_RESOURCE,
                         "the ranks differ: rank 0 on %s has %s,\nand rank %d on %s has %s.\n"
                         "Use machines of one kind with the same libraries.",
                         cards[0].host, first, i, cards[i].host, other);
    }
    return 0;
}

static int check_alike(const backend *b, const ranks *world, error *err) {
    card own = own_card(b), *cards = calloc((size_t)world->size, sizeof *cards);
    int result = cards ? 0 : error_set(err, STATUS_RESOURCE, "no memory to connect %d ranks", world->size);
    if (ranks_share(world, result, err) == 0 && cards) {
        ranks_gather(world, cards, &own, sizeof own);
        result = compare_cards(cards, world->size, err);
    } else {
        result = -1;
    }
    free(cards);
    return result;
}

static int nccl_error(const backend *b, error *err, const char *what, nccl_result failed) {
    const libraries *l = b->libraries;
    const char *more = l->ncclGetLastError(NULL);
    return error_set(
        err, failed == NCCL_REMOTE_ERROR ? STATUS_RANK : STATUS_INTERNAL,
        "%s: NCCL says %s%s%s.\n"
        "Is the network between the machines up? NCCL_DEBUG=INFO makes NCCL tell more, NCCL_SOCKET_IFNAME chooses the\n"
        "network.",
        what, l->ncclGetErrorString(failed), more && *more ? ": " : "", more ? more : "");
}

static int start_nccl(backend *b, const ranks *world, error *err) {
    const libraries *l = b->libraries;
    nccl_id id = {{0}};
    nccl_result failed = world->rank == 0 ? l->ncclGetUniqueId(&id) : NCCL_SUCCESS;
    if (ranks_share(world, failed ? nccl_error(b, err, "no collectives between the GPUs", failed) : 0, err)) return -1;
    ranks_broadcast(world, &id, sizeof id, 0);
    ranks_enter(world, "ncclCommInitRank");
    failed = l->ncclCommInitRank(&b->collectives->comm, world->size, id, world->rank);
    ranks_leave(world);
    return failed ? nccl_error(b, err, "no collectives between the GPUs", failed) : 0;
}

/* The stream's work is short and others wait for it: it goes first. */
static int make_stream(struct collectives *c, error *err) {
    int lowest = 0, highest = 0;
    cudaError_t failed = cudaDeviceGetStreamPriorityRange(&lowest, &highest);
    if (!failed) failed = cudaStreamCreateWithPriority(&c->stream, cudaStreamNonBlocking, highest);
    if (!failed) failed = cudaEventCreateWithFlags(&c->before, cudaEventDisableTiming);
    for (int i = 0; i < N_TICKETS && !failed; i++) failed = cudaEventCreateWithFlags(&c->passed[i], cudaEventDisableTiming);
    return failed ? error_set(err, STATUS_RESOURCE, "no stream for collectives: %s", cudaGetErrorString(failed)) : 0;
}

static int prepare(backend *b, const ranks *world, error *err) {
    struct collectives *c = b->collectives = calloc(1, sizeof *c);
    if (c == NULL) return error_set(err, STATUS_RESOURCE, "no memory to connect %d ranks", world->size);
    c->world = *world;
    return libraries_open(b->libraries, LIBRARY_NCCL, err) || make_stream(c, err) ? -1 : 0;
}

int cuda_connect(backend *b, const ranks *world, error *err) {
    if (world->size == 1) return cuda_gemm_share(b, world, err);
    if (ranks_share(world, prepare(b, world, err), err) || check_alike(b, world, err) || cuda_gemm_share(b, world, err))
        return -1;
    if (ranks_share(world, start_nccl(b, world, err), err)) return -1;
    size_t used = strlen(b->description);
    snprintf(b->description + used, sizeof b->description - used, ", NCCL %s", b->libraries->of[LIBRARY_NCCL].version);
    return 0;
}

/* A rank that has failed does not wait for the others to say good-bye. */
void cuda_disconnect(backend *b) {
    struct collectives *c = b->collectives;
    if (c == NULL) return;
    if (c->comm && b->failure.code)
        b->libraries->ncclCommAbort(c->comm);
    else if (c->comm)
        b->libraries->ncclCommDestroy(c->comm);
    for (int i = 0; i < N_TICKETS; i++)
        if (c->passed[i]) cudaEventDestroy(c->passed[i]);
    if (c->before) cudaEventDestroy(c->before);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(c);
    b->collectives = NULL;
}

/* ---- failures ---- */

/* Once collectives have worked, a system call that fails is most likely one on a connection whose other end is gone. */
static void abandon(backend *b, const char *what, nccl_result failed) {
    struct collectives *c = b->collectives;
    error err;
    nccl_error(b, &err, what, failed);
    if (failed == NCCL_SYSTEM_ERROR) err.code = STATUS_RANK;
    if (b->failure.code == STATUS_OK) b->failure = err;
    b->libraries->ncclCommAbort(c->comm);
    c->comm = NULL;
}

/* Whoever goes on after the failure was told is told again. */
static int lost(backend *b) {
    cuda_fail(b, "collectives", "the ranks have lost each other");
    return -1;
}

int cuda_poll_collectives(backend *b) {
    struct collectives *c = b->collectives;
    if (c == NULL) return 0;
    if (c->comm == NULL) return lost(b);
    nccl_result state = NCCL_SUCCESS, failed = b->libraries->ncclCommGetAsyncError(c->comm, &state);
    if (failed) state = failed;
    if (state == NCCL_SUCCESS || state == NCCL_IN_PROGRESS) return 0;
    abandon(b, "a collective failed", state);
    return -1;
}

void cuda_enter_wait(backend *b) {
    if (b->collectives) ranks_enter(&b->collectives->world, "a wait for the GPU");
}

void cuda_leave_wait(backend *b) {
    if (b->collectives) ranks_leave(&b->collectives->world);
}

/* ---- the ops ---- */

/* false: there are no others to do it with, or no more. The watch counts the call: a rank that does not come to it is behind. */
static bool begin(backend *b, const char *call) {
    struct collectives *c = b->collectives;
    if (c == NULL || (c->comm == NULL && lost(b))) return false;
    ranks_enter(&c->world, call);
    cuda_check(b, call, cudaEventRecord(c->before, b->stream));
    cuda_check(b, call, cudaStreamWaitEvent(c->stream, c->before, 0));
    return true;
}

static int64_t end(backend *b, const char *call, nccl_result failed) {
    struct collectives *c = b->collectives;
    int64_t ticket = ++c->n;
    ranks_leave(&c->world);
    if (failed && failed != NCCL_IN_PROGRESS) abandon(b, call, failed);
    cuda_check(b, call, cudaEventRecord(c->passed[ticket % N_TICKETS], c->stream));
    return ticket;
}

int64_t cuda_reduce_scatter(backend *b, float *buffer, int64_t n) {
    static const char call[] = "ncclReduceScatter";
    if (!begin(b, call)) return 0;
    const struct collectives *c = b->collectives;
    return end(b, call,
               b->libraries->ncclReduceScatter(buffer, buffer + c->world.rank * n, (size_t)n, NCCL_FLOAT32, NCCL_SUM, c->comm,
                                               c->stream));
}

int64_t cuda_all_gather(backend *b, void *buffer, size_t bytes) {
    static const char call[] = "ncclAllGather";
    if (!begin(b, call)) return 0;
    const struct collectives *c = b->collectives;
    const char *own = (const char *)buffer + (size_t)c->world.rank * bytes;
    return end(b, call, b->libraries->ncclAllGather(own, buffer, bytes, NCCL_INT8, c->comm, c->stream));
}

void cuda_all_sum(backend *b, double *values, int n) {
    static const char call[] = "ncclAllReduce";
    assert(n <= 8);
    if (!begin(b, call)) return;
    const struct collectives *c = b->collectives;
    cuda_join(b,
              end(b, call, b->libraries->ncclAllReduce(values, values, (size_t)n, NCCL_FLOAT64, NCCL_SUM, c->comm, c->stream)));
}

void cuda_join(backend *b, int64_t ticket) {
    struct collectives *c = b->collectives;
    if (c == NULL || ticket == 0) return;
    assert(ticket <= c->n);
    cuda_check(b, "join", cudaStreamWaitEvent(b->stream, c->passed[ticket % N_TICKETS], 0));
}

void cuda_join_all(backend *b) {
    if (b->collectives) cuda_join(b, b->collectives->n);
}
