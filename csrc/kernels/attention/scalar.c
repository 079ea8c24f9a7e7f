/* SPDX-License-Identifier: Apache-2.0 */
/* attention: panels, products of panels, and rows of a softmax.
 *
 * attention_pack_f32    panel(lane, depth) = x(lane, depth), 0 beyond lanes and depth. With one
 *                       plane every value is first rounded to bfloat16, half to even.
 * attention_block_f32   c[i, j] = (add ? c[i, j] : 0) + row[i] * sum_k a[i, k] b[k, j] + bias[j];
 * the sum starts from 0 for each call and has no stated order. attention_softmax_f32 s[j] =
 * exp(scale * s[j] - top), where top = max_j scale * s[j] over the keys that are not masked; masked
 * and padding keys become 0. The sum of exp lies in [1, n]; nothing is divided here.
 * attention_dsoftmax_f32 e = exp(scale * s[j] - lse), p = e / the sum of e: s[j] = p; d[j] = p *
 *                       (d[j] - delta) * scale, delta the sum of p * d; both are 0 for masked and
 *                       padding keys. lse only keeps e from overflowing.
 * exp: Cody-Waite reduction by ln 2 in two parts and a polynomial of degree 7, 2 ulp for arguments
 * in [-87, 0]; below -87.3 it is 0.
 *
 * A NaN among scores or operands makes the results it enters NaN; so does an infinity where the
 * operands are split (avx512amx). Every finite operand is split exactly. Nothing aliases.
 * Exactness: ULP. Relative to sum |a| |b|: 2^-22 with two planes or more (2^-16 with two on
 * avx512amx), 2^-8 with one, where both operands are rounded. */
#include "attention.h"

void cq_attention_pack_f32_scalar(const cq_att_source *s, void *panel) {
    float *out = panel;
    const size_t depth = cq_att_depth(s->depth);
    for (size_t k = 0; k < depth; k++) {
        for (size_t i = 0; i < CQ_ATT_LANES; i++) {
            const int inside = i < s->lanes && k < s->depth;
            const float v = inside ? s->x[i * s->lane_stride + k * s->depth_stride] : 0.0f;
            out[k * CQ_ATT_LANES + i] = s->planes == CQ_ATT_BF16 ? cq_att_round_bf16(v) : v;
        }
    }
}

static void tile(const float *a, const float *b, size_t depth, float acc[CQ_ATT_LANES]) {
    for (size_t j = 0; j < CQ_ATT_LANES; j++) acc[j] = 0.0f;
    for (size_t k = 0; k < depth; k++)
        for (size_t j = 0; j < CQ_ATT_LANES; j++)
            acc[j] += a[k * CQ_ATT_LANES] * b[k * CQ_ATT_LANES + j];
}

void cq_attention_block_f32_scalar(const cq_att_block *t) {
    for (size_t j = 0; j < t->n; j += CQ_ATT_LANES) {
        const float *b = cq_att_at(t->b, j, t->b_stride);
        const size_t n = cq_min_size(CQ_ATT_LANES, t->n - j);
        for (size_t i = 0; i < t->m; i++) {
            const float *a = cq_att_at(t->a, i, t->a_stride);
            const float row = t->row ? t->row[i] : 1.0f;
            float acc[CQ_ATT_LANES], *c = t->c + i * t->ldc + j;
            tile(a + i % CQ_ATT_LANES, b, t->depth, acc);
            for (size_t q = 0; q < n; q++)
                c[q] = ((t->add ? c[q] : 0.0f) + row * acc[q]) + (t->bias ? t->bias[j + q] : 0.0f);
        }
    }
}

static float exponential(float x) {
    if (x < -87.3f) return 0.0f;
    const float n = rintf(x * CQ_ATT_LOG2E);
    const float r = (x - n * CQ_ATT_LN2_HIGH) - n * CQ_ATT_LN2_LOW;
    float p = CQ_ATT_EXP7;
    p = p * r + CQ_ATT_EXP6;
    p = p * r + CQ_ATT_EXP5;
    p = p * r + CQ_ATT_EXP4;
    p = p * r + CQ_ATT_EXP3;
    p = p * r + CQ_ATT_EXP2;
    return x != x ? x : ldexpf(p * (r * r) + r + 1.0f, (int)n);
}

void cq_attention_softmax_f32_scalar(const cq_att_row *t, cq_att_stats *out) {
    float top = -INFINITY;
    for (size_t j = 0; j < t->n; j++) {
        const float v = t->mask && t->mask[j] ? -INFINITY : t->scale * t->s[j];
        top = v != v || v > top ? v : top;
        t->s[j] = v;
    }
    float sum = 0.0f, weighted = 0.0f;
    for (size_t j = 0; j < t->n; j++) {
        const int out_of_sight = t->s[j] == -INFINITY;
        const float x = out_of_sight ? 0.0f : t->s[j] - top;
        const float e = out_of_sight ? 0.0f : exponential(x);
        sum += e;
        weighted += e * x;
        t->s[j] = e;
    }
    for (size_t j = t->n; j < cq_att_depth(t->n); j++) t->s[j] = 0.0f;
    *out = (cq_att_stats){top, sum, weighted};
}

void cq_attention_dsoftmax_f32_scalar(const cq_att_row *t) {
    float delta = 0.0f, sum = 0.0f;
    for (size_t j = 0; j < cq_att_depth(t->n); j++) {
        const int out_of_sight = j >= t->n || (t->mask && t->mask[j]) || t->lse == -INFINITY;
        t->s[j] = out_of_sight ? 0.0f : exponential(t->scale * t->s[j] - t->lse);
        t->d[j] = out_of_sight ? 0.0f : t->d[j];
        delta += t->s[j] * t->d[j];
        sum += t->s[j];
    }
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (size_t j = 0; j < t->n; j++) {
        const int out_of_sight = (t->mask && t->mask[j]) || t->lse == -INFINITY;
        t->s[j] *= inverse;
        t->d[j] = out_of_sight ? 0.0f : t->s[j] * (t->d[j] - delta * inverse) * t->scale;
    }
}
