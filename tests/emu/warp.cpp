/* warp.cpp: what the lanes of a warp do together: shuffles, votes, ldmatrix and mma; and cp.async, which each does alone.
 *
 * The lane that arrives last works out the results of all. Fragments are distributed over the lanes as the PTX manual says
 * (Matrix Fragments for mma.m16n8k16; ldmatrix), so a kernel that takes the wrong element of one gets wrong numbers here too. */
#include <cstring>

#include "tests/emu/block.h"

#ifdef CUEMU_ASAN
#include <sanitizer/asan_interface.h>
#endif
#ifdef CUEMU_TSAN
extern "C" void __tsan_read_range(void *memory, unsigned long bytes);
extern "C" void __tsan_write_range(void *memory, unsigned long bytes);
#endif

namespace cuemu {

static lane *lanes_of_warp(block *b) { return &b->lanes[b->running / LANES * LANES]; }

/* The running thread has arrived; true: it is the last of the mask. */
static bool arrive(block *b, warp_op op, unsigned mask, place at) {
    int lane_number = b->running % LANES;
    warp *w = &b->warps[b->running / LANES];
    if (!(mask >> lane_number & 1))
        fatal("kernel %s, %s:%d: thread %d is not in its own mask %08x", b->call->name, at.file, at.line, b->running, mask);
    if (mask & ~w->live)
        fatal("kernel %s, %s:%d: the mask %08x names lanes that have returned or do not exist (there are %08x)", b->call->name,
              at.file, at.line, mask, w->live);
    lane *l = &b->lanes[b->running];
    l->op = op;
    l->mask = mask;
    l->at = at;
    w->arrived |= 1u << lane_number;
    if ((w->arrived & mask) != mask) return false;

    const lane *all = lanes_of_warp(b);
    for (unsigned left = mask; left; left &= left - 1) {
        const lane *other = &all[__builtin_ctz(left)];
        if (other->mask != mask || other->op != op)
            fatal("kernel %s: lanes of one warp are at different collectives: %s:%d with mask %08x, %s:%d with mask %08x",
                  b->call->name, at.file, at.line, mask, other->at.file, other->at.line, other->mask);
    }
    return true;
}

static void wait_for_others(block *b) {
    b->lanes[b->running].state = state::at_collective;
    suspend(b);
}

/* All of the mask have arrived, and have their results: they go on. */
static void release(block *b, unsigned mask) {
    int first = b->running / LANES * LANES, self = b->running % LANES;
    b->warps[b->running / LANES].arrived &= ~mask;
    for (unsigned left = mask & ~(1u << self); left; left &= left - 1) make_ready(b, first + __builtin_ctz(left));
    if (settings().threads == order::random) yield();
}

static void work_out(const block *b, lane *lanes, warp_op op, unsigned mask, place at) {
    uint64_t ballot = 0;
    for (unsigned left = mask; left; left &= left - 1) ballot |= (lanes[__builtin_ctz(left)].value & 1) << __builtin_ctz(left);
    for (unsigned left = mask; left; left &= left - 1) {
        lane *l = &lanes[__builtin_ctz(left)];
        if (op == warp_op::ballot) {
            l->result = ballot;
        } else if (op == warp_op::shuffle) {
            if (!(mask >> l->source & 1))
                fatal("kernel %s, %s:%d: lane %d reads lane %d, which is not in the mask %08x", b->call->name, at.file, at.line,
                      __builtin_ctz(left), l->source, mask);
            l->result = lanes[l->source].value;
        } else if (op == warp_op::match) {
            l->result = 0;
            for (unsigned others = mask; others; others &= others - 1)
                if (lanes[__builtin_ctz(others)].value == l->value) l->result |= 1ull << __builtin_ctz(others);
        }
    }
}

uint64_t collective(warp_op op, unsigned mask, uint64_t value, int source, place at) {
    block *b = current();
    lane *l = &b->lanes[b->running];
    char *order_of_warp = b->sync.own_warps + b->running / LANES;
    l->value = value;
    l->source = source;
    if (op == warp_op::sync) happens_before(order_of_warp);  // the others do not order memory
    if (arrive(b, op, mask, at)) {
        work_out(b, lanes_of_warp(b), op, mask, at);
        release(b, mask);
    } else {
        wait_for_others(b);
    }
    if (op == warp_op::sync) happens_after(order_of_warp);
    return l->result;
}

void collective_call(void (*function)(void *lanes[32], place at), void *mine, place at) {
    block *b = current();
    b->lanes[b->running].value = reinterpret_cast<uint64_t>(mine);
    if (arrive(b, warp_op::shuffle, ~0u, at)) {
        void *all[LANES];
        for (int i = 0; i < LANES; i++) all[i] = reinterpret_cast<void *>(lanes_of_warp(b)[i].value);
        function(all, at);
        release(b, ~0u);
    } else {
        wait_for_others(b);
    }
}

/* ---- tensor cores ---- */

struct mma_lane {
    float *d;
    const unsigned *a, *b;
    const float *c;
};

static float bf16_half(unsigned pair, int high) {
    unsigned bits = high ? pair & 0xffff0000u : pair << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void mma(void *lanes[32], place) {
    float a[16][16], b[16][8], c[16][8];
    for (int l = 0; l < LANES; l++) {
        const mma_lane *m = static_cast<const mma_lane *>(lanes[l]);
        int group = l / 4, column = l % 4 * 2;
        for (int i = 0; i < 8; i++) a[group + (i / 2 % 2) * 8][column + i % 2 + (i / 4) * 8] = bf16_half(m->a[i / 2], i % 2);
        for (int i = 0; i < 4; i++) b[column + i % 2 + (i / 2) * 8][group] = bf16_half(m->b[i / 2], i % 2);
        for (int i = 0; i < 4; i++) c[group + (i / 2) * 8][column + i % 2] = m->c[i];
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) static_cast<mma_lane *>(lanes[l])->d[i] = c[l / 4 + (i / 2) * 8][l % 4 * 2 + i % 2];
}

struct ldmatrix_lane {
    unsigned *r;
    const void *row;
    bool transposed;
};

static void ldmatrix(void *lanes[32], place at) {
    for (int matrix = 0; matrix < 4; matrix++) {
        unsigned short m[8][8];
        for (int row = 0; row < 8; row++) {
            const void *from = static_cast<const ldmatrix_lane *>(lanes[matrix * 8 + row])->row;
            if (reinterpret_cast<uintptr_t>(from) % 16)
                fatal("kernel %s, %s:%d: ldmatrix: row %p is not aligned to 16 bytes", current()->call->name, at.file, at.line,
                      from);
#ifdef CUEMU_ASAN
            if (__asan_region_is_poisoned(const_cast<void *>(from), 16))
                fatal("kernel %s, %s:%d: ldmatrix: row %p is out of bounds", current()->call->name, at.file, at.line, from);
#endif
            memcpy(m[row], from, 16);
        }
        for (int l = 0; l < LANES; l++) {
            ldmatrix_lane *to = static_cast<ldmatrix_lane *>(lanes[l]);
            int row = l / 4, column = l % 4 * 2;
            to->r[matrix] = to->transposed ? m[column][row] | static_cast<unsigned>(m[column + 1][row]) << 16
                                           : m[row][column] | static_cast<unsigned>(m[row][column + 1]) << 16;
        }
    }
}

}  // namespace cuemu

/* The lanes write results into each other's locals, so each gets its own only after its turn. */
void emu_mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], cuemu::place at) {
    cuemu::mma_lane mine = {d, a, b, c};
    cuemu::collective_call(cuemu::mma, &mine, at);
}

