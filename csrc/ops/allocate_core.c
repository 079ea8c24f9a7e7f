/* SPDX-License-Identifier: Apache-2.0 */
/* Exact completion of an allocation that leaves a little of the budget.
 *
 * At the slope L of the relaxation, option j of unit i has the reduced distortion
 * rho = d[j] - d[choice] + L * (cost[j] - cost[choice]) >= 0. Changing a set of units to spend
 * delta <= left costs sum rho + L * (left - delta) above the relaxed bound; the choice itself is
 * L * left above it. So an option with rho >= the best known sum cannot be part of a better
 * solution, and few options have a smaller one. A dynamic program over those, in order of rho, with
 * states (delta, rho) of which only undominated ones are kept, finds the best set (Pisinger, "A
 * minimal algorithm for the multiple-choice knapsack problem", EJOR 83, 1995).
 *
 * Where all costs are multiples of one number and differ by at most D of them, D small, also many
 * equal units are no trouble: an optimal set can be ordered so that its sums stay within 2 D
 * values; two equal sums would enclose a part that changes nothing, so at most 2 D - 1 units
 * change, and only the 2 D - 1 units of smallest rho are needed for each difference (Steinitz'
 * argument; Eisenbrand and Weismantel, "Proximity results and faster algorithms for integer
 * programming", 2018). */
#include "allocate.h"
#include "core/parallel.h"

#include <math.h>
#include <string.h>

enum { SMALL = 24, MOST_UNITS = 8192, MOST_STATES = 32768, MOST_NODES = 1 << 20 };

typedef struct unit {
    double rho; /* the smallest of its options */
    size_t at;
} unit;

typedef struct state {
    int64_t delta;
    double rho;
    int32_t node;
} state;

typedef struct node {
    int32_t parent;
    uint32_t unit; /* place in the core */
    uint8_t option;
} node;

typedef struct core {
    const cq_alloc_problem *p;
    double slope, best; /* best: of a known solution, above the relaxed bound */
    double missed;      /* smallest rho of what was left out */
    int64_t left;
    size_t units;
    int32_t nodes, found;
    size_t single_unit, single_option; /* the best change of one unit */
    unit *unit;                        /* [MOST_UNITS + 1] */
    state *now, *next;                 /* [MOST_STATES] */
    node *node;                        /* [MOST_NODES] */
} core;

_Static_assert(sizeof(unit) * (MOST_UNITS + 1) + sizeof(state) * 2 * MOST_STATES +
                       sizeof(node) * MOST_NODES <=
                   CQ_ALLOC_CORE_BYTES,
               "workspace");

/* Reduced distortion and cost of an option; 0 where it is no change or not allowed. */
static int option_of(const core *c, size_t i, size_t from, size_t j, int64_t *delta, double *rho) {
    const cq_alloc_problem *p = c->p;
    const float *d = p->d + i * p->m;
    if (j == from || isinf(d[j])) return 0;
    *delta = cq_alloc_cost(&p->costs, i, j) - cq_alloc_cost(&p->costs, i, from);
    *rho = fmax(0.0, (double)d[j] - (double)d[from] + c->slope * (double)*delta);
    return *delta != 0;
}

/* The best change of one unit. */
static cq_status single(cq_ctx *cx, core *c, const uint8_t *choice) {
    for (size_t i = 0; i < c->p->n; i++) {
        if (i % 65536 == 0 && cq_stop(cx)) return CQ_INTERRUPTED;
        for (size_t j = choice[i] + 1u; j < c->p->m; j++) {
            int64_t delta;
            double rho;
            if (!option_of(c, i, choice[i], j, &delta, &rho) || delta > c->left) continue;
            const double sum = rho + c->slope * (double)(c->left - delta);
            if (!(sum < c->best)) continue;
            c->best = sum;
            c->single_unit = i;
            c->single_option = j;
        }
    }
    return CQ_OK;
}

/* Keep the `most` units of smallest rho, in order, equal ones by index; a unit is added with
 * growing index. Returns the new count. */
static size_t insert(unit *list, size_t count, size_t most, unit u) {
    size_t k = count;
    while (k > 0 && list[k - 1].rho > u.rho) k--;
    if (k >= most) return count;
    const size_t keep = cq_min_size(count, most - 1);
    memmove(list + k + 1, list + k, (keep - k) * sizeof *list);
    list[k] = u;
    return keep + 1;
}

/* Small differences: the 2 D - 1 best units of each, merged; lists live where states will. */
static cq_status collect_small(cq_ctx *cx, core *c, const uint8_t *choice, size_t reach) {
    const size_t most = 2 * reach - 1, lists = 2 * reach + 1;
    unit *list = (unit *)(void *)c->node;
    size_t count[2 * SMALL + 1] = {0};
    for (size_t i = 0; i < c->p->n; i++) {
        if (i % 65536 == 0 && cq_stop(cx)) return CQ_INTERRUPTED;
        for (size_t j = 0; j < c->p->m; j++) {
            int64_t delta;
            double rho;
            if (!option_of(c, i, choice[i], j, &delta, &rho) || !(rho < c->best)) continue;
            const size_t which = (size_t)(delta / c->p->unit + (int64_t)reach);
            count[which] = insert(list + which * most, count[which], most, (unit){rho, i});
        }
    }
    for (size_t which = 0; which < lists; which++)
        for (size_t k = 0; k < count[which]; k++) {
            const unit u = list[which * most + k];
            size_t q = 0;
            while (q < c->units && c->unit[q].at != u.at) q++;
            if (q == c->units)
                c->units = insert(c->unit, c->units, MOST_UNITS, u);
            else if (u.rho < c->unit[q].rho) { /* a better option of the same unit: move it up */
                memmove(c->unit + q, c->unit + q + 1, (c->units - q - 1) * sizeof *c->unit);
                c->units = insert(c->unit, c->units - 1, MOST_UNITS, u);
            }
        }
    return CQ_OK;
}

