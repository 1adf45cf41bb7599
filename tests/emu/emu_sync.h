/* emu_sync.h: barriers, warp collectives, atomics, asynchronous copies and tensor cores, as emu.h offers them to kernels.
 *
 * Every collective knows where in the source it was called (CUEMU_HERE), for threads that meet at different ones are an error
 * that only the place makes findable. Two barriers on one line look alike. */
#ifndef MOBILELLM_EMU_SYNC_H
#define MOBILELLM_EMU_SYNC_H

namespace cuemu {

/* What the threads of a block agree on at a barrier. */
enum class vote { none, count, all, any };
int barrier(vote what, bool mine, place at);

enum class warp_op { sync, shuffle, ballot, match };

/* One collective of the lanes in `mask`: the last to arrive works out the result of each. `source` is the lane to read (shuffle).
 */
uint64_t collective(warp_op op, unsigned mask, uint64_t value, int source, place at);

/* The same for any function: it gets a pointer from each lane of the mask. */
void collective_call(void (*function)(void *lanes[32], place at), void *mine, place at);

int lane_id();
unsigned active_mask();
void yield(); /* lets other threads of the block run: for loops that wait for them */

template <class T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
T shuffle(unsigned mask, T value, int source, place at) {
    uint64_t bits = collective(warp_op::shuffle, mask, to_bits(value), source, at);
    T result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

}  // namespace cuemu

/* ---- barriers ---- */

static inline void __syncthreads(CUEMU_HERE) { cuemu::barrier(cuemu::vote::none, false, at); }
static inline int __syncthreads_count(int p, CUEMU_HERE) { return cuemu::barrier(cuemu::vote::count, p != 0, at); }
static inline int __syncthreads_and(int p, CUEMU_HERE) { return cuemu::barrier(cuemu::vote::all, p != 0, at); }
static inline int __syncthreads_or(int p, CUEMU_HERE) { return cuemu::barrier(cuemu::vote::any, p != 0, at); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, CUEMU_HERE) {
    cuemu::collective(cuemu::warp_op::sync, mask, 0, 0, at);
}

static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __nanosleep(unsigned) { cuemu::yield(); }
static inline void __trap() { cuemu::fatal("__trap()"); }

/* ---- shuffles and votes; `width` lanes are a group, and a source outside of it is the lane itself ---- */

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUEMU_HERE) {
    int lane = cuemu::lane_id();
    return cuemu::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUEMU_HERE) {
    int lane = cuemu::lane_id(), source = lane ^ bits, end = (lane & ~(width - 1)) + width;
    return cuemu::shuffle(mask, value, source >= end ? lane : source, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, CUEMU_HERE) {
    int lane = cuemu::lane_id(), source = lane + static_cast<int>(distance), end = (lane & ~(width - 1)) + width;
    return cuemu::shuffle(mask, value, source >= end ? lane : source, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, CUEMU_HERE) {
    int lane = cuemu::lane_id(), source = lane - static_cast<int>(distance);
    return cuemu::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, at);
}
static inline unsigned __ballot_sync(unsigned mask, int p, CUEMU_HERE) {
    return static_cast<unsigned>(cuemu::collective(cuemu::warp_op::ballot, mask, p != 0, 0, at));
}
static inline int __any_sync(unsigned mask, int p, CUEMU_HERE) { return __ballot_sync(mask, p, at) != 0; }
static inline int __all_sync(unsigned mask, int p, CUEMU_HERE) { return __ballot_sync(mask, p, at) == mask; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUEMU_HERE) {
    return static_cast<unsigned>(cuemu::collective(cuemu::warp_op::match, mask, cuemu::to_bits(value), 0, at));
}
static inline unsigned __activemask() { return cuemu::active_mask(); }

/* ---- atomics ---- */

namespace cuemu {

/* The old value of *p, which becomes change(*p). T has 2, 4 or 8 bytes. */
template <class T, class F>
T atomically(T *p, F change) {
    using word = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
    word *at = reinterpret_cast<word *>(p), old = __atomic_load_n(at, __ATOMIC_RELAXED), next;
    T before;
    do {
        memcpy(&before, &old, sizeof before);
        T after = change(before);
        memcpy(&next, &after, sizeof next);
    } while (!__atomic_compare_exchange_n(at, &old, next, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    return before;
}

}  // namespace cuemu

template <class T>
T atomicAdd(T *p, T value) {
    return cuemu::atomically(p, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicSub(T *p, T value) {
    return cuemu::atomically(p, [=](T old) { return static_cast<T>(old - value); });
}
template <class T>
T atomicMax(T *p, T value) {
    return cuemu::atomically(p, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T *p, T value) {
    return cuemu::atomically(p, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T *p, T value) {
    return cuemu::atomically(p, [=](T old) { return static_cast<T>(old | value); });
}
template <class T>
T atomicAnd(T *p, T value) {
    return cuemu::atomically(p, [=](T old) { return static_cast<T>(old & value); });
}
template <class T>
T atomicExch(T *p, T value) {
    return cuemu::atomically(p, [=](T) { return value; });
}
template <class T>
T atomicCAS(T *p, T expected, T value) {
    return cuemu::atomically(p, [=](T old) { return old == expected ? value : old; });
}
static inline unsigned atomicInc(unsigned *p, unsigned limit) {
    return cuemu::atomically(p, [=](unsigned old) { return old >= limit ? 0u : old + 1u; });
}

/* ---- cp.async: the bytes arrive at the wait and not before, so that reading them too early gives what was there ---- */

void __pipeline_memcpy_async(void *shared, const void *global, size_t bytes, size_t zero_fill = 0);
void __pipeline_commit();
void __pipeline_wait_prior(int groups);

/* ---- tensor cores, for the wrappers of cuda/tensor_core.cuh, with the distribution over the lanes that PTX has ---- */

/* d = a b + c of 16x16 a, 16x8 b, both bf16, products and sums in fp32. */
void emu_mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], CUEMU_HERE);
/* Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8. */
void emu_ldmatrix_x4(unsigned r[4], const void *row, CUEMU_HERE);
void emu_ldmatrix_x4_trans(unsigned r[4], const void *row, CUEMU_HERE);

#endif
