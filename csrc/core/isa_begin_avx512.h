/* SPDX-License-Identifier: Apache-2.0 */
/* Everything up to isa_end.h is compiled for avx512; no include guard on purpose. */
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#endif

/* The first min(left, 16) lanes of a vector of floats. */
CQ_INLINE __mmask16 cq_tail_mask(size_t left) {
    return (__mmask16)(left >= 16 ? 0xFFFFu : (1u << left) - 1u);
}
