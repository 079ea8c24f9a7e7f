/* SPDX-License-Identifier: Apache-2.0 */
/* The relaxation: spend the budget on the steps of the lower hulls that buy most, in order. What a
 * step buys is first found in float for whole tables; the threshold that the budget reaches lies in
 * a narrow band of values, and only the steps in the band are looked at in double. */
#include "allocate.h"
#include "core/parallel.h"
#include "core/size.h"

#include <float.h>
#include <math.h>

/* PIECE: units of a block whose steps lie in L1 while they are looked at. */
enum { BLOCK = 8192, PIECE = 1024, SAMPLE = 2048, LOOK = 1 << 22 };

typedef struct record {
    double slope;
    int64_t cost;
    uint32_t flat;  /* i * m + j */
    uint32_t start; /* flat index of the first step of its segment */
} record;

typedef struct part { /* of a block of units */
    cq_alloc_band band;
    int64_t forced, spent;
    double distortion;
    cq_status status;
    size_t bad;
} part;

typedef struct job {
    cq_ctx *cx;
    const cq_alloc_problem *p;
    float gap[CQ_ALLOC_MAX_OPTIONS], lo, hi;
    int32_t price[CQ_ALLOC_MAX_OPTIONS];
    int plain;        /* costs are one small row: the kernels can sum them */
    float *s, *value; /* s: [PIECE * m] for each block */
    uint32_t *index;
    record *records, *copy;
    part *parts;
    uint8_t *choice;
} job;

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

/* In units of p->unit, like all sums of costs here. */
static int64_t step_cost(const job *j, size_t i, size_t at) {
    const cq_alloc_problem *p = j->p;
    const int64_t cost = cq_alloc_cost(&p->costs, i, at + 1) - cq_alloc_cost(&p->costs, i, at);
    return p->unit == 1 ? cost : cost / p->unit;
}

/* Steps s[m] of unit i by its hull; adds what they cost to the part. */
static void hull_steps(const job *j, size_t i, float *s, part *t) {
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
        if (isinf(slope[k])) t->forced += step_cost(j, i, k);
    }
}

