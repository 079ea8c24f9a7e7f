/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of a softmax four keys at a time. Panels are those of the scalar kernels, [depth][32] of A
 * and of B; 8 x 8 sums in 16 registers, whose rows are lanes of a column of A. Checked under an
 * emulator only: speed is not measured. */
#include "attention.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"
#include "kernels/neon.h"
#include "rows_neon.h"

void cq_attention_softmax_f32_neon(const cq_att_row *t, cq_att_stats *out) {
    const float32x4_t scale = vdupq_n_f32(t->scale), low = vdupq_n_f32(-INFINITY);
    float32x4_t top = low;
    for (size_t j = 0; j < cq_att_depth(t->n); j += 4) {
        const float32x4_t v = vmulq_f32(scale, vld1q_f32(t->s + j));
        const float32x4_t seen = vbslq_f32(cq_att_seen(t, j), v, low);
        top = vmaxq_f32(top, seen); /* NaN if either is */
        vst1q_f32(t->s + j, seen);
    }
    const float most = vmaxvq_f32(top);
    float32x4_t sum = vdupq_n_f32(0.0f), weighted = sum;
    for (size_t j = 0; j < cq_att_depth(t->n); j += 4) {
        const float32x4_t v = vld1q_f32(t->s + j);
        const uint32x4_t seen = vmvnq_u32(vceqq_f32(v, low));
        const float32x4_t x = cq_att_keep(seen, vsubq_f32(v, vdupq_n_f32(most)));
        const float32x4_t e = cq_att_keep(seen, cq_att_exp(x));
        sum = vaddq_f32(sum, e);
        weighted = vfmaq_f32(weighted, e, x);
        vst1q_f32(t->s + j, e);
    }
    *out = (cq_att_stats){most, vaddvq_f32(sum), vaddvq_f32(weighted)};
}

void cq_attention_dsoftmax_f32_neon(const cq_att_row *t) {
    const float32x4_t scale = vdupq_n_f32(t->scale), lse = vdupq_n_f32(t->lse);
    const uint32x4_t any = vdupq_n_u32(t->lse == -INFINITY ? 0u : ~0u);
    float32x4_t sum = vdupq_n_f32(0.0f), along = sum;
    for (size_t j = 0; j < cq_att_depth(t->n); j += 4) {
        const uint32x4_t seen = vandq_u32(any, cq_att_seen(t, j));
        const float32x4_t x = vsubq_f32(vmulq_f32(scale, vld1q_f32(t->s + j)), lse);
        const float32x4_t p = cq_att_keep(seen, cq_att_exp(x));
        const float32x4_t d = cq_att_keep(seen, vld1q_f32(t->d + j));
        sum = vaddq_f32(sum, p);
        along = vfmaq_f32(along, p, d);
        vst1q_f32(t->s + j, p);
        vst1q_f32(t->d + j, d);
    }
    const float total = vaddvq_f32(sum), inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const float32x4_t delta = vdupq_n_f32(vaddvq_f32(along) * inverse);
    for (size_t j = 0; j < cq_att_depth(t->n); j += 4) {
        const uint32x4_t seen = vandq_u32(any, cq_att_seen(t, j));
        const float32x4_t p = vmulq_f32(vld1q_f32(t->s + j), vdupq_n_f32(inverse));
        const float32x4_t d = vmulq_f32(p, vsubq_f32(vld1q_f32(t->d + j), delta));
        vst1q_f32(t->s + j, cq_att_keep(seen, p));
        vst1q_f32(t->d + j, cq_att_keep(seen, vmulq_f32(d, scale)));
    }
}

