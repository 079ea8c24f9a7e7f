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

/* ((0+4)+(2+6)) + ((1+5)+(3+7)) of the sums of both registers: cq_alloc_lanes without memory. */
CQ_INLINE double lanes(__m512d a, __m512d b) {
    a = _mm512_add_pd(a, b);
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

/* cq_alloc_lanes_f32 of 64 lanes. */
CQ_INLINE float lanes_f32(__m512 a, __m512 b, __m512 c, __m512 d) {
    a = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
    const __m256 l = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(l), _mm256_extractf128_ps(l, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

CQ_INLINE size_t ones(uint32_t mask) { return (size_t)__builtin_popcount(mask); }

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

typedef struct unit_sums {
    __m512d even, odd; /* of the free x, lanes i % 16 */
    size_t downs, ups;
} unit_sums;

CQ_INLINE void sixteen_sums(const float *x, __mmask16 m, __m512 lo, __m512 hi, unit_sums *t) {
    const __m512 v = _mm512_maskz_loadu_ps(m, x);
    const __mmask16 down = _mm512_mask_cmp_ps_mask(m, v, lo, _CMP_LE_OQ);
    const __mmask16 up = _mm512_mask_cmp_ps_mask(m, v, hi, _CMP_GE_OQ) & (__mmask16)~down;
    const __mmask16 in = (__mmask16) ~(down | up);
    t->even = _mm512_mask_add_pd(t->even, (__mmask8)in, t->even, wide(x, m));
    t->odd = _mm512_mask_add_pd(t->odd, (__mmask8)(in >> 8), t->odd, wide(x + 8, m >> 8));
    t->downs += ones(down);
    t->ups += ones(up);
}

void cq_alloc_sums_f32_avx512(const float *x, const float *weight, size_t n, float low, float high,
                              cq_alloc_sums *out) {
    if (weight) {
        weighted_sums(x, weight, n, low, high, out);
        return;
    }
    const __m512 lo = _mm512_set1_ps(low), hi = _mm512_set1_ps(high);
    unit_sums t = {_mm512_setzero_pd(), _mm512_setzero_pd(), 0, 0};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) sixteen_sums(x + i, 0xFFFF, lo, hi, &t);
    if (i < n) sixteen_sums(x + i, cq_tail_mask(n - i), lo, hi, &t);
    const double in = (double)(n - t.downs - t.ups), sum = lanes(t.even, t.odd);
    *out = (cq_alloc_sums){in, sum, (double)t.downs, (double)t.ups, {t.downs, t.ups}};
}

typedef struct guess {
    __m512 sum, odd; /* odd: NaN where some x is NaN or infinite */
} guess;

CQ_INLINE size_t sixteen_guess(const float *x, __mmask16 m, __m512 lo, __m512 hi, guess *g) {
    const __m512 v = _mm512_maskz_loadu_ps(m, x);
    const __m512 c = _mm512_min_ps(hi, _mm512_max_ps(lo, v));
    g->sum = _mm512_mask_add_ps(g->sum, m, g->sum, c);
    g->odd = _mm512_fmadd_ps(v, _mm512_setzero_ps(), g->odd);
    return ones(_mm512_mask_cmp_ps_mask(m, c, v, _CMP_EQ_OQ));
}

void cq_alloc_guess_f32_avx512(const float *x, size_t n, float low, float high, float *sum,
                               size_t *inside) {
    const __m512 lo = _mm512_set1_ps(low), hi = _mm512_set1_ps(high), zero = _mm512_setzero_ps();
    guess a = {zero, zero}, b = a, c = a, d = a;
    size_t in = 0, i = 0;
    for (; i + 64 <= n; i += 64) {
        in += sixteen_guess(x + i, 0xFFFF, lo, hi, &a);
        in += sixteen_guess(x + i + 16, 0xFFFF, lo, hi, &b);
        in += sixteen_guess(x + i + 32, 0xFFFF, lo, hi, &c);
        in += sixteen_guess(x + i + 48, 0xFFFF, lo, hi, &d);
    }
    for (guess *g[4] = {&a, &b, &c, &d}, **at = g; i < n; i += 16, at++)
        in += sixteen_guess(x + i, cq_tail_mask(n - i), lo, hi, *at);
    const __m512 odd = _mm512_add_ps(_mm512_add_ps(a.odd, b.odd), _mm512_add_ps(c.odd, d.odd));
    const int whole = !_mm512_cmp_ps_mask(odd, odd, _CMP_UNORD_Q);
    *sum = whole ? lanes_f32(a.sum, b.sum, c.sum, d.sum) : NAN;
    *inside = in;
}

typedef struct shift {
    __m512 main, rest, lo, hi, low, high;
    size_t downs, ups;
} shift;

CQ_INLINE void sixteen_shift(const float *x, float *out, __mmask16 m, shift *p) {
    const __m512 v = _mm512_maskz_loadu_ps(m, x);
    p->downs += ones(_mm512_mask_cmp_ps_mask(m, v, p->low, _CMP_LE_OQ));
    p->ups += ones(_mm512_mask_cmp_ps_mask(m, v, p->high, _CMP_GE_OQ));
    const __m512 s = _mm512_add_ps(_mm512_add_ps(v, p->main), p->rest);
    const __m512 c = _mm512_min_ps(p->hi, _mm512_max_ps(p->lo, s));
    _mm512_mask_storeu_ps(out, m, _mm512_add_ps(c, _mm512_setzero_ps()));
}

void cq_alloc_shift_f32_avx512(const float *x, size_t n, double tau, const float *range, float *out,
                               size_t *ends) {
    shift p = {.main = _mm512_set1_ps((float)tau),
               .rest = _mm512_set1_ps((float)(tau - (double)(float)tau)),
               .lo = _mm512_set1_ps(range[0]),
               .hi = _mm512_set1_ps(range[1]),
               .low = _mm512_set1_ps(range[2]),
               .high = _mm512_set1_ps(range[3])};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) sixteen_shift(x + i, out + i, 0xFFFF, &p);
    if (i < n) sixteen_shift(x + i, out + i, cq_tail_mask(n - i), &p);
    ends[0] = p.downs;
    ends[1] = p.ups;
}

CQ_INLINE __mmask16 between(const float *b, float lo, float hi, __mmask16 m) {
    const __m512 v = _mm512_maskz_loadu_ps(m, b);
    m = _mm512_mask_cmp_ps_mask(m, v, _mm512_set1_ps(lo), _CMP_GT_OQ);
    return _mm512_mask_cmp_ps_mask(m, v, _mm512_set1_ps(hi), _CMP_LT_OQ);
}

typedef struct free_sums {
    __m512d even, odd;
} free_sums;

CQ_INLINE void sixteen_free(const float *g, __mmask16 in, free_sums *s) {
    s->even = _mm512_mask_add_pd(s->even, (__mmask8)in, s->even, wide(g, in));
    s->odd = _mm512_mask_add_pd(s->odd, (__mmask8)(in >> 8), s->odd, wide(g + 8, in >> 8));
}

void cq_alloc_bwd_sums_f32_avx512(const float *g, const float *b, const float *weight, size_t n,
                                  float lo, float hi, double *sums) {
    free_sums sum = {_mm512_setzero_pd(), _mm512_setzero_pd()}, w = sum;
    const size_t whole = n - n % 16;
    const __mmask16 tail = cq_tail_mask(n - whole);
    size_t count = 0;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 in = between(b + i, lo, hi, i < whole ? 0xFFFF : tail);
        sixteen_free(g + i, in, &sum);
        count += ones(in);
        if (weight) sixteen_free(weight + i, in, &w);
    }
    sums[0] = lanes(sum.even, sum.odd);
    sums[1] = weight ? lanes(w.even, w.odd) : (double)count;
}

void cq_alloc_bwd_f32_avx512(const float *g, const float *b, const float *weight, size_t n,
                             float lo, float hi, float mean, float *gx) {
    const size_t whole = n - n % 16;
    const __mmask16 tail = cq_tail_mask(n - whole);
    const __m512 m = _mm512_set1_ps(mean);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 here = i < whole ? 0xFFFF : tail, in = between(b + i, lo, hi, here);
        const __m512 gv = _mm512_maskz_loadu_ps(in, g + i);
        const __m512 part = weight ? _mm512_mul_ps(_mm512_maskz_loadu_ps(in, weight + i), m) : m;
        _mm512_mask_storeu_ps(gx + i, here, _mm512_maskz_sub_ps(in, gv, part));
    }
}

#include "core/isa_end.h"
#endif
