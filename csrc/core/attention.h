/* SPDX-License-Identifier: Apache-2.0 */
/* What the driver and the kernels of attention agree on. Matrices enter a product as panels of
 * CQ_ATT_LANES rows of A (or columns of B) over the depth, zero-padded in both directions. The
 * bytes inside a panel are laid out as the ISA likes: its pack and its block kernel come as a pair.
 */
#ifndef CQ_ATTENTION_H
#define CQ_ATTENTION_H

#include "cq.h"

#define CQ_ATT_LANES ((size_t)32) /* lanes of a panel; the depth is padded to the same multiple */

/* Products are made of `planes` parts of each operand: 1 = operands rounded to bfloat16; 2 and 3 =
 * at least two (three) bfloat16 parts, and float32 itself where an ISA multiplies float32. */
enum { CQ_ATT_BF16 = 1, CQ_ATT_HIGH = 2, CQ_ATT_HIGHEST = 3 };

/* Bytes of a panel over a depth of k; every ISA fits. */
CQ_INLINE size_t cq_att_depth(size_t k) { return cq_ceil_div(k, CQ_ATT_LANES) * CQ_ATT_LANES; }
CQ_INLINE size_t cq_att_panel(size_t k, int planes) {
    return cq_att_depth(k) * CQ_ATT_LANES * (planes == CQ_ATT_HIGHEST ? 6 : 4);
}

/* Element (lane, depth) is x[lane * lane_stride + depth * depth_stride]; one stride is 1. */
typedef struct cq_att_source {
    const float *x;
    size_t lane_stride, depth_stride;
    size_t lanes, depth; /* lanes <= CQ_ATT_LANES; the rest of the panel becomes zero */
    int side;            /* 0 = panel of A, 1 = panel of B */
    int planes;
} cq_att_source;

/* c[i, j] = (add ? c[i, j] : 0) + row[i] * sum_k a[i, k] b[k, j] + bias[j]. */
typedef struct cq_att_block {
    const void *a, *b;         /* first panels */
    size_t a_stride, b_stride; /* bytes from panel to panel */
    const void *ahead;         /* panel of b that the next call starts with, or NULL */
    size_t m, n, depth;        /* of c; panels follow each other while i < m, j < n */
    float *c;                  /* row stride ldc */
    size_t ldc;
    const float *row, *bias; /* [m], [n] or NULL */
    int planes, add;
} cq_att_block;

/* One row of scores, n of them, padded to a multiple of CQ_ATT_LANES. */
typedef struct cq_att_row {
    float *s;            /* in: scores; out: see the kernel; padding becomes 0 */
    float *d;            /* backward: gradient of the probabilities, becomes that of the scores */
    const uint8_t *mask; /* [n], 1 = the key is left out, or NULL */
    size_t n;
    float scale; /* of the scores */
    float lse;   /* backward: about the logarithm of the sum */
} cq_att_row;

/* Forward: top = scale * the largest score, sum of exp(scale * s - top), and the sum of that times
 * (scale * s - top). A row without keys: top = -inf, sums 0. */
typedef struct cq_att_stats {
    float top, sum, weighted;
} cq_att_stats;

#endif
