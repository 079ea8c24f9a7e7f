/* SPDX-License-Identifier: Apache-2.0 */
/* exp, and which keys are seen, of four floats; included inside a section compiled for NEON. */
#ifndef CQ_ATTENTION_ROWS_NEON_H
#define CQ_ATTENTION_ROWS_NEON_H

#include <string.h>

/* v where the mask is set, +0 elsewhere. */
CQ_INLINE float32x4_t cq_att_keep(uint32x4_t mask, float32x4_t v) {
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(v)));
}

/* exp(x); infinity from 88.7 on, 0 below -87.3; NaN stays NaN. */
CQ_INLINE float32x4_t cq_att_exp(float32x4_t x) {
    const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(CQ_ATT_LOG2E)));
    float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(CQ_ATT_LN2_HIGH));
    r = vfmsq_f32(r, n, vdupq_n_f32(CQ_ATT_LN2_LOW));
    float32x4_t p = vdupq_n_f32(CQ_ATT_EXP7);
    p = vfmaq_f32(vdupq_n_f32(CQ_ATT_EXP6), p, r);
    p = vfmaq_f32(vdupq_n_f32(CQ_ATT_EXP5), p, r);
    p = vfmaq_f32(vdupq_n_f32(CQ_ATT_EXP4), p, r);
    p = vfmaq_f32(vdupq_n_f32(CQ_ATT_EXP3), p, r);
    p = vfmaq_f32(vdupq_n_f32(CQ_ATT_EXP2), p, r);
    p = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1.0f));
    /* 2^n by its bits; 2^128 is an infinity. fcvtzs makes NaN 0. */
    const int32x4_t e = vminq_s32(vcvtq_s32_f32(n), vdupq_n_s32(128));
    const int32x4_t power = vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23);
    const uint32x4_t tiny = vcltq_f32(x, vdupq_n_f32(-87.3f));
    return cq_att_keep(vmvnq_u32(tiny), vmulq_f32(p, vreinterpretq_f32_s32(power)));
}

/* Which of the keys j .. j + 3 of row t are seen. */
CQ_INLINE uint32x4_t cq_att_seen(const cq_att_row *t, size_t j) {
    if (j >= t->n) return vdupq_n_u32(0);
    const size_t left = cq_min_size(t->n - j, 4);
    uint32_t out = 0;
    if (t->mask) memcpy(&out, t->mask + j, left);
    const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(out));
    const uint32x4_t leave = vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
    const uint32x4_t lane = {0, 1, 2, 3};
    return vandq_u32(vcltq_u32(lane, vdupq_n_u32((uint32_t)left)),
                     vceqq_u32(leave, vdupq_n_u32(0)));
}

#endif
