/* ranks.c: the collectives over MPI, and how a failure of one rank ends all of them.
 *
 * MPI is started only when a launcher's environment is seen, so that a program started by hand needs no MPI set-up and cannot be
 * slowed or stopped by one. MPI is told to return its errors: each is turned into a message of ours and ends the run, because a
 * communicator that failed once cannot be trusted to bring the ranks together again. */
#include <assert.h>
#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ranks/ranks.h"
#include "ranks/watch.h"

enum {
    PREFIX_WIDTH = 11,        /* of "mobilellm: ", under which the following lines of a message are set */
    WAIT_SECONDS = 5,         /* that a rank leaves to the one that failed to end the run */
    BROADCAST_BYTES = 1 << 30 /* of one MPI call, whose counts are int */
};

static MPI_Comm world_of(const ranks *r) { return *(MPI_Comm *)r->comm; }

static void check(const ranks *r, int code, const char *call) {
    if (code == MPI_SUCCESS) return;
    char reason[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, reason, &length);
    error err;
    error_set(&err, STATUS_INTERNAL, "%s failed: %s.\nIs the network between the machines up, and the same MPI on all of them?",
              call, reason);
    ranks_abort(r, &err);
}

/* Every collective is called like this: the watch is to know what a rank is in, and no failure may be missed. */
#define COLLECTIVE(r, call, ...) (watch_enter((r)->watch, #call), check(r, call(__VA_ARGS__), #call), watch_leave((r)->watch))

static int variable(const char *name) {
    const char *value = getenv(name);
    return value ? atoi(value) : -1;
}

/* The number of tasks that srun started is asked of the step: SLURM_NTASKS is also seen by the batch script itself. */
static bool launched(void) {
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") ||
           (getenv("SLURM_PROCID") && variable("SLURM_STEP_NUM_TASKS") > 1);
}

static int open_world(ranks *r, error *err) {
    MPI_Comm *world = malloc(sizeof *world);
    if (!world) return error_set(err, STATUS_RESOURCE, "no memory to start MPI");
    r->comm = world;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    *world = MPI_COMM_WORLD;
    MPI_Comm_rank(*world, &r->rank);
    MPI_Comm_size(*world, &r->size);
    check(r, MPI_Comm_dup(MPI_COMM_WORLD, world), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(*world, MPI_ERRORS_RETURN);

    MPI_Comm machine;
    check(r, MPI_Comm_split_type(*world, MPI_COMM_TYPE_SHARED, r->rank, MPI_INFO_NULL, &machine), "MPI_Comm_split_type");
    MPI_Comm_rank(machine, &r->local_rank);
    MPI_Comm_size(machine, &r->local_size);
    MPI_Comm_free(&machine);
    r->watch = watch_open();
    return r->watch ? 0 : error_set(err, STATUS_RESOURCE, "no memory to watch %d ranks", r->size);
}

int ranks_open(ranks *r, error *err) {
    *r = (ranks){.size = 1, .local_size = 1};
    if (!launched()) return 0;
    int provided;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS || provided < MPI_THREAD_FUNNELED)
        return error_set(err, STATUS_RESOURCE,
                         "MPI does not start with thread support (MPI_THREAD_FUNNELED).\n"
                         "Check `mpirun --version` and that it is the MPI this program was built with.");
    if (open_world(r, err)) return -1;
    if (r->size == 1 && variable("SLURM_STEP_NUM_TASKS") > 1)
        return error_set(err, STATUS_USAGE,
                         "srun started %d tasks, but MPI sees one: the tasks do not know of each other.\n"
                         "Start them with `srun --mpi=pmix`, or with mpirun.",
                         variable("SLURM_STEP_NUM_TASKS"));
    return 0;
}

void ranks_close(ranks *r) {
    if (!r->comm) return;
    MPI_Comm_free(r->comm);
    free(r->comm);
    watch_enter(r->watch, "MPI_Finalize");
    MPI_Finalize();
    watch_close(r->watch);
    *r = (ranks){.size = 1, .local_size = 1};
}

int ranks_watch(const ranks *r, double limit, const char *advice, error *err) {
    return r->size > 1 && limit > 0 ? watch_start(r->watch, r, limit, advice, err) : 0;
}

void ranks_enter(const ranks *r, const char *call) { watch_enter(r->watch, call); }
void ranks_leave(const ranks *r) { watch_leave(r->watch); }
void ranks_progress(const ranks *r) { watch_progress(r->watch); }

/* One write, so that the lines of two programs on a terminal do not mix. */
void ranks_warn(const ranks *r, const error *err) {
    char host[256] = "", text[2 * sizeof err->text + sizeof host + 64];
    size_t used = (size_t)snprintf(text, sizeof text, "mobilellm: ");
    if (r->size > 1) {
        gethostname(host, sizeof host - 1);
        used += (size_t)snprintf(text + used, sizeof text - used, "[rank %d of %d on %s] ", r->rank, r->size, host);
    }
    for (const char *c = err->text; *c && used + PREFIX_WIDTH + 2 < sizeof text; c++) {
        text[used++] = *c;
        if (*c == '\n') used += (size_t)sprintf(text + used, "%*s", PREFIX_WIDTH, "");
    }
    text[used++] = '\n';
    fflush(stdout);
    fwrite(text, 1, used, stderr);
    fflush(stderr);
}

