/* test_sample.c: eval/sample.h. */
#include "eval/sample.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_V = 64, SEEDS = 40 };

/* counts[v]: how often v is drawn at positions 0, 1, ... */
static void draw(int counts[MAX_V], const float *logits, int32_t V, sample_options options, int draws) {
    sample_candidate scratch[MAX_V];
    memset(counts, 0, MAX_V * sizeof *counts);
    for (int i = 0; i < draws; i++) {
        int32_t token = sample_token(logits, scratch, V, &options, (uint64_t)i);
        assert_in_range(token, 0, V - 1);
        counts[token]++;
    }
}

/* Pearson's statistic of counts against softmax(logits / temperature) over the tokens in `set` (a bit each); none outside it. */
static double chi_square(const int *counts, const float *logits, int32_t V, double temperature, uint64_t set, int draws) {
    double sum = 0, statistic = 0;
    for (int32_t v = 0; v < V; v++)
        if (set >> v & 1) sum += exp(logits[v] / temperature);
    for (int32_t v = 0; v < V; v++) {
        if (!(set >> v & 1)) {
            if (counts[v]) fail_msg("token %d is outside the set, but was drawn %d times", v, counts[v]);
            continue;
        }
        double expected = draws * exp(logits[v] / temperature) / sum;
        if (counts[v] == 0) fail_msg("token %d was expected %.0f times, but not drawn", v, expected);
        statistic += (counts[v] - expected) * (counts[v] - expected) / expected;
    }
    return statistic;
}

/* At most what 1 in 1000 right samplers exceed (Wilson & Hilferty's approximation of the quantile); draws are fixed by the seed.
 */
static void assert_fits(double statistic, int freedom) {
    double a = 2.0 / (9.0 * freedom), quantile = freedom * pow(1 - a + 3.0902 * sqrt(a), 3);
    if (statistic > quantile) fail_msg("chi-square %.1f with %d degrees of freedom: limit %.1f", statistic, freedom, quantile);
}

static const float TEN[10] = {0.5f,   -1.0f, 2.0f, 1.5f,  0.0f,
                              -0.25f, 2.5f,  1.0f, -2.0f, 0.75f}; /* 6 2 3 7 9 0 4 5 1 8 from the top */

/* Many seeds together, as many texts would draw. */
static void assert_follows_softmax(sample_options options) {
    int counts[MAX_V], total[MAX_V] = {0};
    for (options.seed = 0; options.seed < SEEDS; options.seed++) {
        draw(counts, TEN, 10, options, 20000);
        for (int v = 0; v < 10; v++) total[v] += counts[v];
    }
    assert_fits(chi_square(total, TEN, 10, options.temperature, 0x3ff, SEEDS * 20000), 9);
}

static void draws_follow_the_softmax_at_any_temperature(void **state) {
    (void)state;
    assert_follows_softmax((sample_options){1.0, 0, 1.0, 0});
    assert_follows_softmax((sample_options){0.5, 0, 1.0, 0});
    assert_follows_softmax((sample_options){2.0, 0, 1.0, 0});
}

/* The whole vocabulary taken through the heap (this top_p needs all of it) has the same distribution as without. */
static void the_filtered_path_draws_like_the_plain_one(void **state) {
    (void)state;
    assert_follows_softmax((sample_options){1.0, 0, 1 - 1e-9, 0});
    assert_follows_softmax((sample_options){2.0, 0, 1 - 1e-9, 0});
}

static void top_k_draws_from_the_k_most_likely(void **state) {
    (void)state;
    static const int order[10] = {6, 2, 3, 7, 9, 0, 4, 5, 1, 8};
    int counts[MAX_V];
    uint64_t set = 0;
    for (int k = 1; k <= 10; k++) {
        set |= (uint64_t)1 << order[k - 1];
        draw(counts, TEN, 10, (sample_options){1.0, k, 1.0, 11}, 50000);
        double statistic = chi_square(counts, TEN, 10, 1.0, set, 50000);
        if (k > 1) assert_fits(statistic, k - 1);
    }
}

