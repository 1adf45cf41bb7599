/* test_cuda_token_rows.c: the gradient of tied embeddings reduced in two parts is the sum of what all ranks have made.
 *
 * Runs alone, and under mpirun with any number of ranks (test_cuda_collectives.py), each with its own number of tokens. What is
 * expected is worked out on the host, in double. */
#include "op_testing.h"

#include "ranks/ranks.h"
#include "train/optimizer.h"

enum { B = 8, T = 32 };

static ranks r;
static ops op; /* those of CUDA, for micro-batches of any length */

/* A tied network whose gradients a test makes up. */
typedef struct tied {
    const ops *ops;
    backend *b;
    void *memory;
    model m;
    optimizer o;
    float *head;     /* (V,C): what the head has left in the gradient of this rank; host */
    int32_t *tokens; /* (N) */
    int64_t N;
} tied;

static void lay_out(tied *t, const model_config *c, dtype x, arena *a) {
    error err = {0};
    model_options options = {.x = x, .B = B, .T = T, .ways = r.size, .training = true};
    if (model_open(&t->m, c, &options, t->ops, t->b, a, &err) || optimizer_open(&t->o, &t->m, &r, a, &err))
        fail_msg("%s", err.text);
}

static void tied_open(tied *t, int64_t V, int C, dtype x, bool embeddings_tied) {
    static char attention[] = "f";
    model_config c = {.vocab_size = V,
                      .n_layers = 1,
                      .d_model = C,
                      .d_ffn = 8,
                      .n_heads = 1,
                      .n_kv_heads = 1,
                      .head_dim = 8,
                      .attention = attention,
                      .rope_theta = 1e4,
                      .norm_eps = 1e-5,
                      .tie_embeddings = embeddings_tied};
    error err = {0};
    *t = (tied){.ops = &op};
    if (t->ops->open(&t->b, 0, r.local_rank, &err) || t->ops->connect(t->b, &r, &err)) ranks_abort(&r, &err);
    arena plan = arena_dry();
    lay_out(t, &c, x, &plan);
    optimizer_close(&t->o);
    model_close(&t->m);
    t->memory = t->ops->alloc(t->b, plan.peak, &err);
    assert_non_null(t->memory);
    arena real = arena_on(t->memory, plan.peak);
    lay_out(t, &c, x, &real);
    assert_int_equal(real.peak, plan.peak);
}

static void tied_close(tied *t) {
    error err = {0};
    if (t->ops->sync(t->b, &err)) fail_msg("%s", err.text);
    optimizer_close(&t->o);
    model_close(&t->m);
    t->ops->free(t->b, t->memory);
    t->ops->close(t->b);
    free(t->head);
    free(t->tokens);
}

/* ---- what each rank has made ---- */

/* The first rank has a full micro-batch, the second none, the third a third of one, and so on. */
static int64_t tokens_of(int rank) { return B * T * (rank % 3 == 0 ? 3 : rank % 3 - 1) / 3; }

static int32_t token_at(int rank, int64_t n, int64_t most, int64_t V) {
    uint64_t draw = rng_mix(5 + (uint64_t)rank, (uint64_t)n);
    return (int32_t)((int64_t)(draw % (uint64_t)most) * 7919 % V); /* far apart: 7,919 is prime */
}

static float head_at(int rank, int64_t i) { return (float)((i * 31 + rank * 17) % 1009 - 504) / 512.0f; }
static float row_at(int rank, int64_t i) { return (float)((i * 13 + rank * 7) % 257 - 128) / 128.0f; } /* exact in bf16 */

/* Puts the gradients of this rank on the device, and starts the step. Tokens are `most` different ones. */
static void make_step(tied *t, int64_t most) {
    int64_t V = t->m.config.vocab_size, C = t->m.config.d_model;
    dtype x = t->m.options.x;
    t->N = tokens_of(r.rank);
    t->head = malloc((size_t)(V * C) * sizeof *t->head);
    t->tokens = malloc((size_t)t->N * sizeof *t->tokens + 1);
    float *rows = malloc((size_t)(t->N * C) * sizeof *rows + 1);
    bf16 *rounded = malloc((size_t)(t->N * C) * sizeof *rounded + 1);
    for (int64_t i = 0; i < V * C; i++) t->head[i] = head_at(r.rank, i);
    for (int64_t n = 0; n < t->N; n++) t->tokens[n] = token_at(r.rank, n, most, V);
    for (int64_t i = 0; i < t->N * C; i++) rounded[i] = bf16_from_float(rows[i] = row_at(r.rank, i));
    token_rows_begin(&t->o.token_rows, t->tokens, t->N);
    t->ops->copy_in(t->b, t->m.grads, t->head, (size_t)(V * C) * sizeof *t->head);
    t->ops->copy_in(t->b, t->m.dh, x == DTYPE_F32 ? (void *)rows : rounded, (size_t)(t->N * C) * dtype_size(x));
    free(rows);
    free(rounded);
}

/* The head's part first, as in a step: the squares begin with the head's group. */
static void reduce(tied *t) {
    optimizer_reduce_group(&t->o, 1 + t->m.config.n_layers);
    optimizer_reduce_group(&t->o, 0);
    optimizer_reduce_group(&t->o, 1);
    optimizer_reduce_rows(&t->o, t->N);
}

