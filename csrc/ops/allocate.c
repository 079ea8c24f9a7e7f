/* SPDX-License-Identifier: Apache-2.0 */
/* Exact allocation: check the costs, look at the steps of all units, spend the budget on those that
 * buy most (allocate_relax.c), then complete what that leaves (allocate_core.c). */
#include "allocate.h"
#include "core/parallel.h"
#include "core/size.h"

#include <math.h>

enum { LOOK = 1 << 22 };

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        const int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* Check costs; their common unit, widest difference, and the sum of the cheapest. */
static cq_status measure(cq_ctx *cx, cq_alloc_problem *p, int64_t *least) {
    const cq_alloc_costs *c = &p->costs;
    const size_t rows = c->table ? p->n : 1;
    int64_t most = 0, unit = 0, wide = 0;
    *least = 0;
    for (size_t k = 0; k < rows * p->m; k++) {
        if (k % LOOK == 0 && cq_stop(cx)) return CQ_INTERRUPTED;
        if (c->cost[k] < 0 || (k % p->m && c->cost[k] < c->cost[k - 1]))
            return cq_refuse(cx, CQ_BAD_COST, k, (double)c->cost[k]);
    }
    const int alike = !c->table && !c->weight; /* then one unit stands for all */
    for (size_t i = 0; i < (alike ? cq_min_size(p->n, 1) : p->n); i++) {
        if (i % LOOK == 0 && cq_stop(cx)) return CQ_INTERRUPTED;
        if (c->weight && c->weight[i] < 0)
            return cq_refuse(cx, CQ_BAD_UNITS, i, (double)c->weight[i]);
        int64_t top;
        const int64_t dear = c->cost[c->table ? i * p->m + p->m - 1 : p->m - 1];
        const int64_t times = alike ? (int64_t)p->n : (c->weight ? c->weight[i] : 1);
        if (__builtin_mul_overflow(times, dear, &top) || __builtin_add_overflow(most, top, &most))
            return cq_refuse(cx, CQ_BIG_COST, i, (double)dear);
        const int64_t low = cq_alloc_cost(c, i, 0), high = cq_alloc_cost(c, i, p->m - 1);
        *least += alike ? times * low : low;
        wide = high - low > wide ? high - low : wide;
        for (size_t j = 1; j < p->m && unit != 1; j++) {
            const int64_t gap = cq_alloc_cost(c, i, j) - cq_alloc_cost(c, i, j - 1);
            if (unit == 0 || gap % unit) unit = gcd(gap, unit);
        }
    }
    p->unit = unit ? unit : 1;
    p->widest = wide;
    return CQ_OK;
}

static void plain_costs(cq_alloc_job *j) {
    const cq_alloc_problem *p = j->p;
    j->plain = !p->costs.table && !p->costs.weight && p->m > 1;
    for (size_t k = 0; k < CQ_ALLOC_MAX_OPTIONS; k++) j->gap[k] = 1.0f, j->price[k] = 0;
    for (size_t k = 0; k + 1 < p->m && j->plain; k++) {
        const int64_t gap = p->costs.cost[k + 1] - p->costs.cost[k];
        if (gap <= 0 || gap / p->unit > 32767 || gap > 1 << 24) j->plain = 0;
        j->gap[k] = (float)gap;
        j->price[k] = (int32_t)(j->plain ? gap / p->unit : 0);
    }
}

