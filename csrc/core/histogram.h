/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels of csrc/kernels/histogram and their driver share. */
#ifndef CQ_HISTOGRAM_H
#define CQ_HISTOGRAM_H

#include "half.h"

#define CQ_DIGIT_BINS ((size_t)2048)

/* Floats in order as unsigned integers; -0 counts as +0. */
CQ_INLINE uint32_t cq_float_key(float x) {
    const uint32_t u = cq_float_bits(x + 0.0f);
    return u ^ ((uint32_t)((int32_t)u >> 31) | 0x80000000u);
}

CQ_INLINE float cq_key_float(uint32_t key) {
    return cq_bits_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

#endif
