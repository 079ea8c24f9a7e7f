/* SPDX-License-Identifier: Apache-2.0 */
/* fakequant: round to an affine grid and back, with its straight-through / LSQ backward.
 *
 *   v   = x / scale                      real division, not a multiply by the reciprocal
 *   r   = rint(min(hi, max(lo, v)))      half to even; lo, hi integers, |.| <= 2**22
 *   out = r * scale + 0                  the +0 turns -0 into +0
 *   gx  = lo <= v <= hi ? g : 0          straight-through estimator, clipped
 *   gscale = sum g * (r - (inside ? v : 0))    Esser et al., "Learned Step Size Quantization",
 *                                              ICLR 2020, eq. 3, without its gradient factor
 *
 * A block of rows x columns; _row has one grid per row, _col one per column, and bits may vary with
 * them. `out` may be `x` itself (backward: `g`). `stream` only says how to store. NaN in x gives
 * NaN in out and gscale and 0 in gx; +-inf saturates. Exactness: EXACT. gscale of _row sums in
 * double in eight lanes, lane i % 8, added pairwise
 * ((0+4)+(2+6))+((1+5)+(3+7)); _col adds to gscale[c] row by row. */
#include "core/dispatch.h"
#include "core/grid.h"

void cq_fakequant_f32_row_scalar(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++) {
        const float *x = b->x + r * b->cols, scale = b->scale[r], lo = b->lo[r], hi = b->hi[r];
        float *out = b->out + r * b->cols;
        for (size_t i = 0; i < b->cols; i++)
            out[i] = cq_rint_small(cq_clampf(x[i] / scale, lo, hi)) * scale + 0.0f;
    }
}

void cq_fakequant_f32_col_scalar(const cq_fakequant_block *b) {
    const float *scale = b->scale;
    for (size_t r = 0; r < b->rows; r++) {
        const float *x = b->x + r * b->cols;
        float *out = b->out + r * b->cols;
        for (size_t i = 0; i < b->cols; i++)
            out[i] =
                cq_rint_small(cq_clampf(x[i] / scale[i], b->lo[i], b->hi[i])) * scale[i] + 0.0f;
    }
}

/* The gradient of one element; *slope is d out / d scale. */
CQ_INLINE float gradient(float x, float g, float scale, float lo, float hi, float *slope) {
    const float v = x / scale;
    const int inside = v >= lo && v <= hi;
    *slope = cq_rint_small(cq_clampf(v, lo, hi)) - (inside ? v : 0.0f);
    return inside ? g : 0.0f;
}

void cq_fakequant_bwd_f32_row_scalar(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++) {
        double lane[8] = {0};
        for (size_t i = 0; i < b->cols; i++) {
            const size_t at = r * b->cols + i;
            const float g = b->g[at];
            float slope;
            b->out[at] = gradient(b->x[at], g, b->scale[r], b->lo[r], b->hi[r], &slope);
            lane[i % 8] += (double)g * (double)slope;
        }
        b->gscale[r] = cq_sum_lanes(lane);
    }
}

void cq_fakequant_bwd_f32_col_scalar(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++) {
        for (size_t i = 0; i < b->cols; i++) {
            const size_t at = r * b->cols + i;
            const float g = b->g[at];
            float slope;
            b->out[at] = gradient(b->x[at], g, b->scale[i], b->lo[i], b->hi[i], &slope);
            b->gscale[i] += (double)g * (double)slope;
        }
    }
}
