/* test_ranks.c: the collectives, and how a run ends when a rank fails.
 *
 * Runs alone, and under mpirun with any number of ranks. With arguments it is a run that fails in a given way, for
 * test_ranks_launch.py, which looks at exit status, messages and time. */
#include <mpi.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ranks/ranks.h"
#include "util/rng.h"

static ranks r;

/* MPI that fails, by way of its profiling interface. */
static bool network_is_down;

int MPI_Barrier(MPI_Comm world) { return network_is_down ? MPI_ERR_OTHER : PMPI_Barrier(world); }

int MPI_Init_thread(int *argc, char ***argv, int wanted, int *provided) {
    int result = PMPI_Init_thread(argc, argv, wanted, provided);
    if (getenv("TEST_RANKS_SINGLE")) *provided = MPI_THREAD_SINGLE;
    return result;
}

static double harmonic(int rank, int i) { return 1.0 / (1 + rank + 7 * i); }

static void a_rank_knows_its_place(void **state) {
    (void)state;
    const char *expected = getenv("OMPI_COMM_WORLD_SIZE");
    assert_int_equal(r.size, expected ? atoi(expected) : 1);
    assert_in_range(r.rank, 0, r.size - 1);
    if (expected) assert_int_equal(r.local_rank, atoi(getenv("OMPI_COMM_WORLD_LOCAL_RANK")));
    assert_int_equal(r.local_size, expected ? atoi(getenv("OMPI_COMM_WORLD_LOCAL_SIZE")) : 1);
    if (!expected) assert_null(r.comm);
}

/* Unless it is told how many to use, or bound to some by its launcher. */
static void the_ranks_of_a_machine_share_its_processors(void **state) {
    (void)state;
    char *told = getenv("OMP_NUM_THREADS"), *kept = told ? strdup(told) : NULL;
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    int n = CPU_COUNT(&all), first = 0;
    bool bound = n < sysconf(_SC_NPROCESSORS_ONLN);
    unsetenv("OMP_NUM_THREADS");
    assert_int_equal(ranks_threads(&(ranks){.size = 1, .local_size = 1}), n);
    assert_int_equal(ranks_threads(&(ranks){.size = 8, .local_size = 2}), bound || n == 1 ? n : n / 2);
    assert_int_equal(ranks_threads(&(ranks){.size = 1000, .local_size = 1000}), bound || n > 1000 ? n : 1);
    while (!CPU_ISSET(first, &all)) first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(ranks_threads(&(ranks){.size = 8, .local_size = 1}), 1);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
    setenv("OMP_NUM_THREADS", "3", 1);
    assert_int_equal(ranks_threads(&(ranks){.size = 1, .local_size = 1}), 3);
    if (kept) setenv("OMP_NUM_THREADS", kept, 1);
    free(kept);
}

static void sums_and_maxima_are_those_of_all_ranks(void **state) {
    (void)state;
    double d[3];
    int64_t s[3], m[3], bits[3];
    for (int i = 0; i < 3; i++) {
        d[i] = harmonic(r.rank, i);
        s[i] = ((int64_t)1 << 40) * (r.rank + 1) + i;
        m[i] = i == 1 ? -r.rank - 5 : r.rank * 10 + i;
        bits[i] = ((int64_t)1 << r.rank) + (i == 1 && r.rank == r.size - 1 ? INT64_MIN : 0);
    }
    ranks_sum_double(&r, d, 3);
    ranks_sum_int64(&r, s, 3);
    ranks_max_int64(&r, m, 3);
    ranks_or_int64(&r, bits, 3);
    for (int i = 0; i < 3; i++) {
        double expected = 0;
        for (int k = 0; k < r.size; k++) expected += harmonic(k, i);
        assert_true(d[i] > expected * (1 - 1e-14) && d[i] < expected * (1 + 1e-14));
        assert_true(s[i] == ((int64_t)1 << 40) * r.size * (r.size + 1) / 2 + (int64_t)i * r.size);
        assert_true(m[i] == (i == 1 ? -5 : (r.size - 1) * 10 + i));
        assert_true(bits[i] == ((int64_t)1 << r.size) - 1 + (i == 1 ? INT64_MIN : 0));
    }
}

