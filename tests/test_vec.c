/* test_vec.c: the exponential and the number format conversions that the CPU's loops are made of. */
#include "cpu/vec.h"

#include "op_testing.h"

static float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* The distance of neighbouring floats at f. */
static double ulp(double f) {
    int exponent;
    frexp(f, &exponent);
    return ldexp(1, (exponent < -125 ? -125 : exponent) - 24);
}

/* Every 1009th float of the range in which the result is neither 0 nor infinity. */
static void exponential_is_within_one_ulp(void **state) {
    (void)state;
    double worst = 0;
    float worst_at = 0;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 1009) {
        float x = float_of((uint32_t)bits);
        if (!(x >= -87.33f && x <= 88.37f)) continue;
        double expected = exp((double)x), off = fabs((double)vec_exp(x) - expected) / ulp(expected);
        if (off > worst) worst = off, worst_at = x;
    }
    print_message("worst: %.3f ulp at %.9g\n", worst, (double)worst_at);
    if (!(worst <= 1.0)) fail_msg("exp(%.9g) is off by %.3f ulp", (double)worst_at, worst);
}

/* Beyond the range, infinities, NaNs. */
static void exponential_at_the_ends(void **state) {
    (void)state;
    assert_true(vec_exp(0) == 1);
    const float low[] = {-87.34f, -88, -104, -1000, -1e10f, -3.4e38f, -INFINITY},
                high[] = {88.4f, 89, 1000, 1e10f, 3.4e38f, INFINITY};
    for (size_t i = 0; i < sizeof low / sizeof *low; i++)
        if (vec_exp(low[i]) != 0) fail_msg("exp(%g) is %g", (double)low[i], (double)vec_exp(low[i]));
    for (size_t i = 0; i < sizeof high / sizeof *high; i++)
        if (!isinf(vec_exp(high[i]))) fail_msg("exp(%g) is %g", (double)high[i], (double)vec_exp(high[i]));
    for (uint32_t bits = 0x7f800001; bits < 0x80000000; bits += 4099) /* NaNs of both signs and many kinds */
        assert_true(isnan(vec_exp(float_of(bits))) && isnan(vec_exp(float_of(bits | 0x80000000))));
}

/* Rounding by its definition: the nearer of the two neighbours, the even one of two as near. NaN aside. */
static bf16 nearest(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    bf16 below = (bf16)(bits >> 16), above = (bf16)(below + 1); /* in magnitude */
    double low = fabs((double)bf16_to_float(below)), high = fabs((double)bf16_to_float(above)), x = fabs((double)f);
    if ((above & 0x7fff) == 0x7f80) high = 0x1p128; /* rounds to infinity as if that were the next number */
    if (isinf(f) || x - low < high - x) return below;
    if (x - low > high - x) return above;
    return below % 2 ? above : below;
}

/* All 65,536: to float is exact, and back is the same number, NaNs still NaNs. */
static void every_bf16_survives(void **state) {
    (void)state;
    static bf16 all[65536], back[65536];
    static float floats[65536];
    for (int i = 0; i < 65536; i++) all[i] = (bf16)i;
    for (int at = 0; at < 65536; at += LINE) {
        line_in(floats + at, all, DTYPE_BF16, at, LINE);
        line_close(floats + at, back, DTYPE_BF16, at, LINE);
    }
    for (int i = 0; i < 65536; i++) {
        int exponent = i >> 7 & 0xff, mantissa = i & 0x7f;
        double value = exponent ? ldexp(128 + mantissa, exponent - 134) : ldexp(mantissa, -133);
        bool is_nan = exponent == 0xff && mantissa, is_infinity = exponent == 0xff && !mantissa;
        if (i >> 15) value = -value;
        if (is_nan ? !isnan(floats[i]) : is_infinity ? !isinf(floats[i]) : (double)floats[i] != value)
            fail_msg("bf16 %04x is %.9g, expected %.9g", (unsigned)i, (double)floats[i], value);
        if (is_nan ? !isnan(bf16_to_float(back[i])) : back[i] != i) fail_msg("bf16 %04x came back as %04x", (unsigned)i, back[i]);
    }
}

/* A million floats of all sizes, and those next to the middle between two bf16 numbers. */
static void rounding_is_to_nearest_even(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 1u << 20; i += LINE) {
        float from[LINE];
        bf16 to[LINE];
        for (uint64_t j = 0; j < LINE; j++) {
            uint32_t bits = (uint32_t)rng_mix(3, i + j);
            if (j % 4)
                bits = (bits & 0xffff0000u) | (0x7fff + (uint32_t)(j % 4) - 1); /* just below the middle, on it, above it */
            from[j] = float_of(bits);
        }
        line_close(from, to, DTYPE_BF16, 0, LINE);
        for (int j = 0; j < LINE; j++) {
            bool right = isnan(from[j]) ? isnan(bf16_to_float(to[j])) : to[j] == nearest(from[j]);
            if (!right)
                fail_msg("%a became %a, expected %a", (double)from[j], (double)bf16_to_float(to[j]),
                         (double)bf16_to_float(nearest(from[j])));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exponential_is_within_one_ulp),
        cmocka_unit_test(exponential_at_the_ends),
        cmocka_unit_test(every_bf16_survives),
        cmocka_unit_test(rounding_is_to_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
