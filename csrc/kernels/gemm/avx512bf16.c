/* SPDX-License-Identifier: Apache-2.0 */
/* bf16_pack: a lane's 32 inputs, or 16 lanes of two inputs, become one vector per plane; where the
 * operand wants the other order, a tile of 16 such vectors is transposed as dwords.
 * bf16_tile: vdpbf16ps, 8 rows x 32 columns in 16 registers; for CPUs without AMX (Zen 4 and 5). */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512bf16.h"

#include "kernels/scaleloss/transpose_avx512bf16.h"

#include <limits.h>

enum { TILE = 512 /* uint16 of a tile */ };

CQ_INLINE __mmask16 first(size_t n) { return (__mmask16)(n >= 16 ? 0xFFFFu : (1u << n) - 1u); }

CQ_INLINE __m512 load(const cq_gemm_bf16_source *s, size_t at, __mmask16 m) {
    if (!s->half) return _mm512_maskz_loadu_ps(m, (const float *)s->x + at);
    const __m256i h = _mm256_maskz_loadu_epi16(m, (const uint16_t *)s->x + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Round to bfloat16, in the low halves of dwords, and leave the rest in x. With more than one plane
 * the largest bfloat16 bounds what is finite. */
CQ_INLINE __m512i split(__m512 *x, int planes) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(*x));
    if (planes > 1) {
        const __m512i size = _mm512_and_si512(_mm512_castps_si512(*x), _mm512_set1_epi32(INT_MAX));
        const __mmask16 up = _mm512_cmpeq_epi32_mask(
            _mm512_and_si512(low, _mm512_set1_epi32(0x7FFF)), _mm512_set1_epi32(0x7F80));
        const __mmask16 past =
            _mm512_mask_cmplt_epi32_mask(up, size, _mm512_set1_epi32(0x7F800000));
        low = _mm512_mask_sub_epi32(low, past, low, _mm512_set1_epi32(1));
    }
    *x = _mm512_sub_ps(*x, _mm512_castsi512_ps(_mm512_slli_epi32(low, 16)));
    return low;
}

/* Inputs are contiguous: [16 lanes][32 inputs] of lanes r0 on, plane by plane `step` apart. */
static void from_rows(const cq_gemm_bf16_source *s, size_t r0, size_t k, uint16_t *to,
                      size_t step) {
    const size_t left = s->kc - k;
    const __mmask16 m0 = first(left), m1 = first(left > 16 ? left - 16 : 0);
    if (s->half && s->planes == 1) {
        const uint16_t *x = (const uint16_t *)s->x + k;
        const __mmask32 m = (__mmask32)m0 | (__mmask32)m1 << 16;
        for (size_t r = 0; r < 16; r++, to += 32) {
            const __mmask32 some = r0 + r < s->rows ? m : 0;
            const size_t at = r0 + r < s->rows ? r0 + r : 0;
            _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(some, x + at * s->rs));
        }
        return;
    }
    for (size_t r = 0; r < 16; r++, to += 32) {
        const int none = r0 + r >= s->rows;
        const size_t at = (none ? 0 : r0 + r) * s->rs + k;
        __m512 lo = load(s, at, none ? 0 : m0), hi = load(s, at + 16, none ? 0 : m1);
        for (size_t p = 0; p < (size_t)s->planes; p++) {
            const __m256i l = _mm512_cvtepi32_epi16(split(&lo, s->planes));
            const __m256i h = _mm512_cvtepi32_epi16(split(&hi, s->planes));
            _mm256_storeu_si256((void *)(to + p * step), l);
            _mm256_storeu_si256((void *)(to + p * step + 16), h);
        }
    }
}

