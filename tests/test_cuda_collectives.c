/* test_cuda_collectives.c: the collectives between GPUs, and how a run ends when one of them fails.
 *
 * Runs alone, and under mpirun with any number of ranks. With arguments it is a run that goes wrong in a given way, for
 * test_cuda_collectives.py, which looks at exit status, messages and time; those need the emulated GPU. */
#include "op_testing.h"

#include <signal.h>
#include <unistd.h>

#include "cuda/cuda.h"
#include "cuda/gemm.h"
#include "ranks/ranks.h"

static ranks r;
static const ops *op;
static backend *b;

static float value(int rank, int64_t i, int round) { return 1.0f / (float)(1 + rank + 7 * (i % 1000) + 13 * round); }

static void *on_device(const void *host, size_t bytes) {
    error err = {0};
    void *memory = op->alloc(b, bytes, &err);
    if (memory == NULL) fail_msg("%s", err.text);
    op->copy_in(b, memory, host, bytes);
    return memory;
}

static void check_synced(void) {
    error err = {0};
    if (op->sync(b, &err)) fail_msg("%s", err.text);
}

/* Several reductions are under way; what is enqueued after them runs beside them; after the join their sums are there. */
static void reduce_scatter_leaves_each_rank_the_sum_of_its_part(void **state) {
    (void)state;
    enum { PART = 3001, N_BUFFERS = 5 };
    size_t bytes = (size_t)r.size * PART * sizeof(float);
    float *host = malloc(bytes), *device[N_BUFFERS], *got = malloc(PART * sizeof *got);
    int64_t tickets[N_BUFFERS];
    for (int k = 0; k < N_BUFFERS; k++) {
        for (int64_t i = 0; i < r.size * PART; i++) host[i] = value(r.rank, i, k);
        device[k] = on_device(host, bytes);
        tickets[k] = op->reduce_scatter(b, device[k], PART);
    }
    for (int k = 0; k < N_BUFFERS; k++) {
        op->join(b, tickets[k]);
        op->copy_out(b, got, device[k] + r.rank * PART, PART * sizeof *got);
        for (int i = 0; i < PART; i++) {
            double sum = 0;
            for (int rank = 0; rank < r.size; rank++) sum += (double)value(rank, r.rank * PART + i, k);
            if (fabs((double)got[i] - sum) > 1e-6 * sum)
                fail_msg("buffer %d, element %d: %g, expected %g", k, i, (double)got[i], sum);
        }
        op->free(b, device[k]);
    }
    free(host);
    free(got);
    check_synced();
}

static void all_gather_fills_in_the_other_parts(void **state) {
    (void)state;
    enum { BYTES = 5003 };
    size_t bytes = (size_t)r.size * BYTES;
    unsigned char *host = calloc(1, bytes);
    for (size_t i = 0; i < bytes; i++) host[i] = (int)(i / BYTES) == r.rank ? (unsigned char)(i * 31 + i / BYTES) : 0xee;
    unsigned char *device = on_device(host, bytes);
    op->join(b, op->all_gather(b, device, BYTES));
    op->copy_out(b, host, device, bytes);
    for (size_t i = 0; i < bytes; i++)
        if (host[i] != (unsigned char)(i * 31 + i / BYTES)) fail_msg("byte %zu is 0x%02x", i, host[i]);
    op->free(b, device);
    free(host);
    check_synced();
}

/* In place and in the order of the ops: what comes after needs no join. */
static void all_sum_adds_in_the_order_of_the_ops(void **state) {
    (void)state;
    double host[8] = {0}, *device = on_device(host, sizeof host), expected[8];
    for (int n = 1; n <= 8; n++) {
        error err = {0};
        for (int i = 0; i < 8; i++) {
            host[i] = 1.0 / (1 + r.rank + 7 * i);
            expected[i] = host[i];
            if (i < n) expected[i] = 0;
            for (int rank = 0; rank < r.size && i < n; rank++) expected[i] += 1.0 / (1 + rank + 7 * i);
        }
        op->copy_in(b, device, host, sizeof host);
        op->all_sum(b, device, n);
        op->post(b, device, sizeof host);
        op->zero(b, device, sizeof host);
        if (op->fetch(b, host, sizeof host, &err)) fail_msg("%s", err.text);
        for (int i = 0; i < 8; i++)
            if (fabs(host[i] - expected[i]) > 1e-14) fail_msg("n %d, value %d: %g, expected %g", n, i, host[i], expected[i]);
    }
    op->free(b, device);
    check_synced();
}

