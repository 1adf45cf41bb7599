/* crc.c: zlib's CRC-32 in blocks.
 *
 * zlib's own takes 3 to 4 bytes a nanosecond of a core. Where the processor multiplies polynomials over GF(2) (PCLMULQDQ) the
 * bytes are folded instead, three times as fast, and only what is left of them is summed by zlib. [Gopal et al. 2009, Fast CRC
 * Computation for Generic Polynomials Using PCLMULQDQ Instruction] */
#include "checkpoint/crc.h"

#include <stdbool.h>
#include <zlib.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

/* Large enough that shifting (about 0.1 us a block) is nothing, small enough to share a tensor among threads. */
enum { BLOCK = 4 << 20 };

uint32_t crc_shift(uint32_t crc, uint64_t bytes) { return (uint32_t)crc32_combine(crc, 0, (z_off_t)bytes); }

#ifdef __x86_64__

enum { LANES = 4, LANE = 16, FOLDED = LANES * LANE }; /* bytes that are folded at a time */

static bool can_fold(void) { return __builtin_cpu_supports("pclmul"); }

/* A polynomial of 128 bits and the 64 bytes to which it is moved have the same remainder when its halves are multiplied by
 * x^(512+32) and x^(512-32), modulo the CRC's polynomial, bits reversed. */
__attribute__((target("pclmul,sse2"))) static __m128i fold(__m128i sum, const char *next) {
    const __m128i powers = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    __m128i low = _mm_clmulepi64_si128(sum, powers, 0x00), high = _mm_clmulepi64_si128(sum, powers, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), _mm_loadu_si128((const __m128i *)next));
}

/* bytes >= FOLDED. Four sums in turn, because one multiplication takes as long as four begin in. */
__attribute__((target("pclmul,sse2"))) static uint32_t crc_folded(const char *data, size_t bytes) {
    __m128i sums[LANES];
    for (int i = 0; i < LANES; i++) sums[i] = _mm_loadu_si128((const __m128i *)(data + i * LANE));
    sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128(-1)); /* where a CRC-32 begins */
    size_t at = FOLDED;
    for (; at + FOLDED <= bytes; at += FOLDED)
        for (int i = 0; i < LANES; i++) sums[i] = fold(sums[i], data + at + i * LANE);
    /* zlib complements the CRC before and after: from all ones it begins with 0, the beginning being in the sums. */
    uint32_t crc = (uint32_t)crc32_z(0xffffffff, (const Bytef *)sums, sizeof sums);
    return (uint32_t)crc32_z(crc, (const Bytef *)data + at, bytes - at);
}

#else

enum { FOLDED = 1 };
static bool can_fold(void) { return false; }
static uint32_t crc_folded(const char *data, size_t bytes) { return (uint32_t)crc32_z(0, (const Bytef *)data, bytes); }

#endif

static uint32_t crc_of_block(const char *data, size_t bytes) {
    if (bytes >= FOLDED && can_fold()) return crc_folded(data, bytes);
    return (uint32_t)crc32_z(0, (const Bytef *)data, bytes);
}

uint32_t crc_of(const void *data, size_t bytes) {
    uint32_t crc = 0;
#pragma omp parallel for reduction(^ : crc) if (bytes > BLOCK)
    for (size_t at = 0; at < bytes; at += BLOCK) {
        size_t n = bytes - at < BLOCK ? bytes - at : BLOCK;
        crc ^= crc_shift(crc_of_block((const char *)data + at, n), bytes - at - n);
    }
    return crc;
}
