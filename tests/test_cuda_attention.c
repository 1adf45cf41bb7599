/* test_cuda_attention.c: the CUDA backend's attention against the CPU's in fp32, on the same numbers.
 *
 * Our own kernels run here, on a GPU too: cuDNN's plans differ from GPU to GPU (tests/cudnn_plans.cpp). */
#include "attention_testing.h"
#include "cuda/cuda.h"
#include "emu_orders.h"

/* Of all problems: opening one pins memory of the host, which takes longer than most of them. */
static backend *gpu;

static int open_gpu(void **state) {
    (void)state;
    error err;
    if (cuda_ops()->open(&gpu, 0, 0, &err) == 0) return 0;
    print_message("%s\n", err.text);
    return -1;
}

static int close_gpu(void **state) {
    (void)state;
    cuda_ops()->close(gpu);
    return 0;
}

/* A problem for the device. */
static problem open_problem(testing *t, dtype x, int B, int T, int H, int K, int D, int window) {
    testing_open(t, 2);
    problem p = make_problem(t, x, B, T, H, K, D, window);
    p.ops = cuda_ops();
    p.b = gpu;
    return p;
}

static void close_problem(problem *p) { testing_close(p->t); }

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

/* Forward, then backward; o NULL: the forward pass's. Scratch memory is full of NaN before both. */
static results run_with(const problem *p, const void *o) {
    const ops *op = p->ops;
    backend *b = p->b;
    size_t size = dtype_size(p->x), qkv_bytes = (size_t)n_qkv(p) * size, o_bytes = (size_t)n_o(p) * size,
           lse_bytes = (size_t)n_lse(p) * sizeof(float);
    op_limits limits = {.x = p->x, .B = p->B, .T = p->T, .H = p->H, .K = p->K, .D = p->D, .training = true, .window = p->window};
    limits.full = p->window == 0;
    size_t scratch_bytes = op == cuda_ops() ? cuda_attention_scratch(b, &limits) : op->scratch_bytes(b, &limits);
    void *scratch = on_device(op, b, NULL, scratch_bytes), *in = on_device(op, b, p->x_qkv, qkv_bytes);
    void *out = on_device(op, b, NULL, o_bytes), *lse = on_device(op, b, NULL, lse_bytes);
    void *d_out = on_device(op, b, p->x_d_o, o_bytes), *d_in = on_device(op, b, NULL, qkv_bytes);
    void *doc = p->doc ? on_device(op, b, p->doc, (size_t)p->B * (size_t)p->T * sizeof *p->doc) : NULL;
    results r = {new_bytes(p->t, o_bytes), new_bytes(p->t, lse_bytes), new_bytes(p->t, qkv_bytes)};
    op->set_scratch(b, scratch, scratch_bytes);
    op->attention_forward(b, out, lse, in, doc, p->window, p->x, p->B, p->T, p->H, p->K, p->D);
    op->copy_out(b, r.o, out, o_bytes);
    op->copy_out(b, r.lse, lse, lse_bytes);
    if (o) op->copy_in(b, out, o, o_bytes);
    op->attention_backward(b, d_in, d_out, out, lse, in, doc, p->window, p->x, p->B, p->T, p->H, p->K, p->D);
    op->copy_out(b, r.dqkv, d_in, qkv_bytes);
    error err;
    if (op->sync(b, &err)) fail_msg("%s", err.text);
    op->set_scratch(b, NULL, 0);
    void *all[] = {scratch, in, out, lse, d_out, d_in, doc};
    for (int i = 0; i < 7; i++)
        if (all[i]) op->free(b, all[i]);
    return r;
}

static results run(const problem *p) { return run_with(p, NULL); }

/* What the CPU gives in fp32; its backward pass gets the o of r. */
static results expect(const problem *p, const results *r) {
    problem cpu = *p;
    float *o = new_floats(p->t, n_o(p));
    for (int64_t i = 0; i < n_o(p); i++) o[i] = (float)element(r->o, p->x, i);
    cpu.ops = p->t->ops, cpu.b = p->t->b, cpu.x = DTYPE_F32;
    round_inputs(&cpu);
    results expected = run_with(&cpu, o);
    p->t->ops->set_scratch(p->t->b, p->t->scratch, 0);
    return expected;
}

static double *doubles_of(testing *t, const void *floats, int64_t n) {
    double *values = new_doubles(t, n);
    for (int64_t i = 0; i < n; i++) values[i] = element(floats, DTYPE_F32, i);
    return values;
}

static void check_problem(const problem *p) {
    results r = run(p), expected = expect(p, &r);
    check_results(p, &r, doubles_of(p->t, expected.o, n_o(p)), doubles_of(p->t, expected.lse, n_lse(p)),
                  doubles_of(p->t, expected.dqkv, n_qkv(p)));
}

/* ---- promises ---- */

