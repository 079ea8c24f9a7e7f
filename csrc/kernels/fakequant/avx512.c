/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen floats at a time, tails by mask. The backward pass adds the two halves of each vector to
 * one register of eight double lanes in index order, which is the scalar kernel's lane i % 8. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

CQ_INLINE __m512 round_clamped(__m512 v, __m512 lo, __m512 hi) {
    v = _mm512_min_ps(hi, _mm512_max_ps(lo, v));
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

void cq_fakequant_f32_row_avx512(const float *x, float *out, size_t n, cq_affine p) {
    const __m512 s = _mm512_set1_ps(p.scale), zero = _mm512_setzero_ps();
    const __m512 lo = _mm512_set1_ps(p.lo), hi = _mm512_set1_ps(p.hi);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(m, x + i), s);
        const __m512 r = round_clamped(v, lo, hi);
        _mm512_mask_storeu_ps(out + i, m, _mm512_add_ps(_mm512_mul_ps(r, s), zero));
    }
}

void cq_fakequant_f32_col_avx512(const float *x, float *out, size_t n, const float *scale,
                                 const float *lo, const float *hi) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 s = _mm512_mask_loadu_ps(one, m, scale + i);
        const __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(m, x + i), s);
        const __m512 r =
            round_clamped(v, _mm512_maskz_loadu_ps(m, lo + i), _mm512_maskz_loadu_ps(m, hi + i));
        _mm512_mask_storeu_ps(out + i, m, _mm512_add_ps(_mm512_mul_ps(r, s), zero));
    }
}

CQ_INLINE __m512d products(__m256 a, __m256 b) {
    return _mm512_mul_pd(_mm512_cvtps_pd(a), _mm512_cvtps_pd(b));
}

void cq_fakequant_bwd_f32_row_avx512(const float *x, const float *g, float *gx, size_t n,
                                     cq_affine p, double *gscale) {
    const __m512 s = _mm512_set1_ps(p.scale);
    const __m512 lo = _mm512_set1_ps(p.lo), hi = _mm512_set1_ps(p.hi);
    __m512d lane = _mm512_setzero_pd();
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 gv = _mm512_maskz_loadu_ps(m, g + i);
        const __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(m, x + i), s);
        const __mmask16 inside =
            _mm512_cmp_ps_mask(v, lo, _CMP_GE_OQ) & _mm512_cmp_ps_mask(v, hi, _CMP_LE_OQ);
        const __m512 r = round_clamped(v, lo, hi);
        const __m512 d = _mm512_maskz_sub_ps(m, r, _mm512_maskz_mov_ps(inside, v));
        lane = _mm512_add_pd(lane, products(_mm512_castps512_ps256(gv), _mm512_castps512_ps256(d)));
        lane = _mm512_add_pd(lane,
                             products(_mm512_extractf32x8_ps(gv, 1), _mm512_extractf32x8_ps(d, 1)));
        _mm512_mask_storeu_ps(gx + i, m, _mm512_maskz_mov_ps(inside, gv));
    }
    double l[8];
    _mm512_storeu_pd(l, lane);
    *gscale = cq_sum_lanes(l);
}

#include "core/isa_end.h"
#endif
