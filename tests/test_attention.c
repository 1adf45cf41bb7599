/* test_attention.c: blocked attention against the formula of ops.h, worked out in double by two plain loops over queries and
 * keys.
 *
 * The reference of the backward pass is given the forward pass's rounded o, as the op is; what that rounding costs against the
 * true derivative shows in the slopes of the loss. */
#include "attention_testing.h"
#include "cpu/cpu.h"

static void *spoiled(testing *t, size_t bytes) { return memset(new_bytes(t, bytes), 0xff, bytes); } /* NaN everywhere */

/* The ops on memory, scratch memory included, that was full of NaN. */
static results run(const problem *p) {
    testing *t = p->t;
    op_limits limits = {.x = p->x, .B = p->B, .T = p->T, .H = p->H, .K = p->K, .D = p->D};
    size_t bytes = cpu_attention_scratch(t->b, &limits);
    error err = {0};
    void *scratch = t->ops->alloc(t->b, bytes, &err);
    assert_non_null(scratch);
    memset(scratch, 0xff, bytes);
    t->ops->set_scratch(t->b, scratch, bytes);
    results r = {spoiled(t, (size_t)n_o(p) * dtype_size(p->x)), spoiled(t, (size_t)n_lse(p) * sizeof(float)),
                 spoiled(t, (size_t)n_qkv(p) * dtype_size(p->x))};
    t->ops->attention_forward(t->b, r.o, r.lse, p->x_qkv, p->doc, p->window, p->x, p->B, p->T, p->H, p->K, p->D);
    t->ops->attention_backward(t->b, r.dqkv, p->x_d_o, r.o, r.lse, p->x_qkv, p->doc, p->window, p->x, p->B, p->T, p->H, p->K,
                               p->D);
    if (t->ops->sync(t->b, &err)) fail_msg("%s", err.text);
    t->ops->set_scratch(t->b, t->scratch, 0);
    t->ops->free(t->b, scratch);
    return r;
}

/* ---- the reference ---- */

static double *query(const problem *p, double *rows, int b, int t, int h) {
    return rows + ((int64_t)b * p->T + t) * width(p) + h * p->D;
}
static double *key(const problem *p, double *rows, int b, int t, int h) { return query(p, rows, b, t, p->H + h / (p->H / p->K)); }
static double *value(const problem *p, double *rows, int b, int t, int h) { return key(p, rows, b, t, h) + p->K * p->D; }

static bool sees(const problem *p, int b, int i, int j) {
    if (p->doc && p->doc[b * p->T + i] != p->doc[b * p->T + j]) return false;
    return j <= i && (p->window == 0 || i - j < p->window);
}

static double dot(const double *u, const double *v, int D) {
    double sum = 0;
    for (int d = 0; d < D; d++) sum += u[d] * v[d];
    return sum;
}

/* Probabilities of query i of a head (T); returns lse. */
static double softmax(const problem *p, double *probability, int b, int i, int h) {
    double max = -INFINITY, sum = 0;
    for (int j = 0; j <= i; j++) {
        probability[j] = dot(query(p, p->qkv, b, i, h), key(p, p->qkv, b, j, h), p->D) / sqrt(p->D);
        if (sees(p, b, i, j)) max = fmax(max, probability[j]);
    }
    for (int j = 0; j <= i; j++) sum += probability[j] = sees(p, b, i, j) ? exp(probability[j] - max) : 0;
    for (int j = 0; j <= i; j++) probability[j] /= sum;
    return max + log(sum);
}

static void reference_forward(const problem *p, double *o, double *lse) {
    double *probability = malloc((size_t)p->T * sizeof *probability);
    memset(o, 0, (size_t)n_o(p) * sizeof *o);
    for (int b = 0; b < p->B; b++)
        for (int h = 0; h < p->H; h++)
            for (int i = 0; i < p->T; i++) {
                lse[(b * p->H + h) * p->T + i] = softmax(p, probability, b, i, h);
                double *out = o + ((int64_t)(b * p->T + i) * p->H + h) * p->D;
                for (int j = 0; j <= i; j++)
                    for (int d = 0; d < p->D; d++) out[d] += probability[j] * value(p, p->qkv, b, j, h)[d];
            }
    free(probability);
}

