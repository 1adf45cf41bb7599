/* test_rng.c: util/rng.h. */
#include "util/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The three vectors that Random123 publishes for philox4x32-10, in its file kat_vectors. */
static void philox_gives_the_published_vectors(void **state) {
    (void)state;
    const struct {
        uint64_t key, hi, lo; /* little-endian pairs of the 32-bit words: word 0 is the low half of lo */
        uint32_t out[4];
    } cases[] = {{0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
                 {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
                 {0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t out[4];
        philox(out, cases[i].key, cases[i].hi, cases[i].lo);
        for (int j = 0; j < 4; j++)
            if (out[j] != cases[i].out[j])
                fail_msg("vector %zu, word %d: got %08x, expected %08x", i, j, out[j], cases[i].out[j]);
    }
}

/* FNV-1a of "", "a" and "foobar", from the test suite of its authors' draft. */
static void hash_gives_the_published_vectors(void **state) {
    (void)state;
    assert_int_equal(rng_hash(""), 0xcbf29ce484222325);
    assert_int_equal(rng_hash("a"), 0xaf63dc4c8601ec8c);
    assert_int_equal(rng_hash("foobar"), 0x85944171f73967e8);
}

static void assert_bijection(uint64_t key, uint64_t n) {
    unsigned char *hit = calloc(n, 1);
    assert_non_null(hit);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t to = rng_permute(key, i, n);
        if (to >= n) fail_msg("n %llu: %llu goes to %llu", (unsigned long long)n, (unsigned long long)i, (unsigned long long)to);
        if (hit[to]++) fail_msg("n %llu: two go to %llu", (unsigned long long)n, (unsigned long long)to);
    }
    free(hit);
}

static void permute_is_a_bijection(void **state) {
    (void)state;
    for (uint64_t n = 1; n <= 300; n++) assert_bijection(n * 7919, n);
    const uint64_t sizes[] = {1023, 1024, 1025, 4095, 4096, 4097, 16384, 16385, 65537};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) assert_bijection(42, sizes[i]);
}

/* Far from the start and above 2^32 nothing may be cut off: positions stay below n and distinct. */
static void permute_works_for_very_many_elements(void **state) {
    (void)state;
    const uint64_t sizes[] = {((uint64_t)1 << 32) + 1, ((uint64_t)1 << 40) - 3, ((uint64_t)1 << 62) + 12345, UINT64_MAX};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint64_t seen[200], largest = 0;
        for (uint64_t i = 0; i < 200; i++) {
            seen[i] = rng_permute(5, i % 2 ? i : sizes[s] - 1 - i, sizes[s]);
            assert_true(seen[i] < sizes[s]);
            if (seen[i] > largest) largest = seen[i];
            for (uint64_t j = 0; j < i; j++) assert_true(seen[j] != seen[i]);
        }
        assert_true(largest > sizes[s] / 2); /* 200 draws that all miss the upper half: 2^-200 */
    }
}

/* All 6 permutations of 3 elements, over 6000 keys: chi-squared with 5 degrees of freedom is above 30 once in 80,000. The keys
 * are fixed, so that the test passes always or never. */
static void permute_depends_on_the_key_evenly(void **state) {
    (void)state;
    int count[27] = {0}, kinds = 0;
    for (uint64_t key = 0; key < 6000; key++)
        count[rng_permute(key, 0, 3) * 9 + rng_permute(key, 1, 3) * 3 + rng_permute(key, 2, 3)]++;
    double chi2 = 0;
    for (int i = 0; i < 27; i++) {
        kinds += count[i] > 0;
        if (count[i]) chi2 += (count[i] - 1000.0) * (count[i] - 1000.0) / 1000;
    }
    assert_int_equal(kinds, 6);
    if (chi2 > 30) fail_msg("chi-squared of 6 equally likely permutations: %g", chi2);
}

