/* SPDX-License-Identifier: Apache-2.0 */
/* The loop of gemm_s8_finish, compiled once per ISA: the compiler vectorises it. */
#ifndef CQ_GEMM_REQUANT_H
#define CQ_GEMM_REQUANT_H

#include "core/gemm.h"

/* p / 2^e to the nearest, half to even; 0 <= e <= 62. */
CQ_INLINE int64_t cq_shift_round(int64_t p, int e) {
    const int64_t whole = p >> e, one = (int64_t)1 << e, rest = p & (one - 1);
    return whole + (2 * rest + (whole & 1) > one);
}

CQ_INLINE void cq_gemm_requant_any(const cq_gemm_requant *r, const int32_t *c, size_t ldc, size_t m,
                                   size_t n, int8_t *out, size_t ldo) {
    const int64_t lo = r->lo - r->zero, hi = r->hi - r->zero;
    const int zero = r->zero;
    for (size_t i = 0; i < m; i++, c += ldc, out += ldo) {
        for (size_t j = 0; j < n; j++) {
            const int64_t sum = (int64_t)c[j] + (r->bias ? r->bias[j] : 0);
            int64_t v = cq_shift_round(sum * r->multiplier[j], r->shift[j]);
            v = v < lo ? lo : v;
            v = v > hi ? hi : v;
            out[j] = (int8_t)((int)v + zero);
        }
    }
}

#endif