/* Gradients of sum(d_o * o), row by row of the matrix of scores; o (N,H*D) x is the forward pass's. */
static void reference_backward(const problem *p, double *dqkv, const void *o) {
    double *probability = malloc((size_t)p->T * sizeof *probability);
    memset(dqkv, 0, (size_t)n_qkv(p) * sizeof *dqkv);
    for (int b = 0; b < p->B; b++)
        for (int h = 0; h < p->H; h++)
            for (int i = 0; i < p->T; i++) {
                int64_t row = ((int64_t)(b * p->T + i) * p->H + h) * p->D;
                const double *d_o = p->d_o + row;
                double delta = 0;
                for (int d = 0; d < p->D; d++) delta += d_o[d] * element(o, p->x, row + d);
                softmax(p, probability, b, i, h);
                for (int j = 0; j <= i; j++) {
                    double ds = probability[j] * (dot(d_o, value(p, p->qkv, b, j, h), p->D) - delta) / sqrt(p->D);
                    for (int d = 0; d < p->D; d++) {
                        query(p, dqkv, b, i, h)[d] += ds * key(p, p->qkv, b, j, h)[d];
                        key(p, dqkv, b, j, h)[d] += ds * query(p, p->qkv, b, i, h)[d];
                        value(p, dqkv, b, j, h)[d] += probability[j] * d_o[d];
                    }
                }
            }
    free(probability);
}

static void check_problem(const problem *p) {
    results r = run(p);
    double *o = new_doubles(p->t, n_o(p)), *lse = new_doubles(p->t, n_lse(p)), *dqkv = new_doubles(p->t, n_qkv(p));
    reference_forward(p, o, lse);
    reference_backward(p, dqkv, r.o);
    check_results(p, &r, o, lse, dqkv);
}

/* ---- promises ---- */

static const int lengths[] = {1, 2, 7, 63, 64, 65, 130, 257}, head_sizes[] = {8, 16, 64, 80};

/* Every length with every mask, both formats; head sizes and groups take turns. */
static void both_passes_are_the_formula(void **state) {
    (void)state;
    for (int i = 0, turn = 0; i < 8; i++) {
        int T = lengths[i], windows[] = {0, 1, 5, 64, T, T + 1};
        for (int w = 0; w < 6; w++)
            for (int documents = 0; documents < 3; documents++, turn++)
                for (int x = 0; x < 2; x++) {
                    testing t;
                    testing_open(&t, 2);
                    int K = 1 + turn % 2;
                    problem p = make_problem(&t, both_dtypes[x], T < 100 ? 2 : 1, T, K * groups[(documents + w + i) % 3], K,
                                             head_sizes[turn % 4], windows[w]);
                    if (documents) add_documents(&p, documents == 1 ? 9 : 100);
                    check_problem(&p);
                    testing_close(&t);
                }
    }
}

/* All head sizes with all groups, also such that do not divide a block's rows evenly. */
static void heads_of_any_size_and_grouping(void **state) {
    (void)state;
    const int sizes[] = {2, 8, 16, 64, 80, 128}, many_groups[] = {1, 2, 3, 4, 5, 20};
    for (int i = 0; i < 6; i++)
        for (int g = 0; g < 6; g++)
            for (int x = 0; x < 2; x++) {
                testing t;
                testing_open(&t, 2);
                problem p = make_problem(&t, both_dtypes[x], 1, 70, many_groups[g], 1, sizes[i], 40);
                check_problem(&p);
                testing_close(&t);
            }
}

/* sum(d_o * o) at qkv + step * direction */
static double loss_at(problem *p, const double *direction, double step) {
    double *at = p->qkv, *moved = new_doubles(p->t, n_qkv(p)), *o = new_doubles(p->t, n_o(p)), *lse = new_doubles(p->t, n_lse(p)),
           loss = 0;
    for (int64_t i = 0; i < n_qkv(p); i++) moved[i] = at[i] + step * direction[i];
    p->qkv = moved;
    reference_forward(p, o, lse);
    p->qkv = at;
    for (int64_t i = 0; i < n_o(p); i++) loss += p->d_o[i] * o[i];
    return loss;
}

/* The slope of the loss along a random direction, from the forward formula alone, is the gradient's part in that direction. The
 * error of a gradient with relative error e, along a standard normal direction, is normal with deviation e * norm: four of them.
 * With bf16 e is three times as large as above, because the rounding of o is an error of every gradient of its row, also where
 * they are small. */
static void gradient_is_the_derivative(void **state) {
    (void)state;
    for (int i = 0; i < 12; i++) {
        testing t;
        testing_open(&t, 2);
        problem p = make_problem(&t, both_dtypes[i % 2], 2, 67, 4, 2, 16, i / 2 % 3 * 20);
        if (i >= 6) add_documents(&p, 40);
        results r = run(&p);
        double *direction = random_doubles(&t, n_qkv(&p), 9 + (uint64_t)i, 1), step = 1e-5, slope = 0, norm = 0;
        for (int64_t e = 0; e < n_qkv(&p); e++) {
            double g = element(r.dqkv, p.x, e);
            slope += g * direction[e];
            norm += g * g;
        }
        double expected = (loss_at(&p, direction, step) - loss_at(&p, direction, -step)) / (2 * step);
        check_limit(&p, "slope", fabs(slope - expected) / sqrt(norm), (p.x == DTYPE_F32 ? 4 : 8) * limit_of[p.x]);
        testing_close(&t);
    }
}

