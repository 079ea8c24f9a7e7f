/* SPDX-License-Identifier: Apache-2.0 */
/* Four floats at a time, sums in double as in the scalar kernel; tails one by one. Checked under an
 * emulator only: speed is not measured. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"

#include <math.h>

typedef struct sums { /* four lanes */
    float64x2_t low, high;
} sums;

CQ_INLINE void add(sums *s, float32x4_t v) {
    s->low = vaddq_f64(s->low, vcvt_f64_f32(vget_low_f32(v)));
    s->high = vaddq_f64(s->high, vcvt_high_f64_f32(v));
}

CQ_INLINE void add_product(sums *s, float32x4_t a, float32x4_t b) {
    s->low = vfmaq_f64(s->low, vcvt_f64_f32(vget_low_f32(a)), vcvt_f64_f32(vget_low_f32(b)));
    s->high = vfmaq_f64(s->high, vcvt_high_f64_f32(a), vcvt_high_f64_f32(b));
}

CQ_INLINE double total(sums s) { return vaddvq_f64(vaddq_f64(s.low, s.high)); }

void cq_layernorm_f32_row_neon(const float *y, size_t n, float eps, const float *gamma,
                               const float *beta, float *out, float *stat) {
    const size_t whole = n / 4 * 4;
    sums plain = {vdupq_n_f64(0.0), vdupq_n_f64(0.0)}, square = plain;
    for (size_t i = 0; i < whole; i += 4) add(&plain, vld1q_f32(y + i));
    double sum = total(plain);
    for (size_t i = whole; i < n; i++) sum += (double)y[i];
    stat[0] = (float)(sum / (double)n);
    const float32x4_t mean = vdupq_n_f32(stat[0]);
    for (size_t i = 0; i < whole; i += 4) {
        const float32x4_t d = vsubq_f32(vld1q_f32(y + i), mean);
        add_product(&square, d, d);
    }
    sum = total(square);
    for (size_t i = whole; i < n; i++) {
        const double d = (double)(y[i] - stat[0]);
        sum += d * d;
    }
    stat[1] = (float)(1.0 / sqrt(sum / (double)n + (double)eps));
    const float32x4_t rate = vdupq_n_f32(stat[1]);
    for (size_t i = 0; i < whole; i += 4) {
        const float32x4_t h = vmulq_f32(vsubq_f32(vld1q_f32(y + i), mean), rate);
        vst1q_f32(out + i, vfmaq_f32(vld1q_f32(beta + i), h, vld1q_f32(gamma + i)));
    }
    for (size_t i = whole; i < n; i++) out[i] = (y[i] - stat[0]) * stat[1] * gamma[i] + beta[i];
}

void cq_layernorm_bwd_f32_row_neon(const float *g, const float *y, size_t n, const float *stat,
                                   const float *gamma, float *dy, float *dgamma, float *dbeta) {
    const float32x4_t mean = vdupq_n_f32(stat[0]), rate = vdupq_n_f32(stat[1]);
    const size_t whole = n / 4 * 4;
    sums plain = {vdupq_n_f64(0.0), vdupq_n_f64(0.0)}, along = plain;
    for (size_t i = 0; i < whole; i += 4) {
        const float32x4_t h = vmulq_f32(vsubq_f32(vld1q_f32(y + i), mean), rate);
        const float32x4_t e = vmulq_f32(vld1q_f32(g + i), vld1q_f32(gamma + i));
        add(&plain, e);
        add_product(&along, e, h);
    }
    double of_e = total(plain), of_eh = total(along);
    for (size_t i = whole; i < n; i++) {
        const float h = (y[i] - stat[0]) * stat[1], e = g[i] * gamma[i];
        of_e += (double)e;
        of_eh += (double)e * (double)h;
    }
    const float a = (float)(of_e / (double)n), b = (float)(of_eh / (double)n);
    for (size_t i = 0; i < whole; i += 4) {
        const float32x4_t gi = vld1q_f32(g + i);
        const float32x4_t h = vmulq_f32(vsubq_f32(vld1q_f32(y + i), mean), rate);
        const float32x4_t e = vmulq_f32(gi, vld1q_f32(gamma + i));
        vst1q_f32(dgamma + i, vfmaq_f32(vld1q_f32(dgamma + i), gi, h));
        vst1q_f32(dbeta + i, vaddq_f32(vld1q_f32(dbeta + i), gi));
        const float32x4_t rest = vfmsq_f32(vsubq_f32(e, vdupq_n_f32(a)), h, vdupq_n_f32(b));
        vst1q_f32(dy + i, vmulq_f32(rate, rest));
    }
    for (size_t i = whole; i < n; i++) {
        const float gi = g[i], h = (y[i] - stat[0]) * stat[1], e = gi * gamma[i];
        dgamma[i] += gi * h;
        dbeta[i] += gi;
        dy[i] = stat[1] * (e - a - h * b);
    }
}

#include "core/isa_end.h"
#endif
