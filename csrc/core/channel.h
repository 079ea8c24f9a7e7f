/* SPDX-License-Identifier: Apache-2.0 */
/* What the driver and the kernels of channel_bits agree on: a tile of rows with one row of widths.
 */
#ifndef CQ_CHANNEL_H
#define CQ_CHANNEL_H

#include "cq.h"

enum {
    CQ_CHANNEL_BITS = 8,    /* most bits */
    CQ_CHANNEL_TABLE = 511, /* entries of a channel: 2^b for every width b = 0..8 */
    CQ_CHANNEL_ROWS = 16,   /* most rows of a tile */
    CQ_CHANNEL_TALL = 128,  /* the same where nothing is drawn: tables then stay in the cache */
    CQ_CHANNEL_COLS = 64,   /* most columns */
    CQ_CHANNEL_SIDE = 16,   /* columns whose sums lie side by side */
};

/* Steps below this are this: a channel without a range has one value. */
#define CQ_CHANNEL_LEAST 1e-30f

typedef struct cq_channel_tile {
    const float *x;                 /* [rows, ld] */
    const float *low, *high, *bits; /* [cols] */
    const float *tables;            /* [cols, CQ_CHANNEL_TABLE], or NULL: no rates */
    const float *noise;             /* [rows, CQ_CHANNEL_COLS], or NULL: to the nearest */
    float *y;                       /* forward: [rows, ld] */
    double *rate;                   /* forward: [rows, 8], lane c % 8 is added to */
    const float *gy;                /* backward: [rows, ld] */
    const float *grate;             /* backward: [rows] */
    float *gx;                      /* backward: [rows, ld] */
    double *gbits, *glow, *ghigh;   /* backward: [cols], added to */
    double *gtables; /* backward: added to; [cols / 16, CQ_CHANNEL_TABLE, 16], because what is 4 KiB
                      * apart shares a few lines of the cache */
    size_t rows, cols, ld;
} cq_channel_tile;

/* One of the two widths of a column. */
typedef struct cq_channel_width {
    float top, step, weight; /* 2^b - 1, grid step, share of the width in the result */
    float inverse, part;     /* 1 / step or 0, 1 / top or 1 */
    int32_t start, none;     /* of its entries in the table; 1: no bits, the centre */
} cq_channel_width;

#endif
