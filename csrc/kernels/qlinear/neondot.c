/* SPDX-License-Identifier: Apache-2.0 */
/* sdot multiplies four outputs x four inputs of codes, a vector of 16 bytes, by four inputs of a
 * row, one lane of 16 of them: half a tile is 32 sdots per row. Codes up to 7 bits are signed bytes
 * as they are, those of 8 bits less 128. Up to 4 rows (the 4 digits of a float row) in 16
 * registers. Checked under an emulator only: speed is not measured. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neondot.h"

#include "kernels/gemm/dot_neon.h"
#include "kernels/qlinear/strip_neon.h"

/* Add half a tile to the sums acc[r][chain][4] of R rows, C chains each. */
CQ_INLINE void add_half(const uint8_t *tile, const size_t bits, size_t half, const int8_t *x,
                        size_t ldx, const size_t R, const size_t C, int32x4_t *acc) {
#pragma GCC unroll 2
    for (size_t g = 0; g < 2; g++) {
        int8x16_t v[4];
#pragma GCC unroll 4
        for (size_t r = 0; r < R; r++) v[r] = vld1q_s8(x + r * ldx + 16 * g);
#pragma GCC unroll 4
        for (size_t m = 0; m < 4; m++)
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++) {
                const int8x16_t codes =
                    cq_signed(cq_half_codes(tile, bits, half, 4 * g + i, m), bits);
#pragma GCC unroll 4
                for (size_t r = 0; r < R; r++) {
                    int32x4_t *a = acc + 4 * (r * C + i % C) + m;
                    *a = cq_dot_lane(*a, codes, v[r], i);
                }
                if (i == 3) CQ_LOADS_STAY;
            }
    }
}

/* Sums of R rows over whole halves of tiles. */
CQ_INLINE void block_dots(const uint8_t *tiles, const size_t bits, const int8_t *x, size_t ldx,
                          size_t k0, size_t k1, const size_t R, int32_t *dot) {
    const size_t C = R == 1 ? 2 : 1;
    int32x4_t acc[16];
#pragma GCC unroll 16
    for (size_t i = 0; i < 4 * R * C; i++) acc[i] = vdupq_n_s32(0);
    for (size_t k = k0; k < k1; k += 32)
        add_half(tiles + k / CQ_TILE * cq_tile_bytes((int)bits), bits, k / 32 % 2, x + k, ldx, R, C,
                 acc);
#pragma GCC unroll 16
    for (size_t i = 0; i < 4 * R; i++)
        vst1q_s32(dot + 4 * i, C == 1 ? acc[i] : vaddq_s32(acc[i], acc[i + 4]));
}

/* Blocks whose ends are only multiples of 8. */
static void odd_dots(const cq_qlinear_strip *t, const int8_t *x, size_t k0, size_t k1, size_t R,
                     int32_t *dot) {
    const uint8_t *tiles = cq_tiles_of(t);
    const size_t bits = (size_t)t->bits;
    memset(dot, 0, R * CQ_STRIP * sizeof *dot);
    for (size_t k = k0; k < k1; k += 4) {
        const uint8_t *tile = tiles + k / CQ_TILE * cq_tile_bytes(t->bits);
        for (size_t m = 0; m < 4; m++) {
            const int8x16_t codes = cq_signed(cq_any_codes(tile, bits, k % CQ_TILE / 4, m), bits);
            for (size_t r = 0; r < R; r++) {
                int32_t four, *to = dot + CQ_STRIP * r + 4 * m;
                memcpy(&four, x + r * t->ldx + k, sizeof four);
                vst1q_s32(to,
                          vdotq_s32(vld1q_s32(to), codes, vreinterpretq_s8_s32(vdupq_n_s32(four))));
            }
        }
    }
}

#include "kernels/qlinear/dots_neon.h"

void cq_qlinear_s8_strip_neondot(const cq_qlinear_strip *t) { cq_s8_strip(t, dots); }

void cq_qlinear_f32_strip_neondot(const cq_qlinear_strip *t) { cq_f32_strip(t, dots); }

#include "core/isa_end.h"
#endif