/* Mean, variance, skewness, excess kurtosis, and the correlation of neighbours, each within 4 standard errors. */
static void normals_have_the_moments_of_a_normal_distribution(void **state) {
    (void)state;
    enum { N = 1 << 20 };
    float *z = malloc(N * sizeof *z);
    assert_non_null(z);
    rng_normal(z, 123, 0, N, 1);
    double m[5] = {0}, neighbours = 0;
    for (int i = 0; i < N; i++) {
        double power = 1;
        for (int k = 1; k <= 4; k++) m[k] += (power *= z[i]) / N;
        if (i > 0) neighbours += (double)z[i] * z[i - 1] / N;
    }
    const struct {
        const char *name;
        double value, expected, variance; /* variance of one term of the mean: of z, z^2, z^3, z^4 and z z' */
    } cases[] = {{"mean", m[1], 0, 1},
                 {"mean square", m[2], 1, 2},
                 {"mean cube", m[3], 0, 15},
                 {"mean 4th power", m[4], 3, 96},
                 {"correlation of neighbours", neighbours, 0, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!(fabs(cases[i].value - cases[i].expected) <= 4 * sqrt(cases[i].variance / N)))
            fail_msg("%s: %g, expected %g +- %g", cases[i].name, cases[i].value, cases[i].expected,
                     4 * sqrt(cases[i].variance / N));
    free(z);
}

/* The share of draws below a few quantiles of the normal distribution, within 4 standard errors. */
static void normals_have_the_quantiles_of_a_normal_distribution(void **state) {
    (void)state;
    enum { N = 1 << 20 };
    float *z = malloc(N * sizeof *z);
    assert_non_null(z);
    rng_normal(z, 7, 0, N, 2);
    const double points[] = {-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        double below = 0, expected = 0.5 * erfc(-points[i] / sqrt(2));
        for (int j = 0; j < N; j++) below += z[j] < 2 * points[i];
        double error = 4 * sqrt(expected * (1 - expected) / N);
        if (!(fabs(below / N - expected) <= error))
            fail_msg("share below %g sigma: %g, expected %g +- %g", points[i], below / N, expected, error);
    }
    free(z);
}

static void a_slice_of_normals_does_not_depend_on_how_it_is_cut(void **state) {
    (void)state;
    enum { N = 97 };
    float whole[N], part[N];
    const uint64_t firsts[] = {0, 1, 2, 3, 5, ((uint64_t)1 << 33) + 3};
    for (size_t f = 0; f < sizeof firsts / sizeof *firsts; f++) {
        rng_normal(whole, 9, firsts[f], N, 0.02f);
        for (int cut = 0; cut <= N; cut++) {
            memset(part, 0xff, sizeof part);
            rng_normal(part, 9, firsts[f], cut, 0.02f);
            rng_normal(part + cut, 9, firsts[f] + (uint64_t)cut, N - cut, 0.02f);
            assert_memory_equal(part, whole, sizeof whole);
        }
    }
}

static void streams_and_places_differ(void **state) {
    (void)state;
    float a[64], b[64];
    rng_normal(a, 1, 0, 64, 1);
    rng_normal(b, 2, 0, 64, 1);
    for (int i = 0; i < 64; i++) assert_true(a[i] != b[i]);
    rng_normal(b, 1, 64, 64, 1);
    for (int i = 0; i < 64; i++) assert_true(a[i] != b[i]);
    assert_true(rng_mix(1, 2) != rng_mix(2, 1));
    assert_true(rng_mix(0, 0) != rng_mix(0, 1));
}

static void uniforms_fill_the_unit_interval(void **state) {
    (void)state;
    enum { N = 1 << 18 };
    double mean = 0, square = 0, low = 1, high = 0;
    for (uint64_t i = 0; i < N; i++) {
        double u = rng_uniform(3, i);
        assert_true(u >= 0 && u < 1);
        mean += u / N;
        square += u * u / N;
        low = fmin(low, u);
        high = fmax(high, u);
    }
    if (!(fabs(mean - 0.5) <= 4 * sqrt(1.0 / 12 / N))) fail_msg("mean %g", mean);
    if (!(fabs(square - 1.0 / 3) <= 4 * sqrt(4.0 / 45 / N))) fail_msg("mean square %g", square);
    if (!(low < 20.0 / N && high > 1 - 20.0 / N)) fail_msg("from %g to %g", low, high);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(philox_gives_the_published_vectors),
                                       cmocka_unit_test(hash_gives_the_published_vectors),
                                       cmocka_unit_test(permute_is_a_bijection),
                                       cmocka_unit_test(permute_works_for_very_many_elements),
                                       cmocka_unit_test(permute_depends_on_the_key_evenly),
                                       cmocka_unit_test(normals_have_the_moments_of_a_normal_distribution),
                                       cmocka_unit_test(normals_have_the_quantiles_of_a_normal_distribution),
                                       cmocka_unit_test(a_slice_of_normals_does_not_depend_on_how_it_is_cut),
                                       cmocka_unit_test(streams_and_places_differ),
                                       cmocka_unit_test(uniforms_fill_the_unit_interval)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
