/* block.h: one block of a kernel, running on one OS thread. Its threads are fibers, of which one runs at a time. */
#ifndef MOBILELLM_EMU_BLOCK_H
#define MOBILELLM_EMU_BLOCK_H

#include <vector>

#include "tests/emu/emu.h"
#include "tests/emu/fiber.h"
#include "tests/emu/runtime.h"

namespace cuemu {

enum { LANES = 32, MAX_WARPS = MAX_THREADS / LANES };

enum class state { fresh, ready, running, at_barrier, at_collective, returned };

struct async_copy {
    void *shared;
    const void *global;
    size_t bytes, zeros;
    int group;
};

/* A CUDA thread. */
struct lane {
    cuemu::state state;
    fiber *on;  // from its start to its return
    uint3 index;
    place at;       // the barrier or collective it waits at
    warp_op op;     // of the collective, with
    unsigned mask;  //
    uint64_t value;
    int source;
    uint64_t result;
    std::vector<async_copy> copies;  // not waited for yet
    int group;                       // of the next copy
};

struct warp {
    unsigned arrived;  // at a collective
    unsigned live;     // not returned
};

/* Who runs next. In order (forward or reverse), those that wait for nothing come before those that have not started; the random
 * one plays out schedules that a GPU may: see schedule.cpp. */
struct schedule {
    void start(order how, int n, uint64_t seed);
    void ready(int thread);
    int next();  // -1: nobody can run
    const int *all() const { return starts; }

   private:
    int pick_warp();

    order how;
    int n, n_started, n_ready, head;
    int starts[MAX_THREADS], queue[MAX_THREADS];
    random_numbers draw;
    enum { ANY_WARP, BY_PRIORITY, CHANGING_PRIORITY } strategy;
    unsigned available[MAX_WARPS], available_warps;  // bits of threads; of warps that have one
    unsigned priority[MAX_WARPS];
};

/* What ThreadSanitizer is told of: an address for each thing that orders threads. All of it nothing in other builds. */
struct ordering {
    void *own_barrier;
    char *own_warps;
    char barriers[128 * LANES], warps[128 * LANES];  // used in turn, for blocks must not order each other
    char start[8], end[8];
};

struct block {
    const launch_call *call;
    int n;  // threads
    lane lanes[MAX_THREADS];
    warp warps[MAX_WARPS];
    schedule order;
    int running;  // the thread, -1: none
    int n_returned, n_waiting;

    // of the barrier that threads are arriving at
    place barrier_at;
    vote barrier_vote;
    int votes, verdict;

    void *shared;  // dynamic
    std::vector<void *> old_shared;

    fiber host;  // the OS thread
    fiber *idle[MAX_THREADS + 1];
    int n_idle;
    fiber *own[2][MAX_THREADS];  // ThreadSanitizer: a fiber for each thread, two sets in turn
    int set, rotation;
    ordering sync;
};

/* The block that this OS thread runs. */
block *current();

/* Prepares the OS thread for the blocks of a launch; runs one, the turn'th of the launch; tidies up. */
block *block_open(const launch_call *call);
void block_run(block *b, uint64_t number, uint64_t turn);
void block_close(block *b);

/* The running thread waits (its state says for what); others run meanwhile. */
void suspend(block *b);
void make_ready(block *b, int thread);

/* The threads that ThreadSanitizer should see as ordered: those that released an address before the one that acquires it. */
#ifdef CUEMU_TSAN
extern "C" void __tsan_acquire(void *address);
extern "C" void __tsan_release(void *address);
inline void happens_before(void *address) { __tsan_release(address); }
inline void happens_after(void *address) { __tsan_acquire(address); }
#else
inline void happens_before(void *) {}
inline void happens_after(void *) {}
#endif

}  // namespace cuemu

#endif
