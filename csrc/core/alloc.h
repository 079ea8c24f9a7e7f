/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels of csrc/kernels/alloc and their driver share. */
#ifndef CQ_ALLOC_H
#define CQ_ALLOC_H

#include "half.h"

/* Sums over the three sets of a row: weights at or below `low`, at or above `high`, between; and
 * weight * x of those between. `ends`: how many are at or below `low`, how many at or above. */
typedef struct cq_alloc_sums {
    double free_w, free_x, low_w, high_w;
    size_t ends[2];
} cq_alloc_sums;

/* Sum of sixteen lanes, lane i % 16, pairwise: the order that every ISA keeps. */
CQ_INLINE double cq_alloc_lanes(const double *lane) {
    double eight[8];
    for (int l = 0; l < 8; l++) eight[l] = lane[l] + lane[l + 8];
    return cq_sum_lanes(eight);
}

/* The same of 64 lanes of floats, lane i % 64: four groups of sixteen, their halves, eight lanes.
 */
CQ_INLINE float cq_alloc_lanes_f32(const float *lane) {
    float l[16];
    for (int k = 0; k < 16; k++) l[k] = (lane[k] + lane[k + 16]) + (lane[k + 32] + lane[k + 48]);
    for (int k = 0; k < 8; k++) l[k] += l[k + 8];
    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}

/* Longer rows are cut: into pieces of this size, or CQ_ALLOC_PIECES larger ones. */
#define CQ_ALLOC_PIECE ((size_t)1 << 17)
#define CQ_ALLOC_PIECES ((size_t)256)

/* What the kernels of rounding look at (alloc/scalar_round.c). */
#define CQ_ALLOC_BINS 1024u
typedef struct cq_alloc_round {
    int lo, hi;
    int up;               /* steps are +1, otherwise -1 */
    int shift;            /* count: which bits of a key .. */
    uint32_t prefix;      /* .. of keys that begin like this */
    uint32_t least, most; /* give: the keys that get a step */
} cq_alloc_round;

/* What option j of unit i costs: a table [n, m], or one row of m times the weight of the unit. */
typedef struct cq_alloc_costs {
    const int64_t *cost, *weight; /* weight NULL: ones */
    size_t m;
    int table;
} cq_alloc_costs;

CQ_INLINE int64_t cq_alloc_cost(const cq_alloc_costs *c, size_t i, size_t j) {
    if (c->table) return c->cost[i * c->m + j];
    return c->weight ? c->weight[i] * c->cost[j] : c->cost[j];
}

#define CQ_ALLOC_MAX_OPTIONS ((size_t)16)

/* What one pass over slopes finds: the cost of the steps above `hi`, of those from `lo` to `hi`,
 * and how many the latter are. */
typedef struct cq_alloc_band {
    int64_t above, inside;
    size_t count;
} cq_alloc_band;

#endif
