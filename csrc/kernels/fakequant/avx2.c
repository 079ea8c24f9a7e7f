/* SPDX-License-Identifier: Apache-2.0 */
/* Eight floats at a time; vmaxps/vminps return their second operand on NaN, so (lo, v) and (hi, v)
 * let NaN through. Tails go to the scalar kernel, or for gscale to lane i % 8. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

CQ_INLINE __m256 round_clamped(__m256 v, __m256 lo, __m256 hi) {
    v = _mm256_min_ps(hi, _mm256_max_ps(lo, v));
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

void cq_fakequant_f32_row_avx2(const float *x, float *out, size_t n, cq_affine p) {
    const __m256 s = _mm256_set1_ps(p.scale), zero = _mm256_setzero_ps();
    const __m256 lo = _mm256_set1_ps(p.lo), hi = _mm256_set1_ps(p.hi);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 r = round_clamped(_mm256_div_ps(_mm256_loadu_ps(x + i), s), lo, hi);
        _mm256_storeu_ps(out + i, _mm256_add_ps(_mm256_mul_ps(r, s), zero));
    }
    cq_fakequant_f32_row_scalar(x + i, out + i, n - i, p);
}

void cq_fakequant_f32_col_avx2(const float *x, float *out, size_t n, const float *scale,
                               const float *lo, const float *hi) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 s = _mm256_loadu_ps(scale + i);
        const __m256 v = _mm256_div_ps(_mm256_loadu_ps(x + i), s);
        const __m256 r = round_clamped(v, _mm256_loadu_ps(lo + i), _mm256_loadu_ps(hi + i));
        _mm256_storeu_ps(out + i, _mm256_add_ps(_mm256_mul_ps(r, s), _mm256_setzero_ps()));
    }
    cq_fakequant_f32_col_scalar(x + i, out + i, n - i, scale + i, lo + i, hi + i);
}

void cq_fakequant_bwd_f32_row_avx2(const float *x, const float *g, float *gx, size_t n, cq_affine p,
                                   double *gscale) {
    const __m256 s = _mm256_set1_ps(p.scale);
    const __m256 lo = _mm256_set1_ps(p.lo), hi = _mm256_set1_ps(p.hi);
    __m256d even = _mm256_setzero_pd(), odd = _mm256_setzero_pd(); /* lanes 0..3 and 4..7 */
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_div_ps(_mm256_loadu_ps(x + i), s), gv = _mm256_loadu_ps(g + i);
        const __m256 inside =
            _mm256_and_ps(_mm256_cmp_ps(v, lo, _CMP_GE_OQ), _mm256_cmp_ps(v, hi, _CMP_LE_OQ));
        const __m256 d = _mm256_sub_ps(round_clamped(v, lo, hi), _mm256_and_ps(inside, v));
        even = _mm256_add_pd(even, _mm256_mul_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(gv)),
                                                 _mm256_cvtps_pd(_mm256_castps256_ps128(d))));
        odd = _mm256_add_pd(odd, _mm256_mul_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(gv, 1)),
                                               _mm256_cvtps_pd(_mm256_extractf128_ps(d, 1))));
        _mm256_storeu_ps(gx + i, _mm256_and_ps(inside, gv));
    }
    double lane[8];
    _mm256_storeu_pd(lane, even);
    _mm256_storeu_pd(lane + 4, odd);
    for (; i < n; i++) {
        double one; /* a single element: all other lanes of the scalar kernel are zero */
        cq_fakequant_bwd_f32_row_scalar(x + i, g + i, gx + i, 1, p, &one);
        lane[i % 8] += one;
    }
    *gscale = cq_sum_lanes(lane);
}

#include "core/isa_end.h"
#endif