void emu_ldmatrix_x4(unsigned r[4], const void *row, cuemu::place at) {
    cuemu::ldmatrix_lane mine = {r, row, false};
    cuemu::collective_call(cuemu::ldmatrix, &mine, at);
}

void emu_ldmatrix_x4_trans(unsigned r[4], const void *row, cuemu::place at) {
    cuemu::ldmatrix_lane mine = {r, row, true};
    cuemu::collective_call(cuemu::ldmatrix, &mine, at);
}

/* ---- cp.async ---- */

void __pipeline_memcpy_async(void *shared, const void *global, size_t bytes, size_t zero_fill) {
    cuemu::block *b = cuemu::current();
    cuemu::lane *l = &b->lanes[b->running];
    uintptr_t both = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
    if ((bytes != 4 && bytes != 8 && bytes != 16) || both % bytes || zero_fill > bytes)
        cuemu::fatal("kernel %s: an asynchronous copy of %zu bytes from %p to %p: sizes are 4, 8 and 16, and so are alignments",
                     b->call->name, bytes, global, shared);
    if (l->copies.empty()) l->group = 0;
    l->copies.push_back({shared, global, bytes, zero_fill, l->group});
}

void __pipeline_commit() {
    cuemu::block *b = cuemu::current();
    b->lanes[b->running].group++;
}

void __pipeline_wait_prior(int groups) {
    cuemu::block *b = cuemu::current();
    cuemu::lane *l = &b->lanes[b->running];
    size_t n = 0;
    for (; n < l->copies.size() && l->copies[n].group < l->group - groups; n++) {
        const cuemu::async_copy &c = l->copies[n];
        size_t copied = c.bytes - c.zeros;
        if (copied) memcpy(c.shared, c.global, copied);
        memset(static_cast<char *>(c.shared) + copied, 0, c.zeros);
#ifdef CUEMU_TSAN
        __tsan_read_range(const_cast<void *>(c.global), copied);
        __tsan_write_range(c.shared, c.bytes);
#endif
    }
    l->copies.erase(l->copies.begin(), l->copies.begin() + static_cast<std::ptrdiff_t>(n));
}
