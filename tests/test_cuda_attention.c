/* test_cuda_attention.c: the CUDA backend's attention against the CPU's in fp32, on the same numbers.
 *
 * Limits are on the norm of the error relative to the norm of the tensor, and those of test_attention.c, which says why: 1e-5 for
 * fp32; for bf16 two roundings on the way to a result, doubled for small tensors. As there, the backward pass is given the
 * forward pass's rounded o. Our own kernels run here, on a GPU too: cuDNN's plans differ from GPU to GPU (tests/cudnn_plans.cpp).
 */
#include <inttypes.h>
#include <unistd.h>

#include "cuda/cuda.h"
#include "op_testing.h"

/* One call: its sizes, what it reads in both formats, and two backends. */
typedef struct problem {
    testing *t; /* memory of the test, and the CPU */
    const ops *cuda;
    backend *gpu;
    dtype x;
    int B, T, H, K, D, window;
    int32_t *doc;        /* (N) or NULL */
    float *qkv;          /* (N,(H+2K)*D) */
    float *d_o;          /* (N,H*D) */
    void *x_qkv, *x_d_o; /* the same, in x */
} problem;

/* What it writes. */
typedef struct results {
    void *o;    /* (N,H*D) x */
    float *lse; /* (B,H,T) */
    void *dqkv; /* (N,(H+2K)*D) x */
} results;

static int width(const problem *p) { return (p->H + 2 * p->K) * p->D; }
static int64_t n_qkv(const problem *p) { return (int64_t)p->B * p->T * width(p); }
static int64_t n_o(const problem *p) { return (int64_t)p->B * p->T * p->H * p->D; }
static int64_t n_lse(const problem *p) { return (int64_t)p->B * p->H * p->T; }

static float *floats_of(testing *t, const double *values, int64_t n) {
    float *floats = new_floats(t, n);
    for (int64_t i = 0; i < n; i++) floats[i] = (float)values[i];
    return floats;
}

static void draw_inputs(problem *p, float stddev) {
    double *qkv = random_doubles(p->t, n_qkv(p), 1, stddev), *d_o = random_doubles(p->t, n_o(p), 2, 1);
    p->x_qkv = array_of(p->t, qkv, n_qkv(p), p->x);
    p->x_d_o = array_of(p->t, d_o, n_o(p), p->x);
    p->qkv = floats_of(p->t, qkv, n_qkv(p));
    p->d_o = floats_of(p->t, d_o, n_o(p));
}

static problem make_problem(testing *t, dtype x, int B, int T, int H, int K, int D, int window) {
    problem p = {.t = t, .cuda = cuda_ops(), .x = x, .B = B, .T = T, .H = H, .K = K, .D = D, .window = window};
    testing_open(t, 2);
    error err;
    if (p.cuda->open(&p.gpu, 0, 0, &err)) fail_msg("%s", err.text);
    draw_inputs(&p, 1.5f);
    return p;
}

static void close_problem(problem *p) {
    p->cuda->close(p->gpu);
    testing_close(p->t);
}

/* Documents of 1, 2, ... `longest`, 1, 2, ... positions; they do not go on into the next row, though its number may be the same.
 */
static void add_documents(problem *p, int longest) {
    p->doc = new_bytes(p->t, (size_t)p->B * (size_t)p->T * sizeof *p->doc);
    for (int i = 0, length = 1, left = 1, number = 7; i < p->B * p->T; i++) {
        p->doc[i] = number;
        if (--left > 0) continue;
        length = length % longest + 1, left = length, number--;
    }
}

/* ---- the two backends ---- */

/* Memory of the backend that holds the host's bytes, or NaN everywhere. */
static void *on_device(const ops *op, backend *b, const void *host, size_t bytes) {
    error err;
    void *memory = op->alloc(b, bytes, &err), *spoiled = malloc(bytes);
    if (memory == NULL) fail_msg("%s", err.text);
    memset(spoiled, 0xff, bytes);
    op->copy_in(b, memory, host ? host : spoiled, bytes);
    if (op->sync(b, &err)) fail_msg("%s", err.text);
    free(spoiled);
    return memory;
}

