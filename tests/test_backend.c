/* test_backend.c: the CPU as a device: opening, memory, failures. */
#include "cpu/cpu.h"

#include <omp.h>

#include "op_testing.h"

/* AddressSanitizer, where the test is built with it, is to refuse too much memory as the machine does, not to end the program. */
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }

/* The banner names the processor, the threads, the library and what it can do. */
static void description_says_what_computes(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 2);
    const char *text = t.ops->describe(t.b);
    print_message("%s\n", text);
    assert_non_null(strstr(text, ", 2 threads, oneDNN "));
    assert_non_null(strchr(text, '('));
    testing_close(&t);
}

/* Zero threads means what OMP_NUM_THREADS or the machine says. */
static void threads_default_to_those_of_openmp(void **state) {
    (void)state;
    omp_set_num_threads(3);
    testing t;
    testing_open(&t, 0);
    assert_int_equal(t.b->threads, 3);
    testing_close(&t);
}

/* Memory is aligned and cleared, also that of blocks before; none is no memory and no error; too much is an error that tells how
 * much. */
static void memory(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 2);
    error err = {0};
    for (size_t bytes = 1; bytes < 10000000; bytes = bytes * 3 + 1) {
        char *block = t.ops->alloc(t.b, bytes, &err);
        assert_int_equal((uintptr_t)block % 256, 0);
        for (size_t i = 0; i < bytes; i++)
            if (block[i]) fail_msg("byte %zu of %zu is %d", i, bytes, block[i]);
        memset(block, 1, bytes);
        t.ops->free(t.b, block);
    }
    assert_null(t.ops->alloc(t.b, 0, &err));
    assert_int_equal(err.code, STATUS_OK);
    t.ops->free(t.b, NULL);
    assert_null(t.ops->alloc(t.b, (size_t)1 << 50, &err));
    assert_int_equal(err.code, STATUS_RESOURCE);
    if (strstr(err.text, "1048576.00 GiB") == NULL) fail_msg("the message does not tell the size: %s", err.text);
    testing_close(&t);
}

/* Copies and clears of any length touch exactly their bytes. */
static void copying_and_clearing(void **state) {
    (void)state;
    const size_t lengths[] = {0, 1, 1 << 20, (1 << 20) + 1, (5 << 20) + 77};
    testing t;
    testing_open(&t, 3);
    char *from = new_bytes(&t, 6 << 20), *to = new_bytes(&t, 6 << 20);
    for (int i = 0; i < 6 << 20; i++) from[i] = (char)(i % 251 + 1);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t n = lengths[i];
        void (*const copies[])(backend *, void *, const void *, size_t) = {t.ops->copy, t.ops->copy_in, t.ops->copy_out};
        for (int k = 0; k < 3; k++) {
            memset(to, 0, 6 << 20);
            copies[k](t.b, to, from, n);
            assert_memory_equal(to, from, n);
            assert_int_equal(to[n], 0);
        }
        memcpy(to, from, 6 << 20);
        t.ops->zero(t.b, to, n);
        for (size_t j = 0; j < n; j++) assert_int_equal(to[j], 0);
        assert_memory_equal(to + n, from + n, (6 << 20) - n);
    }
    testing_close(&t);
}

/* The first failure is kept until sync tells it, once. */
static void sync_reports_the_first_failure(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 1);
    error err = {0};
    assert_int_equal(t.ops->sync(t.b, &err), 0);
    cpu_fail(t.b, STATUS_RESOURCE, "first", "this");
    cpu_fail(t.b, STATUS_INTERNAL, "second", "that");
    assert_int_equal(t.ops->sync(t.b, &err), -1);
    assert_string_equal(err.text, "first: this");
    assert_int_equal(err.code, STATUS_RESOURCE);
    assert_int_equal(t.ops->sync(t.b, &err), 0);
    testing_close(&t);
}

/* Where oneDNN has no products in bf16 the description says how they are made. */
static void both_dtypes_are_computed_everywhere(void **state) {
    (void)state;
    testing t;
    testing_open(&t, 1);
    assert_null(t.ops->check_sizes); /* nothing is refused */
    bool avx512 = (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core;
    assert_int_equal(strstr(t.ops->describe(t.b), "bf16 by way of f32") == NULL, avx512);
    testing_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(description_says_what_computes),
        cmocka_unit_test(threads_default_to_those_of_openmp),
        cmocka_unit_test(memory),
        cmocka_unit_test(copying_and_clearing),
        cmocka_unit_test(sync_reports_the_first_failure),
        cmocka_unit_test(both_dtypes_are_computed_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
