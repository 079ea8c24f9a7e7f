/* SPDX-License-Identifier: Apache-2.0 */
/* The relaxation: spend the budget on the steps of the lower hulls that buy most, in order. The
 * threshold that the budget reaches lies in a narrow band of values, and only the steps in the band
 * are looked at in double. */
#include "allocate.h"
#include "core/parallel.h"

#include <float.h>
#include <math.h>

enum { SAMPLE = 2048 };

/* The slope t with cost(slope > t) <= need < cost(slope >= t). Reorders v. */
static double select_slope(cq_alloc_record *v, size_t n, int64_t need) {
    for (size_t a = 0, b = n;;) {
        const double x = v[a].slope, y = v[a + (b - a) / 2].slope, z = v[b - 1].slope;
        const double pivot = fmax(fmin(x, y), fmin(fmax(x, y), z));
        size_t above = a, below = b;
        int64_t more = 0, equal = 0;
        for (size_t k = a; k < below;) { /* greater | equal | unseen | smaller */
            const cq_alloc_record r = v[k];
            if (r.slope > pivot) {
                more += r.cost;
                v[k++] = v[above];
                v[above++] = r;
            } else if (r.slope < pivot) {
                v[k] = v[--below];
                v[below] = r;
            } else {
                equal += r.cost;
                k++;
            }
        }
        if (more > need)
            b = above;
        else if (more + equal > need || below == b)
            return pivot;
        else {
            need -= more + equal;
            a = below;
        }
    }
}

static cq_alloc_band sum_bands(const cq_alloc_job *j, size_t blocks) {
    cq_alloc_band all = {0, 0, 0};
    for (size_t b = 0; b < blocks; b++) {
        all.above += j->parts[b].band.above;
        all.inside += j->parts[b].band.inside;
        all.count += j->parts[b].band.count;
    }
    return all;
}

/* Bounds that hold the threshold as a rule (three standard errors; else the band is looked for
 * again), from a sample of steps in j->copy: the quantiles to either side of `share` of their cost.
 */
static void bounds(cq_alloc_job *j, size_t count, int64_t all, double share) {
    if (count < 64 || all == 0) return;
    const double error =
        3.0 * sqrt(fmax(share * (1.0 - share), 0.0) / (double)count) + 3.0 / (double)count;
    const double up = share - error, down = share + error;
    const float lo = j->lo, hi = j->hi;
    if (up > 0.0 && up < 1.0)
        j->hi = (float)select_slope(j->copy, count, (int64_t)(up * (double)all));
    if (down < 1.0) j->lo = (float)select_slope(j->copy, count, (int64_t)(down * (double)all));
    j->hi = isfinite(j->hi) && j->hi < hi ? j->hi : hi;
    j->lo = j->lo > lo ? fminf(j->lo, j->hi) : lo;
}

/* The slope of step `at` of unit i: as the kernels find it where it falls between its neighbours
 * (good enough for a sample), else by the hull; 0 also where the unit is refused later. */
static double one_slope(const cq_alloc_job *j, size_t i, size_t at) {
    const size_t m = j->p->m, last = cq_min_size(at + 2, m - 1);
    const float *d = j->p->d + i * m;
    if (at + 1 == m) return 0.0;
    int falls = j->plain;
    float s[3] = {0};
    for (size_t k = at ? at - 1 : 0, q = 0; falls && k < last; k++, q++) {
        s[q] = (d[k] - d[k + 1]) / j->gap[k];
        falls = isfinite(s[q]) && (q == 0 || s[q - 1] > s[q]);
    }
    if (falls) return (double)s[at > 0];
    double slope[CQ_ALLOC_MAX_OPTIONS];
    uint8_t start[CQ_ALLOC_MAX_OPTIONS];
    size_t bad;
    return cq_alloc_hull(j->p, i, slope, start, &bad) ? 0.0 : slope[at];
}

/* Bounds from the steps at about SAMPLE places of the table. */
void cq_alloc_sample(cq_alloc_job *j, int64_t need) {
    const size_t m = j->p->m, len = j->p->n * m, stride = len / SAMPLE | 1;
    size_t count = 0, seen = 0;
    int64_t all = 0;
    j->lo = FLT_TRUE_MIN;
    j->hi = FLT_MAX;
    for (size_t f = stride / 2; f < len; f += stride, seen++) {
        const double slope = one_slope(j, f / m, f % m);
        if (!(slope > 0.0)) continue;
        const int64_t cost = cq_alloc_step_cost(j, f / m, f % m);
        j->copy[count++] = (cq_alloc_record){slope, cost, 0, 0};
        all += cost;
    }
    if (count) bounds(j, count, all, (double)need / ((double)all * (double)len / (double)seen));
}

/* Narrower bounds from a sample of the band, and what lies in them. */
static cq_status narrow(cq_alloc_job *j, size_t blocks, cq_alloc_band *now, int64_t need) {
    const size_t m = j->p->m, stride = now->count / 1024 | 1;
    size_t count = 0, skip = stride / 2;
    int64_t all = 0;
    for (size_t b = 0; b < blocks; b++) {
        const size_t have = j->parts[b].band.count, first = b * CQ_ALLOC_BLOCK * m;
        for (; skip < have; skip += stride) {
            const size_t flat = first + j->index[first + skip];
            const int64_t cost = cq_alloc_step_cost(j, flat / m, flat % m);
            j->copy[count++] = (cq_alloc_record){(double)j->value[first + skip], cost, 0, 0};
            all += cost;
        }
        skip -= have;
    }
    bounds(j, count, all, (double)(need - now->above) / (double)now->inside);
    CQ_TRY(cq_parallel_rows(j->cx, j->p->n, CQ_ALLOC_BLOCK, cq_alloc_filter, j));
    *now = sum_bands(j, blocks);
    return CQ_OK;
}

