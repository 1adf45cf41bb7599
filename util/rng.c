/* rng.c: Philox4x32-10 and what is built on it. */
#include "util/rng.h"

#include <math.h>

void philox(uint32_t out[4], uint64_t key, uint64_t counter_hi, uint64_t counter_lo) {
    uint32_t c[4] = {(uint32_t)counter_lo, (uint32_t)(counter_lo >> 32), (uint32_t)counter_hi, (uint32_t)(counter_hi >> 32)};
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
        uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c[3] ^ k1, (uint32_t)p0};
        for (int i = 0; i < 4; i++) c[i] = next[i];
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; i++) out[i] = c[i];
}

uint64_t rng_mix(uint64_t a, uint64_t b) {
    uint32_t r[4];
    philox(r, a, 0, b);
    return (uint64_t)r[1] << 32 | r[0];
}

uint64_t rng_hash(const char *text) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3ull;
    return h;
}

/* The four normals of one Philox block. Uniforms lie in (0, 1), so that the logarithm is finite. */
static void normal_block(float z[4], uint64_t key, uint64_t block) {
    uint32_t r[4];
    philox(r, key, 0, block);
    for (int pair = 0; pair < 2; pair++) {
        double u = (r[2 * pair] + 0.5) * 0x1p-32, v = (r[2 * pair + 1] + 0.5) * 0x1p-32;
        double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586476925 * v;
        z[2 * pair] = (float)(radius * cos(angle));
        z[2 * pair + 1] = (float)(radius * sin(angle));
    }
}

void rng_normal(float *out, uint64_t key, uint64_t first, int64_t n, float stddev) {
    float z[4];
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = first + (uint64_t)i;
        if (i == 0 || at % 4 == 0) normal_block(z, key, at / 4);
        out[i] = stddev * z[at % 4];
    }
}

double rng_uniform(uint64_t key, uint64_t counter) {
    uint32_t r[4];
    philox(r, key, 0, counter);
    return (double)(((uint64_t)r[1] << 32 | r[0]) >> 11) * 0x1p-53;
}

uint64_t rng_permute(uint64_t key, uint64_t i, uint64_t n) {
    int half = 1; /* bits of each half: the domain of the network is 4^half >= n, at most 4 n */
    while (half < 32 && (n - 1) >> (2 * half)) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint32_t f[4];
            philox(f, key, round, right);
            uint64_t next = left ^ (f[0] & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}
