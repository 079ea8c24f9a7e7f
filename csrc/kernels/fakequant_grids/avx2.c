/* SPDX-License-Identifier: Apache-2.0 */
/* Eight floats at a time, tails by the scalar kernel; plain stores. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

typedef struct grid {
    __m256 s, lo, hi;
} grid;

typedef __m256 (*rounding)(__m256 x, grid p);

CQ_INLINE __m256 nearest_power(__m256 x, grid p) {
    const __m256 sign = _mm256_set1_ps(-0.0f), zero = _mm256_setzero_ps();
    const __m256i v = _mm256_castps_si256(_mm256_andnot_ps(sign, _mm256_div_ps(x, p.s)));
    const __m256i k = _mm256_srli_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(0x4AFB0C)), 23);
    __m256 e = _mm256_cvtepi32_ps(_mm256_sub_epi32(k, _mm256_set1_epi32(127)));
    e = _mm256_min_ps(p.hi, _mm256_max_ps(p.lo, e));
    const __m256i biased = _mm256_add_epi32(_mm256_cvttps_epi32(e), _mm256_set1_epi32(127));
    const __m256 power = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)), p.s);
    const __m256 with_sign = _mm256_or_ps(power, _mm256_and_ps(sign, x));
    const __m256 or_zero = _mm256_and_ps(with_sign, _mm256_cmp_ps(x, zero, _CMP_NEQ_UQ));
    return _mm256_blendv_ps(or_zero, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

CQ_INLINE __m256 compatible(__m256 x, grid p) {
    const __m256 v = _mm256_mul_ps(x, _mm256_div_ps(_mm256_set1_ps(1.0f), p.s));
    const __m256 r = _mm256_round_ps(_mm256_min_ps(p.hi, _mm256_max_ps(p.lo, v)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_add_ps(_mm256_mul_ps(r, p.s), _mm256_setzero_ps());
}

CQ_INLINE void rows(const cq_fakequant_block *b, rounding round,
                    void (*plain)(const cq_fakequant_block *)) {
    for (size_t r = 0; r < b->rows; r++) {
        const size_t at = r * b->cols;
        const grid p = {_mm256_set1_ps(b->scale[r]), _mm256_set1_ps(b->lo[r]),
                        _mm256_set1_ps(b->hi[r])};
        size_t i = 0;
        for (; i + 8 <= b->cols; i += 8)
            _mm256_storeu_ps(b->out + at + i, round(_mm256_loadu_ps(b->x + at + i), p));
        const cq_fakequant_block rest = {.x = b->x + at + i,
                                         .out = b->out + at + i,
                                         .scale = b->scale + r,
                                         .lo = b->lo + r,
                                         .hi = b->hi + r,
                                         .rows = 1,
                                         .cols = b->cols - i};
        plain(&rest);
    }
}

CQ_INLINE void cols(const cq_fakequant_block *b, rounding round,
                    void (*plain)(const cq_fakequant_block *)) {
    for (size_t r = 0; r < b->rows; r++) {
        const size_t at = r * b->cols;
        size_t i = 0;
        for (; i + 8 <= b->cols; i += 8) {
            const grid p = {_mm256_loadu_ps(b->scale + i), _mm256_loadu_ps(b->lo + i),
                            _mm256_loadu_ps(b->hi + i)};
            _mm256_storeu_ps(b->out + at + i, round(_mm256_loadu_ps(b->x + at + i), p));
        }
        const cq_fakequant_block rest = {.x = b->x + at + i,
                                         .out = b->out + at + i,
                                         .scale = b->scale + i,
                                         .lo = b->lo + i,
                                         .hi = b->hi + i,
                                         .rows = 1,
                                         .cols = b->cols - i};
        plain(&rest);
    }
}

void cq_fakequant_log2_f32_row_avx2(const cq_fakequant_block *b) {
    rows(b, nearest_power, cq_fakequant_log2_f32_row_scalar);
}

void cq_fakequant_log2_f32_col_avx2(const cq_fakequant_block *b) {
    cols(b, nearest_power, cq_fakequant_log2_f32_col_scalar);
}

void cq_fakequant_compat_f32_row_avx2(const cq_fakequant_block *b) {
    rows(b, compatible, cq_fakequant_compat_f32_row_scalar);
}

void cq_fakequant_compat_f32_col_avx2(const cq_fakequant_block *b) {
    cols(b, compatible, cq_fakequant_compat_f32_col_scalar);
}

#include "core/isa_end.h"
#endif
