/* SPDX-License-Identifier: Apache-2.0 */
/* f32_digits: with 0x00808080 added, the bytes of a dword of q are its digits plus 128 (the highest
 * as it is); vpmovdb takes each of them out of 16 dwords. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

#include "kernels/qlinear/digits.h"

static uint32_t largest(const float *x, size_t n) {
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i most = _mm512_setzero_si512();
    for (size_t k = 0; k < n; k += 16) {
        const __m512i bits = _mm512_maskz_loadu_epi32(cq_tail_mask(n - k), (const void *)(x + k));
        most = _mm512_max_epu32(most, _mm512_and_si512(bits, magnitude));
    }
    return _mm512_reduce_max_epu32(most);
}

/* Digits of n inputs to t->x from k on; factor 0 for a block with NaN or infinity. */
static void put_block(const float *x, size_t n, float factor, const cq_qlinear_digits *t, size_t k,
                      int32_t *sum) {
    const __m512i bias = _mm512_set1_epi32(0x00808080), half = _mm512_set1_epi32(0xFFFF);
    const __m512 by = _mm512_set1_ps(factor);
    __m512i high = _mm512_setzero_si512(), low = high;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(factor != 0.0f ? m : 0, x + i);
        const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, by));
        const __m512i d = _mm512_add_epi32(q, bias), digits = _mm512_xor_si512(d, bias);
        high = _mm512_mask_add_epi32(high, m, high, _mm512_srai_epi32(d, 16));
        low = _mm512_mask_add_epi32(low, m, low, _mm512_and_si512(d, half));
        int8_t *to = t->x + k + i;
        _mm512_mask_cvtepi32_storeu_epi8(to, m, digits);
        _mm512_mask_cvtepi32_storeu_epi8(to + t->ldx, m, _mm512_srli_epi32(digits, 8));
        _mm512_mask_cvtepi32_storeu_epi8(to + 2 * t->ldx, m, _mm512_srli_epi32(digits, 16));
        _mm512_mask_cvtepi32_storeu_epi8(to + 3 * t->ldx, m, _mm512_srli_epi32(digits, 24));
    }
    sum[0] = _mm512_reduce_add_epi32(high) - (int32_t)n * 0x80;
    sum[1] = _mm512_reduce_add_epi32(low) - (int32_t)n * 0x8080;
}

void cq_qlinear_f32_digits_avx512(const float *x, const cq_qlinear_digits *t) {
    cq_digits_any(x, t, largest, put_block);
}

#include "core/isa_end.h"
#endif
