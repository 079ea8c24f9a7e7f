/* SPDX-License-Identifier: Apache-2.0 */
/* The strips of both NEON levels: from the int32 sums of a block, which the level makes, to the
 * float sums of the strip. Include between isa_begin and isa_end. */
#ifndef CQ_STRIP_NEON_H
#define CQ_STRIP_NEON_H

#include "kernels/qlinear/tile_neon.h"

#include <string.h>

/* dot[r][16] = sums of rows r < R of x (R: 1, 2 or 4) times the codes of inputs k0 .. k1 - 1, as
 * cq_signed gives them. */
typedef void cq_neon_dots(const cq_qlinear_strip *t, const int8_t *x, size_t k0, size_t k1,
                          size_t R, int32_t *dot);

/* Whether a block is whole halves of tiles, or the end of the row. */
CQ_INLINE int cq_whole_halves(const cq_qlinear_strip *t, size_t k0, size_t k1) {
    return k0 % 32 == 0 && (k1 % 32 == 0 || k1 >= t->K);
}

CQ_INLINE const uint8_t *cq_tiles_of(const cq_qlinear_strip *t) {
    return t->head + cq_strip_head(t->G, t->asymmetric);
}

typedef struct grid { /* of a group: 16 scales, and zero points as cq_signed has the codes */
    float32x4_t scale[4];
    int32x4_t zero[4];
} grid;

CQ_INLINE grid grid_of(const cq_qlinear_strip *t, size_t g) {
    const uint16_t *half = (const uint16_t *)(const void *)t->head + g * CQ_STRIP;
    const int32_t off = t->bits == 8 ? 128 : 0;
    grid a;
#pragma GCC unroll 4
    for (size_t m = 0; m < 4; m++) {
        a.scale[m] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half + 4 * m)));
        a.zero[m] = vdupq_n_s32((1 << (t->bits - 1)) - off);
    }
    if (!t->asymmetric) return a;
    const uint8x16_t zero = vld1q_u8(t->head + (2 * t->G + g) * CQ_STRIP);
    const uint16x8_t low = vmovl_u8(vget_low_u8(zero)), high = vmovl_high_u8(zero);
    const int32x4_t less = vdupq_n_s32(off);
    a.zero[0] = vsubq_s32(vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), less);
    a.zero[1] = vsubq_s32(vreinterpretq_s32_u32(vmovl_high_u16(low)), less);
    a.zero[2] = vsubq_s32(vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), less);
    a.zero[3] = vsubq_s32(vreinterpretq_s32_u32(vmovl_high_u16(high)), less);
    return a;
}

/* dot - zero * sum, as float. */
CQ_INLINE float32x4_t centred(int32x4_t dot, int32x4_t zero, int32_t sum) {
    return vcvtq_f32_s32(vmlsq_s32(dot, zero, vdupq_n_s32(sum)));
}

CQ_INLINE int32x4_t two_digits(const int32_t *high, const int32_t *low) {
    return vaddq_s32(vshlq_n_s32(vld1q_s32(high), 8), vld1q_s32(low));
}

CQ_INLINE void add_to(float *acc, float32x4_t scale, float32x4_t f) {
    vst1q_f32(acc, vfmaq_f32(vld1q_f32(acc), scale, f));
}

CQ_INLINE size_t rows_at_once(size_t left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

CQ_INLINE void cq_s8_strip(const cq_qlinear_strip *t, cq_neon_dots *dots) {
    const size_t group = t->K / t->G;
    int32_t dot[4 * 16];
    memset(t->out, 0, t->M * CQ_STRIP * sizeof(float));
    for (size_t g = 0; g < t->G; g++) {
        const grid a = grid_of(t, g);
        for (size_t m = 0, R; m < t->M; m += R) {
            R = rows_at_once(t->M - m);
            dots(t, t->x + m * t->ldx, g * group, (g + 1) * group, R, dot);
            for (size_t r = 0; r < R; r++) {
                const int32_t sum = t->xsum[g * t->stride + m + r];
                float *acc = t->out + (m + r) * CQ_STRIP;
#pragma GCC unroll 4
                for (size_t i = 0; i < 4; i++)
                    add_to(acc + 4 * i, a.scale[i],
                           centred(vld1q_s32(dot + 16 * r + 4 * i), a.zero[i], sum));
            }
        }
    }
}

CQ_INLINE void cq_f32_strip(const cq_qlinear_strip *t, cq_neon_dots *dots) {
    const size_t group = t->K / t->G, block = cq_block_inputs(t->K, t->G, 1);
    int32_t dot[4 * 16];
    memset(t->out, 0, t->M * CQ_STRIP * sizeof(float));
    size_t b = 0, end;
    for (size_t k0 = 0; k0 < t->K; k0 = end, b++) {
        end = cq_min_size(k0 + block, (k0 / group + 1) * group);
        const grid a = grid_of(t, k0 / group);
        for (size_t m = 0; m < t->M; m++) {
            const int32_t *sum = t->xsum + 2 * (b * t->stride + m);
            const float32x4_t step = vdupq_n_f32(t->xstep[b * t->stride + m]);
            float *acc = t->out + m * CQ_STRIP;
            dots(t, t->x + m * CQ_DIGITS * t->ldx, k0, end, CQ_DIGITS, dot);
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++) {
                const int32_t *d = dot + 4 * i;
                const float32x4_t high = centred(two_digits(d + 48, d + 32), a.zero[i], sum[0]);
                const float32x4_t low = centred(two_digits(d + 16, d), a.zero[i], sum[1]);
                const float32x4_t f = vfmaq_f32(low, high, vdupq_n_f32(65536.0f));
                add_to(acc + 4 * i, vmulq_f32(a.scale[i], step), f);
            }
        }
    }
}

#endif
