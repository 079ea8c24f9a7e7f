/* SPDX-License-Identifier: Apache-2.0 */
/* f32_panel: 16 codes of 16 rows are transposed as dwords of four codes (8 unpacks in 128-bit
 * lanes), then shifted, converted and stored 16 outputs at a time. f32_tile: 12 rows x 32 outputs
 * in 24 registers, fewer rows by the same code; named variables, because gcc 12 spills arrays. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

#include "kernels/qgemm/transpose_avx512.h"

void cq_qgemm_f32_panel_avx512(const uint8_t *codes, size_t kc, const float *scale,
                               const float *shift, float *panel) {
    const __m512 s = _mm512_loadu_ps(scale), t = _mm512_loadu_ps(shift);
    const __m512i byte = _mm512_set1_epi32(255);
    size_t k = 0;
    for (; k + 16 <= kc; k += 16) {
        __m512i four[4];
        cq_transpose_codes(codes + k, four);
        for (size_t j = 0; j < 4; j++) {
            float *to = panel + (k + 4 * j) * CQ_QGEMM_NB;
            for (size_t b = 0; b < 4; b++) {
                const __m512i shifted = _mm512_srli_epi32(four[j], (unsigned)(8 * b));
                const __m512i code = _mm512_and_si512(shifted, byte);
                _mm512_store_ps(to + b * CQ_QGEMM_NB,
                                _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), s, t));
            }
        }
    }
    cq_qgemm_f32_panel_scalar(codes + k, kc - k, scale, shift, panel + k * CQ_QGEMM_NB);
}

typedef struct pair { /* 32 outputs of one row */
    __m512 lo, hi;
} pair;

CQ_INLINE void multiply_add(pair *c, const float *x, __m512 lo, __m512 hi) {
    const __m512 v = _mm512_set1_ps(*x);
    c->lo = _mm512_fmadd_ps(v, lo, c->lo);
    c->hi = _mm512_fmadd_ps(v, hi, c->hi);
}

CQ_INLINE __m512 finished(__m512 acc, __mmask16 mask, const cq_qgemm_f32_tile *t, size_t m,
                          size_t n) {
    if (!t->first) acc = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, t->out + m * t->ldo + n), acc);
    if (t->bias) acc = _mm512_add_ps(acc, _mm512_maskz_loadu_ps(mask, t->bias + n));
    return acc;
}

CQ_INLINE void finish(pair c, const cq_qgemm_f32_tile *t, size_t m, size_t n) {
    const size_t left = t->n - n;
    const __mmask16 lo = (__mmask16)(left >= 16 ? 0xFFFFu : (1u << left) - 1u);
    const __mmask16 hi = (__mmask16)(left >= 32 ? 0xFFFFu : ((1u << (left & 15u)) - 1u));
    _mm512_mask_storeu_ps(t->out + m * t->ldo + n, lo, finished(c.lo, lo, t, m, n));
    if (left > 16)
        _mm512_mask_storeu_ps(t->out + m * t->ldo + n + 16, hi, finished(c.hi, hi, t, m, n + 16));
}

/* Rows m .. m + R - 1, R a constant, outputs n .. n + 31. */
CQ_INLINE void rows(const size_t R, const cq_qgemm_f32_tile *t, size_t m, size_t n) {
    const __m512 none = _mm512_setzero_ps();
    pair c0 = {none, none}, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0;
    pair c6 = c0, c7 = c0, c8 = c0, c9 = c0, c10 = c0, c11 = c0;
    const size_t ld = t->ldx;
    const float *x = t->x + m * ld, *w = t->panel + n, *const end = w + t->kc * CQ_QGEMM_NB;
    for (; w < end; w += CQ_QGEMM_NB, x++) {
        const __m512 lo = _mm512_load_ps(w), hi = _mm512_load_ps(w + 16);
        multiply_add(&c0, x, lo, hi);
        if (R > 1) multiply_add(&c1, x + ld, lo, hi);
        if (R > 2) multiply_add(&c2, x + 2 * ld, lo, hi);
        if (R > 3) multiply_add(&c3, x + 3 * ld, lo, hi);
        if (R > 4) multiply_add(&c4, x + 4 * ld, lo, hi);
        if (R > 5) multiply_add(&c5, x + 5 * ld, lo, hi);
        if (R > 6) multiply_add(&c6, x + 6 * ld, lo, hi);
        if (R > 7) multiply_add(&c7, x + 7 * ld, lo, hi);
        if (R > 8) multiply_add(&c8, x + 8 * ld, lo, hi);
        if (R > 9) multiply_add(&c9, x + 9 * ld, lo, hi);
        if (R > 10) multiply_add(&c10, x + 10 * ld, lo, hi);
        if (R > 11) multiply_add(&c11, x + 11 * ld, lo, hi);
    }
    finish(c0, t, m, n);
    if (R > 1) finish(c1, t, m + 1, n);
    if (R > 2) finish(c2, t, m + 2, n);
    if (R > 3) finish(c3, t, m + 3, n);
    if (R > 4) finish(c4, t, m + 4, n);
    if (R > 5) finish(c5, t, m + 5, n);
    if (R > 6) finish(c6, t, m + 6, n);
    if (R > 7) finish(c7, t, m + 7, n);
    if (R > 8) finish(c8, t, m + 8, n);
    if (R > 9) finish(c9, t, m + 9, n);
    if (R > 10) finish(c10, t, m + 10, n);
    if (R > 11) finish(c11, t, m + 11, n);
}

/* One row, outputs 0 .. 63: four chains at once instead of twice two. */
static void one_row(const cq_qgemm_f32_tile *t, size_t m) {
    pair a = {_mm512_setzero_ps(), _mm512_setzero_ps()}, b = a;
    const float *x = t->x + m * t->ldx, *w = t->panel;
    for (size_t k = 0; k < t->kc; k++, w += CQ_QGEMM_NB) {
        multiply_add(&a, x + k, _mm512_load_ps(w), _mm512_load_ps(w + 16));
        multiply_add(&b, x + k, _mm512_load_ps(w + 32), _mm512_load_ps(w + 48));
    }
    finish(a, t, m, 0);
    if (t->n > 32) finish(b, t, m, 32);
}

void cq_qgemm_f32_tile_avx512(const cq_qgemm_f32_tile *t) {
    size_t m = t->m / 4 * 4;
    for (size_t n = 0; n < t->n; n += 32) {
        size_t r = 0;
        for (; r + 12 <= m; r += 12) rows(12, t, r, n);
        for (; r < m; r += 4) rows(4, t, r, n);
    }
    for (; m < t->m; m++) one_row(t, m);
}

#include "core/isa_end.h"
#endif
