/* test_adamw.c: the optimizer's step, against a plain loop in double precision. */
#include "op_testing.h"

enum { N = 2500, STEPS = 5 }; /* more than two lines, and a part of one */

/* One step in double, as written in the paper's algorithm 2 with the schedule folded into lr. */
static void reference_step(double *w, double *m, double *v, const double *g, double scale, const adamw_step *s, int t) {
    for (int i = 0; i < N; i++) {
        double gradient = g[i] * scale, beta1 = (double)s->beta1, beta2 = (double)s->beta2, lr = (double)s->lr;
        w[i] *= 1 - lr * (double)s->weight_decay;
        m[i] = beta1 * m[i] + (1 - beta1) * gradient;
        v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient;
        double m_hat = m[i] / (1 - pow(beta1, (double)t)), v_hat = v[i] / (1 - pow(beta2, (double)t));
        w[i] -= lr * m_hat / (sqrt(v_hat) + (double)s->eps);
    }
}

static void check_steps(testing *t, dtype x, bool has_master) {
    double *w = random_doubles(t, N, 1, 0.02f), *m = new_doubles(t, N), *v = new_doubles(t, N), *g = NULL;
    void *p = new_array(t, N, x);
    float *master = has_master ? array_of(t, w, N, DTYPE_F32) : NULL, *got_m = new_floats(t, N), *got_v = new_floats(t, N);
    if (!has_master) p = array_of(t, w, N, x);
    adamw_state adamw = {0};
    for (int i = 0; i < N; i++) m[i] = v[i] = got_m[i] = got_v[i] = 0;
    for (int k = 1; k <= STEPS; k++) {
        g = random_doubles(t, N, 1 + (uint64_t)k, 0.01f);
        g[0] = 0; /* a parameter that gets no gradient only decays */
        float *x_g = array_of(t, g, N, DTYPE_F32);
        adamw_step step = {.lr = 3e-3f * (float)k, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f};
        double norm = 2 + k, sum_squares = norm * norm; /* not that of g: any scale will do */
        t->ops->adamw_begin(t->b, &adamw, &sum_squares, 1.5f, step.beta1, step.beta2);
        t->ops->adamw(t->b, p, master, got_m, got_v, x_g, &adamw, &step, x, N);
        assert_int_equal(adamw.t, k);
        reference_step(w, m, v, g, 1.5 / (norm + 1e-6), &step, k);
    }
    check_close("w", has_master ? master : p, w, N, DTYPE_F32, 1e-6, 0.1);
    check_close("m", got_m, m, N, DTYPE_F32, 1e-6, 0.01);
    check_close("v", got_v, v, N, DTYPE_F32, 1e-6, 1e-4);
    for (int i = 0; i < N; i++) w[i] = element(has_master ? master : p, DTYPE_F32, i);
    check_same_bits("p", p, array_of(t, w, N, x), N, x);
}

/* Several steps with changing rates and scales; p is the master copy rounded, where there is one. */
static void steps_are_the_formula(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        testing t;
        testing_open(&t, 2);
        check_steps(&t, i == 2 ? DTYPE_BF16 : DTYPE_F32, i > 0);
        testing_close(&t);
    }
}

/* What torch.optim.AdamW (torch 2.15, float64) gives for three steps on w = 0.5, -1.25 with g = 0.1, -3 then 0.2, 1 then -0.4,
 * 1e-4; lr 0.01, betas (0.9, 0.999), eps 1e-8, weight decay 0.1. */
static void steps_are_those_of_torch(void **state) {
    (void)state;
    static const float gradients[3][2] = {{0.1f, -3.0f}, {0.2f, 1.0f}, {-0.4f, 1e-4f}};
    static const double expected[2] = {0.48081726714661976, -1.2291820563277278};
    testing t;
    testing_open(&t, 1);
    float w[2] = {0.5f, -1.25f}, m[2] = {0}, v[2] = {0};
    adamw_state adamw = {0};
    for (int k = 0; k < 3; k++) {
        adamw_step step = {.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.1f};
        double unclipped = 9;
        t.ops->adamw_begin(t.b, &adamw, &unclipped, 0, step.beta1, step.beta2);
        t.ops->adamw(t.b, w, NULL, m, v, gradients[k], &adamw, &step, DTYPE_F32, 2);
    }
    check_close("w", w, expected, 2, DTYPE_F32, 2e-7, 1);
    testing_close(&t);
}

/* torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6)). */
static void clipping_is_that_of_torch(void **state) {
    (void)state;
    const double nan = (double)NAN, infinity = (double)INFINITY;
    const struct {
        double sum_squares;
        float max_norm;
        double expected;
    } cases[] = {
        {16, 1, 1 / (4 + 1e-6)}, {0.25, 1, 1},  {0, 1, 1},          {16, 0, 1},
        {1e60, 2, 2e-30},        {nan, 1, nan}, {infinity, 1, nan}, {infinity, 0, nan},
    };
    testing t;
    testing_open(&t, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        adamw_state adamw = {.scale = -1};
        t.ops->adamw_begin(t.b, &adamw, &cases[i].sum_squares, cases[i].max_norm, 0.9f, 0.95f);
        bool right = isnan(cases[i].expected) ? isnan(adamw.scale) : adamw.scale == (float)cases[i].expected;
        if (!right)
            fail_msg("sum of squares %g, max_norm %g: scale %.9g, expected %.9g", cases[i].sum_squares, (double)cases[i].max_norm,
                     (double)adamw.scale, cases[i].expected);
    }
    testing_close(&t);
}

