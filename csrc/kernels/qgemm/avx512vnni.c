/* SPDX-License-Identifier: Apache-2.0 */
/* vpdpbusd adds four products of unsigned codes and signed inputs to every 32-bit lane: a panel is
 * [kc / 4][CQ_QGEMM_NB][4] codes, padded with codes 0 to a multiple of four inputs. 12 rows x 32
 * outputs in 24 registers. The zero point is taken off at the end of a group: sum x (c - z) =
 * sum x c - z sum x. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512vnni.h"

#include "kernels/qgemm/transpose_avx512.h"

#include <string.h>

void cq_qgemm_s8_sum_avx512vnni(const int8_t *x, size_t n, int32_t *sum) {
    __m512i acc = _mm512_setzero_si512();
    for (size_t k = 0; k < n; k += 64) {
        const __mmask64 m = n - k >= 64 ? ~0ULL : (1ULL << (n - k)) - 1;
        acc = _mm512_dpbusd_epi32(acc, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(m, x + k));
    }
    *sum = _mm512_reduce_add_epi32(acc);
}

void cq_qgemm_s8_panel_avx512vnni(const uint8_t *codes, size_t kc, size_t strip, uint8_t *panel) {
    size_t k = 0;
    panel += 4 * strip;
    for (; k + 16 <= kc; k += 16) {
        __m512i four[4];
        cq_transpose_codes(codes + k, four);
        for (size_t j = 0; j < 4; j++)
            _mm512_store_si512((void *)(panel + (k + 4 * j) * CQ_QGEMM_NB), four[j]);
    }
    for (; k < kc; k += 4) {
        const size_t left = cq_min_size(kc - k, 4);
        for (size_t n = 0; n < CQ_QGEMM_STRIP; n++) {
            uint8_t *to = panel + k * CQ_QGEMM_NB + 4 * n;
            memset(to, 0, 4);
            memcpy(to, codes + n * CQ_QGEMM_KC + k, left);
        }
    }
}

static const size_t W = 32; /* outputs of one row in registers */

typedef struct pair { /* 32 outputs of one row */
    __m512i lo, hi;
} pair;

typedef struct block { /* named, not an array: gcc 12 spills arrays */
    pair r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11;
} block;

/* Not the intrinsic: with it gcc 12 copies and spills every accumulator on every step (K = N = 512,
 * M = 256: 332 GOP/s with the intrinsic, 550 with this). */
CQ_INLINE __m512i dpbusd(__m512i acc, __m512i codes, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(x));
    return acc;
}

CQ_INLINE void dot(pair *c, const int8_t *x, const size_t count, __m512i lo, __m512i hi) {
    int32_t four = 0;
    memcpy(&four, x, count);
    const __m512i v = _mm512_set1_epi32(four);
    c->lo = dpbusd(c->lo, lo, v);
    c->hi = dpbusd(c->hi, hi, v);
}

/* `count` <= 4 inputs of R rows; both are constants in the main loop. */
CQ_INLINE void step(const size_t R, block *b, const int8_t *x, size_t ld, const size_t count,
                    const uint8_t *w) {
    const __m512i lo = _mm512_load_si512((const void *)w);
    const __m512i hi = _mm512_load_si512((const void *)(w + 64));
    dot(&b->r0, x, count, lo, hi);
    if (R > 1) dot(&b->r1, x + ld, count, lo, hi);
    if (R > 2) dot(&b->r2, x + 2 * ld, count, lo, hi);
    if (R > 3) dot(&b->r3, x + 3 * ld, count, lo, hi);
    if (R > 4) dot(&b->r4, x + 4 * ld, count, lo, hi);
    if (R > 5) dot(&b->r5, x + 5 * ld, count, lo, hi);
    if (R > 6) dot(&b->r6, x + 6 * ld, count, lo, hi);
    if (R > 7) dot(&b->r7, x + 7 * ld, count, lo, hi);
    if (R > 8) dot(&b->r8, x + 8 * ld, count, lo, hi);
    if (R > 9) dot(&b->r9, x + 9 * ld, count, lo, hi);
    if (R > 10) dot(&b->r10, x + 10 * ld, count, lo, hi);
    if (R > 11) dot(&b->r11, x + 11 * ld, count, lo, hi);
}

