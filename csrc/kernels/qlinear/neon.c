/* SPDX-License-Identifier: Apache-2.0 */
/* Without dot products: smull and smlal multiply 16 codes by four inputs of a row, repeated, to
 * int16 lanes, and sadalp adds pairs of these to int32. As many products are added in int16 as can
 * never overflow there. Four outputs at a time, up to 4 rows in 8 registers and 8 of int16. Checked
 * under an emulator only: speed is not measured. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"

#include "kernels/qlinear/strip_neon.h"

typedef struct halves { /* outputs 4 m, 4 m + 1 and outputs 4 m + 2, 4 m + 3 */
    int16x8_t lo, hi;
} halves;

typedef struct sums { /* two sums of each output */
    int32x4_t lo, hi;
} sums;

CQ_INLINE int8x16_t four_inputs(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

CQ_INLINE halves multiply(int8x16_t codes, int8x16_t x) {
    return (halves){vmull_s8(vget_low_s8(codes), vget_low_s8(x)), vmull_high_s8(codes, x)};
}

CQ_INLINE halves multiply_add(halves h, int8x16_t codes, int8x16_t x) {
    h.lo = vmlal_s8(h.lo, vget_low_s8(codes), vget_low_s8(x));
    h.hi = vmlal_high_s8(h.hi, codes, x);
    return h;
}

CQ_INLINE void widen_add(sums *s, halves h) {
    s->lo = vpadalq_s16(s->lo, h.lo);
    s->hi = vpadalq_s16(s->hi, h.hi);
}

/* Products of a code and an input, at most (2**bits - 1) * 128, that fit an int16 when added; of 8
 * bits less 128, one. A power of two. */
CQ_INLINE size_t most_products(const size_t bits) {
    return bits == 8 ? 1 : bits == 7 ? 2 : bits == 6 ? 4 : 8;
}

/* Add outputs 4 m .. 4 m + 3 of half a tile, which begins 16 m bytes before `tile`, to R rows. */
CQ_INLINE void add_half(const uint8_t *tile, const size_t bits, size_t half, const int8_t *x,
                        size_t ldx, const size_t R, sums *acc) {
    const size_t most = most_products(bits);
    halves h[4];
#pragma GCC unroll 8
    for (size_t q = 0; q < 8; q++) {
        const int8x16_t codes = cq_signed(cq_half_codes(tile, bits, half, q, 0), bits);
#pragma GCC unroll 4
        for (size_t r = 0; r < R; r++) {
            const int8x16_t v = four_inputs(x + r * ldx + 4 * q);
            h[r] = q % most ? multiply_add(h[r], codes, v) : multiply(codes, v);
            if (q % most == most - 1) widen_add(acc + r, h[r]);
        }
        if (q % 2) CQ_LOADS_STAY;
    }
}

/* Sums of R rows over whole halves of tiles. */
CQ_INLINE void block_dots(const uint8_t *tiles, const size_t bits, const int8_t *x, size_t ldx,
                          size_t k0, size_t k1, const size_t R, int32_t *dot) {
    const sums none = {vdupq_n_s32(0), vdupq_n_s32(0)};
    for (size_t m = 0; m < 4; m++, tiles += 16, dot += 4) {
        sums acc[4] = {none, none, none, none};
        for (size_t k = k0; k < k1; k += 32)
            add_half(tiles + k / CQ_TILE * cq_tile_bytes((int)bits), bits, k / 32 % 2, x + k, ldx,
                     R, acc);
#pragma GCC unroll 4
        for (size_t r = 0; r < R; r++)
            vst1q_s32(dot + r * CQ_STRIP, vpaddq_s32(acc[r].lo, acc[r].hi));
    }
}

/* Blocks whose ends are only multiples of 8. */
static void odd_dots(const cq_qlinear_strip *t, const int8_t *x, size_t k0, size_t k1, size_t R,
                     int32_t *dot) {
    const uint8_t *tiles = cq_tiles_of(t);
    const size_t bits = (size_t)t->bits;
    for (size_t m = 0; m < 4; m++) {
        sums acc[4] = {0};
        for (size_t k = k0; k < k1; k += 4) {
            const uint8_t *tile = tiles + k / CQ_TILE * cq_tile_bytes(t->bits);
            const int8x16_t codes = cq_signed(cq_any_codes(tile, bits, k % CQ_TILE / 4, m), bits);
            for (size_t r = 0; r < R; r++)
                widen_add(acc + r, multiply(codes, four_inputs(x + r * t->ldx + k)));
        }
        for (size_t r = 0; r < R; r++)
            vst1q_s32(dot + r * CQ_STRIP + 4 * m, vpaddq_s32(acc[r].lo, acc[r].hi));
    }
}

#include "kernels/qlinear/dots_neon.h"

void cq_qlinear_s8_strip_neon(const cq_qlinear_strip *t) { cq_s8_strip(t, dots); }

void cq_qlinear_f32_strip_neon(const cq_qlinear_strip *t) { cq_f32_strip(t, dots); }

#include "core/isa_end.h"
#endif