/* Adds 1 to the key and value heads of positions [from, to) of row 0. */
static void perturb_keys(problem *p, int from, int to) {
    for (int i = from; i < to; i++)
        for (int e = p->H * p->D; e < width(p); e++) p->qkv[(int64_t)i * width(p) + e] += 1;
    round_inputs(p);
}

/* A sliding window of W sees W keys, itself included: changing the key W positions back changes nothing, W-1 back does. */
static void window_counts_itself(void **state) {
    (void)state;
    const int windows[] = {1, 5, 64, 100};
    enum { T = 150, AT = 120 };
    for (int i = 0; i < 4; i++) {
        testing t;
        testing_open(&t, 2);
        problem p = make_problem(&t, DTYPE_F32, 1, T, 4, 2, 16, windows[i]);
        int64_t row = (int64_t)p.H * p.D;
        results before = run(&p);
        perturb_keys(&p, AT - windows[i], AT - windows[i] + 1);
        results outside = run(&p);
        check_same_bits("o", (float *)outside.o + AT * row, (float *)before.o + AT * row, row, p.x);
        perturb_keys(&p, AT - windows[i] + 1, AT - windows[i] + 2);
        results inside = run(&p);
        for (int64_t e = AT * row; e < (AT + 1) * row; e++) assert_true(((float *)inside.o)[e] != ((float *)before.o)[e]);
        testing_close(&t);
    }
}

/* A window as long as the row, or longer, is none. */
static void long_window_is_none(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 2);
    problem p = make_problem(&t, DTYPE_BF16, 2, 130, 4, 2, 16, 0);
    results none = run(&p);
    const int windows[] = {130, 131, INT32_MAX};
    for (int i = 0; i < 3; i++) {
        p.window = windows[i];
        results r = run(&p);
        check_same_bits("o", r.o, none.o, n_o(&p), p.x);
        check_same_bits("dqkv", r.dqkv, none.dqkv, n_qkv(&p), p.x);
    }
    testing_close(&t);
}

/* Changing everything in one document leaves the bits of the next one's outputs and gradients alone. */
static void documents_do_not_see_each_other(void **state) {
    (void)state;
    enum { T = 200, CUT = 75 };
    for (int x = 0; x < 2; x++) {
        testing t;
        testing_open(&t, 2);
        problem p = make_problem(&t, both_dtypes[x], 1, T, 4, 1, 16, 0);
        p.doc = new_bytes(&t, T * sizeof *p.doc);
        for (int i = 0; i < T; i++) p.doc[i] = i >= CUT;
        results before = run(&p);
        for (int64_t e = 0; e < (int64_t)CUT * width(&p); e++) p.qkv[e] = -2 * p.qkv[e];
        for (int64_t e = 0; e < (int64_t)CUT * p.H * p.D; e++) p.d_o[e] = 3 * p.d_o[e];
        round_inputs(&p);
        results after = run(&p);
        int64_t o_at = (int64_t)CUT * p.H * p.D, qkv_at = (int64_t)CUT * width(&p);
        size_t size = dtype_size(p.x);
        check_same_bits("o", (char *)after.o + o_at * (int64_t)size, (char *)before.o + o_at * (int64_t)size, n_o(&p) - o_at,
                        p.x);
        check_same_bits("dqkv", (char *)after.dqkv + qkv_at * (int64_t)size, (char *)before.dqkv + qkv_at * (int64_t)size,
                        n_qkv(&p) - qkv_at, p.x);
        testing_close(&t);
    }
}

/* Documents packed into a row give what they give as rows of their own, up to the order of the sums. */
static void packed_row_is_separate_rows(void **state) {
    (void)state;
    enum { T = 75, ROWS = 3 };
    testing t;
    testing_open(&t, 2);
    problem separate = make_problem(&t, DTYPE_F32, ROWS, T, 4, 2, 16, 50), packed = separate;
    packed.B = 1, packed.T = ROWS * T;
    packed.doc = new_bytes(&t, ROWS * T * sizeof *packed.doc);
    for (int i = 0; i < ROWS * T; i++) packed.doc[i] = i / T % 2; /* numbers may come again, as long as neighbours differ */
    results a = run(&separate), b = run(&packed);
    double *o = new_doubles(&t, n_o(&packed)), *dqkv = new_doubles(&t, n_qkv(&packed));
    for (int64_t e = 0; e < n_o(&packed); e++) o[e] = element(a.o, DTYPE_F32, e);
    for (int64_t e = 0; e < n_qkv(&packed); e++) dqkv[e] = element(a.dqkv, DTYPE_F32, e);
    check_output(&packed, b.o, o, 1e-6);
    check_gradients(&packed, b.dqkv, dqkv, 1e-6);
    testing_close(&t);
}

