/* SPDX-License-Identifier: Apache-2.0 */
/* What the int8 tiles of NEON share. */
#ifndef CQ_SUMS_NEON_H
#define CQ_SUMS_NEON_H

#include "core/gemm.h"

/* c from `sums` [m, 16]: n of their columns, for row i and column j on. */
CQ_INLINE void cq_put_sums(const cq_gemm_f32_tile *t, size_t i, size_t j, size_t m, size_t n,
                           const int32_t *sums) {
    for (size_t r = 0; r < m; r++) {
        int32_t *c = (int32_t *)(void *)(t->c + (i + r) * t->ldc + j);
        for (size_t x = 0; x < n; x++) c[x] = t->first ? sums[16 * r + x] : c[x] + sums[16 * r + x];
    }
}

#endif