/* Forward with x's qkv, then backward; o NULL: the forward pass's. Scratch memory is full of NaN before both. */
static results run_on(const problem *p, const ops *op, backend *b, dtype x, const void *qkv, const void *d_o, const void *o) {
    size_t size = dtype_size(x), qkv_bytes = (size_t)n_qkv(p) * size, o_bytes = (size_t)n_o(p) * size,
           lse_bytes = (size_t)n_lse(p) * sizeof(float);
    op_limits limits = {.x = x, .B = p->B, .T = p->T, .H = p->H, .K = p->K, .D = p->D, .training = true, .window = p->window};
    limits.full = p->window == 0;
    size_t scratch_bytes = op->scratch_bytes(b, &limits);
    void *scratch = on_device(op, b, NULL, scratch_bytes), *in = on_device(op, b, qkv, qkv_bytes);
    void *out = on_device(op, b, NULL, o_bytes), *lse = on_device(op, b, NULL, lse_bytes);
    void *d_out = on_device(op, b, d_o, o_bytes), *d_in = on_device(op, b, NULL, qkv_bytes);
    void *doc = p->doc ? on_device(op, b, p->doc, (size_t)p->B * (size_t)p->T * sizeof *p->doc) : NULL;
    results r = {new_bytes(p->t, o_bytes), new_bytes(p->t, lse_bytes), new_bytes(p->t, qkv_bytes)};
    op->set_scratch(b, scratch, scratch_bytes);
    op->attention_forward(b, out, lse, in, doc, p->window, x, p->B, p->T, p->H, p->K, p->D);
    op->copy_out(b, r.o, out, o_bytes);
    op->copy_out(b, r.lse, lse, lse_bytes);
    if (o) op->copy_in(b, out, o, o_bytes);
    op->attention_backward(b, d_in, d_out, out, lse, in, doc, p->window, x, p->B, p->T, p->H, p->K, p->D);
    op->copy_out(b, r.dqkv, d_in, qkv_bytes);
    error err;
    if (op->sync(b, &err)) fail_msg("%s", err.text);
    op->set_scratch(b, NULL, 0);
    void *all[] = {scratch, in, out, lse, d_out, d_in, doc};
    for (int i = 0; i < 7; i++)
        if (all[i]) op->free(b, all[i]);
    return r;
}

static results run(const problem *p) { return run_on(p, p->cuda, p->gpu, p->x, p->x_qkv, p->x_d_o, NULL); }

/* The CPU in fp32; its backward pass gets the o of r. */
static results expect(const problem *p, const results *r) {
    float *o = new_floats(p->t, n_o(p));
    for (int64_t i = 0; i < n_o(p); i++) o[i] = (float)element(r->o, p->x, i);
    results expected = run_on(p, p->t->ops, p->t->b, DTYPE_F32, p->qkv, p->d_o, o);
    p->t->ops->set_scratch(p->t->b, p->t->scratch, 0);
    return expected;
}

/* ---- comparison ---- */

static const double limit_of[] = {[DTYPE_F32] = 1e-5, [DTYPE_BF16] = 4.7e-3};

/* Sums of squares over columns [from, to) of rows of `columns`. */
typedef struct squares {
    double error, expected;
} squares;

static squares compare(const void *got, dtype x, const float *expected, int64_t rows, int columns, int from, int to) {
    squares s = {0, 0};
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * columns + from; i < row * columns + to; i++) {
            double e = element(got, x, i) - (double)expected[i];
            s.error += e * e;
            s.expected += (double)expected[i] * (double)expected[i];
        }
    return s;
}

static void check_limit(const problem *p, const char *what, double off, double limit) {
    if (!(off <= limit))
        fail_msg("%s, %s B %d T %d H %d K %d D %d window %d%s: relative error %.3g, allowed %.3g", what, dtype_name(p->x), p->B,
                 p->T, p->H, p->K, p->D, p->window, p->doc ? " documents" : "", off, limit);
}

