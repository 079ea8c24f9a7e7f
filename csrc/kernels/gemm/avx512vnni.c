/* SPDX-License-Identifier: Apache-2.0 */
/* s8_tile: vpdpbusd multiplies unsigned by signed bytes. 8 rows of A at a time are copied with 128
 * added, a block of inputs long, and sums start from -128 times the sums of B; no sum of a block
 * exceeds 2^27. 8 rows x 32 columns in 16 registers. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512vnni.h"

#include "kernels/qprefill/dot_avx512vnni.h"
#include "kernels/scaleloss/transpose_avx512bf16.h"

enum { ROWS = 8 };
static const size_t TILE = 1024;

CQ_INLINE __mmask16 first(size_t n) { return (__mmask16)(n >= 16 ? 0xFFFFu : (1u << n) - 1u); }

CQ_INLINE __m512i row64(const int8_t *x, size_t left) {
    const __mmask64 m = left >= 64 ? ~0ULL : (1ULL << left) - 1;
    return _mm512_maskz_loadu_epi8(m, x);
}

void cq_gemm_s8_pack_avx512vnni(const int8_t *x, size_t rs, size_t rows, size_t kc, int is_b,
                                int8_t *panel) {
    for (size_t k = 0; k < kc; k += 64) {
        for (size_t r0 = 0; r0 < CQ_GEMM_WIDE; r0 += 16, panel += TILE) {
            __m512i v[16];
#pragma GCC unroll 16
            for (size_t r = 0; r < 16; r++)
                v[r] =
                    r0 + r < rows ? row64(x + (r0 + r) * rs + k, kc - k) : _mm512_setzero_si512();
            if (is_b) {
                cq_transpose_pairs(v, (uint16_t *)(void *)panel);
                continue;
            }
#pragma GCC unroll 16
            for (size_t r = 0; r < 16; r++) _mm512_storeu_si512(panel + 64 * r, v[r]);
        }
    }
}

/* -128 times the sum of every column. */
static inline pair correction(const int8_t *b, size_t kc) {
    const __m512i all = _mm512_set1_epi8((char)0x80), zero = _mm512_setzero_si512();
    pair s = {zero, zero};
    for (size_t k = 0; k < kc; k += 64, b += 2 * TILE) {
        for (size_t q = 0; q < TILE; q += 64) {
            s.lo = dpbusd(s.lo, all, _mm512_loadu_si512(b + q));
            s.hi = dpbusd(s.hi, all, _mm512_loadu_si512(b + TILE + q));
        }
    }
    return (pair){_mm512_sub_epi32(zero, s.lo), _mm512_sub_epi32(zero, s.hi)};
}

CQ_INLINE void finish(pair v, const cq_gemm_f32_tile *t, size_t i) {
    const __mmask16 lo = first(t->n), hi = first(t->n > 16 ? t->n - 16 : 0);
    if (i >= t->m) return;
    float *c = t->c + i * t->ldc;
    if (!t->first) {
        v.lo = _mm512_add_epi32(_mm512_maskz_loadu_epi32(lo, c), v.lo);
        v.hi = _mm512_add_epi32(_mm512_maskz_loadu_epi32(hi, c + 16), v.hi);
    }
    _mm512_mask_storeu_epi32(c, lo, v.lo);
    _mm512_mask_storeu_epi32(c + 16, hi, v.hi);
}

/* Rows i .. i + 7 (those past t->m are thrown away), copied to x [kc / 64][8][64]. */
static void eight(const cq_gemm_f32_tile *t, size_t i, pair start, uint8_t *x) {
    const int8_t *a = (const int8_t *)(t->a + i / CQ_GEMM_WIDE * t->psa);
    const int8_t *b = (const int8_t *)t->b;
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    a += i % CQ_GEMM_WIDE / 16 * TILE + i % 16 * 64;
    for (size_t k = 0, to = 0; k < t->kc; k += 64, a += 2 * TILE)
        for (size_t r = 0; r < (size_t)ROWS * 64; r += 64, to += 64)
            _mm512_store_si512(x + to, _mm512_xor_si512(_mm512_loadu_si512(a + r), flip));
    pair c0 = start, c1 = start, c2 = start, c3 = start;
    pair c4 = start, c5 = start, c6 = start, c7 = start;
    for (size_t k = 0; k < t->kc; k += 64, b += 2 * TILE, x += (size_t)(ROWS - 1) * 64) {
        for (size_t q = 0; q < 16; q++, x += 4) {
            const __m512i lo = _mm512_loadu_si512(b + 64 * q);
            const __m512i hi = _mm512_loadu_si512(b + TILE + 64 * q);
            dot(&c0, x, lo, hi), dot(&c1, x + 64, lo, hi);
            dot(&c2, x + 128, lo, hi), dot(&c3, x + 192, lo, hi);
            dot(&c4, x + 256, lo, hi), dot(&c5, x + 320, lo, hi);
            dot(&c6, x + 384, lo, hi), dot(&c7, x + 448, lo, hi);
        }
    }
    finish(c0, t, i), finish(c1, t, i + 1), finish(c2, t, i + 2), finish(c3, t, i + 3);
    finish(c4, t, i + 4), finish(c5, t, i + 5), finish(c6, t, i + 6), finish(c7, t, i + 7);
}

void cq_gemm_s8_tile_avx512vnni(const cq_gemm_f32_tile *t) {
    _Alignas(64) uint8_t x[ROWS * CQ_GEMM_KC_S8];
    const pair start = correction((const int8_t *)t->b, t->kc);
    for (size_t i = 0; i < t->m; i += ROWS) eight(t, i, start, x);
}

#include "core/isa_end.h"
#endif
