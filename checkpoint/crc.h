/* crc.h: the CRC-32 of a dataset whose pieces lie on several ranks and threads.
 *
 * It is zlib's CRC-32, which every language has. That of A followed by B is shift(crc(A), bytes of B) ^ crc(B), so the CRC of a
 * whole is the exclusive or of its pieces' CRCs, each shifted by the bytes that follow it, whoever holds the pieces. */
#ifndef MOBILELLM_CHECKPOINT_CRC_H
#define MOBILELLM_CHECKPOINT_CRC_H

#include <stddef.h>
#include <stdint.h>

/* By all threads. */
uint32_t crc_of(const void *data, size_t bytes);

/* What `crc` becomes when `bytes` bytes follow. */
uint32_t crc_shift(uint32_t crc, uint64_t bytes);

#endif
