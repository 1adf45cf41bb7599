/* vec.h: what the loops of the CPU backend are made of. Plain C that compilers vectorise, for any instruction set.
 *
 * Every op is written once, in floats, over lines of at most LINE elements. A line of an f32 array is the array itself; a line of
 * a bf16 array is converted into a buffer that stays in L1, and back. The pattern of an op that changes y in place:
 *
 *     float buffer[LINE], *line = line_open(buffer, y, x, at, n);
 *     ... line[0] to line[n - 1] ...
 *     line_close(line, y, x, at, n);
 */
#ifndef MOBILELLM_CPU_VEC_H
#define MOBILELLM_CPU_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "util/dtype.h"

enum { LINE = 1024 }; /* 4 KiB: half a dozen lines fit in L1 */

/* The length of the line that starts at `at` of an array of n. */
static inline int line_length(int64_t at, int64_t n) { return n - at < LINE ? (int)(n - at) : LINE; }

/* Elements at .. at+n of the array, to read. */
static inline const float *line_in(float *buffer, const void *array, dtype x, int64_t at, int n) {
    if (x == DTYPE_F32) return (const float *)array + at;
    const bf16 *from = (const bf16 *)array + at;
#pragma omp simd
    for (int i = 0; i < n; i++) buffer[i] = bf16_to_float(from[i]);
    return buffer;
}

/* Elements from `at` on, to write. */
static inline float *line_out(float *buffer, void *array, dtype x, int64_t at) {
    return x == DTYPE_F32 ? (float *)array + at : buffer;
}

/* Elements at .. at+n, to read and write. */
static inline float *line_open(float *buffer, void *array, dtype x, int64_t at, int n) {
    return (float *)line_in(buffer, array, x, at, n);
}

/* Brings what was written to a line of line_out or line_open into the array. */
static inline void line_close(const float *line, void *array, dtype x, int64_t at, int n) {
    if (x == DTYPE_F32) return;
    bf16 *to = (bf16 *)array + at;
#pragma omp simd
    for (int i = 0; i < n; i++) to[i] = bf16_from_float(line[i]);
}

/* a * b + c, fused where that is fast: in -std=c11 compilers do not fuse by themselves. */
static inline float mul_add(float a, float b, float c) {
#ifdef __FMA__
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* e^x to 1 ulp; 0 below -87.33 (where it would become subnormal), infinity above 88.37, NaN for NaN.
 *
 * x = k ln 2 + r with |r| <= ln(2)/2, and e^r by the polynomial of degree 6 that minimises the largest relative error (3e-9).
 * Adding 1.5 * 2^23 leaves the integer k in the low bits of the sum. 2^k is made by shifting k + 127 to where the exponent lies;
 * the largest k, 128, makes infinity. The limits are taken where compilers need no branch for them: in integers, and at the very
 * end. */
static inline float vec_exp(float x) {
    const float shift = 0x1.8p23f, log2_e = 0x1.715476p0f, ln_2_high = 0x1.62e4p-1f, ln_2_low = 0x1.7f7d1cp-20f;
    const int32_t shift_bits = 0x4b400000, most = shift_bits + 128;
    float shifted = mul_add(x, log2_e, shift);
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = bits < most ? bits : most;
    memcpy(&shifted, &bits, sizeof bits);
    float k = shifted - shift;
    float r = mul_add(k, -ln_2_low, mul_add(k, -ln_2_high, x));

    float q = 0x1.6a2434p-10f;
    q = mul_add(q, r, 0x1.1239e2p-7f);
    q = mul_add(q, r, 0x1.5558f2p-5f);
    q = mul_add(q, r, 0x1.555492p-3f);
    q = mul_add(q, r, 0x1.fffffcp-2f);
    float e = mul_add(r * r, q, r) + 1.0f;

    uint32_t power_bits = ((uint32_t)bits + 127) << 23;
    float power;
    memcpy(&power, &power_bits, sizeof power);
    return x < -87.33f ? 0.0f : e * power;
}

#endif
