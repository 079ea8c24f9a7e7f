/* SPDX-License-Identifier: Apache-2.0 */
/* 32 tokens x 32 outputs in four tile registers: per 32 inputs four tile loads and four tile
 * products, bound by the loads from L2 (1.35 TFLOP/s of the 3.5 that the unit reaches from L1). */
#include "core/dispatch.h"
#if CQ_X86
#include "kernels/scaleloss/scaleloss.h"

#include "core/isa_begin_avx512amx.h"

typedef struct tile_config {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

static const tile_config all_full = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

CQ_INLINE double power(const float *e, int kind) {
    __m512d sum[2];
    for (size_t half = 0; half < 2; half++) {
        const __m512 v = _mm512_load_ps(e + 16 * half);
        const __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
        const __m512d hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
        sum[half] = kind ? _mm512_add_pd(_mm512_mul_pd(lo, lo), _mm512_mul_pd(hi, hi))
                         : _mm512_add_pd(_mm512_abs_pd(lo), _mm512_abs_pd(hi));
    }
    double a[8], b[8];
    _mm512_storeu_pd(a, sum[0]);
    _mm512_storeu_pd(b, sum[1]);
    return cq_sum_lanes(a) + cq_sum_lanes(b);
}

void cq_scaleloss_tile_bf16_avx512amx(const uint16_t *x0, const uint16_t *b0, const uint16_t *x1,
                                      const uint16_t *b1, size_t m, size_t K, int kind,
                                      double *row) {
    enum { ROW_BYTES = 128 };
    _Alignas(64) float e[2 * CQ_BF16_M * CQ_PANEL];
    const uint16_t *const x[2] = {x0, x1}, *const b[2] = {b0, b1};
    const size_t strip = m > CQ_BF16_M ? CQ_BF16_M * K : 0; /* no second strip: the first twice */
    _tile_loadconfig(&all_full);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int part = 0; part < 2 && x[part]; part++) {
        const uint16_t *xp = x[part], *bp = b[part];
        for (size_t k = 0; k < K; k += CQ_BF16_K, xp += CQ_BF16_TILE, bp += 2 * CQ_BF16_TILE) {
            _tile_loadd(4, xp, 64);
            _tile_loadd(5, xp + strip, 64);
            _tile_loadd(6, bp, 64);
            _tile_loadd(7, bp + CQ_BF16_TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, e, ROW_BYTES);
    _tile_stored(1, e + CQ_BF16_M, ROW_BYTES);
    _tile_stored(2, e + CQ_BF16_M * CQ_PANEL, ROW_BYTES);
    _tile_stored(3, e + CQ_BF16_M * CQ_PANEL + CQ_BF16_M, ROW_BYTES);
    _tile_release();
    for (size_t r = 0; r < m; r++) row[r] += power(e + r * CQ_PANEL, kind);
}

#include "core/isa_end.h"
#endif
