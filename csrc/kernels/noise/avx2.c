/* SPDX-License-Identifier: Apache-2.0 */
/* Eight counters at a time, a group in two halves; see avx512.c. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

/* *low and *high halves of x * m in every lane. */
CQ_INLINE void multiply(__m256i x, __m256i m, __m256i *low, __m256i *high) {
    const __m256i even = _mm256_mul_epu32(x, m);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), m);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

CQ_INLINE __m256i xor3(__m256i a, __m256i b, uint32_t k) {
    return _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_set1_epi32((int)k));
}

CQ_INLINE void words(const cq_noise *s, uint32_t counter, __m256i c[4]) {
    const __m256i m0 = _mm256_set1_epi32((int)CQ_PHILOX_M0);
    const __m256i m1 = _mm256_set1_epi32((int)CQ_PHILOX_M1);
    uint32_t k0 = s->seed[0], k1 = s->seed[1];
    c[0] =
        _mm256_add_epi32(_mm256_set1_epi32((int)counter), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
    c[1] = _mm256_set1_epi32((int)s->sample);
    c[2] = _mm256_set1_epi32((int)s->step);
    c[3] = _mm256_set1_epi32((int)s->stream);
    for (int r = 0; r < CQ_PHILOX_ROUNDS; r++, k0 += CQ_PHILOX_W0, k1 += CQ_PHILOX_W1) {
        __m256i alow, ahigh, blow, bhigh;
        multiply(c[0], m0, &alow, &ahigh);
        multiply(c[2], m1, &blow, &bhigh);
        c[0] = xor3(bhigh, c[1], k0);
        c[1] = blow;
        c[2] = xor3(ahigh, c[3], k1);
        c[3] = alow;
    }
}

CQ_INLINE __m256 fraction(__m256i w, const float *table) {
    (void)table;
    const __m256 v = _mm256_cvtepi32_ps(_mm256_srli_epi32(w, 8));
    return _mm256_mul_ps(v, _mm256_set1_ps(0x1p-24f));
}

CQ_INLINE __m256 inverse(__m256i w, const float *table) {
    const __m256i sign = _mm256_set1_epi32((int)0x80000000u);
    __m256i m = _mm256_or_si256(_mm256_andnot_si256(sign, w), _mm256_set1_epi32(1));
    m = _mm256_andnot_si256(_mm256_srli_epi32(m, 24), m);
    const __m256i bits = _mm256_castps_si256(_mm256_cvtepi32_ps(m));
    const __m256i at = _mm256_sub_epi32(_mm256_srli_epi32(bits, 19), _mm256_set1_epi32(127 << 4));
    const __m256 f =
        _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFF))),
                      _mm256_set1_ps(0x1p-19f));
    const __m256 t0 = _mm256_i32gather_ps(table, at, 4);
    const __m256 t1 = _mm256_i32gather_ps(table + CQ_NOISE_PIECES, at, 4);
    const __m256 t2 = _mm256_i32gather_ps(table + (size_t)2 * CQ_NOISE_PIECES, at, 4);
    __m256 y = _mm256_add_ps(t1, _mm256_mul_ps(f, t2));
    y = _mm256_add_ps(t0, _mm256_mul_ps(f, y));
    return _mm256_xor_ps(y, _mm256_castsi256_ps(_mm256_and_si256(w, sign)));
}

CQ_INLINE void group(const cq_noise *s, uint32_t g, float *out,
                     __m256 (*made)(__m256i w, const float *table)) {
    for (size_t half = 0; half < 2; half++) {
        __m256i w[4];
        words(s, 16 * g + 8 * (uint32_t)half, w);
        for (size_t k = 0; k < 4; k++)
            _mm256_storeu_ps(out + 16 * k + 8 * half, made(w[k], s->table));
    }
}

static void uniform(const cq_noise *s, uint32_t g, float *out) { group(s, g, out, fraction); }
static void normal(const cq_noise *s, uint32_t g, float *out) { group(s, g, out, inverse); }

void cq_noise_uniform_f32_avx2(const cq_noise *s, uint64_t first, size_t n, float *out) {
    cq_noise_run(s, first, n, out, uniform);
}

void cq_noise_normal_f32_avx2(const cq_noise *s, uint64_t first, size_t n, float *out) {
    cq_noise_run(s, first, n, out, normal);
}

#include "core/isa_end.h"
#endif
