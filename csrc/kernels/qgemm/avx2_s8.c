/* SPDX-License-Identifier: Apache-2.0 */
/* vpmaddwd adds two products of 16-bit numbers to every 32-bit lane (vpmaddubsw would saturate): a
 * panel is [kc / 2][CQ_QGEMM_NB][2] codes as 16-bit numbers, padded with codes 0. The inputs of 6
 * rows are widened once for all 64 outputs; 6 rows x 16 outputs in 12 registers. The zero point is
 * taken off at the end of a group: sum x (c - z) = sum x c - z sum x. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

#include "kernels/qgemm/transpose_avx2.h"

#include <string.h>

void cq_qgemm_s8_sum_avx2(const int8_t *x, size_t n, int32_t *sum) {
    __m256i acc = _mm256_setzero_si256();
    size_t k = 0;
    for (; k + 32 <= n; k += 32) {
        const __m256i v = _mm256_loadu_si256((const void *)(x + k));
        const __m256i twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
    }
    int32_t lane[8], rest;
    _mm256_storeu_si256((void *)lane, acc);
    cq_qgemm_s8_sum_scalar(x + k, n - k, &rest);
    for (int i = 0; i < 8; i++) rest += lane[i];
    *sum = rest;
}

/* Bytes 0 and 1, or 2 and 3, of every dword as 16-bit numbers. */
CQ_INLINE __m256i low_pair(__m256i v) {
    const __m256i byte = _mm256_set1_epi32(0xFF);
    const __m256i second = _mm256_slli_epi32(v, 8);
    return _mm256_or_si256(_mm256_and_si256(v, byte),
                           _mm256_and_si256(second, _mm256_set1_epi32(0xFF0000)));
}

void cq_qgemm_s8_panel_avx2(const uint8_t *codes, size_t kc, size_t strip, uint8_t *panel) {
    size_t k = 0;
    for (; k + 16 <= kc; k += 16) {
        for (size_t half = 0; half < CQ_QGEMM_STRIP; half += 8) {
            __m256i four[4];
            cq_transpose_codes(codes + half * CQ_QGEMM_KC + k, four);
            for (size_t j = 0; j < 4; j++) {
                uint8_t *to = panel + 2 * (k + 4 * j) * CQ_QGEMM_NB + 4 * (strip + half);
                _mm256_store_si256((void *)to, low_pair(four[j]));
                _mm256_store_si256((void *)(to + (size_t)4 * CQ_QGEMM_NB),
                                   low_pair(_mm256_srli_epi32(four[j], 16)));
            }
        }
    }
    for (; k < kc; k += 2) {
        for (size_t n = 0; n < CQ_QGEMM_STRIP; n++) {
            const uint8_t *from = codes + n * CQ_QGEMM_KC + k;
            const uint16_t two[2] = {from[0], k + 1 < kc ? from[1] : 0};
            memcpy(panel + 2 * k * CQ_QGEMM_NB + 4 * (strip + n), two, sizeof two);
        }
    }
}

static const size_t W = 16; /* outputs of one row in registers */

typedef struct pair { /* 16 outputs of one row */
    __m256i lo, hi;
} pair;

CQ_INLINE void dot(pair *c, const int16_t *x, __m256i lo, __m256i hi) {
    int32_t two;
    memcpy(&two, x, sizeof two);
    const __m256i v = _mm256_set1_epi32(two);
    c->lo = _mm256_add_epi32(c->lo, _mm256_madd_epi16(lo, v));
    c->hi = _mm256_add_epi32(c->hi, _mm256_madd_epi16(hi, v));
}

CQ_INLINE void spill(pair c, int32_t *to) {
    _mm256_storeu_si256((void *)to, c.lo);
    _mm256_storeu_si256((void *)(to + 8), c.hi);
}

