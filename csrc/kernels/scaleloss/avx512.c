/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen floats at a time, tails by mask. min/max return their second operand on NaN, so NaN stays
 * out of a range and passes a clamp. */
#include "core/dispatch.h"
#if CQ_X86
#include "kernels/scaleloss/scaleloss.h"

#include <math.h>

#include "core/isa_begin_avx512.h"

CQ_INLINE __m512 fake(__m512 v, cq_affine p) {
    const __m512 step = _mm512_set1_ps(p.scale), lo = _mm512_set1_ps(p.lo);
    v = _mm512_max_ps(lo, _mm512_div_ps(v, step));
    v = _mm512_min_ps(_mm512_set1_ps(p.hi), v);
    v = _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_add_ps(_mm512_mul_ps(v, step), _mm512_setzero_ps());
}

void cq_scaleloss_weight_f32_avx512(const float *w, const float *s, size_t n, int bits, int mode,
                                    float *err, float *scaled) {
    __m512 mn = _mm512_set1_ps(INFINITY), mx = _mm512_set1_ps(-INFINITY);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 sv = _mm512_maskz_loadu_ps(m, s + i);
        const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, w + i), sv);
        mn = _mm512_mask_min_ps(mn, m, v, mn);
        mx = _mm512_mask_max_ps(mx, m, v, mx);
    }
    const cq_affine p =
        cq_scaleloss_grid(_mm512_reduce_min_ps(mn), _mm512_reduce_max_ps(mx), bits, mode);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 sv = _mm512_mask_loadu_ps(_mm512_set1_ps(1.0f), m, s + i);
        const __m512 wv = _mm512_maskz_loadu_ps(m, w + i), v = _mm512_mul_ps(wv, sv);
        const __m512 q = fake(v, p);
        if (scaled) {
            _mm512_mask_storeu_ps(err + i, m, _mm512_sub_ps(q, v));
            _mm512_mask_storeu_ps(scaled + i, m, v);
        } else {
            _mm512_mask_storeu_ps(err + i, m, _mm512_sub_ps(_mm512_div_ps(q, sv), wv));
        }
    }
}

void cq_scaleloss_token_f32_avx512(const float *x, const float *s, size_t n, int bits, float *hat,
                                   float *err) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 top = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 sv = _mm512_mask_loadu_ps(one, m, s + i);
        const __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(m, x + i), sv);
        top = _mm512_max_ps(_mm512_abs_ps(v), top);
        _mm512_mask_storeu_ps(hat + i, m, v);
    }
    const cq_affine p = cq_scaleloss_token_grid(_mm512_reduce_max_ps(top), bits);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(m, hat + i), q = fake(v, p);
        _mm512_mask_storeu_ps(hat + i, m, q);
        _mm512_mask_storeu_ps(err + i, m, _mm512_sub_ps(q, v));
    }
}

CQ_INLINE __m512d powered(__m512 e, int kind) {
    const __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(e));
    const __m512d hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(e, 1));
    if (kind) return _mm512_add_pd(_mm512_mul_pd(lo, lo), _mm512_mul_pd(hi, hi));
    return _mm512_add_pd(_mm512_abs_pd(lo), _mm512_abs_pd(hi));
}

CQ_INLINE double ordered_sum(__m512d lanes) {
    double l[8];
    _mm512_storeu_pd(l, lanes);
    return cq_sum_lanes(l);
}

void cq_scaleloss_power_f32_avx512(const float *e, size_t m, int kind, double *row) {
    for (size_t r = 0; r < m; r++, e += CQ_PANEL)
        row[r] += ordered_sum(powered(_mm512_loadu_ps(e), kind)) +
                  ordered_sum(powered(_mm512_loadu_ps(e + 16), kind));
}

#include "core/isa_end.h"
#endif
