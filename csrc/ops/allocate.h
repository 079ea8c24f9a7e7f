/* SPDX-License-Identifier: Apache-2.0 */
/* Inside cq_allocate: the problem, the solution of its relaxation, and its exact completion. */
#ifndef CQ_ALLOCATE_H
#define CQ_ALLOCATE_H

#include "ops.h"

typedef struct cq_alloc_problem {
    const float *d; /* [n, m]; +infinity: not allowed */
    cq_alloc_costs costs;
    size_t n, m;
    int64_t unit;   /* divides every difference of costs */
    int64_t widest; /* largest difference of costs of one unit */
} cq_alloc_problem;

/* The hull of one unit: slope[j] of the step j -> j + 1 (that of its whole segment, infinite where
 * the cheaper options are not to be used, 0 where no more is to be had), and the first step of its
 * segment. -1: NaN or -infinity at *bad; -2: nothing allowed. */
int cq_alloc_hull(const cq_alloc_problem *p, size_t i, double *slope, uint8_t *start, size_t *bad);

/* Spend what is left: `choice` are vertices of the hulls that each minimise d + slope * cost,
 * `left` is what they leave of the budget. Returns how far the result can be from the optimum (0:
 * it is one). `work` has CQ_ALLOC_CORE_BYTES. */
#define CQ_ALLOC_CORE_BYTES ((size_t)14 << 20)
double cq_alloc_complete(cq_ctx *cx, const cq_alloc_problem *p, double slope, int64_t left,
                         uint8_t *choice, void *work);

#endif
