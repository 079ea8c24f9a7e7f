/* SPDX-License-Identifier: Apache-2.0 */
/* Sums of up to 4 rows x 16 columns of int8 by sdot. Columns lie in fours of inputs, as in the
 * panels of gemm_s8 and qprefill. Include between isa_begin and
 * isa_end of neondot. */
#ifndef CQ_DOT_NEON_H
#define CQ_DOT_NEON_H

#include "kernels/neon.h"

CQ_INLINE int32x4_t cq_dot_lane(int32x4_t acc, int8x16_t w, int8x16_t x, const size_t lane) {
    switch (lane) {
    case 0: return vdotq_laneq_s32(acc, w, x, 0);
    case 1: return vdotq_laneq_s32(acc, w, x, 1);
    case 2: return vdotq_laneq_s32(acc, w, x, 2);
    default: return vdotq_laneq_s32(acc, w, x, 3);
    }
}

/* acc[4 * row + i]: columns 4 i .. 4 i + 3. Adds 4 * `fours` fours of inputs of R rows, ld bytes
 * apart, which begin at x and w; `flip` takes 128 off unsigned bytes of w. */
CQ_INLINE void cq_dot_fours(int32x4_t *acc, const int8_t *x, size_t ld, const int8_t *w,
                            size_t fours, const size_t R, const int flip) {
    for (size_t k = 0; k < fours; k++, x += 16, w += 256) {
        int8x16_t row[4];
#pragma GCC unroll 4
        for (size_t r = 0; r < R; r++) row[r] = vld1q_s8(x + ld * r);
#pragma GCC unroll 4
        for (size_t q = 0; q < 4; q++) {
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++) {
                int8x16_t v = vld1q_s8(w + 64 * q + 16 * i);
                if (flip) v = veorq_s8(v, vdupq_n_s8(-128));
#pragma GCC unroll 4
                for (size_t r = 0; r < R; r++)
                    acc[4 * r + i] = cq_dot_lane(acc[4 * r + i], v, row[r], q);
            }
            CQ_LOADS_STAY;
        }
    }
}

#endif
