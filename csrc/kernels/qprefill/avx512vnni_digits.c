/* SPDX-License-Identifier: Apache-2.0 */
/* Two float rows x 32 outputs: the sums of their digits are 16 registers. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512vnni.h"

#include "kernels/qprefill/dot_avx512vnni.h"

enum { STEP = 1024 };

typedef struct digits { /* sums of one row, named, not an array: gcc 12 spills arrays */
    pair d0, d1, d2, d3;
} digits;

CQ_INLINE void dot_digits(digits *d, const uint8_t *x, size_t ldx, __m512i lo, __m512i hi,
                          const size_t skip) {
    if (skip < 1) dot(&d->d0, x, lo, hi);
    if (skip < 2) dot(&d->d1, x + ldx, lo, hi);
    dot(&d->d2, x + 2 * ldx, lo, hi);
    dot(&d->d3, x + 3 * ldx, lo, hi);
}

/* Two rows in one group, without their `skip` lowest digits. */
CQ_INLINE void dots(digits *a, digits *b, const uint8_t *x, size_t ldx, const int8_t *w0,
                    const int8_t *w1, const size_t steps, size_t quads, const size_t skip) {
    for (size_t s = 0; s < steps; s++, x += STEP, w0 += STEP, w1 += STEP) {
        for (size_t q = 0; q < quads; q++) {
            const __m512i lo = _mm512_load_si512((const void *)(w0 + 64 * q));
            const __m512i hi = _mm512_load_si512((const void *)(w1 + 64 * q));
            dot_digits(a, x + 4 * q, ldx, lo, hi, skip);
            dot_digits(b, x + 64 + 4 * q, ldx, lo, hi, skip);
        }
    }
}

/* high * 256 + low, plus the centre times the sum of x. */
CQ_INLINE __m512i two(__m512i high, __m512i low, __m512i centre, int32_t sum) {
    const __m512i all = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
    return _mm512_add_epi32(all, _mm512_mullo_epi32(centre, _mm512_set1_epi32(sum)));
}

CQ_INLINE void scale_add(__m512i high, __m512i low, __m512 scale, __mmask16 keep, float *acc) {
    const __m512 f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(65536.0f),
                                     _mm512_cvtepi32_ps(low));
    _mm512_store_ps(acc, _mm512_fmadd_ps(scale, f, _mm512_maskz_load_ps(keep, acc)));
}

/* Row `at` of all rows' steps and sums, group g, 32 outputs of block column j. */
CQ_INLINE void finish(const cq_qprefill_block *b, const digits *d, size_t at, size_t g, size_t j,
                      float *acc) {
    const __mmask16 keep = b->first && g == 0 ? 0 : 0xFFFF;
    const size_t n = g * b->ld + 32 * j;
    const __m512 step = _mm512_set1_ps(b->xstep[at]);
    __m512i c0 = _mm512_setzero_si512(), c1 = c0;
    int32_t high = 0, low = 0;
    if (b->centre) {
        c0 = _mm512_loadu_si512((const void *)(b->centre + n));
        c1 = _mm512_loadu_si512((const void *)(b->centre + n + 16));
        high = b->xsum[2 * at], low = b->xsum[2 * at + 1];
    }
    scale_add(two(d->d3.lo, d->d2.lo, c0, high), two(d->d1.lo, d->d0.lo, c0, low),
              _mm512_mul_ps(_mm512_loadu_ps(b->scale + n), step), keep, acc);
    scale_add(two(d->d3.hi, d->d2.hi, c1, high), two(d->d1.hi, d->d0.hi, c1, low),
              _mm512_mul_ps(_mm512_loadu_ps(b->scale + n + 16), step), keep, acc + 256);
}

/* Rows r and r + 1 of the 16 rows i, block column j. */
static void two_rows(const cq_qprefill_block *b, size_t i, size_t j, size_t r) {
    const size_t bytes = b->steps * STEP, strip = b->groups * bytes;
    const uint8_t *x = b->x + CQ_DIGITS * i * b->ldx + r * 64;
    const int8_t *w0 = b->panel + 2 * j * strip, *w1 = w0 + strip;
    float *acc = b->acc + (i / 2 * b->n + j) * 1024 + i % 2 * 512 + r * 16;
    for (size_t g = 0; g < b->groups; g++, x += bytes, w0 += bytes, w1 += bytes) {
        const int32_t *shift = b->shift + g * b->ld + 32 * j;
        const pair c = {_mm512_loadu_si512((const void *)shift),
                        _mm512_loadu_si512((const void *)(shift + 16))};
        const pair none = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        const uint8_t skip = b->zeros[i * b->ldsum + g];
        digits d = {skip < 1 ? c : none, skip < 2 ? c : none, c, c}, e = d;
        if (skip < 1)
            dots(&d, &e, x, b->ldx, w0, w1, b->steps, b->quads, 0);
        else if (skip < 2)
            dots(&d, &e, x, b->ldx, w0, w1, b->steps, b->quads, 1);
        else
            dots(&d, &e, x, b->ldx, w0, w1, b->steps, b->quads, 2);
        const size_t at = (i * b->ldsum + g) * 16 + r;
        finish(b, &d, at, g, j, acc);
        finish(b, &e, at + 1, g, j, acc + 16);
    }
}

void cq_qprefill_digits_avx512vnni(const cq_qprefill_block *b) {
    for (size_t i = 0; i < 2 * b->m; i++)
        for (size_t j = 0; j < b->n; j++)
            for (size_t r = 0; r < 16; r += 2) two_rows(b, i, j, r);
}

#include "core/isa_end.h"
#endif
