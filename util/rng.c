/* rng.c: what is built on Philox. */
#include "util/rng.h"

#include <math.h>

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