/* Any differences: all units that have an option below the best, or the first MOST_UNITS of them.
 */
static cq_status collect(cq_ctx *cx, core *c, const uint8_t *choice) {
    for (size_t i = 0; i < c->p->n; i++) {
        if (i % 65536 == 0 && cq_stop(cx)) return CQ_INTERRUPTED;
        double least = c->best;
        for (size_t j = 0; j < c->p->m; j++) {
            int64_t delta;
            double rho;
            if (option_of(c, i, choice[i], j, &delta, &rho) && rho < least) least = rho;
        }
        if (!(least < c->best)) continue;
        if (c->units == MOST_UNITS)
            c->missed = fmin(c->missed, fmax(c->unit[MOST_UNITS - 1].rho, least));
        c->units = insert(c->unit, c->units, MOST_UNITS, (unit){least, i});
    }
    return CQ_OK;
}

/* Take a state into the new list if nothing before it is as good; remember the best solution. */
static size_t keep(core *c, size_t count, state s, double *dominated, size_t u, size_t option) {
    const double value = s.rho - c->slope * (double)s.delta;
    if (!(s.rho < c->best) || !(value < *dominated)) return count;
    if (count == MOST_STATES || (option < CQ_ALLOC_MAX_OPTIONS && c->nodes == MOST_NODES)) {
        c->missed = fmin(c->missed, s.rho);
        return count;
    }
    *dominated = value;
    if (option < CQ_ALLOC_MAX_OPTIONS) {
        c->node[c->nodes] = (node){s.node, (uint32_t)u, (uint8_t)option};
        s.node = c->nodes++;
    }
    c->next[count] = s;
    const double sum = s.rho + c->slope * (double)(c->left - s.delta);
    if (s.delta <= c->left && sum < c->best) {
        c->best = sum;
        c->found = s.node;
    }
    return count + 1;
}

/* States after unit u: every option shifts the list, so this is a merge of sorted lists. */
static size_t extend(core *c, size_t count, size_t u, size_t from) {
    int64_t shift[CQ_ALLOC_MAX_OPTIONS + 1];
    double add[CQ_ALLOC_MAX_OPTIONS + 1];
    size_t option[CQ_ALLOC_MAX_OPTIONS + 1], at[CQ_ALLOC_MAX_OPTIONS + 1] = {0}, lists = 1,
                                                                       made = 0;
    shift[0] = 0, add[0] = 0.0, option[0] = CQ_ALLOC_MAX_OPTIONS; /* no change */
    for (size_t j = 0; j < c->p->m; j++) {
        if (!option_of(c, c->unit[u].at, from, j, shift + lists, add + lists)) continue;
        if (add[lists] < c->best) option[lists++] = j;
    }
    for (double dominated = INFINITY;;) {
        size_t low = lists;
        state s = {0, 0.0, 0};
        for (size_t k = 0; k < lists; k++) {
            if (at[k] == count) continue;
            const state *t = c->now + at[k];
            const state v = {t->delta + shift[k], t->rho + add[k], t->node};
            if (low < lists && (v.delta > s.delta || (v.delta == s.delta && v.rho >= s.rho)))
                continue;
            low = k;
            s = v;
        }
        if (low == lists) break;
        at[low]++;
        made = keep(c, made, s, &dominated, u, option[low]);
    }
    state *swap = c->now;
    c->now = c->next;
    c->next = swap;
    return made;
}

double cq_alloc_complete(cq_ctx *cx, const cq_alloc_problem *p, double slope, int64_t left,
                         uint8_t *choice, void *work) {
    core c = {.p = p,
              .slope = slope,
              .best = slope * (double)left,
              .missed = INFINITY,
              .left = left,
              .found = -1,
              .single_unit = p->n};
    c.unit = work;
    c.now = (state *)(void *)(c.unit + MOST_UNITS + 1);
    c.next = c.now + MOST_STATES;
    c.node = (node *)(void *)(c.next + MOST_STATES);
    if (single(cx, &c, choice) != CQ_OK) return INFINITY;
    const int64_t reach = p->widest / p->unit;
    const cq_status done =
        reach <= SMALL ? collect_small(cx, &c, choice, (size_t)reach) : collect(cx, &c, choice);
    if (done != CQ_OK) return INFINITY;
    size_t count = 1;
    c.now[0] = (state){0, 0.0, -1};
    for (size_t u = 0; u < c.units && c.unit[u].rho < c.best; u++) {
        if (cq_stop(cx)) return INFINITY;
        count = extend(&c, count, u, choice[c.unit[u].at]);
    }
    if (c.found < 0 && c.single_unit < p->n) choice[c.single_unit] = (uint8_t)c.single_option;
    for (int32_t k = c.found; k >= 0; k = c.node[k].parent)
        choice[c.unit[c.node[k].unit].at] = c.node[k].option;
    return fmax(0.0, c.best - c.missed);
}