/* Probabilities .4 .3 .2 .1: p keeps the shortest prefix that reaches it. */
static void top_p_keeps_the_smallest_set_that_has_the_mass(void **state) {
    (void)state;
    const float logits[4] = {logf(0.2f), logf(0.4f), logf(0.1f), logf(0.3f)};
    static const struct {
        double p;
        uint64_t set;
        int size;
    } cases[] = {{0.0, 2, 1},   {0.01, 2, 1},  {0.39, 2, 1},  {0.41, 10, 2},
                 {0.69, 10, 2}, {0.71, 11, 3}, {0.89, 11, 3}, {0.91, 15, 4}};
    int counts[MAX_V];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        draw(counts, logits, 4, (sample_options){1.0, 0, cases[i].p, 5}, 50000);
        double statistic = chi_square(counts, logits, 4, 1.0, cases[i].set, 50000);
        if (cases[i].size > 1) assert_fits(statistic, cases[i].size - 1);
    }
}

/* Four equal tokens have exactly a quarter each: p = 1/2 is reached by two, not three. */
static void top_p_is_reached_by_exactly_p(void **state) {
    (void)state;
    const float logits[4] = {1, 1, 1, 1};
    int counts[MAX_V];
    draw(counts, logits, 4, (sample_options){1.0, 0, 0.5, 5}, 50000);
    assert_fits(chi_square(counts, logits, 4, 1.0, 0x3, 50000), 1);
}

/* Of .4 .3 .2 .1, k = 2 leaves 4/7 and 3/7: p = .55 keeps the first, where of the whole it would need both. */
static void top_p_counts_what_top_k_left(void **state) {
    (void)state;
    const float logits[4] = {logf(0.4f), logf(0.3f), logf(0.2f), logf(0.1f)};
    int counts[MAX_V];
    draw(counts, logits, 4, (sample_options){1.0, 2, 0.55, 5}, 10000);
    assert_int_equal(counts[0], 10000);
    draw(counts, logits, 4, (sample_options){1.0, 2, 0.6, 5}, 50000);
    assert_fits(chi_square(counts, logits, 4, 1.0, 0x3, 50000), 1);
}

static void equal_logits_rank_by_token(void **state) {
    (void)state;
    const float logits[6] = {0, 3, 1, 3, 3, 1};
    sample_candidate scratch[6];
    int counts[MAX_V];
    assert_int_equal(sample_token(logits, scratch, 6, &(sample_options){0, 0, 1.0, 1}, 0), 1);
    draw(counts, logits, 6, (sample_options){1.0, 2, 1.0, 1}, 1000);
    assert_int_equal(counts[1] + counts[3], 1000);
    draw(counts, logits, 6, (sample_options){1.0, 4, 1.0, 1}, 10000);
    assert_true(counts[2] > 0);
    assert_int_equal(counts[5], 0);
}

static void temperature_zero_takes_the_largest_whatever_the_seed(void **state) {
    (void)state;
    int counts[MAX_V];
    draw(counts, TEN, 10, (sample_options){0, 3, 0.5, 9}, 100);
    assert_int_equal(counts[6], 100);
}

/* exp of these over- or underflows unless the largest is taken off first. */
static void extreme_logits_neither_overflow_nor_vanish(void **state) {
    (void)state;
    const float high[3] = {3e38f, 3e38f, -3e38f}, low[3] = {-1e30f, -1e30f, -2e30f};
    int counts[MAX_V];
    for (int filtered = 0; filtered < 2; filtered++) {
        draw(counts, high, 3, (sample_options){1e-3, filtered ? 2 : 0, 1.0, 2}, 10000);
        assert_int_equal(counts[2], 0);
        assert_in_range(counts[0], 4800, 5200);
        draw(counts, low, 3, (sample_options){1e-3, filtered ? 2 : 0, 1.0, 2}, 10000);
        assert_int_equal(counts[2], 0);
        assert_in_range(counts[0], 4800, 5200);
    }
}

