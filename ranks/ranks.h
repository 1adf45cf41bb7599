/* ranks.h: the processes of a run, and the collectives between them.
 *
 * Started by mpirun (or srun) there are `size` ranks; started by hand there is one, and MPI is not touched. Every collective is
 * called by all ranks in the same order. With the same ranks and the same data a collective gives the same bits.
 * A rank that fails calls ranks_abort: its message reaches the user once, and all ranks end. A rank that dies is noticed by
 * mpirun, which ends the others; one that hangs, by the others: ranks_watch. */
#ifndef MOBILELLM_RANKS_RANKS_H
#define MOBILELLM_RANKS_RANKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdnoreturn.h>

#include "util/error.h"

typedef struct ranks {
    int rank, size;
    int local_rank, local_size; /* among the ranks of this machine */
    void *comm;                 /* MPI_Comm *, NULL when there is one rank and no MPI */
    struct watch *watch;        /* of ranks_watch; NULL likewise */
} ranks;

/* Starts MPI when a launcher is seen (Open MPI, PMIx or Slurm variables); MPI is called by the main thread only. */
int ranks_open(ranks *r, error *err);
void ranks_close(ranks *r);

/* Prints "mobilellm: [rank 3 of 8 on HOST] message" (no bracket when alone) and ends the program on all ranks with err->code.
 * A rank whose error is that of another (STATUS_RANK) leaves it to that one to print, and is ended by it. Where that does not
 * come within seconds, it prints its own, after the names of the ranks that the watch gets no answer from. */
noreturn void ranks_abort(const ranks *r, const error *err);

/* Collective. From now on a rank that makes no progress for `limit` seconds (0: for ever) ends the run with STATUS_RANK and a
 * message that names the rank, in whatever it hangs, followed by `advice`. Progress is entering or leaving a collective of this
 * file, and ranks_progress. A stopped process and a lost machine count as hanging too; a run that is stopped as a whole and
 * continued does not. Between machines this needs UDP: where that does not pass, the run ends all the same, but the ranks of
 * other machines are named too. */
int ranks_watch(const ranks *r, double limit, const char *advice, error *err);

/* For collectives that are not of this file, a GPU's: between enter and leave the rank is in `call`, a literal, as ranks_watch
 * sees it. All ranks go through the same ones in the same order. Costs nothing. */
void ranks_enter(const ranks *r, const char *call);
void ranks_leave(const ranks *r);

/* Says that this rank is at work, where it is long between two collectives. Costs nothing. */
void ranks_progress(const ranks *r);

/* Prints the same message, and goes on. */
void ranks_warn(const ranks *r, const error *err);

/* Collective agreement: 0 when every rank comes with result 0; otherwise the lowest rank whose result is -1 prints and ends all.
 */
int ranks_agree(const ranks *r, int result, const error *err);

/* As ranks_agree, but nobody prints or ends: 0 on all ranks, or -1 on all. Those other than the lowest that failed then have its
 * reason in *err, as "rank 3: ...", with the code STATUS_RANK. */
int ranks_share(const ranks *r, int result, error *err);

/* OpenMP threads for each rank: OMP_NUM_THREADS, or the processors that the launcher has bound it to, or an even share of the
 * machine. */
int ranks_threads(const ranks *r);

void ranks_barrier(const ranks *r);
void ranks_sum_double(const ranks *r, double *values, int n);
void ranks_sum_int64(const ranks *r, int64_t *values, int n);
void ranks_max_int64(const ranks *r, int64_t *values, int n);
void ranks_or_int64(const ranks *r, int64_t *values, int n); /* bits that any rank has set */
void ranks_broadcast(const ranks *r, void *data, size_t bytes, int root);

/* data: `bytes` of each rank, into all (size * bytes), in the order of the ranks. bytes <= INT_MAX. */
void ranks_gather(const ranks *r, void *all, const void *data, size_t bytes);

/* buffer holds size * n floats; afterwards part `rank` (n floats, at buffer + rank * n) holds the sum over ranks of that part.
 * The other parts are undefined. size * n <= INT_MAX. */
void ranks_reduce_scatter(const ranks *r, float *buffer, int64_t n);

/* buffer holds size * bytes; part `rank` is given, the others are filled in. bytes <= INT_MAX. */
void ranks_all_gather(const ranks *r, void *buffer, size_t bytes);

#endif