/* Where queries see only themselves dq and dk are 0 but for rounding: then the error is on dv's scale. */
static void check_problem(const problem *p) {
    results r = run(p), expected = expect(p, &r);
    int64_t N = (int64_t)p->B * p->T;
    int columns = width(p), begin[] = {0, p->H * p->D, (p->H + p->K) * p->D, columns};
    const char *names[] = {"dq", "dk", "dv"};
    squares s = compare(r.o, p->x, expected.o, N, p->H * p->D, 0, p->H * p->D);
    check_limit(p, "o", sqrt(s.error / s.expected), limit_of[p->x]);
    double dv_squares = compare(r.dqkv, p->x, expected.dqkv, N, columns, begin[2], columns).expected;
    for (int i = 0; i < 3; i++) {
        s = compare(r.dqkv, p->x, expected.dqkv, N, columns, begin[i], begin[i + 1]);
        check_limit(p, names[i], sqrt(s.error / (s.expected > 1e-10 * dv_squares ? s.expected : dv_squares)), limit_of[p->x]);
    }
    double *lse = new_doubles(p->t, n_lse(p));
    for (int64_t i = 0; i < n_lse(p); i++) lse[i] = (double)expected.lse[i];
    check_close("lse", r.lse, lse, n_lse(p), DTYPE_F32, 2e-6, 8);
}

/* ---- promises ---- */

static const int lengths[] = {1, 7, 64, 100, 257}, head_sizes[] = {8, 32, 64, 128}, groups[] = {1, 2, 4};

/* Under a sanitizer, which makes the emulation ten times slower, one problem in three. */
#ifdef CUEMU_CHECKED
enum { ONE_IN = 3 };
#else
enum { ONE_IN = 1 };
#endif

/* Every length with every mask, both formats; head sizes and groups take turns. */
static void both_passes_are_those_of_the_cpu(void **state) {
    (void)state;
    for (int i = 0, turn = 0; i < 5; i++) {
        int T = lengths[i], windows[] = {0, 1, 5, 64, T};
        for (int w = 0; w < 5; w++)
            for (int documents = 0; documents < 3; documents++, turn++)
                for (int x = 0; x < 2 && turn % ONE_IN == 0; x++) {
                    testing t;
                    int K = 1 + turn % 2;
                    problem p = make_problem(&t, both_dtypes[x], T < 200 ? 2 : 1, T, K * groups[(documents + w + i) % 3], K,
                                             head_sizes[turn % 4], windows[w]);
                    if (documents) add_documents(&p, documents == 1 ? 9 : 100);
                    check_problem(&p);
                    close_problem(&p);
                }
    }
}

/* Tiles begin at the first key that a block sees: so each window puts their edges, where the mask and the loops have theirs, at
 * another place. */
static void window_may_be_any(void **state) {
    (void)state;
    for (int window = 1; window <= 66; window++) {
        testing t;
        problem p = make_problem(&t, DTYPE_BF16, 1, 257, 1, 1, 8, window);
        check_problem(&p);
        close_problem(&p);
    }
}

/* Head sizes that are no power of two, and those that 16-byte accesses do not fit. */
static void head_size_may_be_any_up_to_128(void **state) {
    (void)state;
    const int sizes[] = {2, 6, 12, 24, 40, 80, 126}, many_groups[] = {3, 5, 1, 2, 4, 20, 1};
    for (int i = 0; i < 7; i++)
        for (int x = 0; x < 2; x++) {
            testing t;
            problem p = make_problem(&t, both_dtypes[x], 1, 70, many_groups[i], 1, sizes[i], 40);
            if (i % 2) add_documents(&p, 50);
            check_problem(&p);
            close_problem(&p);
        }
}

