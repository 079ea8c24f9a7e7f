/* SPDX-License-Identifier: Apache-2.0 */
/* Eight floats at a time, tails one by one with the same formulas. min/max return their second
 * operand on NaN, so NaN stays out of a range and passes a clamp. */
#include "core/dispatch.h"
#if CQ_X86
#include "kernels/scaleloss/scaleloss.h"

#include <math.h>

#include "core/isa_begin_avx2.h"

CQ_INLINE __m256 fake(__m256 v, cq_affine p) {
    const __m256 step = _mm256_set1_ps(p.scale), lo = _mm256_set1_ps(p.lo);
    v = _mm256_max_ps(lo, _mm256_div_ps(v, step));
    v = _mm256_min_ps(_mm256_set1_ps(p.hi), v);
    v = _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_add_ps(_mm256_mul_ps(v, step), _mm256_setzero_ps());
}

CQ_INLINE float fake_one(float v, cq_affine p) {
    return cq_rint_small(cq_clampf(v / p.scale, p.lo, p.hi)) * p.scale + 0.0f;
}

CQ_INLINE float smallest(__m256 v) {
    float l[8];
    _mm256_storeu_ps(l, v);
    for (int i = 1; i < 8; i++) l[0] = l[i] < l[0] ? l[i] : l[0];
    return l[0];
}

CQ_INLINE float largest(__m256 v) {
    float l[8];
    _mm256_storeu_ps(l, v);
    for (int i = 1; i < 8; i++) l[0] = l[i] > l[0] ? l[i] : l[0];
    return l[0];
}

CQ_INLINE cq_affine range(const float *w, const float *s, size_t n, int bits, int mode) {
    __m256 low = _mm256_set1_ps(INFINITY), high = _mm256_set1_ps(-INFINITY);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(w + i), _mm256_loadu_ps(s + i));
        low = _mm256_min_ps(v, low);
        high = _mm256_max_ps(v, high);
    }
    float mn = smallest(low), mx = largest(high);
    for (; i < n; i++) {
        const float v = w[i] * s[i];
        mn = v < mn ? v : mn;
        mx = v > mx ? v : mx;
    }
    return cq_scaleloss_grid(mn, mx, bits, mode);
}

void cq_scaleloss_weight_f32_avx2(const float *w, const float *s, size_t n, int bits, int mode,
                                  float *err, float *scaled) {
    const cq_affine p = range(w, s, n, bits, mode);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 sv = _mm256_loadu_ps(s + i), wv = _mm256_loadu_ps(w + i);
        const __m256 v = _mm256_mul_ps(wv, sv), q = fake(v, p);
        if (scaled) {
            _mm256_storeu_ps(err + i, _mm256_sub_ps(q, v));
            _mm256_storeu_ps(scaled + i, v);
        } else {
            _mm256_storeu_ps(err + i, _mm256_sub_ps(_mm256_div_ps(q, sv), wv));
        }
    }
    for (; i < n; i++) {
        const float v = w[i] * s[i], q = fake_one(v, p);
        err[i] = scaled ? q - v : q / s[i] - w[i];
        if (scaled) scaled[i] = v;
    }
}

void cq_scaleloss_token_f32_avx2(const float *x, const float *s, size_t n, int bits, float *hat,
                                 float *err) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 high = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_div_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(s + i));
        high = _mm256_max_ps(_mm256_andnot_ps(sign, v), high);
        _mm256_storeu_ps(hat + i, v);
    }
    float top = largest(high);
    for (; i < n; i++) {
        hat[i] = x[i] / s[i];
        top = fabsf(hat[i]) > top ? fabsf(hat[i]) : top;
    }
    const cq_affine p = cq_scaleloss_token_grid(top, bits);
    for (i = 0; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_loadu_ps(hat + i), q = fake(v, p);
        _mm256_storeu_ps(hat + i, q);
        _mm256_storeu_ps(err + i, _mm256_sub_ps(q, v));
    }
    for (; i < n; i++) {
        const float v = hat[i];
        hat[i] = fake_one(v, p);
        err[i] = hat[i] - v;
    }
}

CQ_INLINE __m256d powered(__m256 a, __m256 b, int high, int kind) {
    const __m256d u =
        _mm256_cvtps_pd(high ? _mm256_extractf128_ps(a, 1) : _mm256_castps256_ps128(a));
    const __m256d v =
        _mm256_cvtps_pd(high ? _mm256_extractf128_ps(b, 1) : _mm256_castps256_ps128(b));
    if (kind) return _mm256_add_pd(_mm256_mul_pd(u, u), _mm256_mul_pd(v, v));
    const __m256d sign = _mm256_set1_pd(-0.0);
    return _mm256_add_pd(_mm256_andnot_pd(sign, u), _mm256_andnot_pd(sign, v));
}

CQ_INLINE double ordered_sum(__m256 a, __m256 b, int kind) {
    double l[4]; /* lanes 0..3 plus lanes 4..7 */
    _mm256_storeu_pd(l, _mm256_add_pd(powered(a, b, 0, kind), powered(a, b, 1, kind)));
    return (l[0] + l[2]) + (l[1] + l[3]);
}

void cq_scaleloss_power_f32_avx2(const float *e, size_t m, int kind, double *row) {
    for (size_t r = 0; r < m; r++, e += CQ_PANEL) {
        const double first = ordered_sum(_mm256_loadu_ps(e), _mm256_loadu_ps(e + 8), kind);
        row[r] += first + ordered_sum(_mm256_loadu_ps(e + 16), _mm256_loadu_ps(e + 24), kind);
    }
}

#include "core/isa_end.h"
#endif