/* Lanes i .. i + 3 of the panel. */
static void pack_four(const cq_att_source *s, size_t i, float *to) {
    const float *x = s->x + i * s->lane_stride;
    const int whole = i + 4 <= s->lanes;
    size_t k = 0;
    if (whole && s->depth_stride == 1)
        for (; k + 4 <= s->depth; k += 4)
            cq_transpose_store(vld1q_f32(x + k), vld1q_f32(x + k + s->lane_stride),
                               vld1q_f32(x + k + 2 * s->lane_stride),
                               vld1q_f32(x + k + 3 * s->lane_stride), CQ_ATT_LANES,
                               to + k * CQ_ATT_LANES);
    if (whole && s->lane_stride == 1)
        for (; k < s->depth; k++)
            vst1q_f32(to + k * CQ_ATT_LANES, vld1q_f32(x + k * s->depth_stride));
    for (; k < cq_att_depth(s->depth); k++)
        for (size_t r = 0; r < 4; r++)
            to[k * CQ_ATT_LANES + r] = k < s->depth && i + r < s->lanes
                                           ? x[r * s->lane_stride + k * s->depth_stride]
                                           : 0.0f;
}

void cq_attention_pack_f32_neon(const cq_att_source *s, void *panel) {
    float *out = panel;
    for (size_t i = 0; i < CQ_ATT_LANES; i += 4) pack_four(s, i, out + i);
    if (s->planes != CQ_ATT_BF16) return;
    for (size_t k = 0; k < cq_att_depth(s->depth) * CQ_ATT_LANES; k++)
        out[k] = cq_att_round_bf16(out[k]);
}

typedef struct pair { /* 8 columns of one row */
    float32x4_t lo, hi;
} pair;

CQ_INLINE void four_rows(pair *c, float32x4_t lo, float32x4_t hi, float32x4_t a) {
    c[0].lo = vfmaq_laneq_f32(c[0].lo, lo, a, 0), c[0].hi = vfmaq_laneq_f32(c[0].hi, hi, a, 0);
    c[1].lo = vfmaq_laneq_f32(c[1].lo, lo, a, 1), c[1].hi = vfmaq_laneq_f32(c[1].hi, hi, a, 1);
    c[2].lo = vfmaq_laneq_f32(c[2].lo, lo, a, 2), c[2].hi = vfmaq_laneq_f32(c[2].hi, hi, a, 2);
    c[3].lo = vfmaq_laneq_f32(c[3].lo, lo, a, 3), c[3].hi = vfmaq_laneq_f32(c[3].hi, hi, a, 3);
}

/* Rows i .. i + 7 and columns j .. j + 7 of c. */
static void tile(const cq_att_block *t, const float *a, const float *b, size_t i, size_t j) {
    const size_t m = cq_min_size(t->m - i, 8), n = cq_min_size(t->n - j, 8);
    const float32x4_t none = vdupq_n_f32(0.0f);
    pair sum[8];
    float sums[8 * 8];
#pragma GCC unroll 8
    for (size_t r = 0; r < 8; r++) sum[r] = (pair){none, none};
    for (size_t k = 0; k < t->depth; k++, a += CQ_ATT_LANES, b += CQ_ATT_LANES) {
        const float32x4_t lo = vld1q_f32(b), hi = vld1q_f32(b + 4);
        four_rows(sum, lo, hi, vld1q_f32(a));
        four_rows(sum + 4, lo, hi, vld1q_f32(a + 4));
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < 8; r++)
        vst1q_f32(sums + 8 * r, sum[r].lo), vst1q_f32(sums + 8 * r + 4, sum[r].hi);
    for (size_t r = 0; r < m; r++) {
        const float row = t->row ? t->row[i + r] : 1.0f;
        float *c = t->c + (i + r) * t->ldc + j;
        for (size_t q = 0; q < n; q++)
            c[q] = ((t->add ? c[q] : 0.0f) + row * sums[8 * r + q]) +
                   (t->bias ? t->bias[j + q] : 0.0f);
    }
}

void cq_attention_block_f32_neon(const cq_att_block *t) {
    for (size_t j = 0; j < t->n; j += 8) {
        const float *b = (const float *)cq_att_at(t->b, j, t->b_stride) + j % CQ_ATT_LANES;
        for (size_t i = 0; i < t->m; i += 8) {
            const float *a = cq_att_at(t->a, i, t->a_stride);
            tile(t, a + i % CQ_ATT_LANES, b, i, j);
        }
    }
}

#include "core/isa_end.h"
#endif
