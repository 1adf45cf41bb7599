/* emu_math.h: the functions of one CUDA thread that a C++ compiler for the CPU does not know: cached loads, fast math, bits. */
#ifndef MOBILELLM_EMU_MATH_H
#define MOBILELLM_EMU_MATH_H

#include <type_traits>

/* ---- loads and stores with a hint for the caches, which here has no effect ---- */

// clang-format off
template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldca(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldlu(const T *p) { return *p; }
template <class T> T __ldcv(const T *p) { return *static_cast<const volatile T *>(p); }
template <class T> void __stcg(T *p, T value) { *p = value; }
template <class T> void __stcs(T *p, T value) { *p = value; }
template <class T> void __stwb(T *p, T value) { *p = value; }
template <class T> void __stwt(T *p, T value) { *p = value; }
// clang-format on
static inline size_t __cvta_generic_to_shared(const void *p) { return reinterpret_cast<size_t>(p); }

/* ---- fast math: exact here. Macros, because glibc has functions of these names. ---- */

#define __expf(x)          expf(x)
#define __exp10f(x)        exp10f(x)
#define __logf(x)          logf(x)
#define __log2f(x)         log2f(x)
#define __log10f(x)        log10f(x)
#define __sinf(x)          sinf(x)
#define __cosf(x)          cosf(x)
#define __tanf(x)          tanf(x)
#define __tanhf(x)         tanhf(x)
#define __powf(x, y)       powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __saturatef(float a) { return a > 0 ? (a < 1 ? a : 1) : 0; }

/* Rounded on their own: never the half of a fused multiply-add. */
__attribute__((noinline)) static inline float __fmul_rn(float a, float b) { return a * b; }
__attribute__((noinline)) static inline float __fadd_rn(float a, float b) { return a + b; }
__attribute__((noinline)) static inline float __fsub_rn(float a, float b) { return a - b; }
__attribute__((noinline)) static inline double __dmul_rn(double a, double b) { return a * b; }
__attribute__((noinline)) static inline double __dadd_rn(double a, double b) { return a + b; }

/* ---- bits ---- */

namespace cuemu {
template <class To, class From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace cuemu

static inline unsigned __float_as_uint(float f) { return cuemu::bit_cast<unsigned>(f); }
static inline int __float_as_int(float f) { return cuemu::bit_cast<int>(f); }
static inline float __uint_as_float(unsigned u) { return cuemu::bit_cast<float>(u); }
static inline float __int_as_float(int i) { return cuemu::bit_cast<float>(i); }
static inline long long __double_as_longlong(double d) { return cuemu::bit_cast<long long>(d); }
static inline double __longlong_as_double(long long i) { return cuemu::bit_cast<double>(i); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return shift & 31 ? (high << (shift & 31)) | (low >> (32 - (shift & 31))) : high;
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return shift & 31 ? (low >> (shift & 31)) | (high << (32 - (shift & 31))) : low;
}
static inline int __float2int_rn(float f) { return static_cast<int>(nearbyintf(f)); }
static inline int __float2int_rz(float f) { return static_cast<int>(f); }
static inline float __int2float_rn(int i) { return static_cast<float>(i); }
static inline float __uint2float_rn(unsigned i) { return static_cast<float>(i); }

/* ---- min and max of any two numbers, as CUDA has them without std:: ---- */

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value)
        return static_cast<T>(a) != static_cast<T>(a) || static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b)
                                                                                               : static_cast<T>(a);
    else
        return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value)
        return static_cast<T>(a) != static_cast<T>(a) || static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b)
                                                                                               : static_cast<T>(a);
    else
        return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

#endif
