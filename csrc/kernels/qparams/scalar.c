/* SPDX-License-Identifier: Apache-2.0 */
/* sqerr: squared error of a row under one grid, what a range search minimises.
 *
 *   r   = rint(min(hi, max(lo, x / scale))) * scale       as fakequant
 *   err = sum (r - x)**2                                  difference in float, square and sum in
 *                                                         double, lane i % 8, lanes added pairwise
 *
 * `n` elements, one grid. NaN or infinity in x gives NaN or infinity. Exactness: EXACT, no FMA.
 * The range itself and the formula of scale and zero point are in core/grid.h. */
#include "core/dispatch.h"
#include "core/grid.h"

void cq_sqerr_f32_row_scalar(const float *x, size_t n, cq_affine p, double *err) {
    double lane[8] = {0};
    for (size_t i = 0; i < n; i++) {
        const float r = cq_rint_small(cq_clampf(x[i] / p.scale, p.lo, p.hi)) * p.scale;
        const double d = (double)(r - x[i]);
        lane[i % 8] += d * d;
    }
    *err = cq_sum_lanes(lane);
}