/* Sums of R rows x 16 outputs from n on; x [R, CQ_QGEMM_KC] widened. */
CQ_INLINE void dot_rows(const size_t R, const cq_qgemm_s8_tile *t, const int16_t *x, size_t n,
                        int32_t *acc) {
    const __m256i none = _mm256_setzero_si256();
    pair c0 = {none, none}, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0;
    const size_t ld = CQ_QGEMM_KC;
    const int16_t *const end = x + t->kc;
    const uint8_t *w = t->panel + 4 * n;
    for (; x < end; x += 2, w += 4 * CQ_QGEMM_NB) {
        const __m256i lo = _mm256_load_si256((const void *)w);
        const __m256i hi = _mm256_load_si256((const void *)(w + 32));
        dot(&c0, x, lo, hi);
        if (R > 1) dot(&c1, x + ld, lo, hi);
        if (R > 2) dot(&c2, x + 2 * ld, lo, hi);
        if (R > 3) dot(&c3, x + 3 * ld, lo, hi);
        if (R > 4) dot(&c4, x + 4 * ld, lo, hi);
        if (R > 5) dot(&c5, x + 5 * ld, lo, hi);
    }
    spill(c0, acc);
    if (R > 1) spill(c1, acc + W);
    if (R > 2) spill(c2, acc + 2 * W);
    if (R > 3) spill(c3, acc + 3 * W);
    if (R > 4) spill(c4, acc + 4 * W);
    if (R > 5) spill(c5, acc + 5 * W);
}

/* Outputs n .. n + 15 of row m; the tile comes by value, so that stores cannot change it. */
CQ_INLINE void finish(const cq_qgemm_s8_tile t, size_t m, size_t n, int32_t *dots) {
    int32_t *part = t.part + m * CQ_QGEMM_NB + n;
    const int32_t sum = t.xsum[m * t.ldsum];
    if (!t.begin)
        for (size_t i = 0; i < 16; i++) dots[i] += part[i];
    if (!t.end) {
        memcpy(part, dots, 16 * sizeof(int32_t));
        return;
    }
    float acc[16], *out = t.out + m * t.ldo + n;
    const size_t count = cq_min_size(t.n - n, 16);
    for (size_t i = 0; i < 16; i++)
        acc[i] = t.scale[n + i] * (float)(dots[i] - t.zero[n + i] * sum);
    if (!t.first)
        for (size_t i = 0; i < count; i++) acc[i] = out[i] + acc[i];
    if (t.xscale)
        for (size_t i = 0; i < 16; i++) acc[i] *= t.xscale[m];
    if (t.bias)
        for (size_t i = 0; i < count; i++) acc[i] += t.bias[n + i];
    memcpy(out, acc, count * sizeof(float));
}

/* 8-bit to 16-bit numbers, zeros after the last up to a multiple of 16. */
CQ_INLINE void widen(const int8_t *x, size_t kc, int16_t *to) {
    for (size_t k = 0; k < kc; k += 16) {
        int8_t last[16] = {0};
        const int8_t *from = x + k;
        if (kc - k < 16) from = memcpy(last, from, kc - k);
        const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)from));
        _mm256_storeu_si256((void *)(to + k), v);
    }
}

CQ_INLINE void rows(const size_t R, const cq_qgemm_s8_tile *t, size_t m) {
    int16_t x[6 * CQ_QGEMM_KC];
    int32_t acc[6 * 16];
    for (size_t r = 0; r < R; r++) {
        widen(t->x + (m + r) * t->ldx, t->kc, x + r * CQ_QGEMM_KC);
    }
    for (size_t n = 0; n < t->n; n += 16) {
        dot_rows(R, t, x, n, acc);
        for (size_t r = 0; r < R; r++) finish(*t, m + r, n, acc + r * W);
    }
}

void cq_qgemm_s8_tile_avx2(const cq_qgemm_s8_tile *t) {
    size_t m = 0;
    for (; m + 6 <= t->m; m += 6) rows(6, t, m);
    for (; m + 2 <= t->m; m += 2) rows(2, t, m);
    for (; m < t->m; m++) rows(1, t, m);
}

#include "core/isa_end.h"
#endif
