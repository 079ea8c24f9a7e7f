/* SPDX-License-Identifier: Apache-2.0 */
/* pack: codes of 1 to 8 bits as a dense little-endian bit stream, least significant bit first.
 *
 *   bit i * bits + j of the stream = bit j of codes[i],  i < n, j < bits
 *   bit k of the stream            = bit k % 8 of byte k / 8
 *
 * `n` codes below 2**bits fill ceil(n * bits / 8) bytes; unused bits of the last byte are 0.
 * Eight codes fill exactly `bits` bytes. unpack is the inverse. No aliasing. Exactness: EXACT. */
#include "core/dispatch.h"

static void pack_some(const uint8_t *codes, uint8_t *out, size_t n, int bits) {
    uint64_t word = 0;
    for (size_t i = 0; i < n; i++) word |= (uint64_t)codes[i] << (i * (size_t)bits);
    for (size_t b = 0; b < (n * (size_t)bits + 7) / 8; b++) out[b] = (uint8_t)(word >> (8 * b));
}

static void unpack_some(const uint8_t *packed, uint8_t *out, size_t n, int bits) {
    uint64_t word = 0;
    for (size_t b = 0; b < (n * (size_t)bits + 7) / 8; b++) word |= (uint64_t)packed[b] << (8 * b);
    const uint64_t mask = (1u << bits) - 1u;
    for (size_t i = 0; i < n; i++) out[i] = (uint8_t)((word >> (i * (size_t)bits)) & mask);
}

void cq_pack_u8_row_scalar(const uint8_t *codes, uint8_t *out, size_t n, int bits) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8, out += bits) pack_some(codes + i, out, 8, bits);
    pack_some(codes + i, out, n - i, bits);
}

void cq_unpack_u8_row_scalar(const uint8_t *packed, uint8_t *out, size_t n, int bits) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8, packed += bits) unpack_some(packed, out + i, 8, bits);
    unpack_some(packed, out + i, n - i, bits);
}
