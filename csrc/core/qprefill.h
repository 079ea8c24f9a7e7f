/* SPDX-License-Identifier: Apache-2.0 */
/* What the driver and the kernels of qprefill agree on: many rows of 8-bit activations times a
 * weight in tiles (core/qgemm.h).
 *
 * A step is 64 successive inputs of one group, the last step of a group the rest of it (`steps` per
 * group, `quads` fours of inputs used in each: 16 unless a group is one step). Both operands are
 * rewritten step by step, so that a kernel only walks forwards:
 *
 *   x      [rows / 16][G * steps][16 rows][64 bytes]      whole product, once
 *   panel  [strip][groups * steps][16 quads][16 outputs][4 inputs]   code - zero, one chunk of K
 *
 * Rows of float32 are CQ_DIGITS int8 rows each, digit by digit: 16 rows are four times 16 rows of
 * bytes, the lowest digits first. Their groups are the blocks of core/qgemm.h, 4 steps or less.
 *
 * Bytes of a step past its inputs are 0. A block is 32 rows x 32 outputs of results, stored as
 * [2 row halves][2 strips][16 rows][16 outputs]. */
#ifndef CQ_QPREFILL_H
#define CQ_QPREFILL_H

#include "cq.h"

#define CQ_QPREFILL_BLOCK ((size_t)32)
#define CQ_QPREFILL_STEP ((size_t)1024) /* bytes of a step of 16 rows or 16 outputs */

/* One chunk of a strip of the weight, to a panel. */
typedef struct cq_qprefill_strip {
    const uint8_t *tiles; /* of the strip, from input 0 */
    const uint8_t *zero;  /* [groups][16], or NULL: 2**(bits-1) */
    int8_t *panel;        /* [groups * steps] steps, 64-byte aligned */
    int32_t *shift;       /* [16] per group, stride ldshift */
    size_t ldshift;
    size_t k0, inputs, group; /* of group i: inputs k0 + i * group .. + `inputs` - 1 */
    size_t groups, steps;
    int bits;
} cq_qprefill_strip;

/* Rows of x times a panel: one chunk of K of m x n blocks. What `digits` alone uses belongs to 16
 * rows and one group: sums and steps as qlinear_f32_digits leaves them with a stride of 16. */
typedef struct cq_qprefill_block {
    const uint8_t *x;    /* at the chunk; stride of 16 rows of bytes ldx */
    const int8_t *panel; /* [2 n] strips; `tiles`: the tiles of 8 bits themselves, unsigned codes */
    size_t ldpanel;      /* from strip to strip */
    const uint8_t *most; /* [2 n]: no byte of a strip of the panel is further from 0 */
    const float *scale;  /* [groups][32 n], stride of a group ld; so shift and centre */
    const int32_t *shift;  /* what the level's panel kernel left */
    const int32_t *centre; /* or NULL: times xsum, to be added to the dots */
    const int32_t *xsum;   /* [32 m], stride ldsum, one per group: sums of x over the group;
                            * digits: [2 m][ldsum][16][2], high and low */
    const float *xstep;    /* digits: [2 m][ldsum][16] */
    const uint8_t *zeros;  /* digits: [2 m][ldsum]: how many of the low digits are all 0 */
    float *acc;            /* [m][n] blocks */
    int32_t *part;         /* [m][n] blocks: dots of a group between its chunks */
    size_t ldx, ldsum, ld, m, n, groups, steps, quads;
    int first;      /* chunk: acc starts from 0 */
    int begin, end; /* of a group that takes several chunks: from 0 or part, to acc or part */
} cq_qprefill_block;

#endif
