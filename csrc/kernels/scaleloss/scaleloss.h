/* SPDX-License-Identifier: Apache-2.0 */
/* What the scaleloss kernels and their driver share: block sizes, and grids made from ranges. */
#ifndef CQ_SCALELOSS_H
#define CQ_SCALELOSS_H

#include "core/dispatch.h"
#include "core/grid.h"

enum {
    CQ_PANEL = 32,       /* weight rows packed side by side */
    CQ_TILE_ROWS = 256,  /* tokens per call of the tile kernel, at most */
    CQ_SLAB_ROWS = 256,  /* weight rows quantised and packed at a time */
    CQ_SLAB_TOKENS = 512 /* tokens quantised at a time */
};

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

#endif
