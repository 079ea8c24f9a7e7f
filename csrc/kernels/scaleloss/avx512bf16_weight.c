/* SPDX-License-Identifier: Apache-2.0 */
/* One group of 16 rows at a time: the ranges of the rows become the lanes of one register, so that
 * 16 grids are made at once. v / scale is v times the rounded reciprocal, corrected once by its
 * remainder, which is the correctly rounded quotient (Markstein 1990) at a sixth of its price. */
#include "core/dispatch.h"
#if CQ_X86
#include "kernels/scaleloss/scaleloss.h"

#include "core/isa_begin_avx512bf16.h"

#include "kernels/scaleloss/transpose_avx512bf16.h"

typedef struct grids { /* of 16 rows */
    _Alignas(64) float scale[16];
    float inverse[16], lo[16], hi[16];
} grids;

CQ_INLINE __m512 half_scale(__m512 scale) {
    const __m256i half = _mm512_cvtps_ph(scale, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_cvtph_ps(_mm256_max_epu16(half, _mm256_set1_epi16(1)));
}

/* core/grid.h for 16 rows. */
CQ_INLINE void make_grids(const float *mn16, const float *mx16, int bits, int mode, grids *g) {
    const __m512 zero = _mm512_setzero_ps();
    const int symmetric = mode & CQ_RANGE_SYMMETRIC;
    const float levels = (float)((1 << (symmetric ? bits - 1 : bits)) - 1);
    const __m512 top = _mm512_set1_ps(levels), all = _mm512_set1_ps((float)((1 << bits) - 1));
    __m512 mn = _mm512_load_ps(mn16), mx = _mm512_load_ps(mx16);
    if (mode & CQ_RANGE_ZERO) {
        mn = _mm512_min_ps(zero, mn);
        mx = _mm512_max_ps(zero, mx);
    }
    __m512 range = symmetric ? _mm512_max_ps(_mm512_sub_ps(zero, mn), mx) : _mm512_sub_ps(mx, mn);
    range = _mm512_max_ps(_mm512_set1_ps(1e-5f), range);
    __m512 scale = _mm512_div_ps(range, top);
    if (mode & CQ_RANGE_HALF) scale = half_scale(scale);
    __m512 below = _mm512_div_ps(mn, scale);
    below = _mm512_min_ps(zero, _mm512_max_ps(_mm512_sub_ps(zero, top), below));
    below = _mm512_roundscale_ps(below, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 lo = symmetric ? _mm512_sub_ps(_mm512_set1_ps(-1.0f), top) : below;
    _mm512_store_ps(g->scale, scale);
    _mm512_storeu_ps(g->inverse, _mm512_div_ps(_mm512_set1_ps(1.0f), scale));
    _mm512_storeu_ps(g->lo, lo);
    _mm512_storeu_ps(g->hi, _mm512_add_ps(all, lo));
}

CQ_INLINE __m512 fake(__m512 v, const grids *g, size_t r) {
    const __m512 scale = _mm512_set1_ps(g->scale[r]), inverse = _mm512_set1_ps(g->inverse[r]);
    const __m512 lo = _mm512_set1_ps(g->lo[r]), hi = _mm512_set1_ps(g->hi[r]);
    __m512 q = _mm512_mul_ps(v, inverse);
    q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, scale, v), inverse, q);
    q = _mm512_min_ps(hi, _mm512_max_ps(lo, q));
    q = _mm512_roundscale_ps(q, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_mul_ps(q, scale);
}

void cq_scaleloss_weight_bf16_avx512bf16(const float *w, size_t ld, size_t m, const float *s,
                                         const float *inverse, size_t n, int bits, int mode,
                                         uint16_t *err, uint16_t *scaled) {
    _Alignas(64) float mn[16] = {0}, mx[16] = {0};
    grids g;
    for (size_t r = 0; r < m; r++) {
        __m512 low = _mm512_set1_ps(INFINITY), high = _mm512_set1_ps(-INFINITY);
        for (size_t k = 0; k < n; k += 16) {
            const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(w + r * ld + k), _mm512_loadu_ps(s + k));
            low = _mm512_min_ps(v, low);
            high = _mm512_max_ps(v, high);
        }
        mn[r] = _mm512_reduce_min_ps(low);
        mx[r] = _mm512_reduce_max_ps(high);
    }
    make_grids(mn, mx, bits, mode, &g);
    for (size_t k = 0; k < n; k += 32, err += 2 * CQ_BF16_TILE) {
        __m512i e[16], u[16];
        const __m512 s0 = _mm512_loadu_ps(s + k), s1 = _mm512_loadu_ps(s + k + 16);
        const __m512 i0 = _mm512_loadu_ps(inverse + k), i1 = _mm512_loadu_ps(inverse + k + 16);
        for (size_t r = 0; r < 16; r++) {
            e[r] = u[r] = _mm512_setzero_si512();
            if (r >= m) continue;
            const float *at = w + r * ld + k;
            const __m512 v0 = _mm512_mul_ps(_mm512_loadu_ps(at), s0);
            const __m512 v1 = _mm512_mul_ps(_mm512_loadu_ps(at + 16), s1);
            __m512 e0 = _mm512_sub_ps(fake(v0, &g, r), v0);
            __m512 e1 = _mm512_sub_ps(fake(v1, &g, r), v1);
            if (scaled) {
                u[r] = (__m512i)_mm512_cvtne2ps_pbh(v1, v0);
            } else {
                e0 = _mm512_mul_ps(e0, i0);
                e1 = _mm512_mul_ps(e1, i1);
            }
            e[r] = (__m512i)_mm512_cvtne2ps_pbh(e1, e0);
        }
        cq_transpose_pairs(e, err);
        if (scaled) {
            cq_transpose_pairs(u, scaled);
            scaled += 2 * CQ_BF16_TILE;
        }
    }
}

#include "core/isa_end.h"
#endif
