/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of the lower hulls: what a unit of cost buys. First in float, for whole tables; only
 * the steps in a narrow band of values are kept. */
#include "allocate.h"

#include <float.h>
#include <math.h>

int cq_alloc_hull(const cq_alloc_problem *p, size_t i, double *slope, uint8_t *start, size_t *bad) {
    const float *d = p->d + i * p->m;
    size_t vertex[CQ_ALLOC_MAX_OPTIONS], count = 0;
    int64_t cost[CQ_ALLOC_MAX_OPTIONS];
    for (size_t j = 0; j < p->m; j++) {
        *bad = i * p->m + j;
        if (isnan(d[j]) || d[j] == -INFINITY) return -1;
        if (isinf(d[j])) continue;
        cost[j] = cq_alloc_cost(&p->costs, i, j);
        if (count && d[j] >= d[vertex[count - 1]]) continue;
        while (count) {
            const size_t b = vertex[count - 1];
            if (cost[j] != cost[b]) {
                if (count == 1) break;
                const size_t a = vertex[count - 2];
                const double before = ((double)d[a] - (double)d[b]) * (double)(cost[j] - cost[b]);
                const double after = ((double)d[b] - (double)d[j]) * (double)(cost[b] - cost[a]);
                if (after <= before) break;
            }
            count--;
        }
        vertex[count++] = j;
    }
    if (!count) return -2;
    for (size_t j = 0; j < p->m; j++)
        slope[j] = j < vertex[0] ? (double)INFINITY : 0.0, start[j] = 0;
    double last = DBL_MAX;
    for (size_t k = 1; k < count; k++) {
        const size_t a = vertex[k - 1], b = vertex[k];
        last = fmin(last, ((double)d[a] - (double)d[b]) / (double)(cost[b] - cost[a]));
        for (size_t j = a; j < b; j++) slope[j] = last, start[j] = (uint8_t)a;
    }
    return 0;
}

/* Steps s[m] of unit i by its hull; adds what they cost to the part. */
static void hull_steps(const cq_alloc_job *j, size_t i, float *s, cq_alloc_part *t) {
    double slope[CQ_ALLOC_MAX_OPTIONS];
    uint8_t start[CQ_ALLOC_MAX_OPTIONS];
    size_t bad = 0;
    const int what = cq_alloc_hull(j->p, i, slope, start, &bad);
    if (what && t->status == CQ_OK) {
        t->status = what == -1 ? CQ_BAD_DISTORTION : CQ_NO_OPTION;
        t->bad = what == -1 ? bad : i;
    }
    if (what) return;
    for (size_t k = 0; k < j->p->m; k++) { /* never above what a step is, never 0 where it is not */
        const float f = (float)fmin(slope[k], (double)FLT_MAX);
        s[k] = isinf(slope[k]) ? INFINITY : (slope[k] > 0.0 && f == 0.0f ? FLT_TRUE_MIN : f);
        if (isinf(slope[k])) t->forced += cq_alloc_step_cost(j, i, k);
    }
}

/* Steps s of units [begin, end); `odd` is room for as many numbers. */
static void find_steps(cq_alloc_job *j, size_t begin, size_t end, float *s, uint32_t *odd,
                       cq_alloc_part *t) {
    const cq_alloc_problem *p = j->p;
    size_t count = 0;
    if (!j->plain) {
        for (size_t i = begin; i < end; i++) hull_steps(j, i, s + (i - begin) * p->m, t);
        return;
    }
    j->cx->k->alloc_steps_f32(p->d + begin * p->m, end - begin, p->m, j->gap, s, odd, &count);
    for (size_t k = 0; k < count; k++) hull_steps(j, begin + odd[k], s + odd[k] * p->m, t);
}

/* What of them lies in the bounds. */
static void find_band(const cq_alloc_job *j, size_t begin, size_t end, const float *s,
                      uint32_t *index, float *value, cq_alloc_band *b) {
    const size_t m = j->p->m, len = (end - begin) * m;
    *b = (cq_alloc_band){0, 0, 0};
    if (j->plain) {
        j->cx->k->alloc_band_f32(s, len, m, j->price, j->lo, j->hi, index, value, b);
        return;
    }
    for (size_t f = 0; f < len; f++) {
        if (!(s[f] >= j->lo)) continue;
        const int64_t cost = cq_alloc_step_cost(j, begin + f / m, f % m);
        if (s[f] > j->hi) {
            b->above += cost;
            continue;
        }
        b->inside += cost;
        value[b->count] = s[f];
        index[b->count++] = (uint32_t)f;
    }
}

void cq_alloc_look(void *ctx, size_t begin, size_t end, size_t block) {
    cq_alloc_job *j = ctx;
    const size_t m = j->p->m, first = begin * m;
    cq_alloc_part *t = j->parts + block;
    float *s = j->s + block * CQ_ALLOC_STEPS_PIECE * m;
    *t = (cq_alloc_part){.status = CQ_OK};
    for (size_t i = begin; i < end; i += CQ_ALLOC_STEPS_PIECE) {
        const size_t stop = cq_min_size(end, i + CQ_ALLOC_STEPS_PIECE), offset = (i - begin) * m;
        uint32_t *index = j->index + first + t->band.count;
        cq_alloc_band b;
        find_steps(j, i, stop, s, j->index + first + offset, t); /* past what is listed */
        if (t->status != CQ_OK) return;
        find_band(j, i, stop, s, index, j->value + first + t->band.count, &b);
        for (size_t k = 0; k < b.count; k++) index[k] += (uint32_t)offset;
        j->cx->k->alloc_take_f32(s, stop - i, m, j->hi, j->choice + i);
        t->band.above += b.above;
        t->band.inside += b.inside;
        t->band.count += b.count;
    }
}

void cq_alloc_filter(void *ctx, size_t begin, size_t end, size_t block) {
    const cq_alloc_job *j = ctx;
    const size_t first = begin * j->p->m, have = j->parts[block].band.count;
    const uint32_t m = (uint32_t)j->p->m;
    const uint64_t inverse = (((uint64_t)1 << 32) + m - 1) / m; /* f / m for f < 2**17 */
    cq_alloc_band b = {0, 0, 0};
    float *value = j->value + first;
    uint32_t *index = j->index + first;
    (void)end;
    for (size_t k = 0; k < have; k++) { /* without branches: they would be guessed wrong */
        const float v = value[k];
        const uint32_t f = index[k], unit = (uint32_t)(f * inverse >> 32);
        const int up = v > j->hi, in = !up & (v >= j->lo);
        const uint32_t at = f - unit * m;
        const int64_t cost = j->plain ? j->price[at] : cq_alloc_step_cost(j, begin + unit, at);
        b.above += up ? cost : 0;
        b.inside += in ? cost : 0;
        j->choice[begin + unit] = (uint8_t)(j->choice[begin + unit] + up);
        value[b.count] = v;
        index[b.count] = f;
        b.count += (size_t)in;
    }
    b.above += j->parts[block].band.above;
    j->parts[block].band = b;
}
