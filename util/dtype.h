/* dtype.h: the number formats of tensors, and how bf16 is converted. */
#ifndef MOBILELLM_UTIL_DTYPE_H
#define MOBILELLM_UTIL_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "util/host_device.h"

typedef enum dtype { DTYPE_F32, DTYPE_BF16 } dtype;

typedef uint16_t bf16; /* the upper half of an IEEE binary32 */

static inline size_t dtype_size(dtype x) { return x == DTYPE_F32 ? 4 : 2; }
static inline const char *dtype_name(dtype x) { return x == DTYPE_F32 ? "f32" : "bf16"; }

static inline float bf16_to_float(bf16 b) {
    uint32_t bits = (uint32_t)b << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Rounds to nearest even; a NaN stays a NaN. */
HOST_DEVICE static inline bf16 bf16_from_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1);
    return (bf16)((f != f ? bits | 0x400000u : rounded) >> 16); /* one shift for both: compilers vectorise it well */
}

/* Rounds up or down in magnitude, with a probability in proportion to the distance, as 16 random bits say: their sum with the
 * bits that are cut off carries or not. What bf16 has stays. Beyond the largest finite bf16, to nearest. */
HOST_DEVICE static inline bf16 bf16_stochastic(float f, uint32_t random) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (bits & 0x7fffffffu) > 0x7f7f0000u ? bf16_from_float(f) : (bf16)((bits + random) >> 16);
}

#endif
