/* SPDX-License-Identifier: Apache-2.0 */
/* Four floats at a time; fmin and fmax of aarch64 give NaN when one operand is NaN, so NaN needs no
 * mask. Magnitudes compare as integers, NaN has the largest bits. Not measured on hardware. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"

#include <math.h>

void cq_minmax_f32_row_neon(const float *x, size_t n, float *mn, float *mx) {
    if (n < 4) {
        cq_minmax_f32_row_scalar(x, n, mn, mx);
        return;
    }
    float32x4_t low = vld1q_f32(x + n - 4), high = low;
    for (size_t i = 0; i + 4 <= n; i += 4) {
        const float32x4_t v = vld1q_f32(x + i);
        low = vminq_f32(low, v);
        high = vmaxq_f32(high, v);
    }
    *mn = vminvq_f32(low) + 0.0f;
    *mx = vmaxvq_f32(high) + 0.0f;
}

void cq_minmax_f32_col_neon(const float *x, size_t rows, size_t stride, size_t n, float *mn,
                            float *mx) {
    const size_t whole = n / 4 * 4;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < whole; i += 4) {
            const float32x4_t v = vld1q_f32(x + r * stride + i);
            vst1q_f32(mn + i, vminq_f32(vld1q_f32(mn + i), v));
            vst1q_f32(mx + i, vmaxq_f32(vld1q_f32(mx + i), v));
        }
    cq_minmax_f32_col_scalar(x + whole, rows, stride, n - whole, mn + whole, mx + whole);
}

CQ_INLINE uint32x4_t magnitude(const float *x) {
    return vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x)));
}

void cq_absmax_f32_row_neon(const float *x, size_t n, float *out) {
    if (n < 4) {
        cq_absmax_f32_row_scalar(x, n, out);
        return;
    }
    uint32x4_t high = magnitude(x + n - 4);
    for (size_t i = 0; i + 4 <= n; i += 4) high = vmaxq_u32(high, magnitude(x + i));
    const uint32x4_t all = vdupq_n_u32(vmaxvq_u32(high));
    *out = vgetq_lane_f32(vreinterpretq_f32_u32(all), 0);
}

void cq_absmax_f32_col_neon(const float *x, size_t rows, size_t stride, size_t n, float *out) {
    const size_t whole = n / 4 * 4;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < whole; i += 4) {
            const uint32x4_t high = vreinterpretq_u32_f32(vld1q_f32(out + i));
            const uint32x4_t v = vmaxq_u32(high, magnitude(x + r * stride + i));
            vst1q_f32(out + i, vreinterpretq_f32_u32(v));
        }
    cq_absmax_f32_col_scalar(x + whole, rows, stride, n - whole, out + whole);
}

void cq_abssum_f32_row_neon(const float *x, size_t n, double *out) {
    const float64x2_t none = vdupq_n_f64(0.0);
    float64x2_t s0 = none, s2 = none, s4 = none, s6 = none; /* from lane 0, 2, 4, 6 on */
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const float32x4_t a = vabsq_f32(vld1q_f32(x + i)), b = vabsq_f32(vld1q_f32(x + i + 4));
        s0 = vaddq_f64(s0, vcvt_f64_f32(vget_low_f32(a)));
        s2 = vaddq_f64(s2, vcvt_high_f64_f32(a));
        s4 = vaddq_f64(s4, vcvt_f64_f32(vget_low_f32(b)));
        s6 = vaddq_f64(s6, vcvt_high_f64_f32(b));
    }
    double lane[8];
    vst1q_f64(lane, s0);
    vst1q_f64(lane + 2, s2);
    vst1q_f64(lane + 4, s4);
    vst1q_f64(lane + 6, s6);
    for (; i < n; i++) lane[i % 8] += (double)fabsf(x[i]);
    *out = cq_sum_lanes(lane);
}

#include "core/isa_end.h"
#endif