/* Sums of [begin, end), lanes i % 4; `begin` is a multiple of 4. */
static void total(void *ctx, size_t begin, size_t end, size_t block) {
    cq_alloc_job *j = ctx;
    const cq_alloc_problem *p = j->p;
    const size_t m = p->m;
    const int row = !p->costs.table && !p->costs.weight;
    cq_alloc_part *t = j->parts + block;
    double sum[4] = {0};
    int64_t spent = 0;
    size_t i = begin;
    for (; i + 4 <= end; i += 4) {
        const float *d = p->d + i * m;
        const uint8_t *c = j->choice + i;
        sum[0] += (double)d[c[0]];
        sum[1] += (double)d[m + c[1]];
        sum[2] += (double)d[2 * m + c[2]];
        sum[3] += (double)d[3 * m + c[3]];
        if (row) {
            const int64_t *cost = p->costs.cost;
            spent += (cost[c[0]] + cost[c[1]]) + (cost[c[2]] + cost[c[3]]);
        } else {
            for (size_t k = 0; k < 4; k++) spent += cq_alloc_cost(&p->costs, i + k, c[k]);
        }
    }
    for (; i < end; i++) {
        sum[i % 4] += (double)p->d[i * m + j->choice[i]];
        spent += cq_alloc_cost(&p->costs, i, j->choice[i]);
    }
    t->spent = spent;
    t->distortion = (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

size_t cq_allocate_workspace(size_t n, size_t m) {
    const size_t each = sizeof(float) + sizeof(uint32_t) + 2 * sizeof(cq_alloc_record);
    const size_t block = sizeof(cq_alloc_part) + CQ_ALLOC_STEPS_PIECE * m * sizeof(float);
    const size_t steps_size = cq_mul(cq_add(cq_mul(n, m), 4096), each);
    const size_t blocks_size = cq_mul(n / CQ_ALLOC_BLOCK + 1, block);
    return cq_add(cq_add(CQ_ALLOC_CORE_BYTES + 64, steps_size), blocks_size);
}

static void lay_out(cq_alloc_job *j, uint8_t *work) {
    const size_t len = j->p->n * j->p->m + 4096;
    uint8_t *at = work + CQ_ALLOC_CORE_BYTES;
    j->records = (cq_alloc_record *)(void *)at;
    j->copy = j->records + len;
    j->parts = (cq_alloc_part *)(void *)(j->copy + len);
    j->s = (float *)(void *)(j->parts + j->p->n / CQ_ALLOC_BLOCK + 1);
    j->value = j->s + (j->p->n / CQ_ALLOC_BLOCK + 1) * CQ_ALLOC_STEPS_PIECE * j->p->m;
    j->index = (uint32_t *)(void *)(j->value + len);
}

cq_status cq_allocate(cq_ctx *cx, const float *d, const cq_alloc_costs *costs, int64_t budget,
                      uint8_t *choice, double *info, int64_t *spent, uint8_t *work, size_t n) {
    const size_t blocks = cq_ceil_div(n, CQ_ALLOC_BLOCK);
    cq_alloc_problem p = {d, *costs, n, costs->m, 1, 0};
    int64_t least;
    CQ_TRY(measure(cx, &p, &least));
    cq_alloc_job j = {.cx = cx, .p = &p, .choice = choice};
    plain_costs(&j);
    lay_out(&j, work);
    cq_alloc_sample(&j, (budget - least) / p.unit);
    CQ_TRY(cq_parallel_rows(cx, n, CQ_ALLOC_BLOCK, cq_alloc_look, &j));
    int64_t forced = 0;
    for (size_t b = 0; b < blocks; b++) {
        const cq_alloc_part *t = j.parts + b;
        if (t->status != CQ_OK)
            return cq_refuse(cx, t->status, t->bad,
                             t->status == CQ_NO_OPTION ? (double)INFINITY : (double)d[t->bad]);
        forced += t->forced;
    }
    if (budget < least + forced * p.unit)
        return cq_refuse(cx, CQ_BAD_BUDGET, (size_t)(least + forced * p.unit), (double)budget);
    CQ_TRY(cq_alloc_solve(&j, blocks, (budget - least) / p.unit, info, work));
    CQ_TRY(cq_parallel_rows(cx, n, CQ_ALLOC_BLOCK, total, &j));
    info[0] = 0.0;
    *spent = 0;
    for (size_t b = 0; b < blocks; b++) {
        info[0] += j.parts[b].distortion;
        *spent += j.parts[b].spent;
    }
    return CQ_OK;
}
