/* SPDX-License-Identifier: Apache-2.0 */
/* The bfloat16 form of scaleloss: both factors of e = x . err' are rounded to bfloat16 (to nearest,
 * ties to even; denormals to zero, NaN stays NaN), products and sums are float32.
 *
 *   tokens  m <= 16 rows of x [m, n], row stride ld -> a strip [n / 32][16][32], rows from m on and
 *           inputs from n on (n rounded up to 32) zero
 *   panel   m <= 16 rows [m, n] of weight errors -> one half (0 or 1) of a panel
 *           [n / 32][half][16 pairs of inputs][16 outputs][2], padded with zeros alike
 *   weight  one group, n a multiple of 32 inputs, of m <= 16 rows (row stride ld) -> its part of
 * one half of a panel: v = w * s, q = Q(v) on the grid of its row (core/grid.h); scaled NULL: err =
 * (q - v) * inverse, inverse = 1 / s;  otherwise err = q - v and scaled = v. The same as weight_f32
 * followed by panel, but for the last rounding of err. tile    m <= 32 tokens (two strips) against
 * one panel of 32 outputs, K a multiple of 32: e[r][j] = sum_k x0 b0 + sum_k x1 b1 (x1 may be
 * NULL); row[r] += sum_j |e[r][j]| (kind 0) or e[r][j]**2 (kind 1)
 *
 * Exactness: tokens, panel and weight are EXACT; tile is ULP: products are exact in float32, their
 * order of summation is the ISA's own (error <= K * 2**-23 * sum |x b|). Rounding the factors moves
 * a loss by about 2**-18 of itself: 2**-9 / sqrt(3) per factor, at random, enters squared. */
#include "kernels/scaleloss/scaleloss.h"

#include <string.h>

static uint16_t rounded(float v) {
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(u >> 16 | 0x40u);
    if (!(u & 0x7F800000u)) return (uint16_t)(u >> 16 & 0x8000u);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

static float widened(uint16_t v) {
    const uint32_t u = (uint32_t)v << 16;
    float out;
    memcpy(&out, &u, sizeof out);
    return out;
}

void cq_scaleloss_tokens_bf16_scalar(const float *x, size_t ld, size_t m, size_t n,
                                     uint16_t *strip) {
    for (size_t k = 0; k < n; k += CQ_BF16_K)
        for (size_t r = 0; r < CQ_BF16_M; r++)
            for (size_t i = k; i < k + CQ_BF16_K; i++)
                *strip++ = r < m && i < n ? rounded(x[r * ld + i]) : 0;
}

void cq_scaleloss_panel_bf16_scalar(const float *rows, size_t m, size_t n, size_t half,
                                    uint16_t *panel) {
    for (size_t k = 0; k < n; k += CQ_BF16_K, panel += CQ_BF16_K * CQ_PANEL)
        for (size_t i = 0; i < CQ_BF16_K; i++)
            for (size_t j = 0; j < CQ_BF16_M; j++)
                panel[half * CQ_BF16_TILE + i / 2 * CQ_BF16_K + 2 * j + i % 2] =
                    j < m && k + i < n ? rounded(rows[j * n + k + i]) : 0;
}

void cq_scaleloss_weight_bf16_scalar(const float *w, size_t ld, size_t m, const float *s,
                                     const float *inverse, size_t n, int bits, int mode,
                                     uint16_t *err, uint16_t *scaled) {
    for (size_t j = 0; j < CQ_BF16_M; j++) {
        float mn = INFINITY, mx = -INFINITY;
        for (size_t i = 0; i < n && j < m; i++) {
            const float v = w[j * ld + i] * s[i];
            mn = v < mn ? v : mn;
            mx = v > mx ? v : mx;
        }
        const cq_affine p = j < m ? cq_scaleloss_grid(mn, mx, bits, mode) : (cq_affine){1, 0, 0};
        for (size_t i = 0; i < n; i++) {
            const size_t at =
                i / CQ_BF16_K * 2 * CQ_BF16_TILE + i % CQ_BF16_K / 2 * CQ_BF16_K + 2 * j + i % 2;
            const float v = j < m ? w[j * ld + i] * s[i] : 0.0f;
            const float e = cq_rint_small(cq_clampf(v / p.scale, p.lo, p.hi)) * p.scale - v;
            err[at] = rounded(scaled ? e : e * inverse[i]);
            if (scaled) scaled[at] = rounded(v);
        }
    }
}

static void accumulate(const uint16_t *x, const uint16_t *b, size_t K, float *e) {
    for (size_t k = 0; k < K; k += CQ_BF16_K, x += CQ_BF16_TILE, b += 2 * CQ_BF16_TILE)
        for (size_t i = 0; i < CQ_BF16_K; i++)
            for (size_t j = 0; j < CQ_PANEL; j++)
                e[j] += widened(x[i]) * widened(b[j / CQ_BF16_M * CQ_BF16_TILE + i / 2 * CQ_BF16_K +
                                                  2 * (j % CQ_BF16_M) + i % 2]);
}

void cq_scaleloss_tile_bf16_scalar(const uint16_t *x0, const uint16_t *b0, const uint16_t *x1,
                                   const uint16_t *b1, size_t m, size_t K, int kind, double *row) {
    for (size_t r = 0; r < m; r++) {
        const size_t at = r / CQ_BF16_M * CQ_BF16_M * K + r % CQ_BF16_M * CQ_BF16_K;
        float e[CQ_PANEL] = {0};
        accumulate(x0 + at, b0, K, e);
        if (x1) accumulate(x1 + at, b1, K, e);
        row[r] += cq_scaleloss_power(e, kind);
    }
}