/* Lanes are contiguous: [16 pairs of inputs][16 lanes][2]. */
static void from_columns(const cq_gemm_bf16_source *s, size_t r0, size_t k, uint16_t *to,
                         size_t step) {
    const __mmask16 m = first(s->rows > r0 ? s->rows - r0 : 0);
    for (size_t q = 0; q < 32; q += 2, to += 32) {
        __m512 x = load(s, r0 + (k + q) * s->cs, k + q < s->kc ? m : 0);
        __m512 y = load(s, r0 + (k + q + 1) * s->cs, k + q + 1 < s->kc ? m : 0);
        if (s->half && s->planes == 1) {
            const __m512i hi = _mm512_castps_si512(y);
            const __m512i lo = _mm512_srli_epi32(_mm512_castps_si512(x), 16);
            _mm512_storeu_si512(to, _mm512_or_si512(lo, hi));
            continue;
        }
        for (size_t p = 0; p < (size_t)s->planes; p++) {
            const __m512i lo = split(&x, s->planes), hi = split(&y, s->planes);
            _mm512_storeu_si512(to + p * step, _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
        }
    }
}

void cq_gemm_bf16_pack_avx512bf16(const cq_gemm_bf16_source *s, uint16_t *panel) {
    _Alignas(64) uint16_t turned[3 * TILE];
    const size_t planes = (size_t)s->planes;
    const int rows = s->cs == 1;
    if (!rows && s->rs != 1) {
        cq_gemm_bf16_pack_scalar(s, panel);
        return;
    }
    for (size_t k = 0; k < s->kc; k += 32, panel += planes * 2 * TILE) {
        for (size_t r = 0; r < CQ_GEMM_WIDE; r += 16) {
            uint16_t *to = panel + r / 16 * TILE;
            const int turn = rows == s->is_b;
            (rows ? from_rows : from_columns)(s, r, k, turn ? turned : to, turn ? TILE : 2 * TILE);
            for (size_t p = 0; turn && p < planes; p++) {
                __m512i v[16];
#pragma GCC unroll 16
                for (size_t i = 0; i < 16; i++)
                    v[i] = _mm512_load_si512(turned + p * TILE + i * 32);
                cq_transpose_pairs(v, to + p * 2 * TILE);
            }
        }
    }
}

typedef struct pair { /* 32 columns of one row */
    __m512 lo, hi;
} pair;

CQ_INLINE void dot(pair *c, const uint16_t *a, __m512bh lo, __m512bh hi) {
    int two;
    __builtin_memcpy(&two, a, sizeof two);
    const __m512bh v = (__m512bh)_mm512_set1_epi32(two);
    c->lo = _mm512_dpbf16_ps(c->lo, v, lo);
    c->hi = _mm512_dpbf16_ps(c->hi, v, hi);
}

CQ_INLINE void finish(pair v, const cq_gemm_f32_tile *t, size_t i) {
    const __mmask16 lo = first(t->n), hi = first(t->n > 16 ? t->n - 16 : 0);
    float *c = t->c + i * t->ldc;
    if (i >= t->m) return;
    if (!t->first) {
        v.lo = _mm512_add_ps(_mm512_maskz_loadu_ps(lo, c), v.lo);
        v.hi = _mm512_add_ps(_mm512_maskz_loadu_ps(hi, c + 16), v.hi);
    }
    _mm512_mask_storeu_ps(c, lo, v.lo);
    _mm512_mask_storeu_ps(c + 16, hi, v.hi);
}

/* Rows i .. i + 7, of which those past t->m are computed and thrown away. */
static void eight(const cq_gemm_f32_tile *t, size_t i) {
    const size_t planes = (size_t)t->planes;
    const uint16_t *a = (const uint16_t *)(t->a + i / CQ_GEMM_WIDE * t->psa);
    const uint16_t *b = (const uint16_t *)t->b;
    const __m512 none = _mm512_setzero_ps();
    pair c0 = {none, none}, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0;
    a += i % CQ_GEMM_WIDE / 16 * TILE + i % 16 * 32;
    for (size_t k = 0; k < t->kc; k += 32, a += planes * 2 * TILE, b += planes * 2 * TILE) {
        for (size_t p = 0; p < planes; p++) {
            for (size_t q = 0; p + q < planes; q++) {
                const uint16_t *x = a + p * 2 * TILE, *y = b + q * 2 * TILE;
                for (size_t two = 0; two < 16; two++, x += 2, y += 32) {
                    const __m512bh lo = (__m512bh)_mm512_loadu_si512(y);
                    const __m512bh hi = (__m512bh)_mm512_loadu_si512(y + TILE);
                    dot(&c0, x, lo, hi), dot(&c1, x + 32, lo, hi);
                    dot(&c2, x + 64, lo, hi), dot(&c3, x + 96, lo, hi);
                    dot(&c4, x + 128, lo, hi), dot(&c5, x + 160, lo, hi);
                    dot(&c6, x + 192, lo, hi), dot(&c7, x + 224, lo, hi);
                }
            }
        }
    }
    finish(c0, t, i), finish(c1, t, i + 1), finish(c2, t, i + 2), finish(c3, t, i + 3);
    finish(c4, t, i + 4), finish(c5, t, i + 5), finish(c6, t, i + 6), finish(c7, t, i + 7);
}

void cq_gemm_bf16_tile_avx512bf16(const cq_gemm_f32_tile *t) {
    for (size_t i = 0; i < t->m; i += 8) eight(t, i);
}

#include "core/isa_end.h"
#endif