static void broadcast_brings_the_roots_bytes(void **state) {
    (void)state;
    enum { N = 100003 };
    unsigned char *data = malloc(N);
    for (int root = 0; root < r.size; root++) {
        for (int i = 0; i < N; i++) data[i] = r.rank == root ? (unsigned char)(i * 31 + root) : 0xee;
        ranks_broadcast(&r, data, N, root);
        for (int i = 0; i < N; i++) assert_int_equal(data[i], (unsigned char)(i * 31 + root));
    }
    free(data);
}

static void gather_keeps_the_order_of_ranks(void **state) {
    (void)state;
    char mine[5], *all = calloc((size_t)r.size, sizeof mine);
    snprintf(mine, sizeof mine, "r%03d", r.rank);
    ranks_gather(&r, all, mine, sizeof mine);
    for (int k = 0; k < r.size; k++) assert_int_equal(atoi(all + 5 * k + 1), k);
    free(all);
}

/* Values whose sums are exact, so that every order of adding gives the same. */
static float exact(int rank, int64_t i) { return (float)((i * 7 + rank * 13) % 101 - 50); }

static void reduce_scatter_leaves_each_rank_the_sum_of_its_part(void **state) {
    (void)state;
    for (int64_t n = 1; n < 100000; n = n * 9 + 4) {
        float *buffer = malloc((size_t)(n * r.size) * sizeof *buffer);
        for (int64_t i = 0; i < n * r.size; i++) buffer[i] = exact(r.rank, i);
        ranks_reduce_scatter(&r, buffer, n);
        for (int64_t i = n * r.rank; i < n * (r.rank + 1); i++) {
            float expected = 0;
            for (int k = 0; k < r.size; k++) expected += exact(k, i);
            assert_true(buffer[i] == expected);
        }
        free(buffer);
    }
}

static void all_gather_fills_in_the_other_parts(void **state) {
    (void)state;
    enum { BYTES = 30011 };
    unsigned char *buffer = calloc((size_t)r.size, BYTES);
    for (int i = 0; i < BYTES; i++) buffer[(size_t)r.rank * BYTES + (size_t)i] = (unsigned char)(i + r.rank * 3);
    ranks_all_gather(&r, buffer, BYTES);
    for (int k = 0; k < r.size; k++)
        for (int i = 0; i < BYTES; i++) assert_int_equal(buffer[(size_t)k * BYTES + (size_t)i], (unsigned char)(i + k * 3));
    free(buffer);
}

/* Sums of normals depend on the order of adding: 20 times, with ranks arriving at different times, the bits must not. */
static void the_same_data_give_the_same_bits(void **state) {
    (void)state;
    enum { N = 65537, TIMES = 20 };
    size_t all = (size_t)N * (size_t)r.size;
    float *data = malloc(all * sizeof *data), *sum = malloc(all * sizeof *sum), *first = malloc(N * sizeof *first);
    rng_normal(data, 17 + (uint64_t)r.rank, 0, (int64_t)all, 1.0f);
    double total = 0;
    for (int t = 0; t < TIMES; t++) {
        usleep((useconds_t)((t * 37 + r.rank * 101) % 7 * 1000));
        memcpy(sum, data, all * sizeof *sum);
        ranks_reduce_scatter(&r, sum, N);
        if (t == 0) memcpy(first, sum + (size_t)r.rank * N, N * sizeof *first);
        assert_memory_equal(first, sum + (size_t)r.rank * N, N * sizeof *first);

        double d = data[0] * 1e-3 + data[1], *of_all = malloc((size_t)r.size * sizeof d);
        ranks_sum_double(&r, &d, 1);
        if (t == 0) total = d;
        assert_memory_equal(&d, &total, sizeof d);
        ranks_gather(&r, of_all, &d, sizeof d);
        for (int k = 0; k < r.size; k++) assert_memory_equal(&of_all[k], &total, sizeof d);
        free(of_all);
    }
    free(data);
    free(sum);
    free(first);
}

