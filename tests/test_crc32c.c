/* test_crc32c.c: util/crc32c.h. */
#include "util/crc32c.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* RFC 3720, appendix B.4, and the check value of the Castagnoli polynomial. */
static void published_vectors(void **state) {
    (void)state;
    unsigned char data[32];
    assert_int_equal(crc32c("123456789", 9), 0xe3069283u);
    assert_int_equal(crc32c("", 0), 0);
    memset(data, 0, sizeof data);
    assert_int_equal(crc32c(data, sizeof data), 0x8a9136aau);
    memset(data, 0xff, sizeof data);
    assert_int_equal(crc32c(data, sizeof data), 0x62a8ab43u);
    for (int i = 0; i < 32; i++) data[i] = (unsigned char)i;
    assert_int_equal(crc32c(data, sizeof data), 0x46dd794eu);
    for (int i = 0; i < 32; i++) data[i] = (unsigned char)(31 - i);
    assert_int_equal(crc32c(data, sizeof data), 0x113fdb5cu);
}

/* ((crc >> 15) | (crc << 17)) + 0xa282ead8 worked out by hand for e3069283: the sum of 2507c60d and a282ead8. */
static void the_mask_rotates_and_adds(void **state) {
    (void)state;
    assert_int_equal(crc32c_masked("123456789", 9), 0xc78ab0e5u);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_vectors),
        cmocka_unit_test(the_mask_rotates_and_adds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
