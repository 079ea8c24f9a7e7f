/* SPDX-License-Identifier: Apache-2.0 */
/* From the int32 sums of a block to the float sums of a strip. Include between isa_begin and
 * isa_end. */
#ifndef CQ_SUMS_AVX512_H
#define CQ_SUMS_AVX512_H

#include "core/qgemm.h"

typedef struct grid { /* of a group */
    __m512 scale;
    __m512i zero;
} grid;

CQ_INLINE grid grid_of(const cq_qlinear_strip *t, size_t g) {
    const __m256i half = _mm256_loadu_si256((const void *)(t->head + 2 * g * CQ_STRIP));
    grid a = {_mm512_cvtph_ps(half), _mm512_set1_epi32(1 << (t->bits - 1))};
    if (t->asymmetric) {
        const __m128i zero = _mm_loadu_si128((const void *)(t->head + (2 * t->G + g) * CQ_STRIP));
        a.zero = _mm512_cvtepu8_epi32(zero);
    }
    return a;
}

/* dot - zero * sum, as float. */
CQ_INLINE __m512 centred(__m512i dot, __m512i zero, int32_t sum) {
    return _mm512_cvtepi32_ps(
        _mm512_sub_epi32(dot, _mm512_mullo_epi32(zero, _mm512_set1_epi32(sum))));
}

/* Add group g of row m, which has the sums `dot`. */
CQ_INLINE void add_group(const cq_qlinear_strip *t, size_t g, size_t m, grid a,
                         const int32_t *dot) {
    const __m512i sum = _mm512_load_si512((const void *)dot);
    const __m512 f = centred(sum, a.zero, t->xsum[g * t->stride + m]);
    float *acc = t->out + m * CQ_STRIP;
    _mm512_storeu_ps(acc, _mm512_fmadd_ps(a.scale, f, _mm512_loadu_ps(acc)));
}

/* high * 256 + low digits of two rows of sums. */
CQ_INLINE __m512i two_digits(const int32_t *high, const int32_t *low) {
    return _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512((const void *)high), 8),
                            _mm512_load_si512((const void *)low));
}

/* Add the block b of row m, whose digits have the sums `dot`. */
CQ_INLINE void add_block(const cq_qlinear_strip *t, size_t b, size_t m, grid a,
                         const int32_t *dot) {
    const int32_t *sum = t->xsum + 2 * (b * t->stride + m);
    const __m512 high = centred(two_digits(dot + 48, dot + 32), a.zero, sum[0]);
    const __m512 low = centred(two_digits(dot + 16, dot), a.zero, sum[1]);
    const __m512 f = _mm512_fmadd_ps(high, _mm512_set1_ps(65536.0f), low);
    const __m512 scale = _mm512_mul_ps(a.scale, _mm512_set1_ps(t->xstep[b * t->stride + m]));
    float *acc = t->out + m * CQ_STRIP;
    _mm512_storeu_ps(acc, _mm512_fmadd_ps(scale, f, _mm512_loadu_ps(acc)));
}

#endif
