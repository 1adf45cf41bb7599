/* block.cpp: runs the threads of a block, and their barriers.
 *
 * A fiber runs threads one after the other for as long as none of them waits, so a kernel without barriers and shuffles is a
 * plain loop. A thread that waits keeps its fiber; the next to run gets an idle one. Under ThreadSanitizer each thread has a
 * fiber of its own (a fiber is what the sanitizer takes for a thread), made by the host thread beforehand, for whoever makes a
 * fiber is ordered before it. */
#include "tests/emu/block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef CUEMU_TSAN
extern "C" {
void __tsan_java_init(unsigned long heap, unsigned long bytes);
void __tsan_java_alloc(unsigned long memory, unsigned long bytes);
}
#endif
#ifdef CUEMU_SECTION
extern "C" char __start_cuemu_shared[] __attribute__((weak)), __stop_cuemu_shared[] __attribute__((weak));
#endif

namespace cuemu {

static thread_local block *running_block;
block *current() { return running_block; }
int lane_id() { return running_block->running % LANES; }
void *dyn_smem() { return running_block->shared; }
unsigned active_mask() { return running_block->warps[running_block->running / LANES].live; }

/* ---- switching between threads ---- */

static void fiber_main();

static fiber *take_fiber(block *b, int thread) {
#ifdef CUEMU_TSAN
    return b->own[b->set][(thread + b->rotation) % b->n];
#else
    return b->n_idle ? b->idle[--b->n_idle] : fiber_new(thread, fiber_main);
#endif
}

static void leave_fiber(block *b, fiber *f) {
#ifdef CUEMU_TSAN
    (void)b, (void)f;
#else
    b->idle[b->n_idle++] = f;
#endif
}

static void enter(block *b, int thread) {
    b->running = thread;
    b->lanes[thread].state = state::running;
    threadIdx = b->lanes[thread].index;
}

static void switch_to(block *b, fiber *from, int thread) {
    lane *next = &b->lanes[thread];
    if (!next->on) {
        next->on = take_fiber(b, thread);
        next->on->thread = thread;
    }
    enter(b, thread);
    fiber_switch(from, next->on);
}

[[noreturn]] static void deadlock(const block *b) {
    fflush(stdout);
    fprintf(stderr, "cuemu: deadlock in kernel %s, block (%u,%u,%u): %d of %d threads returned\n", b->call->name, blockIdx.x,
            blockIdx.y, blockIdx.z, b->n_returned, b->n);
    for (int i = 0; i < b->n; i++) {
        const lane *l = &b->lanes[i], *before = l - 1;
        if (i && before->state == l->state && before->at.line == l->at.line && before->mask == l->mask) continue;
        if (l->state == state::at_barrier)
            fprintf(stderr, "  from thread %d on: at the barrier %s:%d\n", i, l->at.file, l->at.line);
        else if (l->state == state::at_collective)
            fprintf(stderr, "  from thread %d on: at %s:%d, a collective of lanes %08x\n", i, l->at.file, l->at.line, l->mask);
        else
            fprintf(stderr, "  from thread %d on: returned\n", i);
    }
    abort();
}

void make_ready(block *b, int thread) {
    b->lanes[thread].state = state::ready;
    b->order.ready(thread);
}

void suspend(block *b) {
    int self = b->running, next = b->order.next();
    if (next < 0) deadlock(b);
    if (next == self)
        b->lanes[self].state = state::running;
    else
        switch_to(b, b->lanes[self].on, next);
}

void yield() {
    block *b = current();
    make_ready(b, b->running);
    suspend(b);
}

/* ---- barriers ---- */

static void release_barrier(block *b) {
    b->verdict = b->barrier_vote == vote::count ? b->votes : b->barrier_vote == vote::all ? b->votes == b->n : b->votes > 0;
    b->n_waiting = b->votes = 0;
    for (int i = 0; i < b->n; i++) {
        int thread = b->order.all()[i];
        if (b->lanes[thread].state == state::at_barrier) make_ready(b, thread);
    }
}

int barrier(vote what, bool mine, place at) {
    block *b = current();
    lane *l = &b->lanes[b->running];
    if (b->n_waiting == 0) {
        b->barrier_at = at;
        b->barrier_vote = what;
    } else if (b->barrier_at.line != at.line || b->barrier_vote != what) {
        fatal("kernel %s: divergent barriers: thread %d is at %s:%d, others are at %s:%d", b->call->name, b->running, at.file,
              at.line, b->barrier_at.file, b->barrier_at.line);
    }
    if (b->n_returned)
        fatal("kernel %s: thread %d is at the barrier %s:%d after %d threads of the block have returned", b->call->name,
              b->running, at.file, at.line, b->n_returned);
    l->state = state::at_barrier;
    l->at = at;
    b->n_waiting++;
    b->votes += mine;
    happens_before(b->sync.own_barrier);
    if (b->n_waiting == b->n) release_barrier(b);
    suspend(b);
    happens_after(b->sync.own_barrier);
    return b->verdict;
}

/* ---- running ---- */

/* Others of the block may wait for the thread that returns, and would for ever. */
static void check_nobody_waits(const block *b, int thread) {
    if (b->n_waiting)
        fatal("kernel %s: thread %d has returned, others of the block are at the barrier %s:%d", b->call->name, thread,
              b->barrier_at.file, b->barrier_at.line);
    for (unsigned left = b->warps[thread / LANES].arrived; left; left &= left - 1) {
        const lane *l = &b->lanes[thread / LANES * LANES + __builtin_ctz(left)];
        if (l->mask >> thread % LANES & 1)
            fatal("kernel %s, %s:%d: the mask %08x names lane %d, which has returned", b->call->name, l->at.file, l->at.line,
                  l->mask, thread % LANES);
    }
}

static void run_thread(block *b, int thread) {
    happens_after(b->sync.start);
    b->call->run(b->call->bound);
    happens_before(b->sync.end);
    lane *l = &b->lanes[thread];
    if (!l->copies.empty())
        fatal("kernel %s: thread %d returns with %zu asynchronous copies that it has not waited for", b->call->name, thread,
              l->copies.size());
    l->state = state::returned;
    b->n_returned++;
    b->warps[thread / LANES].live &= ~(1u << thread % LANES);
    check_nobody_waits(b, thread);
}

static void fiber_main() {
    fiber_begin(&current()->host);
    block *b = current();
    fiber *self = b->lanes[b->running].on;
    for (;;) {
        run_thread(b, self->thread);
        int next = b->order.next();
        if (next < 0) {
            if (b->n_returned < b->n) deadlock(b);
            leave_fiber(b, self);
            b->running = -1;
            fiber_switch(self, &b->host);
#ifndef CUEMU_TSAN
        } else if (!b->lanes[next].on) {
            self->thread = next;
            b->lanes[next].on = self;
            enter(b, next);
#endif
        } else {
            leave_fiber(b, self);
            switch_to(b, self, next);
        }
    }
}

static void *new_shared(size_t bytes) {
    void *memory = nullptr;
    if (bytes && posix_memalign(&memory, 128, bytes)) fatal("no memory for %zu bytes of shared memory", bytes);
    return memory;
}

/* Shared memory starts spoiled, so that what is read before it is written shows; and no earlier block's accesses race with ours.
 */
static void forget_shared(block *b, uint64_t turn) {
    (void)turn;
#ifdef CUEMU_TSAN
    if (b->shared && turn) {
        b->old_shared.push_back(b->shared);
        b->shared = new_shared(b->call->shared);
    }
#endif
#ifdef CUEMU_SECTION
    if (__start_cuemu_shared) {
        size_t bytes = static_cast<size_t>(__stop_cuemu_shared - __start_cuemu_shared);
#ifdef CUEMU_TSAN
        unsigned long start = reinterpret_cast<unsigned long>(__start_cuemu_shared), words = bytes & ~7ul;
        static bool known;
        if (!known) __tsan_java_init(start, words);
        known = true;
        __tsan_java_alloc(start, words);
#endif
        spoil(__start_cuemu_shared, bytes);
    }
#endif
    if (b->shared) spoil(b->shared, b->call->shared);
}

block *block_open(const launch_call *call) {
    if (!running_block) running_block = new block();
    block *b = running_block;
    dim3 size = call->block;
    b->call = call;
    b->n = static_cast<int>(size.x * size.y * size.z);
    blockDim = size;
    gridDim = call->grid;
    for (unsigned i = 0; i < static_cast<unsigned>(b->n); i++)
        b->lanes[i].index = uint3{i % size.x, i / size.x % size.y, i / size.x / size.y};
    b->shared = new_shared(call->shared);
    fiber_adopt(&b->host);
#ifdef CUEMU_TSAN
    // Of more than 120 threads two sets would be more than the 255 that clang's ThreadSanitizer remembers.
    for (int set = 0; set < (b->n <= 120 ? 2 : 1); set++)
        for (int i = 0; i < b->n; i++)
            if (!b->own[set][i]) b->own[set][i] = fiber_new(i, fiber_main);
#endif
    happens_before(b->sync.start);
    return b;
}

void block_close(block *b) {
    happens_after(b->sync.end);
    for (void *memory : b->old_shared) free(memory);
    b->old_shared.clear();
    free(b->shared);
    b->shared = nullptr;
}

void block_run(block *b, uint64_t number, uint64_t turn) {
    dim3 grid = b->call->grid;
    blockIdx = uint3{static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                     static_cast<unsigned>(number / grid.x / grid.y)};
    b->n_returned = b->n_waiting = b->votes = 0;
    for (int w = 0; w * LANES < b->n; w++) {
        int threads = b->n - w * LANES;
        b->warps[w] = {0, threads >= LANES ? ~0u : (1u << threads) - 1};
    }
    for (int i = 0; i < b->n; i++) {
        b->lanes[i].state = state::fresh;
        b->lanes[i].on = nullptr;
    }
    b->order.start(settings().threads, b->n, settings().order_seed + number * 0xD1342543DE82EF95ull);

    // Blocks are not ordered: neither by the fiber that ran a thread of the block before, nor by its barriers.
    b->rotation = static_cast<int>(number * 37 % static_cast<uint64_t>(b->n));
    b->set = b->n <= 120 ? static_cast<int>(turn % 2) : 0;
    b->sync.own_barrier = b->sync.barriers + turn % 128 * LANES;
    b->sync.own_warps = b->sync.warps + turn % 128 * LANES;
    forget_shared(b, turn);
    happens_before(b->sync.start);

    switch_to(b, &b->host, b->order.next());
#if defined(CUEMU_TSAN) && !defined(CUEMU_SECTION)
    happens_after(b->sync.end);  // static shared memory is the same for all blocks
#endif
}

}  // namespace cuemu
