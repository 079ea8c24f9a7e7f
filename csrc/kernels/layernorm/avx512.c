/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen floats at a time, sums in sixteen float lanes over a row, added in double at the end. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

#include <math.h>

CQ_INLINE double total(__m512 v) {
    const __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    const __m512d hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(lo, hi));
}

void cq_layernorm_f32_row_avx512(const float *y, size_t n, float eps, const float *gamma,
                                 const float *beta, float *out, float *stat) {
    __m512 sum = _mm512_setzero_ps(), square = sum;
    for (size_t i = 0; i < n; i += 16)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(cq_tail_mask(n - i), y + i));
    stat[0] = (float)(total(sum) / (double)n);
    const __m512 mean = _mm512_set1_ps(stat[0]);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 d = _mm512_maskz_sub_ps(m, _mm512_maskz_loadu_ps(m, y + i), mean);
        square = _mm512_fmadd_ps(d, d, square);
    }
    stat[1] = (float)(1.0 / sqrt(total(square) / (double)n + (double)eps));
    const __m512 rate = _mm512_set1_ps(stat[1]);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, y + i), mean);
        const __m512 h = _mm512_mul_ps(d, rate), b = _mm512_maskz_loadu_ps(m, beta + i);
        _mm512_mask_storeu_ps(out + i, m,
                              _mm512_fmadd_ps(h, _mm512_maskz_loadu_ps(m, gamma + i), b));
    }
}

void cq_layernorm_bwd_f32_row_avx512(const float *g, const float *y, size_t n, const float *stat,
                                     const float *gamma, float *dy, float *dgamma, float *dbeta) {
    const __m512 mean = _mm512_set1_ps(stat[0]), rate = _mm512_set1_ps(stat[1]);
    __m512 plain = _mm512_setzero_ps(), along = plain;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 d = _mm512_maskz_sub_ps(m, _mm512_maskz_loadu_ps(m, y + i), mean);
        const __m512 e =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(m, g + i), _mm512_maskz_loadu_ps(m, gamma + i));
        plain = _mm512_add_ps(plain, e);
        along = _mm512_fmadd_ps(e, _mm512_mul_ps(d, rate), along);
    }
    const __m512 a = _mm512_set1_ps((float)(total(plain) / (double)n));
    const __m512 b = _mm512_set1_ps((float)(total(along) / (double)n));
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 gi = _mm512_maskz_loadu_ps(m, g + i);
        const __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, y + i), mean);
        const __m512 h = _mm512_mul_ps(d, rate);
        const __m512 e = _mm512_mul_ps(gi, _mm512_maskz_loadu_ps(m, gamma + i));
        const __m512 dg = _mm512_maskz_loadu_ps(m, dgamma + i);
        const __m512 db = _mm512_maskz_loadu_ps(m, dbeta + i);
        _mm512_mask_storeu_ps(dgamma + i, m, _mm512_fmadd_ps(gi, h, dg));
        _mm512_mask_storeu_ps(dbeta + i, m, _mm512_add_ps(db, gi));
        const __m512 rest = _mm512_fnmadd_ps(h, b, _mm512_sub_ps(e, a));
        _mm512_mask_storeu_ps(dy + i, m, _mm512_mul_ps(rate, rest));
    }
}

#include "core/isa_end.h"
#endif
