/* SPDX-License-Identifier: Apache-2.0 */
/* Four inputs of one row times 32 outputs; included inside a section compiled for avx512vnni. */
#ifndef CQ_QPREFILL_DOT_H
#define CQ_QPREFILL_DOT_H

typedef struct pair { /* 32 sums of one row */
    __m512i lo, hi;
} pair;

/* Not the intrinsic: with it gcc 12 copies and spills every accumulator on every step. */
CQ_INLINE __m512i dpbusd(__m512i acc, __m512i x, __m512i w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
    return acc;
}

CQ_INLINE void dot(pair *c, const uint8_t *x, __m512i lo, __m512i hi) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    const __m512i v = _mm512_set1_epi32(four);
    c->lo = dpbusd(c->lo, v, lo);
    c->hi = dpbusd(c->hi, v, hi);
}

#endif
