/* rng.h: random numbers that are a function of a key and a counter, so that element i of a tensor, or sample i of an epoch,
 * does not depend on who computes it or on what was drawn before. */
#ifndef MOBILELLM_UTIL_RNG_H
#define MOBILELLM_UTIL_RNG_H

#include <stdint.h>

#include "util/philox.h"

/* A 64-bit hash that spreads a pair over all bits: to derive keys from seeds and small numbers. */
uint64_t rng_mix(uint64_t a, uint64_t b);

/* FNV-1a of a string: to derive a tensor's key from its name. */
uint64_t rng_hash(const char *text);

/* out[i] = stddev * z(key, first + i), i < n, z standard normal (Box-Muller). */
void rng_normal(float *out, uint64_t key, uint64_t first, int64_t n, float stddev);

/* A uniform double in [0, 1): draw number `counter` of stream `key`. */
double rng_uniform(uint64_t key, uint64_t counter);

/* Where position i of a permutation of n elements goes: a bijection of [0, n) computed without storing it, by a Feistel
 * network on the next even number of bits, walked until the value lies below n. [Black & Rogaway 2002] */
uint64_t rng_permute(uint64_t key, uint64_t i, uint64_t n);

#endif
