/* SPDX-License-Identifier: Apache-2.0 */
/* Places are found for sixteen floats at a time; counting stays scalar, in four tables, so that
 * equal neighbours do not wait for each other. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/histogram.h"
#include "core/isa_begin_avx512.h"

CQ_INLINE void count16(uint32_t *bins, size_t size, const uint32_t *at) {
    for (size_t l = 0; l < 16; l += 4) {
        bins[at[l]]++;
        bins[size + at[l + 1]]++;
        bins[2 * size + at[l + 2]]++;
        bins[3 * size + at[l + 3]]++;
    }
}

CQ_INLINE __m512i keys_of(__m512 v) {
    const __m512i u = _mm512_castps_si512(_mm512_add_ps(v, _mm512_setzero_ps()));
    const __m512i flip = _mm512_or_si512(_mm512_srai_epi32(u, 31), _mm512_set1_epi32(INT32_MIN));
    return _mm512_xor_si512(u, flip);
}

void cq_histogram_f32_avx512(const float *x, size_t n, float scale, int64_t first, size_t size,
                             uint32_t *bins) {
    if (first < -(1 << 30) || first > 1 << 30) { /* far from zero: places do not fit in 32 bits */
        cq_histogram_f32_scalar(x, n, scale, first, size, bins);
        return;
    }
    const __m512 s = _mm512_set1_ps(scale);
    const __m512i from = _mm512_set1_epi32((int)first);
    uint32_t at[16];
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512 v = _mm512_loadu_ps(x + i);
        __m512i place = _mm512_cvt_roundps_epi32(_mm512_mul_ps(v, s),
                                                 _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        const __mmask16 under = _mm512_testn_epi32_mask(place, place) &
                                _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ);
        place = _mm512_mask_sub_epi32(place, under, place, _mm512_set1_epi32(1));
        _mm512_storeu_si512(at, _mm512_sub_epi32(place, from));
        count16(bins, size, at);
    }
    cq_histogram_f32_scalar(x + i, n - i, scale, first, size, bins);
}

void cq_histogram_digits_f32_avx512(const float *x, size_t n, uint32_t *bins) {
    uint32_t at[16];
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        _mm512_storeu_si512(at, _mm512_srli_epi32(keys_of(_mm512_loadu_ps(x + i)), 21));
        count16(bins, CQ_DIGIT_BINS, at);
    }
    cq_histogram_digits_f32_scalar(x + i, n - i, bins);
}

void cq_histogram_gather_f32_avx512(const float *x, size_t n, uint32_t digit, uint32_t *keys,
                                    size_t *count) {
    const __m512i want = _mm512_set1_epi32((int)digit);
    size_t found = 0;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512i key = keys_of(_mm512_maskz_loadu_ps(m, x + i));
        const __mmask16 hit = _mm512_mask_cmpeq_epi32_mask(m, _mm512_srli_epi32(key, 21), want);
        if (!hit) continue;
        const size_t more = (size_t)__builtin_popcount(hit);
        _mm512_mask_storeu_epi32(keys + found, cq_tail_mask(more),
                                 _mm512_maskz_compress_epi32(hit, key));
        found += more;
    }
    *count = found;
}

#include "core/isa_end.h"
#endif