/* The launcher ends us when the rank that failed aborts. */
static void wait_for_the_end(void) {
    for (int i = 0; i < 10 * WAIT_SECONDS; i++) usleep(100000);
}

/* Nobody has ended this rank: the one that failed may be gone without a word, and then has no answer. Of the others the lowest
 * speaks. */
static void name_the_lost(const ranks *r, error *err) {
    char names[sizeof err->text / 2];
    bool lowest;
    watch_ask(r->watch, names, sizeof names, &lowest);
    wait_for_the_end();
    if (!lowest) wait_for_the_end();
    if (names[0]) error_prefix(err, "no answer from %s", names);
}

noreturn void ranks_abort(const ranks *r, const error *failure) {
    error told = *failure, *err = &told;
    if (r->size > 1 && err->code == STATUS_RANK) name_the_lost(r, err);
    ranks_warn(r, err);
    if (r->comm) MPI_Abort(MPI_COMM_WORLD, err->code);
    exit(err->code);
}

/* The lowest failing rank; those that failed only because another did (STATUS_RANK) count after all others. */
static int first_failure(const ranks *r, int result, const error *err) {
    int mine = result == 0 ? INT_MAX : err->code == STATUS_RANK ? r->size + r->rank : r->rank;
    int first = mine;
    if (r->size > 1) COLLECTIVE(r, MPI_Allreduce, &mine, &first, 1, MPI_INT, MPI_MIN, world_of(r));
    return first == INT_MAX ? -1 : first % r->size;
}

int ranks_agree(const ranks *r, int result, const error *err) {
    int first = first_failure(r, result, err);
    if (first < 0) return 0;
    if (first != r->rank) wait_for_the_end();
    error other = {.code = STATUS_RANK};
    if (result == 0) snprintf(other.text, sizeof other.text, "rank %d failed, and this one was not ended with it", first);
    ranks_abort(r, result ? err : &other);
}

int ranks_share(const ranks *r, int result, error *err) {
    int first = first_failure(r, result, err);
    if (first < 0) return 0;
    error shared = first == r->rank ? *err : (error){0};
    ranks_broadcast(r, &shared, sizeof shared, first);
    if (first != r->rank) {
        *err = shared;
        err->code = STATUS_RANK;
        error_prefix(err, "rank %d", first);
    }
    return -1;
}

void ranks_barrier(const ranks *r) {
    if (r->size > 1) COLLECTIVE(r, MPI_Barrier, world_of(r));
}

static void reduce_all(const ranks *r, void *values, int n, MPI_Datatype type, MPI_Op op) {
    if (r->size > 1) COLLECTIVE(r, MPI_Allreduce, MPI_IN_PLACE, values, n, type, op, world_of(r));
}

void ranks_sum_double(const ranks *r, double *values, int n) { reduce_all(r, values, n, MPI_DOUBLE, MPI_SUM); }
void ranks_sum_int64(const ranks *r, int64_t *values, int n) { reduce_all(r, values, n, MPI_INT64_T, MPI_SUM); }
void ranks_max_int64(const ranks *r, int64_t *values, int n) { reduce_all(r, values, n, MPI_INT64_T, MPI_MAX); }

void ranks_or_int64(const ranks *r, int64_t *values, int n) { reduce_all(r, values, n, MPI_INT64_T, MPI_BOR); }

void ranks_broadcast(const ranks *r, void *data, size_t bytes, int root) {
    assert(root >= 0 && root < r->size);
    if (r->size == 1) return;
    for (size_t at = 0; at < bytes; at += BROADCAST_BYTES) {
        size_t n = bytes - at < BROADCAST_BYTES ? bytes - at : BROADCAST_BYTES;
        COLLECTIVE(r, MPI_Bcast, (char *)data + at, (int)n, MPI_BYTE, root, world_of(r));
    }
}

void ranks_gather(const ranks *r, void *all, const void *data, size_t bytes) {
    assert(bytes <= INT_MAX);
    if (r->size == 1)
        memcpy(all, data, bytes);
    else
        COLLECTIVE(r, MPI_Allgather, data, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, world_of(r));
}

void ranks_reduce_scatter(const ranks *r, float *buffer, int64_t n) {
    assert(n >= 0 && n * r->size <= INT_MAX);
    if (r->size == 1) return;
    COLLECTIVE(r, MPI_Reduce_scatter_block, MPI_IN_PLACE, buffer, (int)n, MPI_FLOAT, MPI_SUM, world_of(r));
    memmove(buffer + (size_t)r->rank * (size_t)n, buffer, (size_t)n * sizeof *buffer); /* in place, MPI leaves it in front */
}

void ranks_all_gather(const ranks *r, void *buffer, size_t bytes) {
    assert(bytes <= INT_MAX);
    if (r->size == 1) return;
    COLLECTIVE(r, MPI_Allgather, MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, buffer, (int)bytes, MPI_BYTE, world_of(r));
}
