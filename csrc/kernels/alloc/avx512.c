/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen floats at a time: sets as masks, so weights of one are counted with popcnt; each half of
 * a vector is added to a register of eight double lanes, which are lanes i % 16 of the contract.
 * Measured over scalar, 64 rows of 1024: 11x. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

#include <math.h>

/* Eight floats as doubles, straight from memory: the conversion then needs no shuffle. */
CQ_INLINE __m512d wide(const float *x, __mmask16 m) {
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps((__mmask8)m, x));
}

CQ_INLINE double lanes(__m512d a, __m512d b) {
    double l[16];
    _mm512_storeu_pd(l, a);
    _mm512_storeu_pd(l + 8, b);
    return cq_alloc_lanes(l);
}

static void weighted_sums(const float *x, const float *weight, size_t n, float low, float high,
                          cq_alloc_sums *out) {
    const __m512 lo = _mm512_set1_ps(low), hi = _mm512_set1_ps(high);
    __m512d w0 = _mm512_setzero_pd(), w1 = w0, x0 = w0, x1 = w0, l0 = w0, l1 = w0, h0 = w0, h1 = w0;
    size_t downs = 0, ups = 0;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        const __mmask16 down = _mm512_mask_cmp_ps_mask(m, v, lo, _CMP_LE_OQ);
        const __mmask16 up = _mm512_mask_cmp_ps_mask(m, v, hi, _CMP_GE_OQ) & (__mmask16)~down;
        const __mmask16 in = m & (__mmask16) ~(down | up);
        const __m512d wa = wide(weight + i, m), wb = wide(weight + i + 8, m >> 8);
        downs += (size_t)__builtin_popcount(down);
        ups += (size_t)__builtin_popcount(up);
        w0 = _mm512_mask_add_pd(w0, (__mmask8)in, w0, wa);
        w1 = _mm512_mask_add_pd(w1, (__mmask8)(in >> 8), w1, wb);
        x0 = _mm512_mask_add_pd(x0, (__mmask8)in, x0, _mm512_mul_pd(wa, wide(x + i, m)));
        x1 = _mm512_mask_add_pd(x1, (__mmask8)(in >> 8), x1,
                                _mm512_mul_pd(wb, wide(x + i + 8, m >> 8)));
        l0 = _mm512_mask_add_pd(l0, (__mmask8)down, l0, wa);
        l1 = _mm512_mask_add_pd(l1, (__mmask8)(down >> 8), l1, wb);
        h0 = _mm512_mask_add_pd(h0, (__mmask8)up, h0, wa);
        h1 = _mm512_mask_add_pd(h1, (__mmask8)(up >> 8), h1, wb);
    }
    *out =
        (cq_alloc_sums){lanes(w0, w1), lanes(x0, x1), lanes(l0, l1), lanes(h0, h1), {downs, ups}};
}

void cq_alloc_sums_f32_avx512(const float *x, const float *weight, size_t n, float low, float high,
                              cq_alloc_sums *out) {
    if (weight) {
        weighted_sums(x, weight, n, low, high, out);
        return;
    }
    const __m512 lo = _mm512_set1_ps(low), hi = _mm512_set1_ps(high);
    __m512d x0 = _mm512_setzero_pd(), x1 = x0;
    size_t downs = 0, ups = 0;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        const __mmask16 down = _mm512_mask_cmp_ps_mask(m, v, lo, _CMP_LE_OQ);
        const __mmask16 up = _mm512_mask_cmp_ps_mask(m, v, hi, _CMP_GE_OQ) & (__mmask16)~down;
        const __mmask16 in = (__mmask16) ~(down | up);
        x0 = _mm512_mask_add_pd(x0, (__mmask8)in, x0, wide(x + i, m));
        x1 = _mm512_mask_add_pd(x1, (__mmask8)(in >> 8), x1, wide(x + i + 8, m >> 8));
        downs += (size_t)__builtin_popcount(down);
        ups += (size_t)__builtin_popcount(up);
    }
    *out = (cq_alloc_sums){
        (double)(n - downs - ups), lanes(x0, x1), (double)downs, (double)ups, {downs, ups}};
}