/* A step whose gradients were not finite leaves parameters and moments as they are. */
static void a_norm_that_is_not_finite_changes_nothing(void **state) {
    (void)state;
    const double norms[] = {(double)NAN, (double)INFINITY, -(double)INFINITY};
    for (int i = 0; i < 3; i++) {
        testing t;
        testing_open(&t, 2);
        float w[3] = {1, 2, 3}, m[3] = {4, 5, 6}, v[3] = {7, 8, 9}, g[3] = {1, 1, 1};
        bf16 p[3] = {1, 2, 3};
        adamw_step step = {.lr = 0.1f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f};
        adamw_state adamw = {.t = 3, .rate = 1, .root = 1, .scale = 1};
        t.ops->adamw_begin(t.b, &adamw, &norms[i], 0, step.beta1, step.beta2);
        t.ops->adamw(t.b, p, w, m, v, g, &adamw, &step, DTYPE_BF16, 3);
        assert_int_equal(adamw.t, 3);
        check_same_bits("p", p, (bf16[]){1, 2, 3}, 3, DTYPE_BF16);
        check_same_bits("w", w, (float[]){1, 2, 3}, 3, DTYPE_F32);
        check_same_bits("m", m, (float[]){4, 5, 6}, 3, DTYPE_F32);
        check_same_bits("v", v, (float[]){7, 8, 9}, 3, DTYPE_F32);
        testing_close(&t);
    }
}

/* ---- p rounded by chance ---- */

/* One step at rate 0, which leaves the weights as they are and rounds them; n elements from `first` on of their tensor. */
static void round_by_chance(testing *t, bf16 *p, float *master, int64_t first, int64_t n, int64_t at_t) {
    float *zeros = calloc((size_t)n, 3 * sizeof *zeros);
    assert_non_null(zeros);
    adamw_state adamw = {.t = at_t, .rate = 1, .root = 1, .scale = 1};
    adamw_step step = {.beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .stochastic = true, .key = 77, .first = first};
    t->ops->adamw(t->b, p, master, zeros, zeros + n, zeros + 2 * n, &adamw, &step, DTYPE_BF16, n);
    free(zeros);
}

/* The 16 random bits of an element, as ops.h says. */
static uint32_t bits_of(int64_t i, int64_t at_t) {
    uint32_t words[4];
    philox(words, 77, (uint64_t)at_t, (uint64_t)i / 8);
    return (uint32_t)((words[i % 8 / 2] >> (i % 2 * 16)) & 0xffff);
}

/* Of 65536 parts of the way from the neighbour towards 0 to the other one, an element has come `part`: away from 0 when the
 * random number is among the highest `part`. */
static bf16 expected_rounding(float f, uint32_t random) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t towards_0 = bits >> 16, part = bits & 0xffff;
    if (isnan(f) || (towards_0 & 0x7fff) >= 0x7f7f) return bf16_from_float(f);
    return (bf16)(random >= 65536 - part ? towards_0 + 1 : towards_0);
}

/* Each distance, at the two random numbers between which it changes its mind. */
static void chance_goes_up_for_the_highest_numbers(void **state) {
    (void)state;
    for (uint32_t part = 0; part < 65536; part++) {
        uint32_t bits = 0xbf950000u + part;
        float f;
        memcpy(&f, &bits, sizeof f);
        assert_int_equal(bf16_stochastic(f, 65535 - part), 0xbf95);
        if (part > 0) assert_int_equal(bf16_stochastic(f, 65536 - part), 0xbf96);
    }
}

/* Pieces that begin and end anywhere, more than a line. */
static void chance_is_philox_s(void **state) {
    (void)state;
    const int64_t starts[] = {0, 8, 1, 7, 1020, ((int64_t)1 << 33) + 3}, lengths[] = {1, 5, 8, 1024, 2500};
    testing t;
    testing_open(&t, 2);
    float *master = new_floats(&t, N);
    bf16 *p = new_array(&t, N, DTYPE_BF16), *expected = new_array(&t, N, DTYPE_BF16);
    rng_normal(master, 1, 0, N, 0.02f);
    for (int i = 0; i < 30; i++) {
        int64_t first = starts[i % 6], n = lengths[i / 6], at_t = 1 + i * 100000000000;
        for (int64_t k = 0; k < n; k++) expected[k] = expected_rounding(master[k], bits_of(first + k, at_t));
        round_by_chance(&t, p, master, first, n, at_t);
        check_same_bits("p", p, expected, n, DTYPE_BF16);
    }
    testing_close(&t);
}

