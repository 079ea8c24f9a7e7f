/* SPDX-License-Identifier: Apache-2.0 */
/* The backward pass adds the two halves of each vector to one register of eight double lanes in
 * index order, which is the scalar kernel's lane i % 8; columns keep theirs over four rows. A
 * product of two floats is exact in double, so an FMA adds it with the same bits. The divider is
 * hidden behind memory (26 GB/s, as adding two streams), so it stays. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

typedef struct grid {
    __m512 s, lo, hi;
} grid;

/* *d = r - (inside ? v : 0); returns `inside`: clamping changes nothing. */
CQ_INLINE __mmask16 slope(__m512 x, const grid *p, __m512 *d) {
    const __m512 v = _mm512_div_ps(x, p->s);
    const __m512 clamped = _mm512_min_ps(p->hi, _mm512_max_ps(p->lo, v));
    const __mmask16 inside = _mm512_cmp_ps_mask(clamped, v, _CMP_EQ_OQ);
    const __m512 r = _mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    *d = _mm512_mask_sub_ps(r, inside, r, v);
    return inside;
}

CQ_INLINE __m512d add_product(__m512d sum, __m256 g, __m256 d) {
    return _mm512_fmadd_pd(_mm512_cvtps_pd(g), _mm512_cvtps_pd(d), sum);
}

/* Gradient of sixteen elements; their two halves go to *even and *odd (which may be one). */
CQ_INLINE void sixteen(const float *x, const float *g, float *gx, const grid *p, __m512d *even,
                       __m512d *odd, int stream) {
    __m512 d;
    const __mmask16 inside = slope(_mm512_loadu_ps(x), p, &d);
    *even = add_product(*even, _mm256_loadu_ps(g), _mm512_castps512_ps256(d));
    *odd = add_product(*odd, _mm256_loadu_ps(g + 8), _mm512_extractf32x8_ps(d, 1));
    const __m512 result = _mm512_maskz_loadu_ps(inside, g);
    if (stream) {
        cq_fakequant_fetch(x, CQ_FAKEQUANT_AHEAD_TWO);
        cq_fakequant_fetch(g, CQ_FAKEQUANT_AHEAD_TWO);
        _mm512_stream_ps(gx, result);
    } else {
        _mm512_storeu_ps(gx, result);
    }
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
    lane = add_product(lane, _mm512_castps512_ps256(gv), _mm512_castps512_ps256(d));
    return add_product(lane, _mm512_extractf32x8_ps(gv, 1), _mm512_extractf32x8_ps(d, 1));
}

CQ_INLINE double row(const float *x, const float *g, float *gx, size_t n, const grid *p,
                     int stream) {
    const size_t head = stream ? (0 - (uintptr_t)gx / sizeof *gx) % 16 : 0;
    __m512d lane = _mm512_setzero_pd();
    if (head) lane = some(x, g, gx, (__mmask16)(0xFFFF0000u >> head), p, lane);
    size_t i = head;
    for (; i + 16 <= n; i += 16) sixteen(x + i, g + i, gx + i, p, &lane, &lane, stream);
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

/* Sixteen columns of up to four rows. */
CQ_INLINE void columns(const cq_fakequant_block *b, size_t r, size_t rows, size_t i, int stream) {
    const grid p = {_mm512_loadu_ps(b->scale + i), _mm512_loadu_ps(b->lo + i),
                    _mm512_loadu_ps(b->hi + i)};
    __m512d even = _mm512_loadu_pd(b->gscale + i), odd = _mm512_loadu_pd(b->gscale + i + 8);
    for (size_t k = r; k < r + rows; k++) {
        const size_t at = k * b->cols + i;
        sixteen(b->x + at, b->g + at, b->out + at, &p, &even, &odd, stream);
    }
    _mm512_storeu_pd(b->gscale + i, even);
    _mm512_storeu_pd(b->gscale + i + 8, odd);
}

/* The first columns under a mask. */
static void some_columns(const cq_fakequant_block *b, size_t r, size_t rows, size_t i,
                         __mmask16 m) {
    const __mmask8 low = (__mmask8)m, high = (__mmask8)(m >> 8);
    const grid p = {_mm512_mask_loadu_ps(_mm512_set1_ps(1.0f), m, b->scale + i),
                    _mm512_maskz_loadu_ps(m, b->lo + i), _mm512_maskz_loadu_ps(m, b->hi + i)};
    __m512d even = _mm512_maskz_loadu_pd(low, b->gscale + i);
    __m512d odd = _mm512_maskz_loadu_pd(high, b->gscale + i + 8);
    for (size_t k = r; k < r + rows; k++) {
        const size_t at = k * b->cols + i;
        const __m512 g = _mm512_maskz_loadu_ps(m, b->g + at);
        __m512 d;
        const __mmask16 inside = slope(_mm512_maskz_loadu_ps(m, b->x + at), &p, &d);
        even = add_product(even, _mm512_castps512_ps256(g), _mm512_castps512_ps256(d));
        odd = add_product(odd, _mm512_extractf32x8_ps(g, 1), _mm512_extractf32x8_ps(d, 1));
        _mm512_mask_storeu_ps(b->out + at, m, _mm512_maskz_mov_ps(inside, g));
    }
    _mm512_mask_storeu_pd(b->gscale + i, low, even);
    _mm512_mask_storeu_pd(b->gscale + i + 8, high, odd);
}

void cq_fakequant_bwd_f32_col_avx512(const cq_fakequant_block *b) {
    const size_t n = b->cols;
    /* Every row must start at the same place of a cache line. */
    const int stream = b->stream && n % 16 == 0;
    const size_t head = stream ? (0 - (uintptr_t)b->out / sizeof *b->out) % 16 : 0;
    for (size_t r = 0; r < b->rows; r += 4) {
        const size_t rows = cq_min_size(4, b->rows - r);
        size_t i = head;
        if (head) some_columns(b, r, rows, 0, cq_tail_mask(head));
        if (stream)
            for (; i + 16 <= n; i += 16) columns(b, r, rows, i, 1);
        else
            for (; i + 16 <= n; i += 16) columns(b, r, rows, i, 0);
        if (i < n) some_columns(b, r, rows, i, cq_tail_mask(n - i));
    }
    if (stream) _mm_sfence();
}

#include "core/isa_end.h"
#endif
