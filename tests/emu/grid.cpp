/* grid.cpp: launches: checked as the driver would, queued, and run block by block. */
#include <algorithm>
#include <memory>
#include <numeric>

#include "tests/emu/block.h"

namespace cuemu {

/* A launch in a queue, and its arguments. */
struct queued_launch {
    launch_call call;
    explicit queued_launch(const launch_call &c) : call(c) {}
    queued_launch(const queued_launch &) = delete;
    ~queued_launch() { call.release(call.bound); }
};

/* The random order visits the blocks as i -> (i * step + first) mod n, with step and n coprime. */
struct block_order {
    uint64_t n, step = 1, first = 0;
    bool backwards;
    explicit block_order(uint64_t blocks) : n(blocks), backwards(settings().threads == order::reverse) {
        if (settings().threads != order::random || n < 3) return;
        random_numbers draw = {settings().order_seed};
        unsigned most = static_cast<unsigned>(std::min<uint64_t>(n, 1u << 30));
        step = draw.below(most) | 1;
        while (std::gcd(step, n) != 1) step++;
        first = draw.below(most);
    }
    uint64_t operator[](uint64_t i) const { return backwards ? n - 1 - i : (i * step + first) % n; }
};

static void run_grid(const launch_call *call) {
    uint64_t n = static_cast<uint64_t>(call->grid.x) * call->grid.y * call->grid.z;
    const block_order blocks(n);
    open_memory here;
#ifndef CUEMU_CHECKED
    if (settings().os_threads > 1 && n > 1) {
#pragma omp parallel num_threads(settings().os_threads)
        {
            block *b = block_open(call);
#pragma omp for schedule(dynamic, 1)
            for (uint64_t i = 0; i < n; i++) block_run(b, blocks[i], i);
            block_close(b);
        }
        return;
    }
#endif
    block *b = block_open(call);
    for (uint64_t i = 0; i < n; i++) block_run(b, blocks[i], i);
    block_close(b);
}

static cudaError_t check_launch(const launch_call &call) {
    const dim3 &g = call.grid, &b = call.block;
    uint64_t threads = static_cast<uint64_t>(b.x) * b.y * b.z;
    if (!threads || threads > MAX_THREADS || b.z > 64) return cudaErrorInvalidConfiguration;
    if (!g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 0xffff || g.z > 0xffff) return cudaErrorInvalidConfiguration;
    if (call.shared > shared_limit(call.kernel)) return cudaErrorInvalidValue;
    return cudaSuccess;
}

cudaError_t submit(const launch_call &call, cudaStream_t stream) {
    locked lock(api_lock());
    auto launch = std::make_shared<queued_launch>(call);
    if (unusable()) return failed(unusable());
    cudaError_t status = check_launch(call);
    if (status) return failed(status);
    enqueue(stream, [launch] { run_grid(&launch->call); });
    return cudaSuccess;
}

}  // namespace cuemu
