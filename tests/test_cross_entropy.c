/* test_cross_entropy.c: the loss over rows of logits and its gradient, against double precision. */
#include <float.h>

#include "op_testing.h"

static const float scale = 0.37f;

static const struct shape { int64_t N, V; } shapes[] = {{1, 11}, {7, 1003}, {33, 11}, {5, 2500}}; /* more logits than a line */
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

typedef struct problem {
    int64_t N, V;
    double z_loss, *z;
    int32_t *targets;
} problem;

/* Every third token has nothing to predict. */
static problem make_problem(testing *t, int64_t N, int64_t V, float spread, double z_loss) {
    problem p = {N, V, z_loss, random_doubles(t, N * V, 1, spread), new_bytes(t, (size_t)N * sizeof(int32_t))};
    for (int64_t n = 0; n < N; n++) p.targets[n] = n % 3 == 2 ? -1 : (int32_t)(rng_mix(2, (uint64_t)n) % (uint64_t)V);
    return p;
}

static double row_lse(const double *z, int64_t V) {
    double max = z[0], sum = 0;
    for (int64_t v = 0; v < V; v++) max = fmax(max, z[v]);
    for (int64_t v = 0; v < V; v++) sum += exp(z[v] - max);
    return max + log(sum);
}

static void reference(const problem *p, double *losses, double *z_losses, double *dz) {
    for (int64_t n = 0; n < p->N; n++) {
        const double *z = p->z + n * p->V;
        bool counts = p->targets[n] >= 0;
        double lse = row_lse(z, p->V);
        losses[n] = counts ? lse - z[p->targets[n]] : 0;
        z_losses[n] = counts ? p->z_loss * lse * lse : 0;
        for (int64_t v = 0; v < p->V; v++) {
            double softmax = exp(z[v] - lse), one = v == p->targets[n];
            dz[n * p->V + v] = counts ? (double)scale * ((1 + 2 * p->z_loss * lse) * softmax - one) : 0;
        }
    }
}

static void check_row_losses(testing *t, const problem *p, dtype x) {
    void *z = array_of(t, p->z, p->N * p->V, x), *before = copy_of(t, z, p->N * p->V, x);
    float *losses = new_floats(t, p->N), *z_losses = new_floats(t, p->N);
    double *expected = new_doubles(t, p->N), *expected_z = new_doubles(t, p->N), *dz = new_doubles(t, p->N * p->V);
    reference(p, expected, expected_z, dz);

    t->ops->cross_entropy(t->b, losses, NULL, z, p->targets, scale, (float)p->z_loss, false, x, p->N, p->V);
    check_same_bits("z when there is no backward", z, before, p->N * p->V, x);
    for (int64_t n = 0; n < p->N; n++)
        check_close("losses without backward", losses + n, expected + n, 1, DTYPE_F32, 5e-7, fabs(expected[n]) + 1);

    t->ops->cross_entropy(t->b, losses, z_losses, z, p->targets, scale, (float)p->z_loss, true, x, p->N, p->V);
    for (int64_t n = 0; n < p->N; n++) {
        check_close("losses", losses + n, expected + n, 1, DTYPE_F32, 5e-7, fabs(expected[n]) + 1);
        check_close("z_losses", z_losses + n, expected_z + n, 1, DTYPE_F32, 1e-6, fabs(expected_z[n]) + 1e-3);
    }
    check_close("dz", z, dz, p->N * p->V, x, 5e-7, (double)scale);
}

/* Losses, z-losses and gradients, rows without a target included. */
static void losses_and_gradients_are_the_formula(void **state) {
    (void)state;
    for (int i = 0; i < 4 * N_SHAPES; i++) {
        testing t;
        testing_open(&t, 2);
        problem p = make_problem(&t, shapes[i / 4].N, shapes[i / 4].V, 2, i / 2 % 2 ? 1e-3f : 0);
        check_row_losses(&t, &p, both_dtypes[i % 2]);
        testing_close(&t);
    }
}

static double total_loss(const void *context) {
    const problem *p = context;
    double total = 0;
    for (int64_t n = 0; n < p->N; n++) {
        double lse = row_lse(p->z + n * p->V, p->V);
        if (p->targets[n] >= 0) total += (double)scale * (lse - p->z[n * p->V + p->targets[n]] + p->z_loss * lse * lse);
    }
    return total;
}

