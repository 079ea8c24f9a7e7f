/* SPDX-License-Identifier: Apache-2.0 */
/* s8_finish: 8 columns in 64-bit lanes; what belongs to the columns stays in registers for all
 * rows. Left to gcc 12 the loop is not vectorised and takes over three times as long. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

typedef struct columns {
    __m512i bias, multiplier, shift, one, rest; /* one: 2^shift; rest: its mask */
    __m512i lo, hi, zero;
} columns;

CQ_INLINE __m512i wide(__mmask8 m, const int32_t *x) {
    return _mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(m, x));
}

CQ_INLINE __m512i requantise(const columns *s, __m512i sum) {
    const __m512i unit = _mm512_set1_epi64(1);
    const __m512i p = _mm512_mullo_epi64(_mm512_add_epi64(sum, s->bias), s->multiplier);
    const __m512i rest = _mm512_and_si512(p, s->rest);
    __m512i v = _mm512_srav_epi64(p, s->shift);
    const __m512i twice = _mm512_add_epi64(_mm512_add_epi64(rest, rest), _mm512_and_si512(v, unit));
    v = _mm512_mask_add_epi64(v, _mm512_cmpgt_epi64_mask(twice, s->one), v, unit);
    v = _mm512_min_epi64(_mm512_max_epi64(v, s->lo), s->hi);
    return _mm512_add_epi64(v, s->zero);
}

void cq_gemm_s8_finish_avx512(const cq_gemm_requant *r, const int32_t *c, size_t ldc, size_t m,
                              size_t n, int8_t *out, size_t ldo) {
    const __m512i unit = _mm512_set1_epi64(1);
    for (size_t j = 0; j < n; j += 8) {
        const __mmask8 k = (__mmask8)(n - j >= 8 ? 0xFFu : (1u << (n - j)) - 1u);
        columns s = {.multiplier = wide(k, r->multiplier + j), .shift = wide(k, r->shift + j)};
        s.bias = r->bias ? wide(k, r->bias + j) : _mm512_setzero_si512();
        s.one = _mm512_sllv_epi64(unit, s.shift);
        s.rest = _mm512_sub_epi64(s.one, unit);
        s.lo = _mm512_set1_epi64(r->lo - r->zero);
        s.hi = _mm512_set1_epi64(r->hi - r->zero);
        s.zero = _mm512_set1_epi64(r->zero);
        for (size_t i = 0; i < m; i++)
            _mm512_mask_cvtepi64_storeu_epi8(out + i * ldo + j, k,
                                             requantise(&s, wide(k, c + i * ldc + j)));
    }
}

#include "core/isa_end.h"
#endif
