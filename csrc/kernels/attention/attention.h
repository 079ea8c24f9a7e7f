/* SPDX-License-Identifier: Apache-2.0 */
/* What the attention kernels share: panel addresses, bfloat16 rounding, constants of exp. */
#ifndef CQ_ATTENTION_KERNELS_H
#define CQ_ATTENTION_KERNELS_H

#include "core/dispatch.h"
#include "core/half.h"

#include <math.h>

/* exp on [-ln 2 / 2, ln 2 / 2] as 1 + r + r^2 (EXP2 + EXP3 r + ...), the coefficients of Cephes'
 * expf; ln 2 in two parts, the first with trailing zeros so that n times it is exact. */
#define CQ_ATT_LOG2E 1.44269504088896341f
#define CQ_ATT_LN2_HIGH 0.693359375f
#define CQ_ATT_LN2_LOW (-2.12194440e-4f)
#define CQ_ATT_EXP7 1.9875691500e-4f
#define CQ_ATT_EXP6 1.3981999507e-3f
#define CQ_ATT_EXP5 8.3334519073e-3f
#define CQ_ATT_EXP4 4.1665795894e-2f
#define CQ_ATT_EXP3 1.6666665459e-1f
#define CQ_ATT_EXP2 5.0000001201e-1f

/* The panel that holds lane i. */
CQ_INLINE const void *cq_att_at(const void *panels, size_t i, size_t stride) {
    return (const char *)panels + i / CQ_ATT_LANES * stride;
}

/* Half to even; NaN keeps its upper bits, so that it stays NaN. */
CQ_INLINE float cq_att_round_bf16(float x) {
    const uint32_t u = cq_float_bits(x);
    if (x != x) return cq_bits_float((u | 0x400000u) & 0xFFFF0000u);
    return cq_bits_float((u + 0x7FFFu + ((u >> 16) & 1u)) & 0xFFFF0000u);
}

#endif
