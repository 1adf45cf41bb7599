/* emu_orders.h: whether a test of the emulated GPU gets the same bits in every order of threads, blocks and streams.
 *
 * The emulation reads its environment once, so the test runs itself again in each, as `TEST hash`, which prints a hash of all
 * that its kernels write. On a GPU the orders are the GPU's. */
#ifndef MOBILELLM_TESTS_EMU_ORDERS_H
#define MOBILELLM_TESTS_EMU_ORDERS_H

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

enum { N_ORDERS = 6 };

/* "rand" alone: another one each time (tests/run.py). */
static const char *const orders[N_ORDERS] = {
    "CUEMU_ORDER=fwd CUEMU_STREAMS=eager",
    "CUEMU_ORDER=rev CUEMU_STREAMS=lazy",
    "CUEMU_ORDER=rand CUEMU_STREAMS=rand",
    "CUEMU_ORDER=rand CUEMU_STREAMS=eager CUEMU_FRESH=1",
    "CUEMU_ORDER=rand:1 CUEMU_STREAMS=lazy CUEMU_THREADS=2 CUEMU_MULTIPROCESSORS=7",
    "CUEMU_ORDER=rand:2 CUEMU_STREAMS=rand:2 CUEMU_FRESH=2",
};

#define NO_BITS UINT64_C(0xcbf29ce484222325)

/* FNV-1a: the hash so far, and these bytes. */
static inline uint64_t add_bits(uint64_t hash, const void *values, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)values)[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static inline uint64_t hash_in_order(const char *order) {
    char command[200];
    uint64_t hash = 0;
    snprintf(command, sizeof command, "%s /proc/%d/exe hash", order, (int)getpid());
    FILE *output = popen(command, "r");
    assert_non_null(output);
    int n = fscanf(output, "%" SCNx64, &hash);
    if (pclose(output) || n != 1) fail_msg("`%s` failed", command);
    return hash;
}

static inline void check_all_orders(uint64_t expected) {
    for (int i = 0; i < N_ORDERS; i++) {
        uint64_t hash = hash_in_order(orders[i]);
        if (hash != expected) fail_msg("%s: hash %" PRIx64 ", expected %" PRIx64, orders[i], hash, expected);
    }
}

#endif
