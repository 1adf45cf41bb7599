/* crc.c: zlib's CRC-32 in blocks. */
#include "checkpoint/crc.h"

#include <zlib.h>

/* Large enough that shifting (about 0.1 us a block) is nothing, small enough to share a tensor among threads. */
enum { BLOCK = 4 << 20 };

uint32_t crc_shift(uint32_t crc, uint64_t bytes) { return (uint32_t)crc32_combine(crc, 0, (z_off_t)bytes); }

uint32_t crc_of(const void *data, size_t bytes) {
    uint32_t crc = 0;
#pragma omp parallel for reduction(^ : crc) if (bytes > BLOCK)
    for (size_t at = 0; at < bytes; at += BLOCK) {
        size_t n = bytes - at < BLOCK ? bytes - at : BLOCK;
        crc ^= crc_shift((uint32_t)crc32_z(0, (const Bytef *)data + at, n), bytes - at - n);
    }
    return crc;
}
