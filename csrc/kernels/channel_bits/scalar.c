/* SPDX-License-Identifier: Apache-2.0 */
/* channel_bits: columns rounded to widths that may be fractional, and the bits that the codes take.
 *
 *   whole = min(floor(bits), 7), widths b0 = whole and b1 = whole + 1 with the weights
 *   w1 = bits - whole, w0 = 1 - w1; for each width k, with top = 2^b - 1:
 *   step  = max((high - low) / max(top, 1), 1e-30)
 *   v     = (x - low) / step, u = min(top, max(0, v)),
 *   q     = rint(u), half to even, or with noise r in [0, 1): min(top, floor(u + r))
 *   level = low + q step; the centre (low + high) / 2 for no bits
 *   bits of the code: r = table[2^b - 1 + q]
 *   y     = w0 level0 + w1 level1,     rate = sum over columns of w0 r0 + w1 r1
 *
 * Gradients of sum gy y + sum grate rate; inside = 0 <= v <= top, and not for no bits:
 *   slope = (table[min(q + 1, top)] - table[max(q - 1, 0)]) / 2
 *   h     = inside ? gy w + grate w slope / step : 0        straight through; slope of the rate
 *   a     = gy w q - h v                                    to the step, as LSQ
 *   gx    = h0 + h1
 *   ghigh = sum a0 / top0 + a1 / top1,  glow = sum gy - gx - (a0 / top0 + a1 / top1)
 *   gbits = sum gy (level1 - level0) + grate (r1 - r0)
 *   gtables[2^b - 1 + q] += grate w
 * with a0 / top0 = gy w0 / 2 for no bits, and no slope where the step is 1e-30.
 *
 * A tile of rows x columns; y and gx may be x. NaN in x gives NaN in y and in the gradients that
 * are sums over it, 0 in gx, and counts as code 0 in rates; +-inf saturates. Everything is float32
 * without FMA; sums are in double, of columns row by row, of a row in lane c % 8. Exactness: EXACT.
 * Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 3 (step); Balle et al.,
 * "End-to-end Optimized Image Compression", ICLR 2017 (rate). */
#include "core/dispatch.h"
#include "core/grid.h"

enum { SIDE = CQ_CHANNEL_SIDE };

CQ_INLINE cq_channel_width width(float low, float high, int bits, float weight) {
    const float top = (float)((1 << bits) - 1), part = 1.0f / (bits ? top : 1.0f);
    float step = (high - low) / (bits ? top : 1.0f);
    step = step > CQ_CHANNEL_LEAST ? step : CQ_CHANNEL_LEAST;
    const float inverse = step > CQ_CHANNEL_LEAST ? 1.0f / step : 0.0f;
    return (cq_channel_width){top, step, weight, inverse, part, (1 << bits) - 1, bits == 0};
}

CQ_INLINE void both(const cq_channel_tile *t, size_t c, cq_channel_width w[2]) {
    const int floored = (int)t->bits[c];
    const int whole = floored < CQ_CHANNEL_BITS ? floored : CQ_CHANNEL_BITS - 1;
    const float share = t->bits[c] - (float)whole;
    w[0] = width(t->low[c], t->high[c], whole, 1.0f - share);
    w[1] = width(t->low[c], t->high[c], whole + 1, share);
}

typedef struct element {
    float v, q, level;
    int32_t code;
} element;

CQ_INLINE element rounded(const cq_channel_tile *t, const cq_channel_width *w, size_t r, size_t c) {
    element e;
    e.v = (t->x[r * t->ld + c] - t->low[c]) / w->step;
    const float u = cq_clampf(e.v, 0.0f, w->top);
    if (t->noise) {
        const float up = u + t->noise[r * CQ_CHANNEL_COLS + c];
        const float near = cq_rint_small(up);
        e.q = cq_clampf(near > up ? near - 1.0f : near, 0.0f, w->top);
    } else {
        e.q = cq_rint_small(u);
    }
    e.level = w->none ? (t->low[c] + t->high[c]) * 0.5f : t->low[c] + e.q * w->step;
    e.code = e.q >= 0.0f ? (int32_t)e.q : 0; /* NaN is not */
    return e;
}

void cq_channel_bits_f32_scalar(const cq_channel_tile *t) {
    for (size_t c = 0; c < t->cols; c++) {
        const float *table = t->tables ? t->tables + c * CQ_CHANNEL_TABLE : NULL;
        cq_channel_width w[2];
        both(t, c, w);
        for (size_t r = 0; r < t->rows; r++) {
            const element a = rounded(t, w, r, c), b = rounded(t, w + 1, r, c);
            t->y[r * t->ld + c] = w[0].weight * a.level + w[1].weight * b.level;
            if (!table) continue;
            const float rate =
                w[0].weight * table[w[0].start + a.code] + w[1].weight * table[w[1].start + b.code];
            t->rate[r * 8 + c % 8] += (double)rate;
        }
    }
}

/* (table[q + 1] - table[q - 1]) / 2, no further than the ends. */
CQ_INLINE float slope(const float *table, const cq_channel_width *w, int32_t code) {
    const int32_t top = (int32_t)w->top, more = code + 1 < top ? code + 1 : top;
    const int32_t less = code > 0 ? code - 1 : 0;
    return (table[w->start + more] - table[w->start + less]) * 0.5f;
}

/* h of one width; *step is a / top. */
CQ_INLINE float gradient(const cq_channel_width *w, const element *e, const float *table, float gy,
                         float grate, float *step) {
    const float g = gy * w->weight;
    float h = g;
    if (table) h = g + grate * w->weight * slope(table, w, e->code) * w->inverse;
    const int inside = e->v >= 0.0f && e->v <= w->top && !w->none;
    *step = (g * (w->none ? 0.5f : e->q) - (inside ? h * e->v : 0.0f)) * w->part;
    return inside ? h : 0.0f;
}

void cq_channel_bits_bwd_f32_scalar(const cq_channel_tile *t) {
    for (size_t c = 0; c < t->cols; c++) {
        const float *table = t->tables ? t->tables + c * CQ_CHANNEL_TABLE : NULL;
        double *sums = t->gtables + c / SIDE * SIDE * CQ_CHANNEL_TABLE + c % SIDE;
        cq_channel_width w[2];
        both(t, c, w);
        for (size_t r = 0; r < t->rows; r++) {
            const element a = rounded(t, w, r, c), b = rounded(t, w + 1, r, c);
            const float gy = t->gy[r * t->ld + c], grate = table ? t->grate[r] : 0.0f;
            float step[2], gbits = gy * (b.level - a.level);
            const float gx = gradient(w, &a, table, gy, grate, step) +
                             gradient(w + 1, &b, table, gy, grate, step + 1);
            const float high = step[0] + step[1];
            t->gx[r * t->ld + c] = gx;
            if (table) {
                const float r0 = table[w[0].start + a.code], r1 = table[w[1].start + b.code];
                gbits = gbits + grate * (r1 - r0);
                sums[(size_t)(w[0].start + a.code) * SIDE] += (double)(grate * w[0].weight);
                sums[(size_t)(w[1].start + b.code) * SIDE] += (double)(grate * w[1].weight);
            }
            t->gbits[c] += (double)gbits;
            t->ghigh[c] += (double)high;
            t->glow[c] += (double)(gy - gx - high);
        }
    }
}