static void agreement_of_all_returns(void **state) {
    (void)state;
    error err = {.code = STATUS_OK};
    assert_int_equal(ranks_agree(&r, 0, &err), 0);
    assert_int_equal(ranks_share(&r, 0, &err), 0);
}

/* Two ranks fail: the lower keeps its reason, and all others are told it. */
static void a_failure_is_shared_with_its_reason(void **state) {
    (void)state;
    int low = r.size / 3, high = r.size - 1;
    error err = {.code = STATUS_OK};
    int result = r.rank == low || r.rank == high ? error_set(&err, STATUS_INPUT, "file %d is bad", r.rank) : 0;
    char own[64], shared[64];
    snprintf(own, sizeof own, "file %d is bad", low);
    snprintf(shared, sizeof shared, "rank %d: file %d is bad", low, low);
    assert_int_equal(ranks_share(&r, result, &err), -1);
    assert_string_equal(err.text, r.rank == low ? own : shared);
    assert_int_equal(err.code, r.rank == low ? STATUS_INPUT : STATUS_RANK);
}

/* The ways to fail: on one rank (argv[2]) while the others are in a collective, or on all. */
static int fail_as_told(const char *how, int which) {
    error err = {.code = STATUS_OK};
    int result = 0;
    ranks_barrier(&r);
    if (r.rank == which || strstr(how, "-all")) result = error_set(&err, STATUS_INPUT, "data.bin: is short.\nWrite it again.");
    if (strcmp(how, "abort") == 0 && result) ranks_abort(&r, &err);
    if (strncmp(how, "agree", 5) == 0) ranks_agree(&r, result, &err);
    if (strncmp(how, "share", 5) == 0 && ranks_share(&r, result, &err)) ranks_abort(&r, &err);
    if (strcmp(how, "kill") == 0 && r.rank == which) raise(SIGKILL);
    if (strcmp(how, "exit") == 0 && r.rank == which) exit(7);
    network_is_down = strcmp(how, "network") == 0 && r.rank == which;
    for (;;) ranks_barrier(&r);
}

/* Under a watch of a second, one rank sleeps outside the collective that the others are in: dead to the world, or at work. */
static int sleep_watched(bool at_work, int which) {
    error err;
    if (ranks_watch(&r, 1, "Look at it.", &err)) ranks_abort(&r, &err);
    for (int i = 0; r.rank == which && (!at_work || i < 30); i++) {
        usleep(100000);
        if (at_work) ranks_progress(&r);
    }
    ranks_barrier(&r);
    ranks_close(&r);
    return 0;
}

int main(int argc, char **argv) {
    error err;
    if (ranks_open(&r, &err)) ranks_abort(&r, &err);
    if (argc == 3 && strcmp(argv[1], "hang") == 0) return sleep_watched(false, atoi(argv[2]));
    if (argc == 3 && strcmp(argv[1], "work") == 0) return sleep_watched(true, atoi(argv[2]));
    if (argc == 3) return fail_as_told(argv[1], atoi(argv[2]));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_knows_its_place),
        cmocka_unit_test(the_ranks_of_a_machine_share_its_processors),
        cmocka_unit_test(sums_and_maxima_are_those_of_all_ranks),
        cmocka_unit_test(broadcast_brings_the_roots_bytes),
        cmocka_unit_test(gather_keeps_the_order_of_ranks),
        cmocka_unit_test(reduce_scatter_leaves_each_rank_the_sum_of_its_part),
        cmocka_unit_test(all_gather_fills_in_the_other_parts),
        cmocka_unit_test(the_same_data_give_the_same_bits),
        cmocka_unit_test(agreement_of_all_returns),
        cmocka_unit_test(a_failure_is_shared_with_its_reason),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ranks_close(&r);
    return failed;
}