/* This rank's part of the embedding against the sum of what all ranks have made. */
static void check_sum(tied *t, int64_t most) {
    int64_t V = t->m.config.vocab_size, C = t->m.config.d_model, found = 0;
    double *expected = calloc((size_t)(V * C), sizeof *expected);
    float *got = malloc((size_t)(V * C) * sizeof *got);
    for (int rank = 0; rank < r.size; rank++) {
        for (int64_t i = 0; i < V * C; i++) expected[i] += (double)head_at(rank, i);
        for (int64_t n = 0; n < tokens_of(rank); n++)
            for (int64_t c = 0; c < C; c++) expected[token_at(rank, n, most, V) * C + c] += (double)row_at(rank, n * C + c);
    }
    t->ops->copy_out(t->b, got, t->m.grads, (size_t)(V * C) * sizeof *got);
    for (int k = 0; k < t->o.n_pieces && t->o.pieces[k].tensor == 0; k++)
        for (int64_t i = t->o.pieces[k].first; i < t->o.pieces[k].first + t->o.pieces[k].count; i++, found++)
            if (!(fabs((double)got[i] - expected[i]) <= 2e-6 * (1 + fabs(expected[i]))))
                fail_msg("rank %d, V %lld, C %d, %lld tokens: row %lld, column %lld: %.9g, expected %.9g", r.rank, (long long)V,
                         (int)C, (long long)most, (long long)(i / C), (long long)(i % C), (double)got[i], expected[i]);
    ranks_sum_int64(&r, &found, 1);
    assert_int_equal(found, V * C);
    free(expected);
    free(got);
}

/* ---- the tests ---- */

/* One chunk and several, vocabularies that the ranks do not divide, one that is cut into two buckets. */
static void two_parts_are_the_whole(void **state) {
    (void)state;
    if (r.size == 1) skip();
    static const struct {
        int64_t V, most;
        int C, chunks;
    } cases[] = {{1003, 1, 24, 1},    {1003, 20, 24, 1}, {1003, 150, 24, 2},
                 {5000, 2500, 64, 1}, {301, 60, 65, 2},  {202048, 500, 84, 1}};
    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases - 1; i++) {
        tied t;
        tied_open(&t, cases[i / 2].V, cases[i / 2].C, both_dtypes[i % 2], true);
        make_step(&t, cases[i / 2].most);
        if (t.o.token_rows.n_chunks < cases[i / 2].chunks)
            fail_msg("V %lld, %lld tokens: %lld chunks", (long long)cases[i / 2].V, (long long)cases[i / 2].most,
                     (long long)t.o.token_rows.n_chunks);
        reduce(&t);
        check_sum(&t, cases[i / 2].most);
        tied_close(&t);
    }
}

/* Steps follow one another: what the one before has listed is gone. */
static void each_step_has_its_own_tokens(void **state) {
    (void)state;
    if (r.size == 1) skip();
    tied t;
    tied_open(&t, 1003, 24, DTYPE_F32, true);
    for (int most = 200; most > 1; most /= 3) {
        make_step(&t, most);
        reduce(&t);
        check_sum(&t, most);
        free(t.head);
        free(t.tokens);
    }
    t.head = NULL;
    t.tokens = NULL;
    tied_close(&t);
}

/* Where the tokens are most of the vocabulary, nothing is gained; nor where there is no other rank, or no tied head. */
static void what_gains_nothing_is_reduced_as_a_whole(void **state) {
    (void)state;
    static const struct {
        int64_t V, most;
        bool embeddings_tied;
    } cases[] = {{40, 40, true}, {1003, 150, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tied t;
        tied_open(&t, cases[i].V, 24, DTYPE_F32, cases[i].embeddings_tied);
        make_step(&t, cases[i].most);
        assert_false(token_rows_apart(&t.o.token_rows));
        tied_close(&t);
    }
    tied t;
    tied_open(&t, 1003, 24, DTYPE_F32, true);
    make_step(&t, 150);
    assert_true(token_rows_apart(&t.o.token_rows) == (r.size > 1));
    tied_close(&t);
}

/* A gradient that is not finite in a token's row only is that rank's own, and of no other. */
static void a_rank_whose_rows_are_not_finite_knows_it(void **state) {
    (void)state;
    if (r.size == 1) skip();
    int sick = r.size - 1;
    while (tokens_of(sick) == 0) sick--;
    tied t;
    tied_open(&t, 1003, 24, DTYPE_F32, true);
    make_step(&t, 150);
    t.ops->zero(t.b, t.m.grads + t.m.registry.buckets[0].count,
                (size_t)(t.m.registry.n_flat - t.m.registry.buckets[0].count) * 4);
    float nan = NAN;
    if (r.rank == sick) t.ops->copy_in(t.b, (float *)t.m.dh + 5, &nan, sizeof nan);
    reduce(&t);
    double own;
    t.ops->copy_out(t.b, &own, &t.o.report->own_squares, sizeof own);
    assert_true(isfinite(own) == (r.rank != sick));
    tied_close(&t);
}

int main(void) {
    error err = {0};
    if (ranks_open(&r, &err)) ranks_abort(&r, &err);
    setenv("CUEMU_DEVICES", "8", 0);
    op = *cuda_ops();
    op.overlap_tokens = 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_parts_are_the_whole),
        cmocka_unit_test(each_step_has_its_own_tokens),
        cmocka_unit_test(what_gains_nothing_is_reduced_as_a_whole),
        cmocka_unit_test(a_rank_whose_rows_are_not_finite_knows_it),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ranks_close(&r);
    return failed;
}
