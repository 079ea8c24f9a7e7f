/* SPDX-License-Identifier: Apache-2.0 */
/* exp and bfloat16 rounding of sixteen floats; included inside a section compiled for AVX-512. */
#ifndef CQ_ATTENTION_ROWS_AVX512_H
#define CQ_ATTENTION_ROWS_AVX512_H

/* exp for x <= 88; 0 below -87.3; NaN stays NaN. */
CQ_INLINE __m512 cq_att_exp(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(CQ_ATT_LOG2E);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(CQ_ATT_LN2_HIGH), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(CQ_ATT_LN2_LOW), r);
    __m512 p = _mm512_set1_ps(CQ_ATT_EXP7);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(CQ_ATT_EXP6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(CQ_ATT_EXP5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(CQ_ATT_EXP4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(CQ_ATT_EXP3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(CQ_ATT_EXP2));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), tiny, _mm512_setzero_ps());
}

/* Lanes of row t that hold a key that is seen, from key j on. */
CQ_INLINE __mmask16 cq_att_seen(const cq_att_row *t, size_t j) {
    const __mmask16 inside = (__mmask16)(j >= t->n        ? 0u
                                         : t->n - j >= 16 ? 0xFFFFu
                                                          : (1u << (t->n - j)) - 1u);
    if (!t->mask) return inside;
    const __m128i m = _mm_maskz_loadu_epi8(inside, t->mask + j);
    return _mm_mask_cmpeq_epi8_mask(inside, m, _mm_setzero_si128());
}

#endif
