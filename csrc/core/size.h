/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes of memory from sizes of arrays. An array without elements may have dimensions of any size,
 * so products can pass 2**64: they stay at SIZE_MAX then, which no array has, and the binding
 * refuses the call. */
#ifndef CQ_SIZE_H
#define CQ_SIZE_H

#include "cq.h"

CQ_INLINE size_t cq_mul(size_t a, size_t b) {
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}

CQ_INLINE size_t cq_add(size_t a, size_t b) {
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

/* `n` rounded up to a multiple of `to`. */
CQ_INLINE size_t cq_round_up(size_t n, size_t to) { return cq_mul(cq_ceil_div(n, to), to); }

#endif
