/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen elements at a time, tails by mask: lanes that are not there add 0 to the sums. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

/* cq_exp of activation.h. */
CQ_INLINE __m512 exponential(__m512 x) {
    const __m512 magic = _mm512_set1_ps(12582912.0f);
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), x); /* NaN passes through */
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);
    const __m512 t = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504f), magic);
    const __m512 n = _mm512_sub_ps(t, magic);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p =
        _mm512_fmadd_ps(_mm512_set1_ps(1.9875691500e-4f), r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
    p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
    const __m512i power =
        _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(0x4B400000 - 127));
    return _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(power, 23)));
}

CQ_INLINE void forward(const cq_gaussian_run *t, size_t i, __mmask16 m, __m512d *lane) {
    const __m512 mu = _mm512_maskz_loadu_ps(m, t->mu + i);
    const __m512 v = _mm512_maskz_loadu_ps(m, t->logvar + i);
    const __m512 s = exponential(_mm512_mul_ps(v, _mm512_set1_ps(0.5f)));
    __m512 kl = _mm512_add_ps(_mm512_mul_ps(mu, mu), _mm512_mul_ps(s, s));
    kl = _mm512_sub_ps(_mm512_sub_ps(kl, _mm512_set1_ps(1.0f)), v);
    kl = _mm512_maskz_mul_ps(m, kl, _mm512_set1_ps(0.5f));
    *lane = _mm512_add_pd(*lane, _mm512_cvtps_pd(_mm512_castps512_ps256(kl)));
    *lane = _mm512_add_pd(*lane, _mm512_cvtps_pd(_mm512_extractf32x8_ps(kl, 1)));
    const __m512 noise = _mm512_maskz_loadu_ps(m, t->noise + i);
    _mm512_mask_storeu_ps(t->z + i, m, _mm512_add_ps(mu, _mm512_mul_ps(s, noise)));
}

void cq_gaussian_f32_avx512(const cq_gaussian_run *t) {
    __m512d lane = _mm512_loadu_pd(t->kl);
    for (size_t i = 0; i < t->n; i += 16) forward(t, i, cq_tail_mask(t->n - i), &lane);
    _mm512_storeu_pd(t->kl, lane);
}

void cq_gaussian_bwd_f32_avx512(const cq_gaussian_run *t) {
    const __m512 half = _mm512_set1_ps(0.5f), gkl = _mm512_set1_ps(t->gkl);
    for (size_t i = 0; i < t->n; i += 16) {
        const __mmask16 m = cq_tail_mask(t->n - i);
        const __m512 gz = _mm512_maskz_loadu_ps(m, t->gz + i);
        const __m512 s = exponential(_mm512_mul_ps(_mm512_maskz_loadu_ps(m, t->logvar + i), half));
        const __m512 drawn = _mm512_mul_ps(s, _mm512_maskz_loadu_ps(m, t->noise + i));
        const __m512 wide = _mm512_sub_ps(_mm512_mul_ps(s, s), _mm512_set1_ps(1.0f));
        const __m512 g = _mm512_add_ps(_mm512_mul_ps(gz, drawn), _mm512_mul_ps(gkl, wide));
        const __m512 mu = _mm512_maskz_loadu_ps(m, t->mu + i);
        _mm512_mask_storeu_ps(t->glogvar + i, m, _mm512_mul_ps(g, half));
        _mm512_mask_storeu_ps(t->gmu + i, m, _mm512_add_ps(gz, _mm512_mul_ps(gkl, mu)));
    }
}

#include "core/isa_end.h"
#endif
