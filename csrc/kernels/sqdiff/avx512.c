/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen elements at a time in two halves of one register of eight sums, as the scalar kernel's
 * lanes; tails by mask. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

CQ_INLINE __m512 difference(const float *a, const float *b, __mmask16 m) {
    return _mm512_sub_ps(_mm512_maskz_loadu_ps(m, a), _mm512_maskz_loadu_ps(m, b));
}

void cq_sqdiff_f32_avx512(const float *a, const float *b, size_t n, double *sum) {
    __m512d lane = _mm512_setzero_pd();
    double l[8];
    for (size_t i = 0; i < n; i += 16) {
        const __m512 d = difference(a + i, b + i, cq_tail_mask(n - i)), s = _mm512_mul_ps(d, d);
        lane = _mm512_add_pd(lane, _mm512_cvtps_pd(_mm512_castps512_ps256(s)));
        lane = _mm512_add_pd(lane, _mm512_cvtps_pd(_mm512_extractf32x8_ps(s, 1)));
    }
    _mm512_storeu_pd(l, lane);
    *sum = cq_sum_lanes(l);
}

void cq_sqdiff_bwd_f32_avx512(const float *a, const float *b, size_t n, float factor, float *out) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 d = difference(a + i, b + i, m);
        _mm512_mask_storeu_ps(out + i, m, _mm512_mul_ps(d, _mm512_set1_ps(factor)));
    }
}

#include "core/isa_end.h"
#endif
