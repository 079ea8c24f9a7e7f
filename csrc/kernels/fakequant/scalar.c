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
 * Shapes: `n` elements; _row has one grid for all of them, _col one grid per element. `out`/`gx`
 * may be `x`/`g` itself. NaN in x gives NaN in out and gscale and 0 in gx; +-inf saturates.
 * Exactness: EXACT. gscale of _row sums in double in eight lanes, lane i % 8, added pairwise
 * ((0+4)+(2+6))+((1+5)+(3+7)); _col adds to gscale[i]. */
#include "core/dispatch.h"
#include "core/grid.h"

void cq_fakequant_f32_row_scalar(const float *x, float *out, size_t n, cq_affine p) {
    for (size_t i = 0; i < n; i++)
        out[i] = cq_rint_small(cq_clampf(x[i] / p.scale, p.lo, p.hi)) * p.scale + 0.0f;
}

void cq_fakequant_f32_col_scalar(const float *x, float *out, size_t n, const float *scale,
                                 const float *lo, const float *hi) {
    for (size_t i = 0; i < n; i++)
        out[i] = cq_rint_small(cq_clampf(x[i] / scale[i], lo[i], hi[i])) * scale[i] + 0.0f;
}

void cq_fakequant_bwd_f32_row_scalar(const float *x, const float *g, float *gx, size_t n,
                                     cq_affine p, double *gscale) {
    double lane[8] = {0};
    for (size_t i = 0; i < n; i++) {
        const float v = x[i] / p.scale;
        const int inside = v >= p.lo && v <= p.hi;
        const float d = cq_rint_small(cq_clampf(v, p.lo, p.hi)) - (inside ? v : 0.0f);
        lane[i % 8] += (double)g[i] * (double)d;
        gx[i] = inside ? g[i] : 0.0f;
    }
    *gscale = cq_sum_lanes(lane);
}

void cq_fakequant_bwd_f32_col_scalar(const float *x, const float *g, float *gx, size_t n,
                                     const float *scale, const float *lo, const float *hi,
                                     double *gscale) {
    for (size_t i = 0; i < n; i++) {
        const float v = x[i] / scale[i];
        const int inside = v >= lo[i] && v <= hi[i];
        const float d = cq_rint_small(cq_clampf(v, lo[i], hi[i])) - (inside ? v : 0.0f);
        gscale[i] += (double)g[i] * (double)d;
        gx[i] = inside ? g[i] : 0.0f;
    }
}
