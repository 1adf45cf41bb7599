/* tensor_core.cuh: the instructions of tensor cores, and the three products of tiles that attention is made of.
 *
 * A warp computes MT*16 rows at a time. Tiles lie in shared memory row after row, `ld` elements apart, an odd multiple of 16
 * bytes, so that the eight rows which ldmatrix reads at once are in different banks. Results are spread over the lanes as mma
 * leaves them: of a 16x8 part lane l has columns 2(l%4), +1 of row l/4 (elements 0, 1) and of row l/4 + 8 (elements 2, 3); two
 * such parts, rounded, are a left factor as they lie.
 *
 * The wrappers hold one instruction each. Where the sources are compiled for the CPU, tests/emu does what they do. */
#ifndef MOBILELLM_CUDA_TENSOR_CORE_CUH
#define MOBILELLM_CUDA_TENSOR_CORE_CUH

#include "cuda/device.cuh"

#ifdef CUEMU
#define mma_m16n8k16_bf16 emu_mma_m16n8k16_bf16
#define ldmatrix_x4       emu_ldmatrix_x4
#define ldmatrix_x4_trans emu_ldmatrix_x4_trans
__device__ __forceinline__ float exp2_approximate(float x) { return exp2f(x); }
#else
/* d = a b + c; a (16,16) and b (16,8) bf16, c and d (16,8) fp32 */
__device__ __forceinline__ void mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

/* Four 8x8 matrices; lane l gives the address of row l%8 of matrix l/8, 16 bytes. */
__device__ __forceinline__ void ldmatrix_x4(unsigned r[4], const void *row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned r[4], const void *row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* 2^x to 2^-22, one instruction; a result below 2^-126 is 0. */
__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

/* Two floats rounded to bf16, the first in the lower half, as in memory. */
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned *>(&pair);
}

/* Left factors: columns [k, k+16) of the warp's rows of a tile. */
template <int MT>
__device__ __forceinline__ void load_left(unsigned a[MT][4], const bf16 *rows, int ld, int k) {
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < MT; m++) ldmatrix_x4(a[m], rows + (m * 16 + lane % 16) * ld + k + lane / 16 * 8);
}

/* s += a b^T for columns [k, k+16) of a tile b (NT*8,...): s (MT*16,NT*8). */
template <int MT, int NT>
__device__ __forceinline__ void add_product_transposed(float s[MT][NT][4], const unsigned a[MT][4], const bf16 *b, int ld,
                                                       int k) {
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
        unsigned right[4];
        ldmatrix_x4(right, b + (n * 8 + lane % 8 + lane / 16 * 8) * ld + k + lane / 8 % 2 * 8);
#pragma unroll
        for (int m = 0; m < MT; m++) {
            mma_m16n8k16_bf16(s[m][n], a[m], right, s[m][n]);
            mma_m16n8k16_bf16(s[m][n + 1], a[m], right + 2, s[m][n + 1]);
        }
    }
}

/* sum += bf16(p) b for a tile b (KT*8,NT*8): p (MT*16,KT*8), sum (MT*16,NT*8). */
template <int MT, int KT, int NT>
__device__ __forceinline__ void add_product(float sum[MT][NT][4], const float p[MT][KT][4], const bf16 *b, int ld) {
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < KT; k += 2) {
        unsigned left[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            left[m][0] = pack_bf16(p[m][k][0], p[m][k][1]);
            left[m][1] = pack_bf16(p[m][k][2], p[m][k][3]);
            left[m][2] = pack_bf16(p[m][k + 1][0], p[m][k + 1][1]);
            left[m][3] = pack_bf16(p[m][k + 1][2], p[m][k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            unsigned right[4];
            ldmatrix_x4_trans(right, b + (k * 8 + lane % 16) * ld + n * 8 + lane / 16 * 8);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_m16n8k16_bf16(sum[m][n], left[m], right, sum[m][n]);
                mma_m16n8k16_bf16(sum[m][n + 1], left[m], right + 2, sum[m][n + 1]);
            }
        }
    }
}

template <int MT, int NT>
__device__ __forceinline__ void clear(float s[MT][NT][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[m][n][e] = 0;
}

#endif