void cq_alloc_guess_f32_avx512(const float *x, size_t n, float low, float high,
                               cq_alloc_sums *out) {
    const __m512 lo = _mm512_set1_ps(low), hi = _mm512_set1_ps(high);
    __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                     _mm512_setzero_ps()};
    size_t downs = 0, ups = 0;
    __mmask16 odd = 0;
    for (size_t i = 0; i < n; i += 64) {
        uint64_t down = 0, up = 0;
        for (size_t l = 0; l < 4; l++) {
            const __mmask16 m = i + 16 * l < n ? cq_tail_mask(n - i - 16 * l) : 0;
            const __m512 v = _mm512_maskz_loadu_ps(m, x + i + 16 * l);
            const __mmask16 d = _mm512_mask_cmp_ps_mask(m, v, lo, _CMP_LE_OQ);
            const __mmask16 u = _mm512_mask_cmp_ps_mask(m, v, hi, _CMP_GE_OQ);
            sum[l] = _mm512_mask_add_ps(sum[l], (__mmask16) ~(d | u), sum[l], v);
            odd |= _mm512_fpclass_ps_mask(v, 0x99); /* NaN, infinity */
            down |= (uint64_t)d << (16 * l);
            up |= (uint64_t)u << (16 * l);
        }
        downs += (size_t)__builtin_popcountll(down);
        ups += (size_t)__builtin_popcountll(up);
    }
    float lane[64];
    for (size_t l = 0; l < 4; l++) _mm512_storeu_ps(lane + 16 * l, sum[l]);
    *out = (cq_alloc_sums){(double)n - (double)downs - (double)ups,
                           odd ? (double)NAN : (double)cq_alloc_lanes_f32(lane),
                           (double)downs,
                           (double)ups,
                           {downs, ups}};
}

void cq_alloc_shift_f32_avx512(const float *x, size_t n, double tau, const float *range, float *out,
                               size_t *ends) {
    const __m512 main = _mm512_set1_ps((float)tau);
    const __m512 rest = _mm512_set1_ps((float)(tau - (double)(float)tau));
    const __m512 lo = _mm512_set1_ps(range[0]), hi = _mm512_set1_ps(range[1]);
    const __m512 low = _mm512_set1_ps(range[2]), high = _mm512_set1_ps(range[3]);
    size_t downs = 0, ups = 0;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        downs += (size_t)__builtin_popcount(_mm512_mask_cmp_ps_mask(m, v, low, _CMP_LE_OQ));
        ups += (size_t)__builtin_popcount(_mm512_mask_cmp_ps_mask(m, v, high, _CMP_GE_OQ));
        const __m512 s = _mm512_add_ps(_mm512_add_ps(v, main), rest);
        const __m512 c = _mm512_min_ps(hi, _mm512_max_ps(lo, s));
        _mm512_mask_storeu_ps(out + i, m, _mm512_add_ps(c, _mm512_setzero_ps()));
    }
    ends[0] = downs;
    ends[1] = ups;
}

CQ_INLINE __mmask16 between(const float *b, float lo, float hi, __mmask16 m) {
    const __m512 v = _mm512_maskz_loadu_ps(m, b);
    return _mm512_mask_cmp_ps_mask(m, v, _mm512_set1_ps(lo), _CMP_GT_OQ) &
           _mm512_cmp_ps_mask(v, _mm512_set1_ps(hi), _CMP_LT_OQ);
}

void cq_alloc_project_bwd_f32_row_avx512(const float *g, const float *b, const float *weight,
                                         size_t n, float lo, float hi, float *gx) {
    __m512d g0 = _mm512_setzero_pd(), g1 = g0, w0 = g0, w1 = g0;
    size_t count = 0;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i), in = between(b + i, lo, hi, m);
        g0 = _mm512_mask_add_pd(g0, (__mmask8)in, g0, wide(g + i, m));
        g1 = _mm512_mask_add_pd(g1, (__mmask8)(in >> 8), g1, wide(g + i + 8, m >> 8));
        count += (size_t)__builtin_popcount(in);
        if (!weight) continue;
        w0 = _mm512_mask_add_pd(w0, (__mmask8)in, w0, wide(weight + i, m));
        w1 = _mm512_mask_add_pd(w1, (__mmask8)(in >> 8), w1, wide(weight + i + 8, m >> 8));
    }
    const double free_w = weight ? lanes(w0, w1) : (double)count;
    const __m512 mean = _mm512_set1_ps(free_w > 0.0 ? (float)(lanes(g0, g1) / free_w) : 0.0f);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = cq_tail_mask(n - i), in = between(b + i, lo, hi, m);
        const __m512 gv = _mm512_maskz_loadu_ps(in, g + i);
        const __m512 part =
            weight ? _mm512_mul_ps(_mm512_maskz_loadu_ps(in, weight + i), mean) : mean;
        _mm512_mask_storeu_ps(gx + i, m, _mm512_maskz_sub_ps(in, gv, part));
    }
}

#include "core/isa_end.h"
#endif
