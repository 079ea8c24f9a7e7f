/* SPDX-License-Identifier: Apache-2.0 */
/* From the int32 sums of a block to the float sums of a strip. Include between isa_begin and
 * isa_end. */
#ifndef CQ_SUMS_AVX512_H
#define CQ_SUMS_AVX512_H

#include "core/qgemm.h"

typedef struct grid { /* of a group */
    __m512 scale;
    __m512i zero;  /* asymmetric */
    __m512i shift; /* symmetric: zero = 2**shift */
    int even;      /* symmetric */
} grid;

/* Group g of the strip at `head`. */
CQ_INLINE grid grid_of(const cq_qlinear_strip *t, const uint8_t *head, size_t g) {
    const __m256i half = _mm256_loadu_si256((const void *)(head + 2 * g * CQ_STRIP));
    grid a = {.scale = _mm512_cvtph_ps(half), .even = !t->asymmetric};
    a.shift = _mm512_set1_epi32(t->bits - 1);
    if (t->asymmetric) {
        const __m128i zero = _mm_loadu_si128((const void *)(head + (2 * t->G + g) * CQ_STRIP));
        a.zero = _mm512_cvtepu8_epi32(zero);
    }
    return a;
}

/* zero * sum: a product of 32 bits is two instructions, ten cycles each. */
CQ_INLINE __m512i zeros_of(const grid *a, int32_t sum) {
    const __m512i sums = _mm512_set1_epi32(sum);
    return a->even ? _mm512_sllv_epi32(sums, a->shift) : _mm512_mullo_epi32(a->zero, sums);
}

CQ_INLINE __m512 centred(__m512i dot, __m512i zeros) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(dot, zeros));
}

/* Add a group of a row of int8 with the sums `dot` to acc [16]. */
CQ_INLINE void plus_group(const grid *a, const int32_t *dot, __m512i zeros, float *acc) {
    const __m512 f = centred(_mm512_load_si512((const void *)dot), zeros);
    _mm512_storeu_ps(acc, _mm512_fmadd_ps(a->scale, f, _mm512_loadu_ps(acc)));
}

/* high * 256 + low digits of two rows of sums. */
CQ_INLINE __m512i two_digits(const int32_t *high, const int32_t *low) {
    return _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512((const void *)high), 8),
                            _mm512_load_si512((const void *)low));
}

/* Add a block of a row whose digits have the sums `dot` to acc [16]. */
CQ_INLINE void plus_block(const grid *a, const int32_t *dot, const int32_t *xsum, float step,
                          float *acc) {
    const __m512 high = centred(two_digits(dot + 48, dot + 32), zeros_of(a, xsum[0]));
    const __m512 low = centred(two_digits(dot + 16, dot), zeros_of(a, xsum[1]));
    const __m512 f = _mm512_fmadd_ps(high, _mm512_set1_ps(65536.0f), low);
    const __m512 scale = _mm512_mul_ps(a->scale, _mm512_set1_ps(step));
    _mm512_storeu_ps(acc, _mm512_fmadd_ps(scale, f, _mm512_loadu_ps(acc)));
}

#endif
