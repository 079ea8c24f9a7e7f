/* SPDX-License-Identifier: Apache-2.0 */
/* The table is read as one stream of floats. Which lanes of a vector are last options repeats after
 * m vectors (16 m floats), so masks and gaps come from tables of m entries. A step is compared with
 * the one before it by shifting in the last lane of the vector before. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

#include <math.h>

/* For vector v of the pattern: lanes that have a step, lanes whose step has one before it. */
typedef struct pattern {
    __mmask16 step[16], second[16];
    float gap[256];
    int32_t cost[256];
} pattern;

static void make_pattern(pattern *p, size_t m, const float *gap, const int32_t *cost) {
    for (size_t v = 0, j = 0; v < m; v++) {
        p->step[v] = p->second[v] = 0;
        for (size_t l = 0; l < 16; l++, j = j + 1 == m ? 0 : j + 1) {
            p->step[v] |= (__mmask16)((j + 1 < m) << l);
            p->second[v] |= (__mmask16)((j > 0 && j + 1 < m) << l);
            if (gap) p->gap[16 * v + l] = j + 1 < m ? gap[j] : 1.0f;
            if (cost) p->cost[16 * v + l] = cost[j];
        }
    }
}

void cq_alloc_steps_f32_avx512(const float *d, size_t n, size_t m, const float *gap, float *s,
                               uint32_t *odd, size_t *count) {
    const __m512 inf = _mm512_set1_ps(INFINITY);
    const size_t len = n * m;
    pattern p;
    make_pattern(&p, m, gap, NULL);
    int same = 1;
    for (size_t j = 0; j + 1 < m; j++) same &= gap[j] == 1.0f;
    size_t found = 0, v = 0;
    __m512i before = _mm512_setzero_si512();
    for (size_t f = 0; f < len; f += 16, v = v + 1 == m ? 0 : v + 1) {
        const int full = f + 17 <= len;
        const __mmask16 here = full ? 0xFFFF : cq_tail_mask(len - f);
        const __mmask16 next = full ? 0xFFFF : cq_tail_mask(len - f - 1);
        const __mmask16 step = p.step[v] & here;
        __m512 r = _mm512_maskz_sub_ps(step, _mm512_maskz_loadu_ps(here, d + f),
                                       _mm512_maskz_loadu_ps(next, d + f + 1));
        if (!same) r = _mm512_maskz_div_ps(step, r, _mm512_loadu_ps(p.gap + 16 * v));
        _mm512_mask_storeu_ps(s + f, here, r);
        const __m512i bits = _mm512_castps_si512(r);
        const __m512 left = _mm512_castsi512_ps(_mm512_alignr_epi32(bits, before, 15));
        before = bits;
        const __mmask16 falls = _mm512_cmp_ps_mask(left, r, _CMP_GT_OQ);
        const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(r), inf, _CMP_LT_OQ);
        uint32_t bad = (uint32_t)((step & ~finite) | (p.second[v] & here & ~falls));
        for (; bad; bad &= bad - 1) {
            const uint32_t unit = ((uint32_t)f + (uint32_t)__builtin_ctz(bad)) / (uint32_t)m;
            if (!found || odd[found - 1] != unit) odd[found++] = unit;
        }
    }
    *count = found;
}

void cq_alloc_band_f32_avx512(const float *s, size_t len, size_t m, const int32_t *cost, float lo,
                              float hi, uint32_t *index, float *value, cq_alloc_band *out) {
    const __m512 low = _mm512_set1_ps(lo), high = _mm512_set1_ps(hi);
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    cq_alloc_band rest = {0, 0, 0};
    __m512i above = _mm512_setzero_si512(), inside = above;
    pattern p;
    make_pattern(&p, m, NULL, cost);
    size_t count = 0, v = 0;
    size_t f = 0;
    for (; f + 16 <= len; f += 16, v = v + 1 == m ? 0 : v + 1) {
        const __m512 r = _mm512_loadu_ps(s + f);
        const __m512i price = _mm512_loadu_si512(p.cost + 16 * v);
        const __mmask16 up = _mm512_cmp_ps_mask(r, high, _CMP_GT_OQ);
        const __mmask16 in = _mm512_mask_cmp_ps_mask((__mmask16)~up, r, low, _CMP_GE_OQ);
        above = _mm512_mask_add_epi32(above, up, above, price);
        inside = _mm512_mask_add_epi32(inside, in, inside, price);
        /* Whole stores: what lies past the hits is written again, and count <= f. */
        _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(in, at));
        _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(in, r));
        at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
        count += (size_t)__builtin_popcount(in);
    }
    for (; f < len; f++) {
        if (s[f] > hi)
            rest.above += cost[f % m];
        else if (s[f] >= lo) {
            rest.inside += cost[f % m];
            index[count] = (uint32_t)f;
            value[count++] = s[f];
        }
    }
    *out = (cq_alloc_band){rest.above + _mm512_reduce_add_epi32(above),
                           rest.inside + _mm512_reduce_add_epi32(inside), count};
}

void cq_alloc_take_f32_avx512(const float *s, size_t n, size_t m, float hi, uint8_t *out) {
    const __m512 high = _mm512_set1_ps(hi);
    const size_t len = n * m;
    const uint64_t row = ((uint64_t)1 << m) - 1;
    uint64_t queue = 0; /* one bit per step, oldest lowest */
    size_t queued = 0, i = 0;
    for (size_t f = 0; f < len; f += 16) {
        const __mmask16 here = f + 16 <= len ? 0xFFFF : cq_tail_mask(len - f);
        const __m512 r = _mm512_maskz_loadu_ps(here, s + f);
        queue |= (uint64_t)_mm512_cmp_ps_mask(r, high, _CMP_GT_OQ) << queued;
        queued += f + 16 <= len ? 16 : len - f;
        for (; queued >= m; queued -= m, queue >>= m)
            out[i++] = (uint8_t)__builtin_popcountll(queue & row);
    }
}

#include "core/isa_end.h"
#endif
