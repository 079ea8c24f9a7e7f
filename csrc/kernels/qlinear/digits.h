/* SPDX-License-Identifier: Apache-2.0 */
/* f32_digits but for what is done with a block: where blocks end, and the power of two of each. */
#ifndef CQ_QLINEAR_DIGITS_H
#define CQ_QLINEAR_DIGITS_H

#include "core/half.h"
#include "core/qgemm.h"

#include <math.h>

/* 2**e by its bits. */
CQ_INLINE float cq_power(int e) { return cq_bits_float((uint32_t)(e + 127) << 23); }

/* largest: the bits of the largest magnitude of n inputs. put: digits of n inputs to t->x from k
 * on, and their two sums; `factor` is 0 for a block with NaN or infinity, whose digits are 0. */
typedef uint32_t cq_largest_fn(const float *x, size_t n);
typedef void cq_digits_fn(const float *x, size_t n, float factor, const cq_qlinear_digits *t,
                          size_t k, int32_t *sum);

CQ_INLINE void cq_digits_any(const float *x, const cq_qlinear_digits *t, cq_largest_fn *largest,
                             cq_digits_fn *put) {
    const size_t group = t->K / t->G, block = cq_block_inputs(t->K, t->G, 1);
    size_t b = 0, end;
    for (size_t k0 = 0; k0 < t->K; k0 = end, b++) {
        end = cq_min_size(k0 + block, (k0 / group + 1) * group);
        const uint32_t most = largest(x + k0, end - k0);
        const int finite = most < 0x7F800000u, found = (int)(most >> 23) - 127;
        const int e = found < -90 ? -90 : finite ? found : 0;
        put(x + k0, end - k0, finite ? cq_power(29 - e) : 0.0f, t, k0, t->sum + 2 * b * t->stride);
        t->step[b * t->stride] = finite ? cq_power(e - 29) : NAN;
    }
    for (size_t i = 0; i < CQ_DIGITS; i++)
        for (size_t k = t->K; k % CQ_TILE; k++) t->x[i * t->ldx + k] = 0;
}

#endif
