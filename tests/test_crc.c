/* test_crc.c: checkpoint/crc.h beside zlib. */
#include "checkpoint/crc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <zlib.h>

static unsigned char *make_bytes(size_t n) {
    unsigned char *bytes = malloc(n);
    assert_non_null(bytes);
    for (size_t i = 0; i < n; i++) bytes[i] = (unsigned char)((uint32_t)i * 2654435761u >> 19);
    return bytes;
}

/* Every length around the blocks that are folded, wherever in memory they begin. */
static void short_ones_are_those_of_zlib(void **state) {
    (void)state;
    enum { LONGEST = 600, PLACES = 17 };
    unsigned char *bytes = make_bytes(LONGEST + PLACES);
    for (size_t place = 0; place < PLACES; place++)
        for (size_t n = 0; n <= LONGEST; n++)
            if (crc_of(bytes + place, n) != crc32_z(0, bytes + place, n)) fail_msg("%zu bytes from %zu on", n, place);
    free(bytes);
}

static void long_ones_are_those_of_zlib(void **state) {
    (void)state;
    const size_t lengths[] = {1 << 20, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (13 << 20) + 77};
    unsigned char *bytes = make_bytes(14 << 20);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        assert_int_equal(crc_of(bytes + 3, lengths[i]), crc32_z(0, bytes + 3, lengths[i]));
    free(bytes);
}

static void parts_make_the_whole(void **state) {
    (void)state;
    const size_t n = 100000, cuts[] = {0, 1, 63, 64, 50000, 99999, n};
    unsigned char *bytes = make_bytes(n);
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++)
        assert_int_equal(crc_shift(crc_of(bytes, cuts[i]), n - cuts[i]) ^ crc_of(bytes + cuts[i], n - cuts[i]),
                         crc32_z(0, bytes, n));
    free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_ones_are_those_of_zlib),
        cmocka_unit_test(long_ones_are_those_of_zlib),
        cmocka_unit_test(parts_make_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
