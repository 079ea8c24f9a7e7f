/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of a softmax sixteen keys at a time, and panels of floats: A as four strips of [depth][8], B
 * as [depth][32], so that 8 x 32 sums stay in sixteen registers while a column of A is broadcast.
 */
#include "attention.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"
#include "rows_avx512.h"

void cq_attention_softmax_f32_avx512(const cq_att_row *t, cq_att_stats *out) {
    const __m512 scale = _mm512_set1_ps(t->scale), low = _mm512_set1_ps(-INFINITY);
    __m512 top = low;
    __mmask16 bad = 0;
    for (size_t j = 0; j < t->n; j += 16) {
        const __mmask16 m = cq_att_seen(t, j);
        const __m512 v = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(m, t->s + j));
        bad |= _mm512_mask_cmp_ps_mask(m, v, v, _CMP_UNORD_Q);
        top = _mm512_mask_max_ps(top, m, top, v);
    }
    const float most = bad ? NAN : _mm512_reduce_max_ps(top);
    const __m512 shift = _mm512_set1_ps(most);
    __m512 sum = _mm512_setzero_ps(), weighted = sum;
    for (size_t j = 0; j < cq_att_depth(t->n); j += 16) {
        __mmask16 m = cq_att_seen(t, j);
        const __m512 v = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(m, t->s + j));
        m = _mm512_mask_cmp_ps_mask(m, v, low, _CMP_NEQ_UQ);
        const __m512 x = _mm512_maskz_sub_ps(m, v, shift);
        const __m512 e = _mm512_maskz_mov_ps(m, cq_att_exp(x));
        sum = _mm512_add_ps(sum, e);
        weighted = _mm512_fmadd_ps(e, x, weighted);
        _mm512_storeu_ps(t->s + j, e);
    }
    *out = (cq_att_stats){most, _mm512_reduce_add_ps(sum), _mm512_reduce_add_ps(weighted)};
}

void cq_attention_dsoftmax_f32_avx512(const cq_att_row *t) {
    const __m512 scale = _mm512_set1_ps(t->scale), lse = _mm512_set1_ps(t->lse);
    const __m512 zero = _mm512_setzero_ps();
    __m512 sum = zero, along = zero;
    for (size_t j = 0; j < cq_att_depth(t->n); j += 16) {
        const __mmask16 m = t->lse == -INFINITY ? 0 : cq_att_seen(t, j);
        const __m512 x = _mm512_fmsub_ps(scale, _mm512_maskz_loadu_ps(m, t->s + j), lse);
        const __m512 p = _mm512_maskz_mov_ps(m, cq_att_exp(x));
        const __m512 d = _mm512_maskz_loadu_ps(m, t->d + j);
        sum = _mm512_add_ps(sum, p);
        along = _mm512_fmadd_ps(p, d, along);
        _mm512_storeu_ps(t->s + j, p);
        _mm512_storeu_ps(t->d + j, d);
    }
    const float total = _mm512_reduce_add_ps(sum), inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const __m512 rate = _mm512_set1_ps(inverse);
    const __m512 delta = _mm512_set1_ps(_mm512_reduce_add_ps(along) * inverse);
    for (size_t j = 0; j < cq_att_depth(t->n); j += 16) {
        const __mmask16 m = t->lse == -INFINITY ? 0 : cq_att_seen(t, j);
        const __m512 p = _mm512_mul_ps(_mm512_loadu_ps(t->s + j), rate);
        const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(t->d + j), delta);
        _mm512_storeu_ps(t->s + j, p);
        _mm512_storeu_ps(t->d + j, _mm512_maskz_mul_ps(m, _mm512_mul_ps(p, d), scale));
    }
}

CQ_INLINE __m512 rounded(__m512 v, int planes) {
    if (planes != CQ_ATT_BF16) return v;
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_ps(_mm512_and_si512(r, _mm512_set1_epi32(-65536)));
}

