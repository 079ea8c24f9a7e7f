/* SPDX-License-Identifier: Apache-2.0 */
/* Codes out of a tile (core/qgemm.h), four outputs x four inputs in a vector of 16 bytes. Include
 * between isa_begin and isa_end. */
#ifndef CQ_TILE_NEON_H
#define CQ_TILE_NEON_H

#include "core/qgemm.h"
#include "kernels/neon.h"

/* Shifts by a constant: the intrinsics want a literal, also at -O0. */
CQ_INLINE uint8x16_t cq_down(uint8x16_t v, const size_t by) {
    switch (by) {
    case 1: return vshrq_n_u8(v, 1);
    case 2: return vshrq_n_u8(v, 2);
    case 3: return vshrq_n_u8(v, 3);
    case 4: return vshrq_n_u8(v, 4);
    case 5: return vshrq_n_u8(v, 5);
    case 6: return vshrq_n_u8(v, 6);
    case 7: return vshrq_n_u8(v, 7);
    default: return v;
    }
}

/* Bits 0 .. low - 1 of v, and v's others out of those of `more`. */
CQ_INLINE uint8x16_t cq_insert(uint8x16_t v, uint8x16_t more, const size_t low) {
    switch (low) {
    case 2: return vsliq_n_u8(v, more, 2);
    case 4: return vsliq_n_u8(v, more, 4);
    case 6: return vsliq_n_u8(v, more, 6);
    default: return more;
    }
}

/* Outputs 4 m .. 4 m + 3, inputs 4 q .. 4 q + 3 of half a tile; bits, q and m are constants. Only
 * the highest plane needs a mask: what a lower one carries above its field is overwritten. */
CQ_INLINE uint8x16_t cq_half_codes(const uint8_t *tile, const size_t bits, size_t half,
                                   const size_t q, const size_t m) {
    if (bits == 8) return vld1q_u8(tile + 64 * (8 * half + q) + 16 * m);
    uint8x16_t v = vdupq_n_u8(0);
    size_t low = 0;
#pragma GCC unroll 3
    for (size_t w = 4; w; w /= 2) {
        if (!(bits & w)) continue;
        const size_t by = q * w % 8;
        const uint8x16_t p = vld1q_u8(tile + 64 * (half * w + q * w / 8) + 16 * m);
        uint8x16_t field = cq_down(p, by);
        if (!(bits & (w - 1)) && by + w < 8)
            field = vandq_u8(field, vdupq_n_u8((uint8_t)((1 << w) - 1)));
        v = cq_insert(v, field, low);
        low += w;
        tile += 128 * w;
    }
    return v;
}

/* The same of inputs 4 q .. of a whole tile, where nothing is a constant. */
CQ_INLINE uint8x16_t cq_any_codes(const uint8_t *tile, size_t bits, size_t q, size_t m) {
    if (bits == 8) return vld1q_u8(tile + 64 * q + 16 * m);
    uint8x16_t v = vdupq_n_u8(0);
    int low = 0;
    for (size_t w = 4; w; w /= 2) {
        if (!(bits & w)) continue;
        const uint8x16_t p = vld1q_u8(tile + q * w / 8 * 64 + 16 * m);
        const int8x16_t down = vdupq_n_s8((int8_t)-(int)(q * w % 8));
        const uint8x16_t field = vandq_u8(vshlq_u8(p, down), vdupq_n_u8((uint8_t)((1 << w) - 1)));
        v = vorrq_u8(v, vshlq_u8(field, vdupq_n_s8((int8_t)low)));
        low += (int)w;
        tile += 128 * w;
    }
    return v;
}

/* As signed bytes: codes of 8 bits less 128. */
CQ_INLINE int8x16_t cq_signed(uint8x16_t codes, const size_t bits) {
    if (bits == 8) codes = veorq_u8(codes, vdupq_n_u8(0x80));
    return vreinterpretq_s8_u8(codes);
}

#endif
