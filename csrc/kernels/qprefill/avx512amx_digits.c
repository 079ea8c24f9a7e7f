/* SPDX-License-Identifier: Apache-2.0 */
/* The digits of 16 float rows are four tile registers of x, each used on one of weights: five loads
 * for four products, and only the weights come from the L2 cache. The dots of a group wait in
 * memory while the next one is multiplied, as in avx512amx.c. Measured alone, one core: groups of
 * 128 2.1 TOP/s (products and loads alone 4.4, with the stores 2.9), of 256 2.7. Fetching the next
 * strip ahead makes it slower. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512amx.h"

#include "kernels/qprefill/tiles_avx512amx.h"

static const size_t STEP = 1024;
enum {
    ROWS = 16,
    CELL = 256, /* dots of a digit */
    TWO = 2 * CELL,
    THREE = 3 * CELL,
    SET = 4 * CELL
};

/* The dots of a block of inputs of 16 rows x 16 outputs, to be scaled and added to acc. */
typedef struct pending {
    __m512 scale;
    __m512i centre;
    const float *xstep;  /* [16] */
    const int32_t *xsum; /* [16][2], or NULL */
    const int32_t *dot;  /* [4][CELL] */
    float *acc;
    __mmask16 keep, d0, d1; /* 0: acc starts from 0; the digit was left out */
} pending;

/* high * 256 + low. */
CQ_INLINE __m512i two_digits(__mmask16 with_high, const int32_t *high, __mmask16 with_low,
                             const int32_t *low) {
    const __m512i up = _mm512_slli_epi32(_mm512_maskz_load_epi32(with_high, high), 8);
    return _mm512_add_epi32(up, _mm512_maskz_load_epi32(with_low, low));
}

CQ_INLINE __m512i times(__m512i centre, int32_t sum) {
    return _mm512_mullo_epi32(centre, _mm512_set1_epi32(sum));
}

/* Rows at .. at + count - 1. */
CQ_INLINE void finish(const pending *p, const size_t at, const size_t count) {
#pragma GCC unroll 16
    for (size_t r = at; r < at + count; r++) {
        const int32_t *d = p->dot + 16 * r;
        __m512i hi = two_digits(0xFFFF, d + THREE, 0xFFFF, d + TWO);
        __m512i lo = two_digits(p->d1, d + CELL, p->d0, d);
        if (p->xsum) {
            hi = _mm512_add_epi32(hi, times(p->centre, p->xsum[2 * r]));
            lo = _mm512_add_epi32(lo, times(p->centre, p->xsum[2 * r + 1]));
        }
        const __m512 f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(hi), _mm512_set1_ps(65536.0f),
                                         _mm512_cvtepi32_ps(lo));
        const __m512 scale = _mm512_mul_ps(p->scale, _mm512_set1_ps(p->xstep[r]));
        const __m512 acc = _mm512_maskz_load_ps(p->keep, p->acc + 16 * r);
        _mm512_store_ps(p->acc + 16 * r, _mm512_fmadd_ps(scale, f, acc));
    }
}

/* One step, without the `skip` lowest digits; between its products `rows` rows of what is pending,
 * from `at` on. */
CQ_INLINE void step(const uint8_t *x, size_t ldx, const int8_t *w, const size_t skip,
                    const int last, int32_t *to, const pending *p, const size_t at,
                    const size_t rows) {
    const size_t one = (rows + 3 - skip) / (4 - skip);
    _tile_loadd(6, w, 64);
    if (skip < 1) {
        _tile_loadd(4, x, 64);
        _tile_dpbssd(0, 4, 6);
        if (last) _tile_stored(0, to, 64);
        finish(p, at, one);
    }
    if (skip < 2) {
        _tile_loadd(5, x + ldx, 64);
        _tile_dpbssd(1, 5, 6);
        if (last) _tile_stored(1, to + CELL, 64);
        finish(p, at + (1 - skip) * one, one);
    }
    _tile_loadd(4, x + 2 * ldx, 64);
    _tile_dpbssd(2, 4, 6);
    if (last) _tile_stored(2, to + TWO, 64);
    finish(p, at + (2 - skip) * one, one);
    _tile_loadd(5, x + 3 * ldx, 64);
    _tile_dpbssd(3, 5, 6);
    if (last) _tile_stored(3, to + THREE, 64);
    finish(p, at + (3 - skip) * one, rows - (3 - skip) * one);
}

/* The dots of a group; meanwhile what is pending. `steps` is 1, or 2 for more. */
CQ_INLINE void group(const size_t steps, size_t count, const uint8_t *x, size_t ldx,
                     const int8_t *w, const size_t skip, int32_t *to, const pending *p) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (steps == 1) {
        step(x, ldx, w, skip, 1, to, p, 0, 16);
        return;
    }
    step(x, ldx, w, skip, 0, to, p, 0, 8);
    for (size_t i = 2; i < count; i++) step(x += STEP, ldx, w += STEP, skip, 0, to, p, 0, 0);
    step(x + STEP, ldx, w + STEP, skip, 1, to, p, 8, 8);
}

/* All groups of 16 rows and strip j, leaving the last one pending in one of two sets of dots. */
CQ_INLINE void cell(const cq_qprefill_block *b, const size_t steps, size_t i, size_t j,
                    int32_t *dots, size_t *turn, pending *p) {
    const size_t bytes = b->steps * STEP;
    const uint8_t *x = b->x + 4 * i * b->ldx;
    const int8_t *w = b->panel + j * b->groups * bytes;
    for (size_t g = 0; g < b->groups; g++, *turn ^= 1, x += bytes, w += bytes) {
        int32_t *dot = dots + *turn * SET;
        const size_t at = i * b->ldsum + g;
        switch (b->zeros[at]) {
        case 0: group(steps, b->steps, x, b->ldx, w, 0, dot, p); break;
        case 1: group(steps, b->steps, x, b->ldx, w, 1, dot, p); break;
        default: group(steps, b->steps, x, b->ldx, w, 2, dot, p);
        }
        p->scale = _mm512_loadu_ps(b->scale + g * b->ld + 16 * j);
        p->xstep = b->xstep + at * ROWS;
        p->xsum = b->centre ? b->xsum + 2 * at * ROWS : NULL;
        if (b->centre)
            p->centre = _mm512_loadu_si512((const void *)(b->centre + g * b->ld + 16 * j));
        p->acc = b->acc + (i / 2 * b->n + j / 2) * 1024 + i % 2 * 512 + j % 2 * CELL;
        p->dot = dot;
        p->keep = b->first && g == 0 ? 0 : 0xFFFF;
        p->d0 = b->zeros[at] > 0 ? 0 : 0xFFFF, p->d1 = b->zeros[at] > 1 ? 0 : 0xFFFF;
    }
}

CQ_INLINE void cells(const cq_qprefill_block *b, const size_t steps) {
    _Alignas(64) int32_t dots[8 * CELL] = {0};
    _Alignas(64) float none[CELL], one[ROWS] = {0};
    pending p = {.scale = _mm512_setzero_ps(), .xstep = one, .dot = dots, .acc = none};
    size_t turn = 1;
    for (size_t i = 0; i < 2 * b->m; i++)
        for (size_t j = 0; j < 2 * b->n; j++) cell(b, steps, i, j, dots, &turn, &p);
    finish(&p, 0, ROWS);
}

void cq_qprefill_digits_avx512amx(const cq_qprefill_block *b) {
    configure(b->quads);
    if (b->steps == 1)
        cells(b, 1);
    else
        cells(b, 2);
    _tile_release();
}

#include "core/isa_end.h"
#endif
