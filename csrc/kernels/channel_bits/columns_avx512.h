/* SPDX-License-Identifier: Apache-2.0 */
/* What forward and backward of channel_bits share: sixteen columns, and the rounding of sixteen
 * elements. Include between isa_begin and isa_end. */
#ifndef CQ_CHANNEL_AVX512_H
#define CQ_CHANNEL_AVX512_H

typedef struct width {
    __m512 top, step, weight, inverse, part;
    __m512i at;  /* of the entries of a width, from the first column of the tile */
    __m512i sum; /* of their sums, from the first of these columns */
    __mmask16 none;
} width;

typedef struct columns {
    __m512 low, centre;
    width w[2];
    __mmask16 m;
} columns;

CQ_INLINE width one_width(__m512 low, __m512 high, __m512i bits, __m512 weight, __m512i column,
                          __m512i lane) {
    const __m512 one = _mm512_set1_ps(1.0f), least = _mm512_set1_ps(CQ_CHANNEL_LEAST);
    const __m512i start =
        _mm512_sub_epi32(_mm512_sllv_epi32(_mm512_set1_epi32(1), bits), _mm512_set1_epi32(1));
    width w;
    w.none = _mm512_testn_epi32_mask(bits, bits);
    w.top = _mm512_cvtepi32_ps(start);
    w.weight = weight;
    const __m512 by = _mm512_mask_mov_ps(w.top, w.none, one);
    w.part = _mm512_div_ps(one, by);
    w.step = _mm512_max_ps(_mm512_div_ps(_mm512_sub_ps(high, low), by), least);
    const __mmask16 wide = _mm512_cmp_ps_mask(w.step, least, _CMP_GT_OQ);
    w.inverse = _mm512_maskz_div_ps(wide, one, w.step);
    const __m512i apart = _mm512_set1_epi32(CQ_CHANNEL_TABLE);
    w.at = _mm512_add_epi32(_mm512_mullo_epi32(column, apart), start);
    w.sum = _mm512_add_epi32(_mm512_slli_epi32(start, 4), lane);
    return w;
}

CQ_INLINE columns sixteen(const cq_channel_tile *t, size_t c) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    columns k;
    k.m = cq_tail_mask(t->cols - c);
    k.low = _mm512_maskz_loadu_ps(k.m, t->low + c);
    const __m512 high = _mm512_mask_loadu_ps(_mm512_set1_ps(1.0f), k.m, t->high + c);
    const __m512 bits = _mm512_mask_loadu_ps(_mm512_set1_ps(1.0f), k.m, t->bits + c);
    const __m512i whole =
        _mm512_min_epi32(_mm512_cvttps_epi32(bits), _mm512_set1_epi32(CQ_CHANNEL_BITS - 1));
    const __m512 share = _mm512_sub_ps(bits, _mm512_cvtepi32_ps(whole));
    const __m512i column = _mm512_add_epi32(lane, _mm512_set1_epi32((int)c));
    k.centre = _mm512_mul_ps(_mm512_add_ps(k.low, high), _mm512_set1_ps(0.5f));
    k.w[0] =
        one_width(k.low, high, whole, _mm512_sub_ps(_mm512_set1_ps(1.0f), share), column, lane);
    k.w[1] =
        one_width(k.low, high, _mm512_add_epi32(whole, _mm512_set1_epi32(1)), share, column, lane);
    return k;
}

typedef struct element {
    __m512 v, q, level;
    __m512i code;
} element;

CQ_INLINE element rounded(const columns *k, const width *w, __m512 above, const float *noise) {
    enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    enum { DOWN = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC };
    element e;
    e.v = _mm512_div_ps(above, w->step);
    const __m512 u = _mm512_min_ps(w->top, _mm512_max_ps(_mm512_setzero_ps(), e.v));
    if (noise) {
        const __m512 up = _mm512_add_ps(u, _mm512_maskz_loadu_ps(k->m, noise));
        e.q = _mm512_min_ps(w->top, _mm512_roundscale_ps(up, DOWN));
    } else {
        e.q = _mm512_roundscale_ps(u, NEAREST);
    }
    e.level = _mm512_add_ps(k->low, _mm512_mul_ps(e.q, w->step));
    e.level = _mm512_mask_mov_ps(e.level, w->none, k->centre);
    const __mmask16 number = _mm512_cmp_ps_mask(e.q, e.q, _CMP_ORD_Q);
    e.code = _mm512_maskz_cvttps_epi32(number, e.q);
    return e;
}

CQ_INLINE __m512 look_up(const columns *k, const float *tables, const width *w, __m512i code) {
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), k->m, _mm512_add_epi32(w->at, code),
                                    tables, 4);
}

#endif