/* The steps in the band, in order, with their slopes in double. */
static size_t make_records(cq_alloc_job *j, size_t blocks) {
    const size_t m = j->p->m;
    size_t count = 0, bad, unit = SIZE_MAX;
    double slope[CQ_ALLOC_MAX_OPTIONS] = {0};
    uint8_t start[CQ_ALLOC_MAX_OPTIONS] = {0};
    for (size_t b = 0; b < blocks; b++)
        for (size_t k = 0; k < j->parts[b].band.count; k++) {
            const size_t flat = b * CQ_ALLOC_BLOCK * m + j->index[b * CQ_ALLOC_BLOCK * m + k],
                         i = flat / m;
            if (i != unit) cq_alloc_hull(j->p, i, slope, start, &bad);
            unit = i;
            const size_t at = flat % m;
            j->records[count] = (cq_alloc_record){slope[at], cq_alloc_step_cost(j, i, at),
                                                  (uint32_t)flat, (uint32_t)(i * m + start[at])};
            j->copy[count] = j->records[count];
            count++;
        }
    return count;
}

/* Whether t is clear of the ends of the band: float slopes are within 2 ulp of their values, so
 * steps outside the band are on the right side of t. */
static int inside(const cq_alloc_job *j, double t) {
    const double ulps = 4.0 * (double)FLT_EPSILON;
    return (j->lo <= FLT_TRUE_MIN || t > (double)j->lo * (1.0 + ulps)) &&
           (j->hi >= FLT_MAX || t < (double)j->hi * (1.0 - ulps));
}

/* The steps of the band as records, and the threshold among them; 0 where it may lie outside. */
static int settle(cq_alloc_job *j, size_t blocks, const cq_alloc_band *now, int64_t need,
                  double *slope, size_t *count) {
    if (now->above > need || now->above + now->inside <= need) return 0;
    *count = make_records(j, blocks);
    *slope = select_slope(j->copy, *count, need - now->above);
    return inside(j, *slope);
}

/* Bounds for the next look at all steps. */
static void widen(cq_alloc_job *j, int attempt, float lo, float hi) {
    j->lo = attempt ? FLT_TRUE_MIN : fmaxf(FLT_TRUE_MIN, lo * 0.99f);
    j->hi = attempt ? FLT_MAX : fminf(FLT_MAX, hi * 1.01f);
    if (!(j->hi > 0.0f)) j->hi = FLT_MAX;
}

/* Find the threshold, from the steps that were looked at for the sampled bounds. 1: *slope, and the
 * steps of its band as records; *above is what those above the band cost, which are taken. 0: all
 * steps fit, and are taken. -1: interrupted. */
static int threshold(cq_alloc_job *j, size_t blocks, int64_t need, double *slope, size_t *count,
                     int64_t *above) {
    for (int attempt = 0, again = 0;; again = 1) {
        if (again && cq_parallel_rows(j->cx, j->p->n, CQ_ALLOC_BLOCK, cq_alloc_look, j) != CQ_OK)
            return -1;
        cq_alloc_band now = sum_bands(j, blocks);
        if (now.above > need) {
            j->lo = j->hi;
            j->hi = FLT_MAX;
            continue;
        }
        if (now.above + now.inside <= need) {
            if (j->lo > FLT_TRUE_MIN) {
                j->hi = j->lo;
                j->lo = FLT_TRUE_MIN;
                continue;
            }
            j->hi = 0.0f;
            return cq_parallel_rows(j->cx, j->p->n, CQ_ALLOC_BLOCK, cq_alloc_filter, j) == CQ_OK
                       ? 0
                       : -1;
        }
        const float lo = j->lo, hi = j->hi;
        for (int round = 0; !again && round < 4 && now.count > 512; round++)
            if (narrow(j, blocks, &now, need) != CQ_OK) return -1;
        *above = now.above;
        if (settle(j, blocks, &now, need, slope, count)) return 1;
        widen(j, attempt++, lo, hi);
    }
}

/* Take the steps above the threshold, and of those at it, in order, what fits. Returns what is left
 * of the budget. */
static int64_t spend(const cq_alloc_job *j, size_t count, double slope, int64_t left) {
    const cq_alloc_record *r = j->records;
    const size_t m = j->p->m;
    for (size_t k = 0; k < count; k++)
        if (r[k].slope > slope) {
            left -= r[k].cost;
            j->choice[r[k].flat / m]++;
        }
    size_t closed = SIZE_MAX;
    for (size_t k = 0, end; k < count; k = end) {
        int64_t cost = 0;
        for (end = k; end < count && r[end].start == r[k].start && r[end].slope == r[k].slope;
             end++)
            cost += r[end].cost;
        const size_t i = r[k].flat / m;
        if (r[k].slope != slope || i == closed) continue;
        if (cost > left) {
            closed = i;
            continue;
        }
        left -= cost;
        j->choice[i] = (uint8_t)(j->choice[i] + (end - k));
    }
    return left;
}

cq_status cq_alloc_solve(cq_alloc_job *j, size_t blocks, int64_t need, double *info, void *core) {
    double slope = 0.0;
    size_t count = 0;
    int64_t above = 0;
    const int found = threshold(j, blocks, need, &slope, &count, &above);
    if (found < 0) return CQ_INTERRUPTED;
    info[1] = 0.0;
    info[2] = slope;
    if (!found) return CQ_OK;
    const int64_t left = spend(j, count, slope, need - above);
    if (left == 0) return CQ_OK;
    info[1] = cq_alloc_complete(j->cx, j->p, slope, left * j->p->unit, j->choice, core);
    return info[1] < INFINITY ? CQ_OK : CQ_INTERRUPTED;
}
