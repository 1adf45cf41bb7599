/* schedule.cpp: which thread of a block runs next.
 *
 * Orders hide faults: forward, thread 0 has always written before the others read. The random order has three strategies, drawn
 * for each block: any warp that can run; always the one of highest priority, so that one runs far ahead of the others; and the
 * same with priorities that change now and then. Together 20 seeds find almost every race that changes a result. */
#include <numeric>
#include <utility>

#include "tests/emu/block.h"

namespace cuemu {

enum { PRIORITIES = 200, CHANGE_EVERY = 64 };

void schedule::start(order how_, int n_, uint64_t seed) {
    how = how_;
    n = n_;
    n_started = n_ready = head = 0;
    std::iota(starts, starts + n, 0);
    if (how == order::reverse)
        for (int i = 0; i < n; i++) starts[i] = n - 1 - i;
    if (how != order::random) return;

    draw.state = seed | 1;
    for (int i = n - 1; i > 0; i--) std::swap(starts[i], starts[draw.below(static_cast<unsigned>(i) + 1)]);
    strategy = static_cast<decltype(strategy)>(draw.below(3));
    available_warps = 0;
    for (int i = 0; i < MAX_WARPS; i++) {
        available[i] = 0;
        priority[i] = draw.below(PRIORITIES);
    }
    for (int i = 0; i < n; i++) ready(i);
}

void schedule::ready(int thread) {
    if (how == order::random) {
        available[thread / LANES] |= 1u << thread % LANES;
        available_warps |= 1u << thread / LANES;
    } else {
        queue[(head + n_ready++) % MAX_THREADS] = thread;
    }
}

int schedule::pick_warp() {
    unsigned left = available_warps;
    if (strategy == ANY_WARP) {
        for (unsigned skip = draw.below(static_cast<unsigned>(__builtin_popcount(left))); skip; skip--) left &= left - 1;
        return __builtin_ctz(left);
    }
    int best = __builtin_ctz(left);
    for (; left; left &= left - 1)
        if (priority[__builtin_ctz(left)] > priority[best]) best = __builtin_ctz(left);
    if (strategy == CHANGING_PRIORITY && draw.below(CHANGE_EVERY) == 0) priority[best] = draw.below(PRIORITIES);
    return best;
}

int schedule::next() {
    if (how == order::random) {
        if (!available_warps) return -1;
        int warp = pick_warp();
        unsigned threads = available[warp], from = ~0u << draw.below(LANES);
        int lane = __builtin_ctz(threads & from ? threads & from : threads);
        available[warp] &= ~(1u << lane);
        if (!available[warp]) available_warps &= ~(1u << warp);
        return warp * LANES + lane;
    }
    if (n_ready) {
        int thread = queue[head];
        head = (head + 1) % MAX_THREADS;
        n_ready--;
        return thread;
    }
    return n_started < n ? starts[n_started++] : -1;
}

}  // namespace cuemu
