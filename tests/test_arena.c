/* test_arena.c: util/arena.h. */
#include "util/arena.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Some allocations as a model makes them: long-lived ones, and temporaries that two phases share. */
static void lay_out(arena *a, unsigned char *blocks[5]) {
    blocks[0] = arena_alloc(a, "weights", 1000);
    blocks[1] = arena_alloc(a, "gradients", 1);
    size_t mark = arena_mark(a);
    blocks[2] = arena_alloc(a, "work", 5000);
    arena_release(a, mark);
    blocks[3] = arena_alloc(a, "work", 300);
    blocks[4] = arena_alloc(a, "weights", 256);
}

static void a_dry_run_gives_no_memory_and_its_size(void **state) {
    (void)state;
    arena a = arena_dry();
    unsigned char *blocks[5];
    lay_out(&a, blocks);
    for (int i = 0; i < 5; i++) assert_null(blocks[i]);
    assert_int_equal(a.peak, 1024 + 256 + 5120);
    assert_int_equal(a.used, 1024 + 256 + 512 + 256);
}

static void the_same_calls_fit_exactly_into_what_the_dry_run_asked_for(void **state) {
    (void)state;
    arena dry = arena_dry();
    unsigned char *blocks[5];
    lay_out(&dry, blocks);
    void *memory = aligned_alloc(ARENA_ALIGN, dry.peak);
    assert_non_null(memory);
    arena real = arena_on(memory, dry.peak);
    lay_out(&real, blocks);

    assert_int_equal(real.peak, dry.peak);
    assert_int_equal(real.used, dry.used);
    assert_int_equal(real.n_parts, dry.n_parts);
    for (int i = 0; i < dry.n_parts; i++) {
        assert_string_equal(real.parts[i].name, dry.parts[i].name);
        assert_int_equal(real.parts[i].bytes, dry.parts[i].bytes);
    }
    free(memory);
}

static void blocks_are_aligned_and_do_not_overlap(void **state) {
    (void)state;
    const size_t sizes[5] = {1000, 1, 5000, 300, 256};
    _Alignas(ARENA_ALIGN) static unsigned char memory[6400];
    arena a = arena_on(memory, sizeof memory);
    unsigned char *blocks[5];
    lay_out(&a, blocks);
    assert_ptr_equal(blocks[3], blocks[2]); /* the released memory comes again */
    for (int i = 0; i < 5; i++) {
        assert_int_equal((uintptr_t)blocks[i] % ARENA_ALIGN, 0);
        if (i != 2) memset(blocks[i], i, sizes[i]);
    }
    for (int i = 0; i < 5; i++)
        for (size_t j = 0; i != 2 && j < sizes[i]; j++) assert_int_equal(blocks[i][j], i);
}

static void parts_are_counted_together_under_one_name(void **state) {
    (void)state;
    arena a = arena_dry();
    char weights[] = "weights"; /* equal text at another address is the same part */
    arena_alloc(&a, "weights", 10);
    arena_alloc(&a, "other", 257);
    arena_alloc(&a, weights, 256);
    assert_int_equal(a.n_parts, 2);
    assert_int_equal(a.parts[0].bytes, 512);
    assert_int_equal(a.parts[1].bytes, 512);
}

static void nothing_has_no_address_and_takes_no_room(void **state) {
    (void)state;
    _Alignas(ARENA_ALIGN) static unsigned char memory[256];
    arena a = arena_on(memory, sizeof memory);
    assert_null(arena_alloc(&a, "none", 0));
    assert_int_equal(a.used, 0);
    assert_int_equal(a.n_parts, 0);
    assert_ptr_equal(arena_alloc(&a, "all", 256), memory);
}

static void sizes_beyond_4_gib_are_planned(void **state) {
    (void)state;
    arena a = arena_dry();
    for (int i = 0; i < 3; i++) arena_alloc(&a, "layers", ((size_t)5 << 30) + 1);
    assert_int_equal(a.peak, 3 * (((size_t)5 << 30) + 256));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_dry_run_gives_no_memory_and_its_size),
                                       cmocka_unit_test(the_same_calls_fit_exactly_into_what_the_dry_run_asked_for),
                                       cmocka_unit_test(blocks_are_aligned_and_do_not_overlap),
                                       cmocka_unit_test(parts_are_counted_together_under_one_name),
                                       cmocka_unit_test(nothing_has_no_address_and_takes_no_room),
                                       cmocka_unit_test(sizes_beyond_4_gib_are_planned)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
