/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen columns at a time, rows within: what belongs to columns stays in registers, the entries
 * of their tables and sums stay in the first cache, from where they are gathered and scattered. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

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

/* Adds sixteen floats to eight sums of doubles each half. */
CQ_INLINE void add_lanes(double *sum, __m512 v) {
    __m512d lane = _mm512_loadu_pd(sum);
    lane = _mm512_add_pd(lane, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
    lane = _mm512_add_pd(lane, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    _mm512_storeu_pd(sum, lane);
}

CQ_INLINE void forward(const cq_channel_tile *t, size_t c, int noisy, int rated) {
    const columns k = sixteen(t, c);
    for (size_t r = 0; r < t->rows; r++) {
        const __m512 x = _mm512_maskz_loadu_ps(k.m, t->x + r * t->ld + c);
        const __m512 above = _mm512_sub_ps(x, k.low);
        const float *noise = noisy ? t->noise + r * CQ_CHANNEL_COLS + c : NULL;
        const element a = rounded(&k, k.w, above, noise), b = rounded(&k, k.w + 1, above, noise);
        const __m512 y = _mm512_add_ps(_mm512_mul_ps(k.w[0].weight, a.level),
                                       _mm512_mul_ps(k.w[1].weight, b.level));
        _mm512_mask_storeu_ps(t->y + r * t->ld + c, k.m, y);
        if (!rated) continue;
        const __m512 r0 = look_up(&k, t->tables, k.w, a.code);
        const __m512 r1 = look_up(&k, t->tables, k.w + 1, b.code);
        add_lanes(t->rate + 8 * r, _mm512_add_ps(_mm512_mul_ps(k.w[0].weight, r0),
                                                 _mm512_mul_ps(k.w[1].weight, r1)));
    }
}

void cq_channel_bits_f32_avx512(const cq_channel_tile *t) {
    for (size_t c = 0; c < t->cols; c += 16) {
        if (t->noise)
            t->tables ? forward(t, c, 1, 1) : forward(t, c, 1, 0);
        else
            t->tables ? forward(t, c, 0, 1) : forward(t, c, 0, 0);
    }
}

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
