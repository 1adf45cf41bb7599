/* crc32c.c: bit by bit, without a table: the records it guards are a few hundred bytes, a few times a minute. */
#include "util/crc32c.h"

uint32_t crc32c(const void *data, size_t bytes) {
    const unsigned char *p = data;
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0); /* the polynomial, bits reversed */
    }
    return ~crc;
}

uint32_t crc32c_masked(const void *data, size_t bytes) {
    uint32_t crc = crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}
