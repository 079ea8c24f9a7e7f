/* SPDX-License-Identifier: Apache-2.0 */
/* fakequant on other grids, a block of rows with one grid per row (_row) or per column (_col).
 *
 * log2: the nearest power of two in the logarithm, times the scale
 *   v   = |x| / scale                    real division
 *   e   = rint(log2(v)), lo <= e <= hi   integers, -126..127; the largest where v is infinite
 *   out = sign(x) * scale * 2**e         +0 where x is 0, however small lo is; NaN stays NaN
 * log2(v) lies half-way between integers only at odd powers of sqrt(2), which no float is, so there
 * are no ties: v = 1.m * 2**k goes up where m >= 0x3504F4, the first float above sqrt(2). One
 * integer addition to the bits of v does that. Miyashita et al., "Convolutional Neural Networks
 * using Logarithmic Data Representation", 2016, eq. 4; FQ-ViT, IJCAI 2022, section 3.3, eq. 10,
 * with hi = 0 and lo = 1 - 2**bits.
 *
 * compat: fakequant as torch.fake_quantize_per_channel_affine computes it
 *   v = x * (1 / scale), r = rint(min(hi, max(lo, v))), out = r * scale + 0
 *
 * Power-of-two scales need no kernel: fakequant divides by them exactly, which is a shift.
 * `out` may be `x` itself. Exactness: EXACT. */
#include "core/dispatch.h"
#include "core/grid.h"
#include "core/half.h"

CQ_INLINE float nearest_power(float x, float scale, float lo, float hi) {
    const uint32_t sign = cq_float_bits(x) & 0x80000000u;
    const uint32_t v = cq_float_bits(x / scale) & 0x7FFFFFFFu;
    const float e = cq_clampf((float)((int32_t)((v + 0x4AFB0Cu) >> 23) - 127), lo, hi);
    const float power = cq_bits_float((uint32_t)((int32_t)e + 127) << 23) * scale;
    if (x == 0.0f) return 0.0f;
    return x == x ? cq_bits_float(cq_float_bits(power) | sign) : x;
}

CQ_INLINE float compatible(float x, float scale, float lo, float hi) {
    const float inverse = 1.0f / scale;
    return cq_rint_small(cq_clampf(x * inverse, lo, hi)) * scale + 0.0f;
}

void cq_fakequant_log2_f32_row_scalar(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++)
        for (size_t i = r * b->cols; i < (r + 1) * b->cols; i++)
            b->out[i] = nearest_power(b->x[i], b->scale[r], b->lo[r], b->hi[r]);
}

void cq_fakequant_log2_f32_col_scalar(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++)
        for (size_t c = 0; c < b->cols; c++) {
            const size_t i = r * b->cols + c;
            b->out[i] = nearest_power(b->x[i], b->scale[c], b->lo[c], b->hi[c]);
        }
}

void cq_fakequant_compat_f32_row_scalar(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++)
        for (size_t i = r * b->cols; i < (r + 1) * b->cols; i++)
            b->out[i] = compatible(b->x[i], b->scale[r], b->lo[r], b->hi[r]);
}

void cq_fakequant_compat_f32_col_scalar(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++)
        for (size_t c = 0; c < b->cols; c++) {
            const size_t i = r * b->cols + c;
            b->out[i] = compatible(b->x[i], b->scale[c], b->lo[c], b->hi[c]);
        }
}
