/* SPDX-License-Identifier: Apache-2.0 */
/* What the scaleloss kernels and their driver share: block sizes, and grids made from ranges. */
#ifndef CQ_SCALELOSS_H
#define CQ_SCALELOSS_H

#include "core/dispatch.h"
#include "core/gemm.h"
#include "core/grid.h"

#include <math.h>

#define CQ_PANEL CQ_GEMM_NR            /* weight rows packed side by side */
#define CQ_TILE_ROWS (20 * CQ_GEMM_MR) /* tokens whose errors are kept at once */
#define CQ_BF16_M ((size_t)16)         /* tokens of a strip, outputs of half a panel */
#define CQ_BF16_K ((size_t)32)         /* inputs of a tile of bfloat16 */
#define CQ_BF16_TILE (CQ_BF16_M * CQ_BF16_K)

/* lo and hi of weights in [mn, mx]. */
CQ_INLINE cq_affine cq_scaleloss_grid(float mn, float mx, int bits, int mode) {
    float scale, zero;
    cq_grid_params(mn, mx, bits, mode, &scale, &zero);
    return (cq_affine){scale, -zero, (float)((1 << bits) - 1) - zero};
}

/* Symmetric grid of a token whose largest magnitude is `top`. */
CQ_INLINE cq_affine cq_scaleloss_token_grid(float top, int bits) {
    const float tiny = 1e-5f, hi = (float)((1 << (bits - 1)) - 1);
    return (cq_affine){(top < tiny ? tiny : top) / hi, -hi - 1.0f, hi};
}

/* sum_j |e[j]| or e[j]**2 of the CQ_PANEL errors of a token, in the order that every ISA keeps. */
CQ_INLINE double cq_scaleloss_power(const float *e, int kind) {
    double sum = 0.0;
    for (size_t half = 0; half < CQ_PANEL; half += 16) {
        double lane[8];
        for (size_t j = 0; j < 8; j++) {
            const double a = (double)e[half + j], b = (double)e[half + 8 + j];
            lane[j] = kind ? a * a + b * b : fabs(a) + fabs(b);
        }
        sum += cq_sum_lanes(lane);
    }
    return sum;
}

#endif