/* dz is the derivative of scale * (losses + z_losses), not only of what the formula says it is. */
static void gradient_is_the_derivative(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 2);
    problem p = make_problem(&t, 33, 11, 2, 0.01f);
    float *z = array_of(&t, p.z, p.N * p.V, DTYPE_F32), *losses = new_floats(&t, p.N);
    p.z_loss = (double)0.01f;
    t.ops->cross_entropy(t.b, losses, NULL, z, p.targets, scale, 0.01f, true, DTYPE_F32, p.N, p.V);
    check_close("dz", z, numeric_gradient(&t, p.z, p.N * p.V, total_loss, &p), p.N * p.V, DTYPE_F32, 1e-6, 1);
    testing_close(&t);
}

/* Logits of +-80 and far apart: no overflow, no logarithm of zero, a small loss is as exact as a large one. */
static void large_logits_are_exact(void **state) {
    (void)state;
    enum { N = 6, V = 1300 };
    for (int i = 0; i < 2; i++) {
        testing t;
        testing_open(&t, 2);
        problem p = make_problem(&t, N, V, 1, 1e-4f);
        for (int n = 0; n < N; n++) {
            p.targets[n] = 7;
            for (int v = 0; v < V; v++) p.z[n * V + v] += n % 2 ? 80 : -80;
        }
        p.z[0 * V + 7] = 80;    /* sure and right: the loss is exp(-160) * V */
        p.z[1 * V + 7] = -80;   /* sure and wrong: 160 and more */
        p.z[2 * V + 1290] = 80; /* the largest comes last */
        p.z[3 * V + 0] = 1e4;   /* the rest vanishes */
        p.z[4 * V + 7] = -1e4;
        check_row_losses(&t, &p, both_dtypes[i]);
        testing_close(&t);
    }
}

/* A logit of -infinity has probability 0, a whole line of them too; a NaN reaches the loss, wherever it is in its row. */
static void infinities_and_nans(void **state) {
    (void)state;
    enum { N = 2, V = 2500 };
    for (int at = 0; at < V; at += 499) {
        testing t;
        testing_open(&t, 1);
        problem p = make_problem(&t, N, V, 1, 0);
        for (int v = 0; v < 1100; v++) p.z[v] = -INFINITY;
        p.targets[0] = 2000;
        p.z[V + at] = at % 2 ? (double)NAN : (double)-NAN;
        float *z = array_of(&t, p.z, N * V, DTYPE_F32), losses[N];
        t.ops->cross_entropy(t.b, losses, NULL, z, p.targets, 1, 0, true, DTYPE_F32, N, V);
        double expected = row_lse(p.z + 1100, V - 1100) - p.z[2000];
        check_close("loss", losses, &expected, 1, DTYPE_F32, 1e-6, expected);
        assert_true(z[0] == 0 && z[1099] == 0 && z[1100] > 0);
        if (!isnan(losses[1]) || !isnan(z[V + at]))
            fail_msg("a NaN at %d gives loss %g, gradient %g", at, (double)losses[1], (double)z[V + at]);
        testing_close(&t);
    }
}

/* With one thread and with three. */
static void bits_do_not_depend_on_threads(void **state) {
    (void)state;
    enum { N = 61, V = 1003 };
    for (int i = 0; i < 2; i++) {
        testing one, three;
        testing_open(&one, 1);
        testing_open(&three, 3);
        problem p = make_problem(&one, N, V, 3, 1e-4f);
        void *z1 = array_of(&one, p.z, N * V, both_dtypes[i]), *z3 = copy_of(&one, z1, N * V, both_dtypes[i]);
        float losses1[N], losses3[N];
        one.ops->cross_entropy(one.b, losses1, NULL, z1, p.targets, scale, 1e-4f, true, both_dtypes[i], N, V);
        one.ops->cross_entropy(three.b, losses3, NULL, z3, p.targets, scale, 1e-4f, true, both_dtypes[i], N, V);
        check_same_bits("losses", losses1, losses3, N, DTYPE_F32);
        check_same_bits("dz", z1, z3, N * V, both_dtypes[i]);
        testing_close(&three);
        testing_close(&one);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_gradients_are_the_formula),
        cmocka_unit_test(gradient_is_the_derivative),
        cmocka_unit_test(large_logits_are_exact),
        cmocka_unit_test(infinities_and_nans),
        cmocka_unit_test(bits_do_not_depend_on_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
