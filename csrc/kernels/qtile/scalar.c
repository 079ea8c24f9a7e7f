/* SPDX-License-Identifier: Apache-2.0 */
/* qtile: 16 outputs x 64 inputs of codes to and from the bit planes of core/qgemm.h.
 *
 *   pack     codes [16][64] below 2**bits -> tile, 128 * bits bytes
 *   unpack   the inverse
 *
 * bits 2 .. 8. No aliasing. Exactness: EXACT. */
#include "core/dispatch.h"

#include <string.h>

static const size_t VECTOR = 64, VECTORS = 16;

/* Byte of the 16 vectors that holds the code of output n, input k. */
static size_t place(size_t n, size_t k) { return k / 4 * VECTOR + 4 * n + k % 4; }

/* Bits `low` .. `low` + w - 1 of the vectors, as a plane of w bits. */
static void put_plane(const uint8_t *v, int low, size_t w, uint8_t *plane) {
    const unsigned mask = (1u << w) - 1;
    memset(plane, 0, 2 * w * VECTOR);
    for (size_t q = 0; q < VECTORS; q++) {
        uint8_t *p = plane + q * w / 8 * VECTOR;
        for (size_t b = 0; b < VECTOR; b++)
            p[b] |= (uint8_t)(((unsigned)v[q * VECTOR + b] >> low & mask) << (w * q % 8));
    }
}

static void get_plane(const uint8_t *plane, int low, size_t w, uint8_t *v) {
    const unsigned mask = (1u << w) - 1;
    for (size_t q = 0; q < VECTORS; q++) {
        const uint8_t *p = plane + q * w / 8 * VECTOR;
        for (size_t b = 0; b < VECTOR; b++)
            v[q * VECTOR + b] |= (uint8_t)(((unsigned)p[b] >> (w * q % 8) & mask) << low);
    }
}

void cq_qtile_pack_u8_scalar(const uint8_t *codes, int bits, uint8_t *tile) {
    uint8_t v[16 * 64];
    for (size_t n = 0; n < CQ_STRIP; n++)
        for (size_t k = 0; k < CQ_TILE; k++) v[place(n, k)] = codes[n * CQ_TILE + k];
    if (bits == 8) memcpy(tile, v, sizeof v);
    int low = 0;
    for (int w = 4; w && bits < 8; w /= 2) {
        if (!(bits & w)) continue;
        put_plane(v, low, (size_t)w, tile);
        tile += 2 * (size_t)w * VECTOR;
        low += w;
    }
}

void cq_qtile_unpack_u8_scalar(const uint8_t *tile, int bits, uint8_t *codes) {
    uint8_t v[16 * 64] = {0};
    if (bits == 8) memcpy(v, tile, sizeof v);
    int low = 0;
    for (int w = 4; w && bits < 8; w /= 2) {
        if (!(bits & w)) continue;
        get_plane(tile, low, (size_t)w, v);
        tile += 2 * (size_t)w * VECTOR;
        low += w;
    }
    for (size_t n = 0; n < CQ_STRIP; n++)
        for (size_t k = 0; k < CQ_TILE; k++) codes[n * CQ_TILE + k] = v[place(n, k)];
}