/* Steps s of units [begin, end); `odd` is room for as many numbers. */
static void find_steps(job *j, size_t begin, size_t end, float *s, uint32_t *odd, part *t) {
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
static void find_band(const job *j, size_t begin, size_t end, const float *s, uint32_t *index,
                      float *value, cq_alloc_band *b) {
    const size_t m = j->p->m, len = (end - begin) * m;
    *b = (cq_alloc_band){0, 0, 0};
    if (j->plain) {
        j->cx->k->alloc_band_f32(s, len, m, j->price, j->lo, j->hi, index, value, b);
        return;
    }
    for (size_t f = 0; f < len; f++) {
        if (!(s[f] >= j->lo)) continue;
        const int64_t cost = step_cost(j, begin + f / m, f % m);
        if (s[f] > j->hi) {
            b->above += cost;
            continue;
        }
        b->inside += cost;
        value[b->count] = s[f];
        index[b->count++] = (uint32_t)f;
    }
}

/* Steps of a block: those in the bounds are listed, those above are taken. */
static void steps(void *ctx, size_t begin, size_t end, size_t block) {
    job *j = ctx;
    const size_t m = j->p->m, first = begin * m;
    part *t = j->parts + block;
    float *s = j->s + block * PIECE * m;
    *t = (part){.status = CQ_OK};
    for (size_t i = begin; i < end; i += PIECE) {
        const size_t stop = cq_min_size(end, i + PIECE), offset = (i - begin) * m;
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

/* Sums of [begin, end), lanes i % 4; `begin` is a multiple of 4. */
static void total(void *ctx, size_t begin, size_t end, size_t block) {
    job *j = ctx;
    const cq_alloc_problem *p = j->p;
    const size_t m = p->m;
    const int row = !p->costs.table && !p->costs.weight;
    part *t = j->parts + block;
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

/* The slope t with cost(slope > t) <= need < cost(slope >= t). Reorders v. */
static double select_slope(record *v, size_t n, int64_t need) {
    for (size_t a = 0, b = n;;) {
        const double x = v[a].slope, y = v[a + (b - a) / 2].slope, z = v[b - 1].slope;
        const double pivot = fmax(fmin(x, y), fmin(fmax(x, y), z));
        size_t above = a, below = b;
        int64_t more = 0, equal = 0;
        for (size_t k = a; k < below;) { /* greater | equal | unseen | smaller */
            const record r = v[k];
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

static cq_alloc_band sum_bands(const job *j, size_t blocks) {
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
static void bounds(job *j, size_t count, int64_t all, double share) {
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
static double one_slope(const job *j, size_t i, size_t at) {
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
static void sample(job *j, int64_t need) {
    const size_t m = j->p->m, len = j->p->n * m, stride = len / SAMPLE | 1;
    size_t count = 0, seen = 0;
    int64_t all = 0;
    j->lo = FLT_TRUE_MIN;
    j->hi = FLT_MAX;
    for (size_t f = stride / 2; f < len; f += stride, seen++) {
        const double slope = one_slope(j, f / m, f % m);
        if (!(slope > 0.0)) continue;
        const int64_t cost = step_cost(j, f / m, f % m);
        j->copy[count++] = (record){slope, cost, 0, 0};
        all += cost;
    }
    if (count) bounds(j, count, all, (double)need / ((double)all * (double)len / (double)seen));
}

/* The steps of a block that lie in the bounds of now; those above are taken. */
static void filter(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
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
        const int64_t cost = j->plain ? j->price[at] : step_cost(j, begin + unit, at);
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

/* Narrower bounds from a sample of the band, and what lies in them. */
static cq_status narrow(job *j, size_t blocks, cq_alloc_band *now, int64_t need) {
    const size_t m = j->p->m, stride = now->count / 1024 | 1;
    size_t count = 0, skip = stride / 2;
    int64_t all = 0;
    for (size_t b = 0; b < blocks; b++) {
        const size_t have = j->parts[b].band.count, first = b * BLOCK * m;
        for (; skip < have; skip += stride) {
            const size_t flat = first + j->index[first + skip];
            const int64_t cost = step_cost(j, flat / m, flat % m);
            j->copy[count++] = (record){(double)j->value[first + skip], cost, 0, 0};
            all += cost;
        }
        skip -= have;
    }
    bounds(j, count, all, (double)(need - now->above) / (double)now->inside);
    CQ_TRY(cq_parallel_rows(j->cx, j->p->n, BLOCK, filter, j));
    *now = sum_bands(j, blocks);
    return CQ_OK;
}

/* The steps in the band, in order, with their slopes in double. */
static size_t make_records(job *j, size_t blocks) {
    const size_t m = j->p->m;
    size_t count = 0, bad, unit = SIZE_MAX;
    double slope[CQ_ALLOC_MAX_OPTIONS] = {0};
    uint8_t start[CQ_ALLOC_MAX_OPTIONS] = {0};
    for (size_t b = 0; b < blocks; b++)
        for (size_t k = 0; k < j->parts[b].band.count; k++) {
            const size_t flat = b * BLOCK * m + j->index[b * BLOCK * m + k], i = flat / m;
            if (i != unit) cq_alloc_hull(j->p, i, slope, start, &bad);
            unit = i;
            const size_t at = flat % m;
            j->records[count] = (record){slope[at], step_cost(j, i, at), (uint32_t)flat,
                                         (uint32_t)(i * m + start[at])};
            j->copy[count] = j->records[count];
            count++;
        }
    return count;
}

/* Whether t is clear of the ends of the band: float slopes are within 2 ulp of their values, so
 * steps outside the band are on the right side of t. */
static int inside(const job *j, double t) {
    const double ulps = 4.0 * (double)FLT_EPSILON;
    return (j->lo <= FLT_TRUE_MIN || t > (double)j->lo * (1.0 + ulps)) &&
           (j->hi >= FLT_MAX || t < (double)j->hi * (1.0 - ulps));
}

/* The steps of the band as records, and the threshold among them; 0 where it may lie outside. */
static int settle(job *j, size_t blocks, const cq_alloc_band *now, int64_t need, double *slope,
                  size_t *count) {
    if (now->above > need || now->above + now->inside <= need) return 0;
    *count = make_records(j, blocks);
    *slope = select_slope(j->copy, *count, need - now->above);
    return inside(j, *slope);
}

/* Bounds for the next look at all steps. */
static void widen(job *j, int attempt, float lo, float hi) {
    j->lo = attempt ? FLT_TRUE_MIN : fmaxf(FLT_TRUE_MIN, lo * 0.99f);
    j->hi = attempt ? FLT_MAX : fminf(FLT_MAX, hi * 1.01f);
    if (!(j->hi > 0.0f)) j->hi = FLT_MAX;
}

/* Find the threshold, from the steps that were looked at for the sampled bounds. 1: *slope, and the
 * steps of its band as records; *above is what those above the band cost, which are taken. 0: all
 * steps fit, and are taken. -1: interrupted. */
static int threshold(job *j, size_t blocks, int64_t need, double *slope, size_t *count,
                     int64_t *above) {
    for (int attempt = 0, again = 0;; again = 1) {
        if (again && cq_parallel_rows(j->cx, j->p->n, BLOCK, steps, j) != CQ_OK) return -1;
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
            return cq_parallel_rows(j->cx, j->p->n, BLOCK, filter, j) == CQ_OK ? 0 : -1;
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
static int64_t spend(const job *j, size_t count, double slope, int64_t left) {
    const record *r = j->records;
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

static cq_status solve(job *j, size_t blocks, int64_t need, double *info, void *core) {
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

static void plain_costs(job *j) {
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

size_t cq_allocate_workspace(size_t n, size_t m) {
    const size_t each = sizeof(float) + sizeof(uint32_t) + 2 * sizeof(record);
    const size_t block = sizeof(part) + PIECE * m * sizeof(float);
    const size_t steps_size = cq_mul(cq_add(cq_mul(n, m), 4096), each);
    const size_t blocks_size = cq_mul(n / BLOCK + 1, block);
    return cq_add(cq_add(CQ_ALLOC_CORE_BYTES + 64, steps_size), blocks_size);
}

static void lay_out(job *j, uint8_t *work) {
    const size_t len = j->p->n * j->p->m + 4096;
    uint8_t *at = work + CQ_ALLOC_CORE_BYTES;
    j->records = (record *)(void *)at;
    j->copy = j->records + len;
    j->parts = (part *)(void *)(j->copy + len);
    j->s = (float *)(void *)(j->parts + j->p->n / BLOCK + 1);
    j->value = j->s + (j->p->n / BLOCK + 1) * PIECE * j->p->m;
    j->index = (uint32_t *)(void *)(j->value + len);
}

cq_status cq_allocate(cq_ctx *cx, const float *d, const cq_alloc_costs *costs, int64_t budget,
                      uint8_t *choice, double *info, int64_t *spent, uint8_t *work, size_t n) {
    const size_t blocks = cq_ceil_div(n, BLOCK);
    cq_alloc_problem p = {d, *costs, n, costs->m, 1, 0};
    int64_t least;
    CQ_TRY(measure(cx, &p, &least));
    job j = {.cx = cx, .p = &p, .choice = choice};
    plain_costs(&j);
    lay_out(&j, work);
    sample(&j, (budget - least) / p.unit);
    CQ_TRY(cq_parallel_rows(cx, n, BLOCK, steps, &j));
    int64_t forced = 0;
    for (size_t b = 0; b < blocks; b++) {
        const part *t = j.parts + b;
        if (t->status != CQ_OK)
            return cq_refuse(cx, t->status, t->bad,
                             t->status == CQ_NO_OPTION ? (double)INFINITY : (double)d[t->bad]);
        forced += t->forced;
    }
    if (budget < least + forced * p.unit)
        return cq_refuse(cx, CQ_BAD_BUDGET, (size_t)(least + forced * p.unit), (double)budget);
    CQ_TRY(solve(&j, blocks, (budget - least) / p.unit, info, work));
    CQ_TRY(cq_parallel_rows(cx, n, BLOCK, total, &j));
    info[0] = 0.0;
    *spent = 0;
    for (size_t b = 0; b < blocks; b++) {
        info[0] += j.parts[b].distortion;
        *spent += j.parts[b].spent;
    }
    return CQ_OK;
}