CQ_INLINE void spill(pair c, int32_t *to) {
    _mm512_store_si512((void *)to, c.lo);
    _mm512_store_si512((void *)(to + 16), c.hi);
}

/* Sums of R rows x 32 outputs from (m, n) on. */
CQ_INLINE void dot_rows(const size_t R, const cq_qgemm_s8_tile *t, size_t m, size_t n,
                        int32_t *acc) {
    const pair none = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    block b = {none, none, none, none, none, none, none, none, none, none, none, none};
    const int8_t *x = t->x + m * t->ldx, *const end = x + t->kc / 4 * 4;
    const uint8_t *w = t->panel + 4 * n;
    for (; x < end; x += 4, w += 4 * CQ_QGEMM_NB) step(R, &b, x, t->ldx, 4, w);
    if (t->kc % 4) step(R, &b, x, t->ldx, t->kc % 4, w);
    spill(b.r0, acc);
    if (R > 1) spill(b.r1, acc + W);
    if (R > 2) spill(b.r2, acc + 2 * W);
    if (R > 3) spill(b.r3, acc + 3 * W);
    if (R > 4) spill(b.r4, acc + 4 * W);
    if (R > 5) spill(b.r5, acc + 5 * W);
    if (R > 6) spill(b.r6, acc + 6 * W);
    if (R > 7) spill(b.r7, acc + 7 * W);
    if (R > 8) spill(b.r8, acc + 8 * W);
    if (R > 9) spill(b.r9, acc + 9 * W);
    if (R > 10) spill(b.r10, acc + 10 * W);
    if (R > 11) spill(b.r11, acc + 11 * W);
}

/* 16 outputs from n on of `count` rows from m on. The tile comes by value: the compiler then knows
 * that stores do not change it. */
CQ_INLINE void finish(const cq_qgemm_s8_tile t, size_t m, size_t n, size_t count,
                      const int32_t *acc) {
    const __m512i zero = _mm512_loadu_si512((const void *)(t.zero + n));
    const __m512 scale = _mm512_loadu_ps(t.scale + n);
    const size_t left = n < t.n ? t.n - n : 0;
    const __mmask16 mask = (__mmask16)(left >= 16 ? 0xFFFFu : (1u << left) - 1u);
    const __m512 bias = t.bias ? _mm512_maskz_loadu_ps(mask, t.bias + n) : _mm512_setzero_ps();
    int32_t *part = t.part + m * CQ_QGEMM_NB + n;
    const int32_t *xsum = t.xsum + m * t.ldsum;
    float *to = t.out + m * t.ldo + n;
    for (size_t r = 0; r < count; r++, to += t.ldo) {
        __m512i dot = _mm512_load_si512((const void *)(acc + r * W));
        if (!t.begin)
            dot = _mm512_add_epi32(dot, _mm512_loadu_si512((const void *)(part + r * CQ_QGEMM_NB)));
        if (!t.end) {
            _mm512_storeu_si512((void *)(part + r * CQ_QGEMM_NB), dot);
            continue;
        }
        dot = _mm512_sub_epi32(dot, _mm512_mullo_epi32(zero, _mm512_set1_epi32(xsum[r * t.ldsum])));
        __m512 out = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dot));
        if (!t.first) out = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), out);
        if (t.xscale) out = _mm512_mul_ps(out, _mm512_set1_ps(t.xscale[m + r]));
        if (t.bias) out = _mm512_add_ps(out, bias);
        _mm512_mask_storeu_ps(to, mask, out);
    }
}

CQ_INLINE void rows(const size_t R, const cq_qgemm_s8_tile *t, size_t m, size_t n) {
    _Alignas(64) int32_t acc[12 * 32];
    dot_rows(R, t, m, n, acc);
    finish(*t, m, n, R, acc);
    finish(*t, m, n + 16, R, acc + 16);
}

void cq_qgemm_s8_tile_avx512vnni(const cq_qgemm_s8_tile *t) {
    for (size_t n = 0; n < t->n; n += 32) {
        size_t m = 0;
        for (; m + 12 <= t->m; m += 12) rows(12, t, m, n);
        for (; m + 4 <= t->m; m += 4) rows(4, t, m, n);
        for (; m < t->m; m++) rows(1, t, m, n);
    }
}

#include "core/isa_end.h"
#endif
