/* test_schedule.c: train/schedule.h. */
#include "train/schedule.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const double LR = 4e-4, RATIO = 0.1;

/* A run of 1000 steps of 1000 tokens, of which 100 warm up; wsd decays over the last fifth. */
static double at(schedule_kind kind, int64_t tokens_done) {
    return schedule_lr(kind, LR, RATIO, tokens_done, 1000, 100000, 1000000, 0.2);
}

static void assert_near(double got, double expected, const char *what) {
    if (!(fabs(got - expected) <= 1e-15)) fail_msg("%s: got %.17g, expected %.17g", what, got, expected);
}

static void warm_up_rises_from_the_first_step_to_lr(void **state) {
    (void)state;
    for (int kind = SCHEDULE_COSINE; kind <= SCHEDULE_CONSTANT; kind++) {
        assert_near(at((schedule_kind)kind, 0), LR / 100, "first step");
        assert_near(at((schedule_kind)kind, 49000), LR / 2, "step 50 of 100");
        assert_near(at((schedule_kind)kind, 98000), LR * 0.99, "step 99 of 100");
        assert_near(at((schedule_kind)kind, 99000), LR, "step 100 of 100");
        assert_near(at((schedule_kind)kind, 100000), LR, "the step after");
    }
}

/* The middle of the decay, from tables of the functions: cos(60 degrees) = 1/2 a third of the way, and so on. */
static void shapes_pass_through_known_points(void **state) {
    (void)state;
    assert_near(at(SCHEDULE_COSINE, 400000), LR * (0.1 + 0.9 * 0.75), "cosine, 1/3");
    assert_near(at(SCHEDULE_COSINE, 550000), LR * (0.1 + 0.9 * 0.5), "cosine, 1/2");
    assert_near(at(SCHEDULE_COSINE, 700000), LR * (0.1 + 0.9 * 0.25), "cosine, 2/3");
    assert_near(at(SCHEDULE_LINEAR, 325000), LR * (0.1 + 0.9 * 0.75), "linear, 1/4");
    assert_near(at(SCHEDULE_LINEAR, 775000), LR * (0.1 + 0.9 * 0.25), "linear, 3/4");
    assert_near(at(SCHEDULE_WSD, 799000), LR, "wsd, before the decay");
    assert_near(at(SCHEDULE_WSD, 800000), LR, "wsd, where it starts");
    assert_near(at(SCHEDULE_WSD, 850000), LR * (0.1 + 0.9 * 0.5), "wsd, 1/4");
    assert_near(at(SCHEDULE_WSD, 928000), LR * (0.1 + 0.9 * 0.2), "wsd, 0.64");
    assert_near(at(SCHEDULE_CONSTANT, 999000), LR, "constant, last step");
}

static void the_last_step_stands_one_step_before_the_minimum(void **state) {
    (void)state;
    assert_near(at(SCHEDULE_LINEAR, 999000), LR * (0.1 + 0.9 / 900), "linear, last step");
    assert_near(at(SCHEDULE_WSD, 999000), LR * (0.1 + 0.9 * (1 - sqrt(0.995))), "wsd, last step");
    assert_near(at(SCHEDULE_COSINE, 999000), LR * (0.1 + 0.9 * pow(sin(3.14159265358979323846 / 1800), 2)), "cosine, last step");
    for (int kind = SCHEDULE_COSINE; kind <= SCHEDULE_LINEAR; kind++) {
        assert_near(at((schedule_kind)kind, 1000000), LR * RATIO, "the end");
        assert_near(at((schedule_kind)kind, 5000000), LR * RATIO, "past the end");
    }
}

/* With a minimum of zero no step is wasted. */
static void no_step_has_a_rate_of_zero(void **state) {
    (void)state;
    for (int kind = SCHEDULE_COSINE; kind <= SCHEDULE_CONSTANT; kind++)
        for (int64_t t = 0; t < 1000000; t += 1000) {
            double lr = schedule_lr((schedule_kind)kind, LR, 0, t, 1000, 100000, 1000000, 0.2);
            if (!(lr > 0 && lr <= LR)) fail_msg("kind %d, %lld tokens: %g", kind, (long long)t, lr);
        }
}

static void the_rate_never_rises_after_warm_up(void **state) {
    (void)state;
    for (int kind = SCHEDULE_COSINE; kind <= SCHEDULE_CONSTANT; kind++)
        for (int64_t t = 100000; t < 1000000; t += 1000)
            if (at((schedule_kind)kind, t) > at((schedule_kind)kind, t - 1000) * (1 + 1e-15))
                fail_msg("kind %d rises at %lld tokens", kind, (long long)t);
}

/* After warm-up the rate depends on the tokens before a step, not on how many it takes. */
static void other_batch_sizes_have_the_same_curve(void **state) {
    (void)state;
    for (int kind = SCHEDULE_COSINE; kind <= SCHEDULE_CONSTANT; kind++)
        for (int64_t t = 100000; t < 1000000; t += 50000)
            assert_near(schedule_lr((schedule_kind)kind, LR, RATIO, t, 50000, 100000, 1000000, 0.2), at((schedule_kind)kind, t),
                        "steps of 50000 tokens");
}

static void unusual_settings_stay_defined(void **state) {
    (void)state;
    assert_near(schedule_lr(SCHEDULE_COSINE, LR, RATIO, 0, 1000, 0, 1000000, 0), LR, "no warm-up: the first step");
    assert_near(schedule_lr(SCHEDULE_LINEAR, LR, RATIO, 500, 500, 4000, 1000, 0), LR / 4, "warm-up longer than the run");
    assert_near(schedule_lr(SCHEDULE_WSD, LR, RATIO, 999000, 1000, 0, 1000000, 0), LR, "wsd without decay");
    assert_near(schedule_lr(SCHEDULE_WSD, LR, RATIO, 325000, 1000, 100000, 1000000, 1), LR * (0.1 + 0.9 * 0.5),
                "wsd that only decays starts after warm-up");
    /* Tokens past 2^31 and 2^32. */
    assert_near(schedule_lr(SCHEDULE_LINEAR, LR, RATIO, 5000000000000, 524288, 0, 10000000000000, 0), LR * 0.55,
                "ten trillion tokens");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warm_up_rises_from_the_first_step_to_lr),
        cmocka_unit_test(shapes_pass_through_known_points),
        cmocka_unit_test(the_last_step_stands_one_step_before_the_minimum),
        cmocka_unit_test(no_step_has_a_rate_of_zero),
        cmocka_unit_test(the_rate_never_rises_after_warm_up),
        cmocka_unit_test(other_batch_sizes_have_the_same_curve),
        cmocka_unit_test(unusual_settings_stay_defined),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