static void infinite_and_nan_logits(void **state) {
    (void)state;
    const float some[5] = {-INFINITY, 1, NAN, 1, -INFINITY}, none[3] = {-INFINITY, NAN, -INFINITY},
                sure[3] = {5, INFINITY, INFINITY};
    static const sample_options options[] = {{0, 0, 1, 4}, {1, 0, 1, 4}, {1, 4, 1, 4}, {1, 0, 0.9, 4}, {0.5, 3, 0.99, 4}};
    sample_candidate scratch[5];
    int counts[MAX_V];
    for (int i = 0; i < 5; i++) {
        draw(counts, some, 5, options[i], 1000);
        assert_int_equal(counts[1] + counts[3], 1000);
        if (i > 0) assert_in_range(counts[1], 400, 600);
        assert_int_equal(sample_token(none, scratch, 3, &options[i], 0), -1);
        assert_int_equal(sample_token(sure, scratch, 3, &options[i], 0), 1);
    }
}

static void the_draw_is_a_function_of_seed_and_position(void **state) {
    (void)state;
    sample_candidate scratch[10];
    const sample_options a = {1.0, 0, 1.0, 1}, b = {1.0, 0, 1.0, 2};
    int32_t drawn[100];
    int other_seed = 0, other_position = 0;
    for (int i = 0; i < 100; i++) drawn[i] = sample_token(TEN, scratch, 10, &a, (uint64_t)i);
    for (int i = 99; i >= 0; i--) {
        assert_int_equal(sample_token(TEN, scratch, 10, &a, (uint64_t)i), drawn[i]);
        other_seed += sample_token(TEN, scratch, 10, &b, (uint64_t)i) != drawn[i];
        other_position += drawn[i] != drawn[(i + 1) % 100];
    }
    assert_in_range(other_seed, 50, 100);
    assert_in_range(other_position, 50, 100);
}

static int by_rank(const void *x, const void *y) {
    const sample_candidate *a = x, *b = y;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->token - b->token;
}

/* The heap takes the same tokens as a sort of a whole vocabulary with many ties, in the same order. */
static void the_heap_ranks_a_large_vocabulary_like_a_sort(void **state) {
    (void)state;
    enum { V = 20000, K = 700 };
    float *logits = malloc(V * sizeof *logits);
    sample_candidate *scratch = malloc(V * sizeof *scratch), *sorted = malloc(V * sizeof *sorted);
    uint32_t x = 1;
    for (int v = 0; v < V; v++) {
        x = x * 1664525u + 1013904223u;
        logits[v] = (float)(x >> 20) / 256.0f;
        sorted[v] = (sample_candidate){logits[v], v};
    }
    qsort(sorted, V, sizeof *sorted, by_rank);
    sample_token(logits, scratch, V, &(sample_options){1.0, K, 1.0, 1}, 0);
    for (int i = 0; i < K; i++) assert_int_equal(scratch[V - 1 - i].token, sorted[i].token);
    free(logits);
    free(scratch);
    free(sorted);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_softmax_at_any_temperature),
        cmocka_unit_test(the_filtered_path_draws_like_the_plain_one),
        cmocka_unit_test(top_k_draws_from_the_k_most_likely),
        cmocka_unit_test(top_p_keeps_the_smallest_set_that_has_the_mass),
        cmocka_unit_test(top_p_is_reached_by_exactly_p),
        cmocka_unit_test(top_p_counts_what_top_k_left),
        cmocka_unit_test(equal_logits_rank_by_token),
        cmocka_unit_test(temperature_zero_takes_the_largest_whatever_the_seed),
        cmocka_unit_test(extreme_logits_neither_overflow_nor_vanish),
        cmocka_unit_test(infinite_and_nan_logits),
        cmocka_unit_test(the_draw_is_a_function_of_seed_and_position),
        cmocka_unit_test(the_heap_ranks_a_large_vocabulary_like_a_sort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
