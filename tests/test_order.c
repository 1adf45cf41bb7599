/* test_order.c: data/order.h: shares, epochs, seeking, and what does not change the order. */
#include "data/order.h"

#include <inttypes.h>
#include <math.h>

#include "tests/data_testing.h"

static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"};

static sample_order open_order(int n, const int64_t *windows, const double *weights, uint64_t seed) {
    sample_order o;
    error err = {0};
    if (sample_order_open(&o, n, names, windows, weights, seed, &err)) fail_msg("%s", err.text);
    return o;
}

/* ---- shares ---- */

/* |count - weight * s| <= 1 - 1/(2k-2) for every source after each of `samples` samples, in long double. */
static void check_shares(int n, const double *weights, int64_t samples) {
    int64_t windows[12];
    long double sum = 0, bound = n == 1 ? 0 : 1 - 1 / (2.0L * n - 2);
    for (int d = 0; d < n; d++) {
        windows[d] = 1000 + d;
        sum += (long double)weights[d];
    }
    sample_order o = open_order(n, windows, weights, 1);
    int64_t counts[12] = {0};
    for (int64_t s = 1; s <= samples; s++) {
        counts[sample_order_next(&o).source]++;
        for (int d = 0; d < n; d++) {
            long double off = fabsl((long double)counts[d] - (long double)weights[d] / sum * (long double)s);
            if (off > bound + 1e-9L)
                fail_msg("after %" PRId64 " samples source %d of %d (weight %g of %Lg) has had %" PRId64
                         ": off by %Lf, allowed %Lf",
                         s, d, n, weights[d], sum, counts[d], off, bound);
        }
    }
    for (int d = 0; d < n; d++) assert_int_equal(o.counts[d], counts[d]);
    assert_int_equal(o.next, samples);
    sample_order_close(&o);
}

static void shares_hold_at_every_sample(void **state) {
    (void)state;
    static const double weights[][3] = {
        {1, 1, 1},         {0.5, 0.3, 0.2}, {1e-5, 1, 1},      {1e-3, 0.999e-3, 0.998}, {1, 1e6, 1e6 + 1},
        {0.7, 0.15, 0.15}, {1e-300, 1, 2},  {1e300, 1e300, 1}, {M_PI, M_E, M_SQRT2},    {1 / 3.0, 1 / 3.0, 1 / 3.0}};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) check_shares(3, weights[i], 100000);
}