/* Lanes i .. i + 15 at depth k. */
CQ_INLINE __m512 lanes_of(const cq_att_source *s, size_t i, size_t k) {
    const __mmask16 m = k < s->depth && i < s->lanes ? cq_tail_mask(s->lanes - i) : 0;
    const float *x = s->x + i * s->lane_stride + k * s->depth_stride;
    if (!m) return _mm512_setzero_ps();
    if (s->lane_stride == 1) return rounded(_mm512_maskz_loadu_ps(m, x), s->planes);
    const __m512i step =
        _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                           _mm512_set1_epi32((int)s->lane_stride));
    return rounded(_mm512_mask_i32gather_ps(_mm512_setzero_ps(), m, step, x, 4), s->planes);
}

void cq_attention_pack_f32_avx512(const cq_att_source *s, void *panel) {
    float *out = panel;
    const size_t depth = cq_att_depth(s->depth);
    for (size_t k = 0; k < depth; k++) {
        for (size_t i = 0; i < CQ_ATT_LANES; i += 16) {
            const __m512 v = lanes_of(s, i, k);
            if (s->side) {
                _mm512_storeu_ps(out + k * CQ_ATT_LANES + i, v);
            } else {
                _mm256_storeu_ps(out + i * depth + k * 8, _mm512_castps512_ps256(v));
                _mm256_storeu_ps(out + (i + 8) * depth + k * 8, _mm512_extractf32x8_ps(v, 1));
            }
        }
    }
}

/* Eight rows of c. */
CQ_INLINE void strip(const cq_att_block *t, const float *a, const float *b, size_t i, size_t j) {
    __m512 acc0[8], acc1[8];
#pragma GCC unroll 8
    for (size_t r = 0; r < 8; r++) acc0[r] = acc1[r] = _mm512_setzero_ps();
    for (size_t k = 0; k < cq_att_depth(t->depth); k++) {
        const __m512 b0 = _mm512_loadu_ps(b + k * 32), b1 = _mm512_loadu_ps(b + k * 32 + 16);
#pragma GCC unroll 8
        for (size_t r = 0; r < 8; r++) {
            const __m512 v = _mm512_set1_ps(a[k * 8 + r]);
            acc0[r] = _mm512_fmadd_ps(v, b0, acc0[r]);
            acc1[r] = _mm512_fmadd_ps(v, b1, acc1[r]);
        }
    }
    const __mmask16 m0 = cq_tail_mask(t->n - j),
                    m1 = t->n > j + 16 ? cq_tail_mask(t->n - j - 16) : 0;
    const __m512 bias0 = t->bias ? _mm512_maskz_loadu_ps(m0, t->bias + j) : _mm512_setzero_ps();
    const __m512 bias1 = t->bias ? _mm512_maskz_loadu_ps(m1, t->bias + j + 16) : bias0;
#pragma GCC unroll 8
    for (size_t r = 0; r < 8; r++) {
        if (i + r >= t->m) break;
        float *c = t->c + (i + r) * t->ldc + j;
        const __m512 row = _mm512_set1_ps(t->row ? t->row[i + r] : 1.0f);
        const __m512 c0 = _mm512_maskz_loadu_ps(t->add ? m0 : 0, c);
        const __m512 c1 = _mm512_maskz_loadu_ps(t->add ? m1 : 0, c + 16);
        _mm512_mask_storeu_ps(c, m0, _mm512_add_ps(_mm512_fmadd_ps(row, acc0[r], c0), bias0));
        _mm512_mask_storeu_ps(c + 16, m1, _mm512_add_ps(_mm512_fmadd_ps(row, acc1[r], c1), bias1));
    }
}

void cq_attention_block_f32_avx512(const cq_att_block *t) {
    const size_t depth = cq_att_depth(t->depth);
    for (size_t j = 0; j < t->n; j += CQ_ATT_LANES) {
        const float *b = cq_att_at(t->b, j, t->b_stride);
        for (size_t i = 0; i < t->m; i += 8) {
            const float *a = cq_att_at(t->a, i, t->a_stride);
            strip(t, a + i % CQ_ATT_LANES * depth, b, i, j);
        }
    }
}

#include "core/isa_end.h"
#endif