/* Rounded in pieces by other threads, a tensor has the bits that it has as a whole. */
static void chance_does_not_depend_on_the_pieces(void **state) {
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        testing t;
        testing_open(&t, threads);
        float *master = new_floats(&t, N);
        bf16 *whole = new_array(&t, N, DTYPE_BF16), *pieces = new_array(&t, N, DTYPE_BF16);
        rng_normal(master, 1, 0, N, 0.02f);
        round_by_chance(&t, whole, master, 0, N, 9);
        const int cuts[] = {0, 3, 64, 65, 1152, 1160, N};
        for (int i = 0; i < 6; i++) round_by_chance(&t, pieces + cuts[i], master + cuts[i], cuts[i], cuts[i + 1] - cuts[i], 9);
        check_same_bits("p", pieces, whole, N, DTYPE_BF16);
        testing_close(&t);
    }
}

/* What needs no rounding, and what lies beyond bf16's range. */
static void chance_leaves_alone_what_it_must(void **state) {
    (void)state;
    const float stay[] = {0.0f, -0.0f, 1.0f, -1.0078125f, 0x1p-133f, 0x1.fep127f, -0x1.fep127f, INFINITY, -INFINITY};
    const struct {
        float from, to;
    } nearest[] = {
        {0x1.fe8p127f, 0x1.fep127f}, {-0x1.fe8p127f, -0x1.fep127f}, {0x1.ffp127f, INFINITY}, {-0x1.ffp127f, -INFINITY}};
    testing t;
    testing_open(&t, 1);
    for (int64_t at_t = 1; at_t <= 200; at_t++) {
        float values[16] = {0};
        bf16 p[16];
        for (int i = 0; i < 9; i++) values[i] = stay[i];
        for (int i = 0; i < 4; i++) values[9 + i] = nearest[i].from;
        values[13] = NAN;
        round_by_chance(&t, p, values, 0, 14, at_t);
        for (int i = 0; i < 9; i++) assert_int_equal(p[i], bf16_from_float(stay[i]));
        for (int i = 0; i < 4; i++) assert_int_equal(p[9 + i], bf16_from_float(nearest[i].to));
        assert_true(isnan(bf16_to_float(p[13])));
    }
    testing_close(&t);
}

/* Over many steps an element's mean is the element: off by no more than four standard errors of its own draw, which goes up with
 * the probability `part`. And no two neighbours go up together more often than chance would have it. */
static void chance_has_no_bias(void **state) {
    (void)state;
    enum { ELEMENTS = 64, DRAWS = 1 << 14 };
    testing t;
    testing_open(&t, 1);
    float master[ELEMENTS];
    int up[ELEMENTS] = {0}, both[ELEMENTS] = {0};
    for (int i = 0; i < ELEMENTS; i++)
        master[i] = (i % 2 ? -1.0f : 1.0f) * (0x1p-6f + 0x1p-19f * (float)i); /* 0 to 63 / 64 of the way */
    for (int64_t at_t = 1; at_t <= DRAWS; at_t++) {
        bf16 p[ELEMENTS];
        bool went_up[ELEMENTS];
        round_by_chance(&t, p, master, 0, ELEMENTS, at_t);
        for (int i = 0; i < ELEMENTS; i++) {
            float magnitude = fabsf(bf16_to_float(p[i]));
            assert_true(magnitude == 0x1p-6f || magnitude == 0x1p-6f + 0x1p-13f);
            went_up[i] = magnitude > 0x1p-6f;
            up[i] += went_up[i];
            both[i] += i > 0 && went_up[i] && went_up[i - 1];
        }
    }
    for (int i = 0; i < ELEMENTS; i++) {
        double part = i / 64.0, together = i > 0 ? part * (i - 1) / 64.0 : 0;
        double off = fabs(up[i] - DRAWS * part), most = 4 * sqrt(DRAWS * part * (1 - part));
        if (!(off <= most))
            fail_msg("%d/64 of the way: %d of %d draws go up, expected %g +- %g", i, up[i], DRAWS, DRAWS * part, most);
        off = fabs(both[i] - DRAWS * together), most = 4 * sqrt(DRAWS * together * (1 - together));
        if (!(off <= most))
            fail_msg("elements %d and %d: %d go up together, expected %g +- %g", i - 1, i, both[i], DRAWS * together, most);
    }
    testing_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_the_formula),
        cmocka_unit_test(steps_are_those_of_torch),
        cmocka_unit_test(clipping_is_that_of_torch),
        cmocka_unit_test(a_norm_that_is_not_finite_changes_nothing),
        cmocka_unit_test(chance_goes_up_for_the_highest_numbers),
        cmocka_unit_test(chance_is_philox_s),
        cmocka_unit_test(chance_does_not_depend_on_the_pieces),
        cmocka_unit_test(chance_leaves_alone_what_it_must),
        cmocka_unit_test(chance_has_no_bias),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