/* Where the greedy rule (the source that lags most) breaks the bound: one large source and many small ones. */
static void shares_hold_with_many_sources(void **state) {
    (void)state;
    static const double many[][12] = {{12, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                      {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                      {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
                                      {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048},
                                      {1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 0.3, 0.699}};
    for (size_t i = 0; i < sizeof many / sizeof *many; i++)
        for (int n = 1; n <= 12; n++) check_shares(n, many[i], 20000);
}

/* Shares do not drift when the sample's number is large: the state far into a run is set by hand. */
static void shares_hold_far_into_a_run(void **state) {
    (void)state;
    static const int64_t windows[] = {1 << 30, 1 << 30, 1 << 30};
    static const double weights[] = {0.61, 0.2700000001, 0.1199999999};
    sample_order o = open_order(3, windows, weights, 1);
    const int64_t start = 1000000000000;
    for (int d = 0; d < 3; d++) o.counts[d] = llround(o.weights[d] * 1e12);
    o.next = o.counts[0] + o.counts[1] + o.counts[2];
    assert_true(llabs(o.next - start) <= 1);
    for (int i = 0; i < 20000; i++) {
        sample_order_next(&o);
        for (int d = 0; d < 3; d++) {
            double off = fabs((double)o.counts[d] - o.weights[d] * (double)o.next);
            if (off > 1) fail_msg("sample %" PRId64 ": source %d is off by %f", o.next, d, off);
        }
    }
    sample_order_close(&o);
}

/* ---- epochs ---- */

/* Each source draws each of its windows once in each of its epochs, and epochs come one after the other. */
static void every_window_comes_once_an_epoch(void **state) {
    (void)state;
    static const int64_t windows[] = {1, 7, 64, 1000};
    static const double weights[] = {0.1, 0.2, 0.3, 0.4};
    sample_order o = open_order(4, windows, weights, 5);
    int seen[4][1000] = {0};
    int64_t counts[4] = {0};
    for (int64_t s = 0; s < 8000; s++) {
        sample x = sample_order_next(&o);
        int64_t n = windows[x.source];
        assert_in_range(x.window, 0, n - 1);
        assert_int_equal(x.epoch, counts[x.source] / n);
        if (seen[x.source][x.window]++ != x.epoch)
            fail_msg("source %d, epoch %" PRId64 ": window %" PRId64 " has been drawn %d times before", x.source, x.epoch,
                     x.window, seen[x.source][x.window] - 1);
        counts[x.source]++;
    }
    for (int d = 0; d < 4; d++) assert_true(counts[d] / windows[d] >= 3);
    sample_order_close(&o);
}

/* How many of the first n samples of two orders of one source are the same window: about 1 for unrelated permutations. */
static int agreements(uint64_t seed_a, uint64_t seed_b, int64_t skip_b, int n) {
    const int64_t windows = 500;
    const double weight = 1;
    sample_order a = open_order(1, &windows, &weight, seed_a), b = open_order(1, &windows, &weight, seed_b);
    sample_order_seek(&b, skip_b);
    int same = 0;
    for (int i = 0; i < n; i++) same += sample_order_next(&a).window == sample_order_next(&b).window;
    sample_order_close(&a);
    sample_order_close(&b);
    return same;
}

static void epochs_seeds_and_the_file_order_are_unrelated(void **state) {
    (void)state;
    assert_int_equal(agreements(1, 1, 0, 500), 500);
    assert_in_range(agreements(1, 2, 0, 500), 0, 8);   /* another seed; more than 8 has probability 1e-6 */
    assert_in_range(agreements(1, 1, 500, 500), 0, 8); /* the next epoch */
    const int64_t windows = 500;
    const double weight = 1;
    sample_order o = open_order(1, &windows, &weight, 1);
    int in_place = 0, successors = 0;
    int64_t last = -1;
    for (int64_t i = 0; i < windows; i++) {
        int64_t window = sample_order_next(&o).window;
        in_place += window == i;
        successors += window == last + 1;
        last = window;
    }
    assert_in_range(in_place, 0, 8);
    assert_in_range(successors, 0, 8);
    sample_order_close(&o);
}

/* Two sources of equal size are not shuffled alike. */
static void sources_are_shuffled_differently(void **state) {
    (void)state;
    static const int64_t windows[] = {500, 500};
    static const double weights[] = {1, 1};
    sample_order o = open_order(2, windows, weights, 1);
    int64_t drawn[2][500];
    int counts[2] = {0}, same = 0;
    for (int s = 0; s < 1000; s++) {
        sample x = sample_order_next(&o);
        drawn[x.source][counts[x.source]++] = x.window;
    }
    for (int i = 0; i < 500; i++) same += drawn[0][i] == drawn[1][i];
    assert_in_range(same, 0, 8);
    sample_order_close(&o);
}

/* ---- seeking ---- */

static void seeking_finds_the_same_samples(void **state) {
    (void)state;
    static const int64_t windows[] = {13, 100, 41};
    static const double weights[] = {0.21, 0.5, 0.29};
    enum { N = 3000 };
    sample all[N + 10];
    sample_order o = open_order(3, windows, weights, 9);
    for (int s = 0; s < N + 10; s++) all[s] = sample_order_next(&o);
    uint32_t place = 1;
    for (int i = 0; i < 300; i++) { /* forwards and backwards */
        place = place * 1664525u + 1013904223u;
        int64_t s = i == 0 ? 0 : i == 1 ? N : (int64_t)(place >> 8) % N;
        sample_order_seek(&o, s);
        assert_int_equal(o.next, s);
        for (int64_t k = s; k < s + 10; k++) {
            sample x = sample_order_next(&o);
            if (x.source != all[k].source || x.epoch != all[k].epoch || x.window != all[k].window)
                fail_msg("sample %" PRId64 " after seeking to %" PRId64 ": source %d window %" PRId64
                         ", read on it was %d and %" PRId64,
                         k, s, x.source, x.window, all[k].source, all[k].window);
        }
    }
    sample_order_close(&o);
}

/* Weights of any sum are shares: the order is the same when they are multiplied by a power of two, which rounds nothing. */
static void weights_are_shares(void **state) {
    (void)state;
    static const int64_t windows[] = {13, 100, 41};
    static const double weights[] = {0.21, 0.5, 0.29}, scaled[] = {0.21 * 1024, 512, 0.29 * 1024};
    sample_order a = open_order(3, windows, weights, 9), b = open_order(3, windows, scaled, 9);
    for (int s = 0; s < 5000; s++) {
        sample x = sample_order_next(&a), y = sample_order_next(&b);
        assert_int_equal(x.source, y.source);
        assert_int_equal(x.window, y.window);
    }
    sample_order_close(&a);
    sample_order_close(&b);
}

/* The order is a promise to checkpoints: a change of it must be a decision. The samples were worked out by a program of its own,
 * with Tijdeman's rule in exact fractions. */
static void the_order_does_not_change_between_versions(void **state) {
    (void)state;
    static const int64_t windows[] = {10, 20, 5};
    static const double weights[] = {0.5, 0.3, 0.2};
    static const sample expected[] = {{0, 0, 7},  {1, 0, 18}, {0, 0, 8},  {2, 0, 3},  {0, 0, 2}, {1, 0, 3},
                                      {0, 0, 5},  {2, 0, 0},  {1, 0, 17}, {0, 0, 1},  {0, 0, 6}, {1, 0, 19},
                                      {0, 0, 3},  {2, 0, 2},  {0, 0, 4},  {1, 0, 6},  {0, 0, 9}, {2, 0, 4},
                                      {1, 0, 11}, {0, 0, 0},  {0, 1, 2},  {1, 0, 16}, {0, 1, 7}, {2, 0, 1}};
    sample_order o = open_order(3, windows, weights, 1234);
    for (size_t s = 0; s < sizeof expected / sizeof *expected; s++) {
        sample x = sample_order_next(&o);
        if (x.source != expected[s].source || x.epoch != expected[s].epoch || x.window != expected[s].window)
            fail_msg("sample %zu is {%d, %" PRId64 ", %" PRId64 "}, was {%d, %" PRId64 ", %" PRId64 "}", s, x.source, x.epoch,
                     x.window, expected[s].source, expected[s].epoch, expected[s].window);
    }
    sample_order_close(&o);
}

/* ---- errors ---- */

static void bad_weights_and_empty_sources_are_named(void **state) {
    (void)state;
    static const double bad[] = {0, -1, -0.0, NAN, INFINITY, -INFINITY};
    static const char *const prefixes[] = {"data/one", "data/two"};
    int64_t windows[] = {5, 5};
    sample_order o;
    error err = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        double weights[] = {1, bad[i]};
        assert_int_equal(sample_order_open(&o, 2, prefixes, windows, weights, 1, &err), -1);
        assert_int_equal(err.code, STATUS_USAGE);
        char found[40];
        snprintf(found, sizeof found, "weight is %g", bad[i]);
        assert_says(&err, "data/two", found, "positive", NULL);
    }
    double huge[] = {1.7e308, 1.7e308}, fine[] = {1, 1};
    assert_int_equal(sample_order_open(&o, 2, prefixes, windows, huge, 1, &err), -1);
    assert_says(&err, "too large", NULL);
    windows[0] = 0;
    assert_int_equal(sample_order_open(&o, 2, prefixes, windows, fine, 1, &err), -1);
    assert_int_equal(err.code, STATUS_INPUT);
    assert_says(&err, "data/one", "no window", NULL);
    assert_int_equal(sample_order_open(&o, 0, prefixes, windows, fine, 1, &err), -1);
    assert_says(&err, "no data", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_hold_at_every_sample),
        cmocka_unit_test(shares_hold_with_many_sources),
        cmocka_unit_test(shares_hold_far_into_a_run),
        cmocka_unit_test(every_window_comes_once_an_epoch),
        cmocka_unit_test(epochs_seeds_and_the_file_order_are_unrelated),
        cmocka_unit_test(sources_are_shuffled_differently),
        cmocka_unit_test(seeking_finds_the_same_samples),
        cmocka_unit_test(weights_are_shares),
        cmocka_unit_test(the_order_does_not_change_between_versions),
        cmocka_unit_test(bad_weights_and_empty_sources_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
