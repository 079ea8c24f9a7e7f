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

/* STEPS_PIECE: units of a block whose steps lie in L1 while they are looked at. */
enum { CQ_ALLOC_BLOCK = 8192, CQ_ALLOC_STEPS_PIECE = 1024 };

/* A step of the relaxation. */
typedef struct cq_alloc_record {
    double slope;
    int64_t cost;
    uint32_t flat;  /* i * m + j */
    uint32_t start; /* flat index of the first step of its segment */
} cq_alloc_record;

typedef struct cq_alloc_part { /* of a block of units */
    cq_alloc_band band;
    int64_t forced, spent;
    double distortion;
    cq_status status;
    size_t bad;
} cq_alloc_part;

typedef struct cq_alloc_job {
    cq_ctx *cx;
    const cq_alloc_problem *p;
    float gap[CQ_ALLOC_MAX_OPTIONS], lo, hi;
    int32_t price[CQ_ALLOC_MAX_OPTIONS];
    int plain;        /* costs are one small row: the kernels can sum them */
    float *s, *value; /* s: [CQ_ALLOC_STEPS_PIECE * m] for each block */
    uint32_t *index;
    cq_alloc_record *records, *copy;
    cq_alloc_part *parts;
    uint8_t *choice;
} cq_alloc_job;

/* The hull of one unit: slope[j] of the step j -> j + 1 (that of its whole segment, infinite where
 * the cheaper options are not to be used, 0 where no more is to be had), and the first step of its
 * segment. -1: NaN or -infinity at *bad; -2: nothing allowed. */
int cq_alloc_hull(const cq_alloc_problem *p, size_t i, double *slope, uint8_t *start, size_t *bad);

/* In units of p->unit, like all sums of costs here. */
CQ_INLINE int64_t cq_alloc_step_cost(const cq_alloc_job *j, size_t i, size_t at) {
    const cq_alloc_problem *p = j->p;
    const int64_t cost = cq_alloc_cost(&p->costs, i, at + 1) - cq_alloc_cost(&p->costs, i, at);
    return p->unit == 1 ? cost : cost / p->unit;
}

/* Blocks, for cq_parallel_rows by CQ_ALLOC_BLOCK: the steps that lie in the bounds lo, hi are
 * listed, those above are taken; and again among those that are listed, for narrower bounds. */
void cq_alloc_look(void *ctx, size_t begin, size_t end, size_t block);
void cq_alloc_filter(void *ctx, size_t begin, size_t end, size_t block);

/* Bounds from a sample, for the first look at the steps; then spend the budget `need`, in units:
 * the choice, info[1] and info[2] of cq_allocate. `core`: CQ_ALLOC_CORE_BYTES. */
void cq_alloc_sample(cq_alloc_job *j, int64_t need);
cq_status cq_alloc_solve(cq_alloc_job *j, size_t blocks, int64_t need, double *info, void *core);

/* Spend what is left: `choice` are vertices of the hulls that each minimise d + slope * cost,
 * `left` is what they leave of the budget. Returns how far the result can be from the optimum (0:
 * it is one). `work` has CQ_ALLOC_CORE_BYTES. */
#define CQ_ALLOC_CORE_BYTES ((size_t)14 << 20)
double cq_alloc_complete(cq_ctx *cx, const cq_alloc_problem *p, double slope, int64_t left,
                         uint8_t *choice, void *work);

#endif
