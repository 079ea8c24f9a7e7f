/* SPDX-License-Identifier: Apache-2.0 */
/* A panel tile is made by rounding 32 inputs of 16 rows to one register each, which then holds 16
 * pairs, and transposing 16 x 16 pairs. The tile kernel adds two products per lane and instruction:
 * 12 tokens x 32 outputs in 24 registers. */
#include "core/dispatch.h"
#if CQ_X86
#include "kernels/scaleloss/scaleloss.h"

#include "core/isa_begin_avx512bf16.h"

#include "kernels/scaleloss/transpose_avx512bf16.h"

/* min(left, 32) values as 16 pairs; the rest are zeros. */
CQ_INLINE __m512i pairs(const float *x, size_t left) {
    const __mmask32 m = left >= 32 ? 0xFFFFFFFFu : (1u << left) - 1u;
    const __m512 lo = _mm512_maskz_loadu_ps((__mmask16)m, x);
    const __m512 hi = _mm512_maskz_loadu_ps((__mmask16)(m >> 16), x + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
}

void cq_scaleloss_tokens_bf16_avx512bf16(const float *x, size_t ld, size_t m, size_t n,
                                         uint16_t *strip) {
    for (size_t k = 0; k < n; k += CQ_BF16_K, strip += CQ_BF16_TILE)
        for (size_t r = 0; r < CQ_BF16_M; r++)
            _mm512_storeu_si512(strip + r * CQ_BF16_K,
                                r < m ? pairs(x + r * ld + k, n - k) : _mm512_setzero_si512());
}

void cq_scaleloss_panel_bf16_avx512bf16(const float *rows, size_t m, size_t n, size_t half,
                                        uint16_t *panel) {
    panel += half * CQ_BF16_TILE;
    for (size_t k = 0; k < n; k += CQ_BF16_K, panel += 2 * CQ_BF16_TILE) {
        __m512i r[16];
#pragma GCC unroll 16
        for (size_t j = 0; j < 16; j++)
            r[j] = j < m ? pairs(rows + j * n + k, n - k) : _mm512_setzero_si512();
        cq_transpose_pairs(r, panel);
    }
}

CQ_INLINE __m512 dpbf16(__m512 acc, __m512i b, __m512i x) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(b), "v"(x));
    return acc;
}

/* row[r] of `rows` tokens, a constant after inlining: the sums stay in registers. */
CQ_INLINE void tile(const int rows, const uint16_t *const x[2], const uint16_t *const b[2],
                    size_t K, int kind, double *row) {
    __m512 e[12][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) e[r][0] = e[r][1] = _mm512_setzero_ps();
    for (int part = 0; part < 2 && x[part]; part++) {
        const uint16_t *bp = b[part], *xp = x[part];
        for (size_t k = 0; k < K; k += CQ_BF16_K, bp += 2 * CQ_BF16_TILE, xp += CQ_BF16_TILE) {
            for (size_t pair = 0; pair < 16; pair++) {
                const __m512i b0 = _mm512_loadu_si512(bp + 32 * pair);
                const __m512i b1 = _mm512_loadu_si512(bp + CQ_BF16_TILE + 32 * pair);
#pragma GCC unroll 12
                for (int r = 0; r < rows; r++) {
                    const uint16_t *at = xp + (size_t)r * CQ_BF16_K + 2 * pair;
                    const __m512i v = _mm512_set1_epi32(*(const int32_t *)(const void *)at);
                    e[r][0] = dpbf16(e[r][0], b0, v);
                    e[r][1] = dpbf16(e[r][1], b1, v);
                }
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        _Alignas(64) float out[CQ_PANEL];
        _mm512_store_ps(out, e[r][0]);
        _mm512_store_ps(out + 16, e[r][1]);
        row[r] += cq_scaleloss_power(out, kind);
    }
}

void cq_scaleloss_tile_bf16_avx512bf16(const uint16_t *x0, const uint16_t *b0, const uint16_t *x1,
                                       const uint16_t *b1, size_t m, size_t K, int kind,
                                       double *row) {
    const uint16_t *const b[2] = {b0, b1};
    for (size_t r = 0, step; r < m; r += step) {
        const size_t at = r / CQ_BF16_M * CQ_BF16_M * K + r % CQ_BF16_M * CQ_BF16_K;
        const size_t left = cq_min_size(m - r, CQ_BF16_M - r % CQ_BF16_M);
        const uint16_t *const x[2] = {x0 + at, x1 ? x1 + at : NULL};
        step = left >= 12 ? 12 : left >= 4 ? 4 : 1;
        if (step == 12)
            tile(12, x, b, K, kind, row + r);
        else if (step == 4)
            tile(4, x, b, K, kind, row + r);
        else
            tile(1, x, b, K, kind, row + r);
    }
}

#include "core/isa_end.h"
#endif
