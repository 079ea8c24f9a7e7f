/* SPDX-License-Identifier: Apache-2.0 */
/* f32_panel: 16 codes of 8 rows are transposed as dwords of four codes, then shifted, converted and
 * stored 8 outputs at a time. f32_tile: 6 rows x 16 outputs in 12 registers, fewer rows by the same
 * code; named variables, because gcc 12 spills arrays. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

#include "kernels/qgemm/transpose_avx2.h"

static void half_strip(const uint8_t *codes, size_t kc, const float *scale, const float *shift,
                       float *panel) {
    const __m256 s = _mm256_loadu_ps(scale), t = _mm256_loadu_ps(shift);
    const __m256i byte = _mm256_set1_epi32(255);
    for (size_t k = 0; k + 16 <= kc; k += 16) {
        __m256i four[4];
        cq_transpose_codes(codes + k, four);
        for (size_t j = 0; j < 4; j++) {
            float *to = panel + (k + 4 * j) * CQ_QGEMM_NB;
            for (size_t b = 0; b < 4; b++) {
                const __m256i shifted = _mm256_srli_epi32(four[j], (int)(8 * b));
                const __m256i code = _mm256_and_si256(shifted, byte);
                _mm256_store_ps(to + b * CQ_QGEMM_NB,
                                _mm256_fmadd_ps(_mm256_cvtepi32_ps(code), s, t));
            }
        }
    }
}

void cq_qgemm_f32_panel_avx2(const uint8_t *codes, size_t kc, const float *scale,
                             const float *shift, float *panel) {
    const size_t k = kc / 16 * 16;
    half_strip(codes, kc, scale, shift, panel);
    half_strip(codes + 8 * CQ_QGEMM_KC, kc, scale + 8, shift + 8, panel + 8);
    cq_qgemm_f32_panel_scalar(codes + k, kc - k, scale, shift, panel + k * CQ_QGEMM_NB);
}

typedef struct pair { /* 16 outputs of one row */
    __m256 lo, hi;
} pair;

CQ_INLINE void multiply_add(pair *c, const float *x, __m256 lo, __m256 hi) {
    const __m256 v = _mm256_broadcast_ss(x);
    c->lo = _mm256_fmadd_ps(v, lo, c->lo);
    c->hi = _mm256_fmadd_ps(v, hi, c->hi);
}

CQ_INLINE void finish_half(__m256 acc, const cq_qgemm_f32_tile *t, size_t m, size_t n) {
    float *out = t->out + m * t->ldo + n;
    if (n + 8 <= t->n) {
        if (!t->first) acc = _mm256_add_ps(_mm256_loadu_ps(out), acc);
        if (t->bias) acc = _mm256_add_ps(acc, _mm256_loadu_ps(t->bias + n));
        _mm256_storeu_ps(out, acc);
        return;
    }
    float one[8];
    _mm256_storeu_ps(one, acc);
    for (size_t i = 0; n + i < t->n; i++) {
        out[i] = t->first ? one[i] : out[i] + one[i];
        if (t->bias) out[i] += t->bias[n + i];
    }
}

CQ_INLINE void finish(pair c, const cq_qgemm_f32_tile *t, size_t m, size_t n) {
    finish_half(c.lo, t, m, n);
    finish_half(c.hi, t, m, n + 8);
}

/* Rows m .. m + R - 1, R a constant, outputs n .. n + 15. */
CQ_INLINE void rows(const size_t R, const cq_qgemm_f32_tile *t, size_t m, size_t n) {
    const __m256 none = _mm256_setzero_ps();
    pair c0 = {none, none}, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0;
    const size_t ld = t->ldx;
    const float *x = t->x + m * ld, *w = t->panel + n, *const end = w + t->kc * CQ_QGEMM_NB;
    for (; w < end; w += CQ_QGEMM_NB, x++) {
        const __m256 lo = _mm256_load_ps(w), hi = _mm256_load_ps(w + 8);
        multiply_add(&c0, x, lo, hi);
        if (R > 1) multiply_add(&c1, x + ld, lo, hi);
        if (R > 2) multiply_add(&c2, x + 2 * ld, lo, hi);
        if (R > 3) multiply_add(&c3, x + 3 * ld, lo, hi);
        if (R > 4) multiply_add(&c4, x + 4 * ld, lo, hi);
        if (R > 5) multiply_add(&c5, x + 5 * ld, lo, hi);
    }
    finish(c0, t, m, n);
    if (R > 1) finish(c1, t, m + 1, n);
    if (R > 2) finish(c2, t, m + 2, n);
    if (R > 3) finish(c3, t, m + 3, n);
    if (R > 4) finish(c4, t, m + 4, n);
    if (R > 5) finish(c5, t, m + 5, n);
}

void cq_qgemm_f32_tile_avx2(const cq_qgemm_f32_tile *t) {
    for (size_t n = 0; n < t->n; n += 16) {
        size_t m = 0;
        for (; m + 6 <= t->m; m += 6) rows(6, t, m, n);
        for (; m + 2 <= t->m; m += 2) rows(2, t, m, n);
        for (; m < t->m; m++) rows(1, t, m, n);
    }
}

#include "core/isa_end.h"
#endif
