/* SPDX-License-Identifier: Apache-2.0 */
/* As avx512.c; sums of columns stay in registers over the rows of a tile, sums of codes are
 * gathered and scattered: the columns of a vector never share one. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

#include "kernels/channel_bits/columns_avx512.h"

CQ_INLINE __m512 slope(const columns *k, const float *tables, const width *w, __m512i code) {
    const __m512i one = _mm512_set1_epi32(1), top = _mm512_cvttps_epi32(w->top);
    const __m512i more = _mm512_min_epi32(_mm512_add_epi32(code, one), top);
    const __m512i less = _mm512_max_epi32(_mm512_sub_epi32(code, one), _mm512_setzero_si512());
    const __m512 rise = _mm512_sub_ps(look_up(k, tables, w, more), look_up(k, tables, w, less));
    return _mm512_mul_ps(rise, _mm512_set1_ps(0.5f));
}

CQ_INLINE __m512 gradient(const columns *k, const float *tables, const width *w, const element *e,
                          __m512 gy, __m512 grate, __m512 *step) {
    const __m512 g = _mm512_mul_ps(gy, w->weight), zero = _mm512_setzero_ps();
    __mmask16 inside = _mm512_cmp_ps_mask(e->v, zero, _CMP_GE_OQ);
    inside = _mm512_mask_cmp_ps_mask(inside, e->v, w->top, _CMP_LE_OQ) & (__mmask16)~w->none;
    __m512 h = g;
    if (tables) {
        const __m512 rate =
            _mm512_mul_ps(_mm512_mul_ps(grate, w->weight), slope(k, tables, w, e->code));
        h = _mm512_add_ps(g, _mm512_mul_ps(rate, w->inverse));
    }
    const __m512 q = _mm512_mask_mov_ps(e->q, w->none, _mm512_set1_ps(0.5f));
    *step = _mm512_sub_ps(_mm512_mul_ps(g, q), _mm512_maskz_mul_ps(inside, h, e->v));
    *step = _mm512_mul_ps(*step, w->part);
    return _mm512_maskz_mov_ps(inside, h);
}

/* Adds eight floats to sums that lie apart. */
CQ_INLINE void scatter_eight(double *sums, __m256i at, __m256 add, __mmask8 m) {
    __m512d v = _mm512_mask_i32gather_pd(_mm512_setzero_pd(), m, at, sums, 8);
    v = _mm512_add_pd(v, _mm512_cvtps_pd(add));
    _mm512_mask_i32scatter_pd(sums, m, at, v, 8);
}

/* Adds grate * weight to the sum of the code of every column. */
CQ_INLINE void scatter(double *sums, const width *w, __m512i code, __m512 grate, __mmask16 m) {
    const __m512i at = _mm512_add_epi32(w->sum, _mm512_slli_epi32(code, 4));
    const __m512 add = _mm512_mul_ps(grate, w->weight);
    scatter_eight(sums, _mm512_castsi512_si256(at), _mm512_castps512_ps256(add), (__mmask8)m);
    scatter_eight(sums, _mm512_extracti32x8_epi32(at, 1), _mm512_extractf32x8_ps(add, 1),
                  (__mmask8)(m >> 8));
}

typedef struct sums {
    __m512d half[2];
} sums;

CQ_INLINE sums load_sums(const double *from, __mmask16 m) {
    return (sums){{_mm512_maskz_loadu_pd((__mmask8)m, from),
                   _mm512_maskz_loadu_pd((__mmask8)(m >> 8), from + 8)}};
}

CQ_INLINE void add_to(sums *s, __m512 v) {
    s->half[0] = _mm512_add_pd(s->half[0], _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
    s->half[1] = _mm512_add_pd(s->half[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}

CQ_INLINE void store_sums(double *to, __mmask16 m, const sums *s) {
    _mm512_mask_storeu_pd(to, (__mmask8)m, s->half[0]);
    _mm512_mask_storeu_pd(to + 8, (__mmask8)(m >> 8), s->half[1]);
}

CQ_INLINE void backward(const cq_channel_tile *t, size_t c, int noisy, int rated) {
    const columns k = sixteen(t, c);
    const float *tables = rated ? t->tables : NULL;
    double *totals = rated ? t->gtables + c * CQ_CHANNEL_TABLE : NULL;
    sums bits = load_sums(t->gbits + c, k.m), low = load_sums(t->glow + c, k.m);
    sums high = load_sums(t->ghigh + c, k.m);
    for (size_t r = 0; r < t->rows; r++) {
        const size_t at = r * t->ld + c;
        const __m512 above = _mm512_sub_ps(_mm512_maskz_loadu_ps(k.m, t->x + at), k.low);
        const __m512 gy = _mm512_maskz_loadu_ps(k.m, t->gy + at);
        const __m512 grate = rated ? _mm512_set1_ps(t->grate[r]) : _mm512_setzero_ps();
        const float *noise = noisy ? t->noise + r * CQ_CHANNEL_COLS + c : NULL;
        const element a = rounded(&k, k.w, above, noise), b = rounded(&k, k.w + 1, above, noise);
        __m512 step[2], gbits = _mm512_mul_ps(gy, _mm512_sub_ps(b.level, a.level));
        const __m512 h0 = gradient(&k, tables, k.w, &a, gy, grate, step);
        const __m512 h1 = gradient(&k, tables, k.w + 1, &b, gy, grate, step + 1);
        const __m512 gx = _mm512_add_ps(h0, h1), top = _mm512_add_ps(step[0], step[1]);
        _mm512_mask_storeu_ps(t->gx + at, k.m, gx);
        if (rated) {
            const __m512 rise = _mm512_sub_ps(look_up(&k, tables, k.w + 1, b.code),
                                              look_up(&k, tables, k.w, a.code));
            gbits = _mm512_add_ps(gbits, _mm512_mul_ps(grate, rise));
            scatter(totals, k.w, a.code, grate, k.m);
            scatter(totals, k.w + 1, b.code, grate, k.m);
        }
        add_to(&bits, gbits);
        add_to(&high, top);
        add_to(&low, _mm512_sub_ps(_mm512_sub_ps(gy, gx), top));
    }
    store_sums(t->gbits + c, k.m, &bits);
    store_sums(t->glow + c, k.m, &low);
    store_sums(t->ghigh + c, k.m, &high);
}

void cq_channel_bits_bwd_f32_avx512(const cq_channel_tile *t) {
    for (size_t c = 0; c < t->cols; c += 16) {
        if (t->noise)
            t->tables ? backward(t, c, 1, 1) : backward(t, c, 1, 0);
        else
            t->tables ? backward(t, c, 0, 1) : backward(t, c, 0, 0);
    }
}

#include "core/isa_end.h"
#endif
