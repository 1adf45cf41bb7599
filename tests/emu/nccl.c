/* nccl.c: stands in for NCCL: the collectives that cuda/collectives.c calls, over MPI.
 *
 * Each runs when its stream comes to it, and waits there for the other ranks. Sums are added in the order of the ranks. Stricter
 * than the real one: buffers must be in device memory, and of a reduce-scatter in place only the own part is left.
 * CUEMU_NCCL_FAIL=N: the Nth collective of this rank never ends, and the communicator reports that a rank is gone. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/library_api.h"
#include "tests/emu/emu_host.h"

#define PROTOTYPE(result, name, arguments) result name arguments;
NCCL_FUNCTIONS(PROTOTYPE)

enum { INVALID_ARGUMENT = 4 };

struct nccl_comm_opaque {
    MPI_Comm comm;
    int rank, size;
    long n, failing; /* collectives so far; the one that fails, or 0 */
    void *hold;      /* on the stream, since it failed */
};

nccl_result ncclGetVersion(int *version) {
    *version = 22800;
    return NCCL_SUCCESS;
}

nccl_result ncclGetUniqueId(nccl_id *id) {
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "emulated %p", (void *)id);
    return NCCL_SUCCESS;
}

const char *ncclGetErrorString(nccl_result result) {
    return result == NCCL_SUCCESS        ? "no error"
           : result == NCCL_REMOTE_ERROR ? "remote process exited or there was a network error"
                                         : "invalid argument";
}

const char *ncclGetLastError(nccl_comm comm) {
    (void)comm;
    return "";
}

/* Collective. The ids of all ranks must be the one that rank 0 made. */
nccl_result ncclCommInitRank(nccl_comm *made, int size, nccl_id id, int rank) {
    nccl_comm c = calloc(1, sizeof *c);
    const char *failing = getenv("CUEMU_NCCL_FAIL");
    nccl_id first = id;
    MPI_Comm_dup(MPI_COMM_WORLD, &c->comm);
    MPI_Comm_rank(c->comm, &c->rank);
    MPI_Comm_size(c->comm, &c->size);
    MPI_Bcast(&first, sizeof first, MPI_BYTE, 0, c->comm);
    c->failing = failing ? atol(failing) : 0;
    *made = c;
    return c->size == size && c->rank == rank && memcmp(&first, &id, sizeof id) == 0 ? NCCL_SUCCESS : INVALID_ARGUMENT;
}

nccl_result ncclCommDestroy(nccl_comm c) {
    MPI_Comm_free(&c->comm);
    free(c);
    return NCCL_SUCCESS;
}

/* Of this rank alone, so the communicator of MPI stays. */
nccl_result ncclCommAbort(nccl_comm c) {
    if (c->hold) cuemu_release(c->hold);
    free(c);
    return NCCL_SUCCESS;
}

nccl_result ncclCommGetAsyncError(nccl_comm c, nccl_result *result) {
    *result = c->hold ? NCCL_REMOTE_ERROR : NCCL_SUCCESS;
    return NCCL_SUCCESS;
}

/* ---- collectives ---- */

typedef struct job {
    MPI_Comm comm;
    int rank, size;
    const void *send;
    void *receive;
    size_t n;
    nccl_type type;
} job;

static size_t size_of(nccl_type type) { return type == NCCL_FLOAT64 ? 8 : type == NCCL_FLOAT32 ? 4 : 1; }

/* total (n) = sum over ranks of parts (size,n), in their order */
static void add_parts(void *total, const void *parts, const job *j) {
    for (size_t i = 0; i < j->n; i++) {
        if (j->type == NCCL_FLOAT32) {
            float sum = 0;
            for (int r = 0; r < j->size; r++) sum += ((const float *)parts)[(size_t)r * j->n + i];
            ((float *)total)[i] = sum;
        } else {
            double sum = 0;
            for (int r = 0; r < j->size; r++) sum += ((const double *)parts)[(size_t)r * j->n + i];
            ((double *)total)[i] = sum;
        }
    }
}

static void reduce_scatter(void *argument) {
    job *j = argument;
    size_t bytes = j->n * size_of(j->type);
    char *parts = malloc((size_t)j->size * bytes + 1);
    MPI_Alltoall(j->send, (int)bytes, MPI_BYTE, parts, (int)bytes, MPI_BYTE, j->comm);
    if (j->receive == (const char *)j->send + (size_t)j->rank * bytes)
        memset((char *)j->receive - (size_t)j->rank * bytes, 0xff, (size_t)j->size * bytes); /* NaN */
    add_parts(j->receive, parts, j);
    free(parts);
    free(j);
}

static void all_gather(void *argument) {
    job *j = argument;
    size_t bytes = j->n * size_of(j->type);
    char *own = malloc(bytes + 1);
    memcpy(own, j->send, bytes);
    MPI_Allgather(own, (int)bytes, MPI_BYTE, j->receive, (int)bytes, MPI_BYTE, j->comm);
    free(own);
    free(j);
}

static void all_reduce(void *argument) {
    job *j = argument;
    size_t bytes = j->n * size_of(j->type);
    char *parts = malloc((size_t)j->size * bytes + 1);
    MPI_Allgather(j->send, (int)bytes, MPI_BYTE, parts, (int)bytes, MPI_BYTE, j->comm);
    add_parts(j->receive, parts, j);
    free(parts);
    free(j);
}

static void check_buffer(const char *call, const void *p, size_t bytes) {
    if (cuemu_room(p) >= bytes && bytes <= (size_t)0x7fffffff) return;
    fprintf(stderr, "cuemu: %s: %p has %zu bytes of device memory, and needs %zu\n", call, p, cuemu_room(p), bytes);
    abort();
}

static nccl_result start(nccl_comm c, cudaStream_t stream, void (*work)(void *), job j) {
    if (++c->n == c->failing) c->hold = cuemu_hold(stream);
    if (c->hold) return NCCL_SUCCESS; /* as the real one: it is found out later */
    job *kept = malloc(sizeof *kept);
    *kept = j;
    cuemu_enqueue(stream, work, kept);
    return NCCL_SUCCESS;
}

nccl_result ncclReduceScatter(const void *send, void *receive, size_t n, nccl_type type, nccl_op op, nccl_comm c,
                              cudaStream_t stream) {
    if (op != NCCL_SUM || (type != NCCL_FLOAT32 && type != NCCL_FLOAT64)) return INVALID_ARGUMENT;
    check_buffer("ncclReduceScatter", send, (size_t)c->size * n * size_of(type));
    check_buffer("ncclReduceScatter", receive, n * size_of(type));
    return start(c, stream, reduce_scatter, (job){c->comm, c->rank, c->size, send, receive, n, type});
}

nccl_result ncclAllGather(const void *send, void *receive, size_t n, nccl_type type, nccl_comm c, cudaStream_t stream) {
    check_buffer("ncclAllGather", send, n * size_of(type));
    check_buffer("ncclAllGather", receive, (size_t)c->size * n * size_of(type));
    return start(c, stream, all_gather, (job){c->comm, c->rank, c->size, send, receive, n, type});
}

nccl_result ncclAllReduce(const void *send, void *receive, size_t n, nccl_type type, nccl_op op, nccl_comm c,
                          cudaStream_t stream) {
    if (op != NCCL_SUM || (type != NCCL_FLOAT32 && type != NCCL_FLOAT64)) return INVALID_ARGUMENT;
    check_buffer("ncclAllReduce", send, n * size_of(type));
    check_buffer("ncclAllReduce", receive, n * size_of(type));
    return start(c, stream, all_reduce, (job){c->comm, c->rank, c->size, send, receive, n, type});
}
