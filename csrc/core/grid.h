/* SPDX-License-Identifier: Apache-2.0 */
/* From the range of a group of weights to its grid: the one place where scale and zero point are
 * made, in C. Codes are 0 .. 2**bits - 1, value = (code - zero) * scale. */
#ifndef CQ_GRID_H
#define CQ_GRID_H

#include "half.h"

/* How a range becomes a grid; the bits of Python's cmibq.quant.spec.RangeMode. */
enum {
    CQ_RANGE_SYMMETRIC = 1, /* zero = 2**(bits-1), the range is +-max(|mn|, |mx|); bits >= 2 */
    CQ_RANGE_ZERO = 2,      /* asymmetric: widen the range until it contains 0 */
    CQ_RANGE_HALF = 4,      /* round the scale to float16 before any code is made */
    CQ_RANGE_MODES = 8,     /* all modes are below this */
};

CQ_INLINE float cq_clampf(float v, float lo, float hi) { /* NaN passes through */
    v = v < lo ? lo : v;
    return v > hi ? hi : v;
}

/* rint() for |v| <= 2**22: adding 1.5 * 2**23 leaves no fraction bits, in round-half-even. */
CQ_INLINE float cq_rint_small(float v) {
    const float magic = 12582912.0f;
    return (v + magic) - magic;
}

/* Round a scale to float16; what would become 0 becomes the smallest half, 2**-24. */
CQ_INLINE float cq_half_scale(float scale) {
    const uint16_t half = cq_half_from_float(scale);
    return cq_half_to_float(half ? half : 1);
}

/* Grid of the range [mn, mx] (mn <= mx):
 *
 *   symmetric   scale = max(|mn|, |mx|, 1e-5) / (2**(bits-1) - 1),  zero = 2**(bits-1)
 *   asymmetric  scale = max(mx - mn, 1e-5) / (2**bits - 1),
 *               zero  = clamp(-rint(mn / scale), 0, 2**bits - 1)
 *
 * in float32 with real divisions; *zero is an integer held in a float. A NaN range gives a NaN
 * scale, a range too wide for float32 (or float16, CQ_RANGE_HALF) an infinite one: the caller
 * refuses those with CQ_BAD_SCALE. As cq_affine: lo = -zero, hi = 2**bits - 1 - zero. */
CQ_INLINE void cq_grid_params(float mn, float mx, int bits, int mode, float *scale, float *zero) {
    const float tiny = 1e-5f;
    const int symmetric = mode & CQ_RANGE_SYMMETRIC;
    const float top = (float)((1 << (symmetric ? bits - 1 : bits)) - 1);
    if (mode & CQ_RANGE_ZERO) {
        mn = mn > 0.0f ? 0.0f : mn;
        mx = mx < 0.0f ? 0.0f : mx;
    }
    float range = symmetric ? (-mn > mx ? -mn : mx) : mx - mn;
    range = range < tiny ? tiny : range;
    *scale = mode & CQ_RANGE_HALF ? cq_half_scale(range / top) : range / top;
    const float below = cq_rint_small(cq_clampf(mn / *scale, -top, 0.0f));
    *zero = symmetric ? top + 1.0f : (below < 0.0f ? -below : 0.0f);
}

#endif
