/* SPDX-License-Identifier: Apache-2.0 */
/* The backward pass adds the two halves of each vector to one register of eight double lanes in
 * index order, which is the scalar kernel's lane i % 8; columns keep theirs over four rows. The
 * divider is hidden behind memory (26 GB/s, as adding two streams), so it stays. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

typedef struct grid {
    __m512 s, lo, hi;
} grid;

/* *d = r - (inside ? v : 0); returns `inside`. */
CQ_INLINE __mmask16 slope(__m512 x, const grid *p, __m512 *d) {
    const __m512 v = _mm512_div_ps(x, p->s);
    const __mmask16 above = _mm512_cmp_ps_mask(v, p->lo, _CMP_GE_OQ);
    const __mmask16 inside = _mm512_mask_cmp_ps_mask(above, v, p->hi, _CMP_LE_OQ);
    const __m512 clamped = _mm512_min_ps(p->hi, _mm512_max_ps(p->lo, v));
    const __m512 r = _mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    *d = _mm512_sub_ps(r, _mm512_maskz_mov_ps(inside, v));
    return inside;
}

CQ_INLINE __m512d products(__m256 a, __m256 b) {
    return _mm512_mul_pd(_mm512_cvtps_pd(a), _mm512_cvtps_pd(b));
}

CQ_INLINE __m512d low(__m512 g, __m512 d) {
    return products(_mm512_castps512_ps256(g), _mm512_castps512_ps256(d));
}

CQ_INLINE __m512d high(__m512 g, __m512 d) {
    return products(_mm512_extractf32x8_ps(g, 1), _mm512_extractf32x8_ps(d, 1));
}

/* The elements of a row before a cache line of gx starts, one after the other in the upper lanes of
 * `m`: element i is in lane i - head (mod 16), where the vectors after it have theirs. */
CQ_INLINE __m512d some(const float *x, const float *g, float *gx, __mmask16 m, const grid *p,
                       __m512d lane) {
    const __m512 gv = _mm512_maskz_expandloadu_ps(m, g);
    __m512 d;
    const __mmask16 inside = slope(_mm512_maskz_expandloadu_ps(m, x), p, &d);
    d = _mm512_maskz_mov_ps(m, d);
    _mm512_mask_compressstoreu_ps(gx, m, _mm512_maskz_mov_ps(inside, gv));
    return _mm512_add_pd(_mm512_add_pd(lane, low(gv, d)), high(gv, d));
}

CQ_INLINE double row(const float *x, const float *g, float *gx, size_t n, const grid *p,
                     int stream) {
    const size_t head = stream ? (0 - (uintptr_t)gx / sizeof *gx) % 16 : 0;
    __m512d lane = _mm512_setzero_pd();
    if (head) lane = some(x, g, gx, (__mmask16)(0xFFFF0000u >> head), p, lane);
    size_t i = head;
    for (; i + 16 <= n; i += 16) {
        const __m512 gv = _mm512_loadu_ps(g + i);
        __m512 d;
        const __mmask16 inside = slope(_mm512_loadu_ps(x + i), p, &d);
        lane = _mm512_add_pd(_mm512_add_pd(lane, low(gv, d)), high(gv, d));
        if (stream) {
            _mm_prefetch((const char *)(x + i + CQ_FAKEQUANT_AHEAD), _MM_HINT_T0);
            _mm_prefetch((const char *)(g + i + CQ_FAKEQUANT_AHEAD), _MM_HINT_T0);
            _mm512_stream_ps(gx + i, _mm512_maskz_mov_ps(inside, gv));
        } else {
            _mm512_storeu_ps(gx + i, _mm512_maskz_mov_ps(inside, gv));
        }
    }
    if (i < n) lane = some(x + i, g + i, gx + i, cq_tail_mask(n - i), p, lane);
    double l[8], ordered[8];
    _mm512_storeu_pd(l, lane);
    for (size_t j = 0; j < 8; j++) ordered[(j + head) % 8] = l[j];
    return cq_sum_lanes(ordered);
}

void cq_fakequant_bwd_f32_row_avx512(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++) {
        const size_t at = r * b->cols;
        const grid p = {_mm512_set1_ps(b->scale[r]), _mm512_set1_ps(b->lo[r]),
                        _mm512_set1_ps(b->hi[r])};
        if (b->stream)
            b->gscale[r] = row(b->x + at, b->g + at, b->out + at, b->cols, &p, 1);
        else
            b->gscale[r] = row(b->x + at, b->g + at, b->out + at, b->cols, &p, 0);
    }
    if (b->stream) _mm_sfence();
}

/* Up to four rows of sixteen columns. */
CQ_INLINE void columns(const cq_fakequant_block *b, size_t r, size_t rows, size_t i, __mmask16 m,
                       int stream) {
    const __mmask8 m_low = (__mmask8)m, m_high = (__mmask8)(m >> 8);
    const grid p = {_mm512_mask_loadu_ps(_mm512_set1_ps(1.0f), m, b->scale + i),
                    _mm512_maskz_loadu_ps(m, b->lo + i), _mm512_maskz_loadu_ps(m, b->hi + i)};
    __m512d even = _mm512_maskz_loadu_pd(m_low, b->gscale + i);
    __m512d odd = _mm512_maskz_loadu_pd(m_high, b->gscale + i + 8);
    for (size_t k = r; k < r + rows; k++) {
        const size_t at = k * b->cols + i;
        const __m512 gv = _mm512_maskz_loadu_ps(m, b->g + at);
        __m512 d;
        const __mmask16 inside = slope(_mm512_maskz_loadu_ps(m, b->x + at), &p, &d);
        even = _mm512_add_pd(even, low(gv, d));
        odd = _mm512_add_pd(odd, high(gv, d));
        if (stream) {
            _mm_prefetch((const char *)(b->x + at + CQ_FAKEQUANT_AHEAD), _MM_HINT_T0);
            _mm_prefetch((const char *)(b->g + at + CQ_FAKEQUANT_AHEAD), _MM_HINT_T0);
            _mm512_stream_ps(b->out + at, _mm512_maskz_mov_ps(inside, gv));
        } else {
            _mm512_mask_storeu_ps(b->out + at, m, _mm512_maskz_mov_ps(inside, gv));
        }
    }
    _mm512_mask_storeu_pd(b->gscale + i, m_low, even);
    _mm512_mask_storeu_pd(b->gscale + i + 8, m_high, odd);
}

void cq_fakequant_bwd_f32_col_avx512(const cq_fakequant_block *b) {
    const size_t n = b->cols;
    /* Every row must start at the same place of a cache line. */
    const int stream = b->stream && n % 16 == 0;
    const size_t head = stream ? (0 - (uintptr_t)b->out / sizeof *b->out) % 16 : 0;
    for (size_t r = 0; r < b->rows; r += 4) {
        const size_t rows = cq_min_size(4, b->rows - r);
        size_t i = head;
        if (head) columns(b, r, rows, 0, cq_tail_mask(head), 0);
        if (stream)
            for (; i + 16 <= n; i += 16) columns(b, r, rows, i, 0xFFFF, 1);
        for (; i < n; i += 16) columns(b, r, rows, i, cq_tail_mask(n - i), 0);
    }
    if (stream) _mm_sfence();
}

#include "core/isa_end.h"
#endif
