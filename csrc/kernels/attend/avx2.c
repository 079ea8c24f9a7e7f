/* SPDX-License-Identifier: Apache-2.0 */
/* Eight floats at a time; what is past a row's end is read into a vector of zeros. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

#include <string.h>

typedef __m256 vec;
enum { LANES = 8, WIDE = 2 };

CQ_INLINE vec none(void) { return _mm256_setzero_ps(); }
CQ_INLINE vec spread(float x) { return _mm256_set1_ps(x); }
CQ_INLINE vec madd(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
CQ_INLINE float total(vec v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
CQ_INLINE void totals(const vec *v, const size_t count, float *out, size_t stride) {
    for (size_t r = 0; r < count; r++) out[r * stride] = total(v[r]);
}
CQ_INLINE vec some(const void *p, size_t left, const int bf16) {
    uint32_t room[LANES] = {0};
    const void *from = p;
    if (left < LANES) {
        memcpy(room, p, left * (bf16 ? 2 : 4));
        from = room;
    }
    if (!bf16) return _mm256_loadu_ps(from);
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}
CQ_INLINE void put(float *p, size_t left, vec v) {
    float room[LANES];
    _mm256_storeu_ps(room, v);
    memcpy(p, room, cq_min_size(left, LANES) * sizeof(float));
}

#include "kernels/attend/rows.h"

void cq_attend_scores_avx2(const cq_attend_head *h) { attend_scores(h); }

void cq_attend_values_avx2(const cq_attend_head *h) { attend_values(h); }

#include "core/isa_end.h"
#endif