/* A head size that the kernels do not take is a failure with the name of the setting, and nothing is written. */
static void larger_head_size_is_refused(void **state) {
    (void)state;
    testing t;
    problem p = make_problem(&t, DTYPE_BF16, 1, 3, 1, 1, 136, 0);
    void *qkv = on_device(p.cuda, p.gpu, p.x_qkv, (size_t)n_qkv(&p) * 2), *lse = on_device(p.cuda, p.gpu, NULL, 12);
    p.cuda->attention_forward(p.gpu, qkv, lse, qkv, NULL, 0, p.x, 1, 3, 1, 1, 136);
    error err;
    assert_int_equal(p.cuda->sync(p.gpu, &err), -1);
    assert_non_null(strstr(err.text, "model.head_dim is 136"));
    p.cuda->free(p.gpu, qkv);
    p.cuda->free(p.gpu, lse);
    close_problem(&p);
}

/* A window as long as the row, or longer, is none. */
static void long_window_is_none(void **state) {
    (void)state;
    testing t;
    problem p = make_problem(&t, DTYPE_BF16, 2, 130, 4, 2, 16, 0);
    results none = run(&p);
    const int windows[] = {130, 131, INT32_MAX};
    for (int i = 0; i < 3; i++) {
        p.window = windows[i];
        results r = run(&p);
        check_same_bits("o", r.o, none.o, n_o(&p), p.x);
        check_same_bits("dqkv", r.dqkv, none.dqkv, n_qkv(&p), p.x);
    }
    close_problem(&p);
}

/* Many documents, one in each position or all but one in the first, and numbers that come again. */
static void documents_may_be_of_any_length(void **state) {
    (void)state;
    enum { T = 300 };
    for (int kind = 0; kind < 4; kind++) {
        testing t;
        problem p = make_problem(&t, DTYPE_BF16, 1, T, 2, 1, 16, kind == 3 ? 20 : 0);
        p.doc = new_bytes(&t, T * sizeof *p.doc);
        for (int i = 0; i < T; i++) p.doc[i] = kind == 0 ? i : kind == 1 ? i == 0 : kind == 2 ? i == T - 1 : i / 37 % 2;
        check_problem(&p);
        close_problem(&p);
    }
}

/* Scores of thousands, where exp would overflow without the running maximum, come out finite and right. */
static void large_scores_do_not_overflow(void **state) {
    (void)state;
    for (int x = 0; x < 2; x++) {
        testing t;
        problem p = make_problem(&t, both_dtypes[x], 1, 200, 2, 1, 16, 0);
        draw_inputs(&p, 60);
        results r = run(&p), expected = expect(&p, &r);
        for (int64_t i = 0; i < n_qkv(&p); i++) assert_true(isfinite(element(r.dqkv, p.x, i)));
        squares s = compare(r.o, p.x, expected.o, 1, (int)n_o(&p), 0, (int)n_o(&p)); /* scores of 1e4 are known to 1e-3 only */
        check_limit(&p, "o", sqrt(s.error / s.expected), 1e-3 + limit_of[p.x]);
        close_problem(&p);
    }
}

/* FNV-1a of everything that two problems, one in each format, write. */
static uint64_t hash_of_bits(void) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int x = 0; x < 2; x++) {
        testing t;
        problem p = make_problem(&t, both_dtypes[x], 2, 150, 4, 2, 24, 70);
        add_documents(&p, 100);
        results r = run(&p);
        const void *arrays[] = {r.o, r.lse, r.dqkv};
        size_t size = dtype_size(p.x), bytes[] = {(size_t)n_o(&p) * size, (size_t)n_lse(&p) * 4, (size_t)n_qkv(&p) * size};
        for (int a = 0; a < 3; a++)
            for (size_t i = 0; i < bytes[a]; i++) hash = (hash ^ ((const unsigned char *)arrays[a])[i]) * 0x100000001b3u;
        close_problem(&p);
    }
    return hash;
}

/* This program again, in another order of threads and blocks where they are emulated. */
static uint64_t hash_in_order(const char *order) {
    char command[200];
    uint64_t hash = 0;
    snprintf(command, sizeof command, "CUEMU_ORDER=%s /proc/%d/exe hash", order, (int)getpid());
    FILE *output = popen(command, "r");
    assert_non_null(output);
    int n = fscanf(output, "%" SCNx64, &hash);
    if (pclose(output) || n != 1) fail_msg("`%s` failed", command);
    return hash;
}

