/* SPDX-License-Identifier: Apache-2.0 */
/* Signed codes without the division, the slowest part: x * (1 / scale) is within 2**-15 of x /
 * scale for values that round to a code, so both round alike unless one is that near a tie; such
 * vectors (one in 500 of random data) are divided. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

CQ_INLINE __m512 clamp(__m512 v) {
    return _mm512_min_ps(_mm512_set1_ps(127.0f), _mm512_max_ps(_mm512_set1_ps(-128.0f), v));
}

/* Codes of 16 values; NaN, which passes max and min in this order of operands, becomes 0. */
CQ_INLINE __m512i encode(__m512 x, __m512 scale, __m512 inverse, const int divide) {
    const __m512 near_half = _mm512_set1_ps(0.5f - 0x1p-14f);
    __m512 v = divide ? _mm512_div_ps(x, scale) : _mm512_mul_ps(x, inverse);
    __m512 c = clamp(v);
    const __m512 rest = _mm512_abs_ps(_mm512_sub_ps(c, _mm512_roundscale_ps(c, 0)));
    if (!divide && _mm512_cmp_ps_mask(rest, near_half, _CMP_GT_OQ)) {
        v = _mm512_div_ps(x, scale);
        c = clamp(v);
    }
    return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), c);
}

CQ_INLINE void codes(const float *x, int8_t *out, size_t n, float step, const int divide) {
    const __m512 scale = _mm512_set1_ps(step), inverse = _mm512_set1_ps(1.0f / step);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m512i a = encode(_mm512_loadu_ps(x + i), scale, inverse, divide);
        const __m512i b = encode(_mm512_loadu_ps(x + i + 16), scale, inverse, divide);
        const __m512i c = encode(_mm512_loadu_ps(x + i + 32), scale, inverse, divide);
        const __m512i d = encode(_mm512_loadu_ps(x + i + 48), scale, inverse, divide);
        const __m512i all = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        _mm512_storeu_si512((void *)(out + i), _mm512_permutexvar_epi32(order, all));
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = cq_tail_mask(n - i);
        const __m512i a = encode(_mm512_maskz_loadu_ps(mask, x + i), scale, inverse, divide);
        _mm_mask_storeu_epi8(out + i, mask, _mm512_cvtsepi32_epi8(a));
    }
}

void cq_codes_f32_s8_row_avx512(const float *x, int8_t *out, size_t n, float scale) {
    if (scale > 0x1p-100f && scale < 0x1p100f)
        codes(x, out, n, scale, 0);
    else
        codes(x, out, n, scale, 1);
}

#include "core/isa_end.h"
#endif