/* Scores of thousands, where exp would overflow without the running maximum, come out finite and right. */
static void large_scores_do_not_overflow(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 2);
    problem p = make_problem(&t, DTYPE_F32, 1, 200, 2, 1, 16, 0);
    for (int64_t e = 0; e < n_qkv(&p); e++) p.qkv[e] *= e % width(&p) < 3 * p.D ? 40 : 1; /* q and k, not v */
    round_inputs(&p);
    results r = run(&p);
    double *o = new_doubles(&t, n_o(&p)), *lse = new_doubles(&t, n_lse(&p));
    reference_forward(&p, o, lse);
    for (int64_t e = 0; e < n_qkv(&p); e++) assert_true(isfinite(((float *)r.dqkv)[e]));
    check_close("lse", r.lse, lse, n_lse(&p), DTYPE_F32, 1e-6, 1e4);
    check_output(&p, r.o, o, 1e-3); /* scores of 1e4 are known to 1e-3 only */
    testing_close(&t);
}

static void zero_gradient_gives_zero(void **state) {
    (void)state;
    for (int x = 0; x < 2; x++) {
        testing t;
        testing_open(&t, 2);
        problem p = make_problem(&t, both_dtypes[x], 2, 130, 4, 2, 16, 33);
        memset(p.d_o, 0, (size_t)n_o(&p) * sizeof *p.d_o);
        round_inputs(&p);
        results r = run(&p);
        for (int64_t e = 0; e < n_qkv(&p); e++)
            if (element(r.dqkv, p.x, e) != 0) fail_msg("element %lld is %.9g", (long long)e, element(r.dqkv, p.x, e));
        testing_close(&t);
    }
}

/* The output and dq have the same bits for any number of threads; dk and dv for each number, and for all numbers whose stretches
 * of blocks end where heads do. With more threads than blocks all is still right. */
static void bits_are_repeatable(void **state) {
    (void)state;
    const int threads[] = {1, 2, 3, 11};
    for (int x = 0; x < 2; x++)
        for (int K = 1; K <= 2; K++) {
            testing t;
            testing_open(&t, 1);
            problem p = make_problem(&t, both_dtypes[x], 1, 257, 2 * K, K, 16, 0);
            results one = run(&p);
            double *dqkv = new_doubles(&t, n_qkv(&p));
            reference_backward(&p, dqkv, one.o);
            for (int i = 0; i < 4; i++) {
                testing other;
                testing_open(&other, threads[i]);
                problem same = p;
                same.t = &other, same.b = other.b;
                results first = run(&same), again = run(&same);
                check_same_bits("o", first.o, one.o, n_o(&p), p.x);
                check_same_bits("lse", first.lse, one.lse, n_lse(&p), DTYPE_F32);
                check_same_bits("dqkv", again.dqkv, first.dqkv, n_qkv(&p), p.x);
                if (threads[i] <= K) check_same_bits("dqkv", first.dqkv, one.dqkv, n_qkv(&p), p.x);
                for (int n = 0; n < p.T; n++) {
                    int64_t at = n * width(&p) * (int64_t)dtype_size(p.x);
                    check_same_bits("dq", (char *)first.dqkv + at, (char *)one.dqkv + at, p.H * p.D, p.x);
                }
                check_gradients(&p, first.dqkv, dqkv, limit_of[p.x]);
                testing_close(&other);
            }
            testing_close(&t);
        }
}

static void scratch_is_linear_in_T(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 2);
    op_limits limits = {.x = DTYPE_BF16, .B = 2, .H = 16, .K = 4, .D = 64};
    size_t bytes[4];
    for (int i = 0; i < 4; i++) {
        limits.T = 1024 << i;
        bytes[i] = cpu_attention_scratch(t.b, &limits);
    }
    assert_int_equal(bytes[2] - bytes[1], 2 * (bytes[1] - bytes[0]));
    assert_int_equal(bytes[3] - bytes[2], 2 * (bytes[2] - bytes[1]));
    assert_true(bytes[1] < 2 * bytes[0]); /* what does not grow is not negative */
    limits.K = limits.H = 0;
    assert_int_equal(cpu_attention_scratch(t.b, &limits), 0);
    testing_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_passes_are_the_formula), cmocka_unit_test(heads_of_any_size_and_grouping),
        cmocka_unit_test(gradient_is_the_derivative),  cmocka_unit_test(window_counts_itself),
        cmocka_unit_test(long_window_is_none),         cmocka_unit_test(documents_do_not_see_each_other),
        cmocka_unit_test(packed_row_is_separate_rows), cmocka_unit_test(large_scores_do_not_overflow),
        cmocka_unit_test(zero_gradient_gives_zero),    cmocka_unit_test(bits_are_repeatable),
        cmocka_unit_test(scratch_is_linear_in_T),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
