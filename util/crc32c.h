/* crc32c.h: CRC-32C (Castagnoli), as TensorFlow's record files use it. */
#ifndef MOBILELLM_UTIL_CRC32C_H
#define MOBILELLM_UTIL_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The CRC-32C of `bytes` bytes [RFC 3720, appendix B.4]. */
uint32_t crc32c(const void *data, size_t bytes);

/* crc32c, rotated and offset: the form TFRecord stores, so that the sum of data holding such sums stays a good one. */
uint32_t crc32c_masked(const void *data, size_t bytes);

#endif
