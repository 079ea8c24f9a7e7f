/* SPDX-License-Identifier: Apache-2.0 */
/* scaleloss: the output error that quantising a scaled weight makes, for one candidate scale s.
 *
 *   weight  v = w * s;  q = Q(v) on the grid of its group (core/grid.h);
 *           weights only:      err = q / s - w
 *           with activations:  err = q - v,  scaled = v          (scaled != NULL)
 *   token   v = x / s;  step = max(max|v|, 1e-5) / (2**(bits-1) - 1);
 *           hat = clamp(rint(v / step), -2**(bits-1), 2**(bits-1) - 1) * step;  err = hat - v
 *   power   row[r] += sum_j |e[r][j]| (kind 0) or e[r][j]**2 (kind 1), m rows of CQ_PANEL errors
 *
 * The error of a layer, e = hat(x/s).Q(w s)' - x.w', is summed as hat.(Q - v)' + (hat - x/s).v':
 * both terms are small, so nothing cancels.
 *
 * Shapes: weight takes one group of n weights and n scales; token one token of n channels. The
 * products between are gemm_f32_tile's (core/gemm.h). No aliasing. NaN or inf in x or w, and a grid
 * whose scale overflows, give a loss that is not finite.
 * Exactness: EXACT. Losses are summed in double in one order on every ISA. Error of a float32 sum:
 * csrc/kernels/gemm/scalar.c.
 * Source: Lin et al., "AWQ", MLSys 2024, eq. 4; Li et al., "MBQ", CVPR 2025, eq. 8. */
#include "kernels/scaleloss/scaleloss.h"

#include <math.h>

CQ_INLINE float fake(float v, cq_affine p) {
    return cq_rint_small(cq_clampf(v / p.scale, p.lo, p.hi)) * p.scale + 0.0f;
}

void cq_scaleloss_weight_f32_scalar(const float *w, const float *s, size_t n, int bits, int mode,
                                    float *err, float *scaled) {
    float mn = INFINITY, mx = -INFINITY; /* NaN is left out here and comes back through fake() */
    for (size_t i = 0; i < n; i++) {
        const float v = w[i] * s[i];
        mn = v < mn ? v : mn;
        mx = v > mx ? v : mx;
    }
    const cq_affine p = cq_scaleloss_grid(mn, mx, bits, mode);
    for (size_t i = 0; i < n; i++) {
        const float v = w[i] * s[i], q = fake(v, p);
        err[i] = scaled ? q - v : q / s[i] - w[i];
        if (scaled) scaled[i] = v;
    }
}

void cq_scaleloss_token_f32_scalar(const float *x, const float *s, size_t n, int bits, float *hat,
                                   float *err) {
    float top = 0.0f;
    for (size_t i = 0; i < n; i++) {
        const float v = x[i] / s[i], a = fabsf(v);
        top = a > top ? a : top;
        hat[i] = v;
    }
    const cq_affine p = cq_scaleloss_token_grid(top, bits);
    for (size_t i = 0; i < n; i++) {
        const float v = hat[i];
        hat[i] = fake(v, p);
        err[i] = hat[i] - v;
    }
}

void cq_scaleloss_power_f32_scalar(const float *e, size_t m, int kind, double *row) {
    for (size_t r = 0; r < m; r++) row[r] += cq_scaleloss_power(e + r * CQ_PANEL, kind);
}