static void bits_are_always_the_same(void **state) {
    (void)state;
    const char *orders[] = {"fwd", "rev", "rand:1", "rand:2", "rand:3", "rand:4"};
    uint64_t expected = hash_of_bits();
    assert_true(hash_of_bits() == expected);
    for (int i = 0; i < 6; i++) {
        uint64_t hash = hash_in_order(orders[i]);
        if (hash != expected) fail_msg("order %s: hash %" PRIx64 ", expected %" PRIx64, orders[i], hash, expected);
    }
}

/* cuDNN by itself, on machines that have it and a GPU: lengths that fill no tile, windows, groups, and the same bits again. */
static void cudnn_is_the_cpu_too(void **state) {
    (void)state;
    const int T[] = {64, 100, 257, 1024}, windows[] = {0, 1, 5, 64};
    backend *gpu;
    error err;
    setenv("MOBILELLM_ATTENTION", "cudnn", 1);
    bool there = cuda_ops()->open(&gpu, 0, 0, &err) == 0;
    if (there) cuda_ops()->close(gpu);
    for (int i = 0; there && i < 16; i++) {
        testing t;
        problem p =
            make_problem(&t, DTYPE_BF16, 1 + i % 3, T[i % 4], 2 * groups[i % 3], 2, i % 5 == 4 ? 128 : 64, windows[i / 4]);
        check_problem(&p);
        results first = run(&p), again = run(&p);
        check_same_bits("o", again.o, first.o, n_o(&p), p.x);
        check_same_bits("dqkv", again.dqkv, first.dqkv, n_qkv(&p), p.x);
        close_problem(&p);
    }
    setenv("MOBILELLM_ATTENTION", "own", 1);
    if (there) return;
    print_message("%s\n", err.text);
    skip();
}

static void wrong_wish_is_refused(void **state) {
    (void)state;
    backend *gpu;
    error err;
    setenv("MOBILELLM_ATTENTION", "cuddn", 1);
    int failed = cuda_ops()->open(&gpu, 0, 0, &err);
    setenv("MOBILELLM_ATTENTION", "own", 1);
    assert_int_equal(failed, -1);
    assert_int_equal(err.code, STATUS_USAGE);
    assert_non_null(strstr(err.text, "MOBILELLM_ATTENTION is \"cuddn\""));
}

/* Without a GPU too; in proportion to the tokens but for the alignment of three arrays. */
static void scratch_is_linear_in_T(void **state) {
    (void)state;
    op_limits limits = {.x = DTYPE_BF16, .B = 2, .H = 16, .K = 4, .D = 64};
    for (limits.T = 1024; limits.T <= 65536; limits.T *= 2)
        assert_int_equal(cuda_attention_scratch(NULL, &limits), (size_t)2 * (size_t)limits.T * (8 + 16 * 4));
    limits.K = limits.H = 0;
    assert_int_equal(cuda_attention_scratch(NULL, &limits), 0);
}

int main(int argc, char **argv) {
    setenv("MOBILELLM_ATTENTION", "own", 1);
    if (argc == 2 && strcmp(argv[1], "hash") == 0) return printf("%" PRIx64 "\n", hash_of_bits()) < 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_passes_are_those_of_the_cpu),
        cmocka_unit_test(window_may_be_any),
        cmocka_unit_test(head_size_may_be_any_up_to_128),
        cmocka_unit_test(larger_head_size_is_refused),
        cmocka_unit_test(long_window_is_none),
        cmocka_unit_test(documents_may_be_of_any_length),
        cmocka_unit_test(large_scores_do_not_overflow),
        cmocka_unit_test(bits_are_always_the_same),
        cmocka_unit_test(scratch_is_linear_in_T),
        cmocka_unit_test(cudnn_is_the_cpu_too),
        cmocka_unit_test(wrong_wish_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
