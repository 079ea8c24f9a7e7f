/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen counters at a time: products of the even and of the odd lanes, then halves put together.
 * The table is gathered; conversion of m truncates by itself. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

/* *low and *high halves of x * m in every lane. */
CQ_INLINE void multiply(__m512i x, __m512i m, __m512i *low, __m512i *high) {
    const __m512i even = _mm512_mul_epu32(x, m);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), m);
    *low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
}

CQ_INLINE void words(const cq_noise *s, uint32_t group, __m512i c[4]) {
    const __m512i m0 = _mm512_set1_epi32((int)CQ_PHILOX_M0);
    const __m512i m1 = _mm512_set1_epi32((int)CQ_PHILOX_M1);
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    uint32_t k0 = s->seed[0], k1 = s->seed[1];
    c[0] = _mm512_add_epi32(_mm512_set1_epi32((int)(16 * group)), lane);
    c[1] = _mm512_set1_epi32((int)s->sample);
    c[2] = _mm512_set1_epi32((int)s->step);
    c[3] = _mm512_set1_epi32((int)s->stream);
    for (int r = 0; r < CQ_PHILOX_ROUNDS; r++, k0 += CQ_PHILOX_W0, k1 += CQ_PHILOX_W1) {
        __m512i alow, ahigh, blow, bhigh;
        multiply(c[0], m0, &alow, &ahigh);
        multiply(c[2], m1, &blow, &bhigh);
        const __m512i v0 = _mm512_set1_epi32((int)k0), v1 = _mm512_set1_epi32((int)k1);
        c[0] = _mm512_ternarylogic_epi32(bhigh, c[1], v0, 0x96); /* exclusive or of three */
        c[1] = blow;
        c[2] = _mm512_ternarylogic_epi32(ahigh, c[3], v1, 0x96);
        c[3] = alow;
    }
}

static void uniform(const cq_noise *s, uint32_t group, float *out) {
    __m512i w[4];
    words(s, group, w);
    for (size_t k = 0; k < 4; k++) {
        const __m512 v = _mm512_cvtepi32_ps(_mm512_srli_epi32(w[k], 8));
        _mm512_storeu_ps(out + 16 * k, _mm512_mul_ps(v, _mm512_set1_ps(0x1p-24f)));
    }
}

CQ_INLINE __m512 inverse(__m512i w, const float *table) {
    const __m512i sign = _mm512_set1_epi32((int)0x80000000u);
    const __m512i m = _mm512_or_si512(_mm512_andnot_si512(sign, w), _mm512_set1_epi32(1));
    const __m512i bits =
        _mm512_castps_si512(_mm512_cvt_roundepi32_ps(m, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
    const __m512i at = _mm512_sub_epi32(_mm512_srli_epi32(bits, 19), _mm512_set1_epi32(127 << 4));
    const __m512 f =
        _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFF))),
                      _mm512_set1_ps(0x1p-19f));
    const __m512 t0 = _mm512_i32gather_ps(at, table, 4);
    const __m512 t1 = _mm512_i32gather_ps(at, table + CQ_NOISE_PIECES, 4);
    const __m512 t2 = _mm512_i32gather_ps(at, table + (size_t)2 * CQ_NOISE_PIECES, 4);
    __m512 y = _mm512_add_ps(t1, _mm512_mul_ps(f, t2));
    y = _mm512_add_ps(t0, _mm512_mul_ps(f, y));
    /* sign of w, the rest of y */
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(y), w, sign, 0x78));
}

static void normal(const cq_noise *s, uint32_t group, float *out) {
    __m512i w[4];
    words(s, group, w);
    for (size_t k = 0; k < 4; k++) _mm512_storeu_ps(out + 16 * k, inverse(w[k], s->table));
}

void cq_noise_uniform_f32_avx512(const cq_noise *s, uint64_t first, size_t n, float *out) {
    cq_noise_run(s, first, n, out, uniform);
}

void cq_noise_normal_f32_avx512(const cq_noise *s, uint64_t first, size_t n, float *out) {
    cq_noise_run(s, first, n, out, normal);
}

#include "core/isa_end.h"
#endif
