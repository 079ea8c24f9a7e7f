/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen floats at a time; a bfloat16 is the upper half of a float. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

typedef __m512 vec;
enum { LANES = 16, WIDE = 4 };

CQ_INLINE vec none(void) { return _mm512_setzero_ps(); }
CQ_INLINE vec spread(float x) { return _mm512_set1_ps(x); }
CQ_INLINE vec madd(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
CQ_INLINE __m128 fold(vec v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
CQ_INLINE void totals(const vec *v, const size_t count, float *out, size_t stride) {
    if (count == 4) {
        const __m128 low = _mm_hadd_ps(fold(v[0]), fold(v[1]));
        const __m128 all = _mm_hadd_ps(low, _mm_hadd_ps(fold(v[2]), fold(v[3])));
        _mm_store_ss(out, all);
        _mm_store_ss(out + stride, _mm_movehdup_ps(all));
        _mm_store_ss(out + 2 * stride, _mm_movehl_ps(all, all));
        _mm_store_ss(out + 3 * stride, _mm_permute_ps(all, 3));
    } else {
        *out = _mm512_reduce_add_ps(*v);
    }
}
CQ_INLINE vec some(const void *p, size_t left, const int bf16) {
    const __mmask16 mask = cq_tail_mask(left);
    if (!bf16) return _mm512_maskz_loadu_ps(mask, p);
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
CQ_INLINE void put(float *p, size_t left, vec v) {
    _mm512_mask_storeu_ps(p, cq_tail_mask(left), v);
}

#include "kernels/attend/rows.h"

void cq_attend_scores_avx512(const cq_attend_head *h) { attend_scores(h); }

void cq_attend_values_avx512(const cq_attend_head *h) { attend_values(h); }

#include "core/isa_end.h"
#endif