static const int lengths[] = {1, 7, 64, 100, 257}, head_sizes[] = {8, 32, 64, 128};

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
                    problem p = open_problem(&t, both_dtypes[x], T < 200 ? 2 : 1, T, K * groups[(documents + w + i) % 3], K,
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
        problem p = open_problem(&t, DTYPE_BF16, 1, 257, 1, 1, 8, window);
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
            problem p = open_problem(&t, both_dtypes[x], 1, 70, many_groups[i], 1, sizes[i], 40);
            if (i % 2) add_documents(&p, 50);
            check_problem(&p);
            close_problem(&p);
        }
}

/* A head size that the kernels do not take is a failure with the name of the setting, and nothing is written. */
static void larger_head_size_is_refused(void **state) {
    (void)state;
    testing t;
    problem p = open_problem(&t, DTYPE_BF16, 1, 3, 1, 1, 136, 0);
    void *qkv = on_device(p.ops, p.b, p.x_qkv, (size_t)n_qkv(&p) * 2), *lse = on_device(p.ops, p.b, NULL, 12);
    p.ops->attention_forward(p.b, qkv, lse, qkv, NULL, 0, p.x, 1, 3, 1, 1, 136);
    error err;
    assert_int_equal(p.ops->sync(p.b, &err), -1);
    assert_non_null(strstr(err.text, "model.head_dim is 136"));
    p.ops->free(p.b, qkv);
    p.ops->free(p.b, lse);
    close_problem(&p);
}

/* A window as long as the row, or longer, is none. */
static void long_window_is_none(void **state) {
    (void)state;
    testing t;
    problem p = open_problem(&t, DTYPE_BF16, 2, 130, 4, 2, 16, 0);
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
        problem p = open_problem(&t, DTYPE_BF16, 1, T, 2, 1, 16, kind == 3 ? 20 : 0);
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
        problem p = open_problem(&t, both_dtypes[x], 1, 200, 2, 1, 16, 0);
        draw_inputs(&p, 60);
        results r = run(&p), expected = expect(&p, &r);
        for (int64_t i = 0; i < n_qkv(&p); i++) assert_true(isfinite(element(r.dqkv, p.x, i)));
        check_output(&p, r.o, doubles_of(&t, expected.o, n_o(&p)), 1e-3 + limit_of[p.x]); /* scores of 1e4 are known to 1e-3 */
        close_problem(&p);
    }
}

/* Of everything that two problems, one in each format, write. */
static uint64_t hash_of_bits(void) {
    uint64_t hash = NO_BITS;
    for (int x = 0; x < 2; x++) {
        testing t;
        problem p = open_problem(&t, both_dtypes[x], 2, 150, 4, 2, 24, 70);
        add_documents(&p, 100);
        results r = run(&p);
        const void *arrays[] = {r.o, r.lse, r.dqkv};
        size_t size = dtype_size(p.x), bytes[] = {(size_t)n_o(&p) * size, (size_t)n_lse(&p) * 4, (size_t)n_qkv(&p) * size};
        for (int a = 0; a < 3; a++) hash = add_bits(hash, arrays[a], bytes[a]);
        close_problem(&p);
    }
    return hash;
}

static void bits_are_always_the_same(void **state) {
    (void)state;
    uint64_t expected = hash_of_bits();
    assert_true(hash_of_bits() == expected);
    check_all_orders(expected);
}

/* cuDNN by itself, on machines that have it and a GPU: lengths that fill no tile, windows, groups, and the same bits again. */
static void cudnn_is_the_cpu_too(void **state) {
    (void)state;
    const int T[] = {64, 100, 257, 1024}, windows[] = {0, 1, 5, 64};
    backend *own = gpu;
    error err;
    setenv("MOBILELLM_ATTENTION", "cudnn", 1);
    bool there = cuda_ops()->open(&gpu, 0, 0, &err) == 0;
    for (int i = 0; there && i < 16; i++) {
        testing t;
        problem p =
            open_problem(&t, DTYPE_BF16, 1 + i % 3, T[i % 4], 2 * groups[i % 3], 2, i % 5 == 4 ? 128 : 64, windows[i / 4]);
        check_problem(&p);
        results first = run(&p), again = run(&p);
        check_same_bits("o", again.o, first.o, n_o(&p), p.x);
        check_same_bits("dqkv", again.dqkv, first.dqkv, n_qkv(&p), p.x);
        close_problem(&p);
    }
    setenv("MOBILELLM_ATTENTION", "own", 1);
    if (there) cuda_ops()->close(gpu);
    gpu = own;
    if (there) return;
    print_message("%s\n", err.text);
    skip();
}

static void wrong_wish_is_refused(void **state) {
    (void)state;
    backend *refused;
    error err;
    setenv("MOBILELLM_ATTENTION", "cuddn", 1);
    int failed = cuda_ops()->open(&refused, 0, 0, &err);
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
    if (argc == 2 && strcmp(argv[1], "hash") == 0) return open_gpu(NULL) || printf("%" PRIx64 "\n", hash_of_bits()) < 0;
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
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
