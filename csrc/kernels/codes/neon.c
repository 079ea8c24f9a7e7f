/* SPDX-License-Identifier: Apache-2.0 */
/* Four floats to four int32, sixteen of them narrowed to bytes. fcvtzs makes NaN 0, which is what
 * the contract asks of signed codes; for unsigned ones the mask comes after `lo` is taken off. Not
 * measured on hardware. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"

typedef struct grid {
    float32x4_t scale, lo, hi;
    int32x4_t shift; /* lo as an integer, or 0 for signed codes */
} grid;

CQ_INLINE int32x4_t encode(const float *x, const grid *g) {
    const float32x4_t v = vdivq_f32(vld1q_f32(x), g->scale);
    const float32x4_t r = vrndnq_f32(vminq_f32(g->hi, vmaxq_f32(g->lo, v)));
    const int32x4_t ordered = vreinterpretq_s32_u32(vceqq_f32(v, v));
    return vandq_s32(vsubq_s32(vcvtq_s32_f32(r), g->shift), ordered);
}

CQ_INLINE int16x8_t encode_eight(const float *x, const grid *g) {
    return vcombine_s16(vmovn_s32(encode(x, g)), vmovn_s32(encode(x + 4, g)));
}

CQ_INLINE int8x16_t encode_sixteen(const float *x, const grid *g) {
    return vcombine_s8(vmovn_s16(encode_eight(x, g)), vmovn_s16(encode_eight(x + 8, g)));
}

void cq_codes_f32_row_neon(const float *x, uint8_t *out, size_t n, cq_affine p) {
    const grid g = {vdupq_n_f32(p.scale), vdupq_n_f32(p.lo), vdupq_n_f32(p.hi),
                    vdupq_n_s32((int32_t)p.lo)};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) vst1q_u8(out + i, vreinterpretq_u8_s8(encode_sixteen(x + i, &g)));
    cq_codes_f32_row_scalar(x + i, out + i, n - i, p);
}

void cq_codes_f32_s8_row_neon(const float *x, int8_t *out, size_t n, float scale) {
    const grid g = {vdupq_n_f32(scale), vdupq_n_f32(-128.0f), vdupq_n_f32(127.0f), vdupq_n_s32(0)};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) vst1q_s8(out + i, encode_sixteen(x + i, &g));
    cq_codes_f32_s8_row_scalar(x + i, out + i, n - i, scale);
}

void cq_decode_f32_row_neon(const uint8_t *codes, float *out, size_t n, cq_affine p) {
    const float32x4_t s = vdupq_n_f32(p.scale), lo = vdupq_n_f32(p.lo), zero = vdupq_n_f32(0.0f);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const uint16x8_t c = vmovl_u8(vld1_u8(codes + i));
        const float32x4_t a = vcvtq_f32_u32(vmovl_u16(vget_low_u16(c)));
        const float32x4_t b = vcvtq_f32_u32(vmovl_u16(vget_high_u16(c)));
        vst1q_f32(out + i, vaddq_f32(vmulq_f32(vaddq_f32(a, lo), s), zero));
        vst1q_f32(out + i + 4, vaddq_f32(vmulq_f32(vaddq_f32(b, lo), s), zero));
    }
    cq_decode_f32_row_scalar(codes + i, out + i, n - i, p);
}

#include "core/isa_end.h"
#endif