/* A collective comes after the ops before it; a ticket is good long after, and for all collectives before it. */
static void collectives_keep_their_place_among_the_ops(void **state) {
    (void)state;
    enum { PART = 400, ROUNDS = 150 };
    size_t bytes = (size_t)r.size * PART * sizeof(float);
    float *host = malloc(bytes);
    for (int64_t i = 0; i < r.size * PART; i++) host[i] = 1;
    float *ones = on_device(host, bytes), *sum = on_device(host, bytes);
    int64_t first = 0, last = 0;
    for (int round = 0; round < ROUNDS; round++) {
        op->join(b, last);
        op->copy(b, sum, ones, bytes);
        last = op->reduce_scatter(b, sum, PART);
        op->join(b, last);
        last = op->all_gather(b, sum, PART * sizeof *sum);
        if (round == 0) first = last;
    }
    op->join(b, first);
    op->join(b, last);
    op->copy_out(b, host, sum, bytes);
    for (int64_t i = 0; i < r.size * PART; i++)
        if (host[i] != (float)r.size) fail_msg("element %lld is %g", (long long)i, (double)host[i]);
    op->free(b, ones);
    op->free(b, sum);
    free(host);
    check_synced();
}

/* One rank has nobody to talk to: nothing moves, and there is no ticket to wait for. */
static void alone_nothing_happens(void **state) {
    (void)state;
    if (r.size > 1) skip();
    assert_null(b->collectives);
    float *nowhere = NULL;
    double *no_values = NULL;
    assert_int_equal(op->reduce_scatter(b, nowhere, 7), 0);
    assert_int_equal(op->all_gather(b, nowhere, 7), 0);
    op->all_sum(b, no_values, 1);
    op->join(b, 0);
    check_synced();
}

/* All ranks multiply with the algorithms that rank 0 knows of, whatever their own files said. */
static void ranks_share_the_choices_of_rank_0(void **state) {
    (void)state;
    gemm_choices c = {.heading = "the same"};
    gemm_choice choice = {.shape = {.m = 5, .n = 6, .k = 7, .alignment = {256, 2, 4}}};
    error err = {0};
    for (int i = 0; i < 3; i++) {
        choice.shape.m = 5 + i;
        choice.algorithm.data[3] = (uint64_t)(100 * r.rank + i);
        if (r.rank == 0 || i == 1) gemm_choices_add(&c, &choice);
    }
    if (gemm_choices_share(&c, &r, &err)) fail_msg("%s", err.text);
    assert_int_equal(c.n, 3);
    for (int i = 0; i < 3; i++) {
        choice.shape.m = 5 + i;
        assert_int_equal(gemm_choices_find(&c, &choice.shape)->algorithm.data[3], i);
    }
    gemm_choices_close(&c);
}

/* ---- runs that go wrong ---- */

static noreturn void run_until_it_ends(const char *how, int which) {
    error err = {0};
    bool hang = strcmp(how, "hang") == 0, lost = strcmp(how, "lost") == 0;
    double host = 1, *device = op->alloc(b, sizeof *device, &err);
    if (ranks_watch(&r, hang ? 2 : 100, "Look at it.", &err)) ranks_abort(&r, &err);
    for (int i = 0;; i++) {
        while (hang && i == 3 && r.rank == which) usleep(100000);
        if (lost && i == 3 && r.rank == which) raise(SIGSTOP);
        op->copy_in(b, device, &host, sizeof host);
        op->all_sum(b, device, 1);
        op->post(b, device, sizeof host);
        if (op->fetch(b, &host, sizeof host, &err)) ranks_abort(&r, &err);
    }
}

/* How the machine, or the run on it, is to be before the GPU is opened. */
static void prepare(const char *how, int which) {
    if (strcmp(how, "fail") == 0 && r.rank == which) setenv("CUEMU_NCCL_FAIL", "4", 1);
    if (strcmp(how, "lost") == 0 && r.rank != which) setenv("CUEMU_NCCL_FAIL", "4", 1);
    if (strcmp(how, "differ") == 0 && r.rank == which) setenv("CUEMU_NAME", "another GPU", 1);
    if (strcmp(how, "share") == 0) {
        setenv("CUEMU_DEVICES", "1", 1);
        setenv("CUDA_VISIBLE_DEVICES", "0", 1);
    }
}

int main(int argc, char **argv) {
    error err = {0};
    if (ranks_open(&r, &err)) ranks_abort(&r, &err);
    const char *how = argc == 3 ? argv[1] : "";
    int which = argc == 3 ? atoi(argv[2]) : 0;
    setenv("CUEMU_DEVICES", "8", 0);
    prepare(how, which);
    op = cuda_ops();
    if (op->open(&b, 0, r.local_rank, &err) || op->connect(b, &r, &err)) ranks_abort(&r, &err);
    if (*how) run_until_it_ends(how, which);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reduce_scatter_leaves_each_rank_the_sum_of_its_part),
        cmocka_unit_test(all_gather_fills_in_the_other_parts),
        cmocka_unit_test(all_sum_adds_in_the_order_of_the_ops),
        cmocka_unit_test(collectives_keep_their_place_among_the_ops),
        cmocka_unit_test(alone_nothing_happens),
        cmocka_unit_test(ranks_share_the_choices_of_rank_0),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    op->close(b);
    ranks_close(&r);
    return failed;
}
