/* philox.h: Philox4x32-10 [Salmon et al. 2011]: random bits that are a function of a key and a counter, on the host and in
 * kernels. */
#ifndef MOBILELLM_UTIL_PHILOX_H
#define MOBILELLM_UTIL_PHILOX_H

#include <stdint.h>

#include "util/host_device.h"

/* The 128 random bits number (counter_hi, counter_lo) of stream `key`. */
HOST_DEVICE static inline void philox(uint32_t out[4], uint64_t key, uint64_t counter_hi, uint64_t counter_lo) {
    uint32_t x0 = (uint32_t)counter_lo, x1 = (uint32_t)(counter_lo >> 32);
    uint32_t x2 = (uint32_t)counter_hi, x3 = (uint32_t)(counter_hi >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p = 0xD2511F53ull * x0, q = 0xCD9E8D57ull * x2;
        x0 = (uint32_t)(q >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)q;
        x2 = (uint32_t)(p >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)p;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
}

/* Arrays that take 16 random bits an element take those of block i / 8 for element i: of its word i % 8 / 2 the lower half where
 * i is even, the upper one where it is odd. */
enum { PHILOX_HALVES = 8 };
HOST_DEVICE static inline uint32_t philox_half(uint32_t word, uint32_t i) { return (i % 2 ? word >> 16 : word) & 0xffffu; }

#endif
