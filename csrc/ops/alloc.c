/* SPDX-License-Identifier: Apache-2.0 */
#include "core/grid.h"
#include "core/parallel.h"
#include "ops.h"

#include <float.h>
#include <math.h>

typedef struct job {
    cq_ctx *cx;
    const cq_kernels *k;
    const float *x, *g, *weight;
    float *out;
    uint8_t *bits;
    double lo, hi, target, all_w;
    int64_t total;
    size_t C;
} job;

/* The float before (`step` 1) or after (-1) a finite one: nextafterf without a call. */
static float neighbour(float f, int step) {
    if (f == 0.0f) return step > 0 ? -FLT_TRUE_MIN : FLT_TRUE_MIN;
    const uint32_t bits = cq_float_bits(f);
    return cq_bits_float(bits >> 31 ? bits + (uint32_t)step : bits - (uint32_t)step);
}

/* x <= a and x >= a for a float x, as a comparison with a float. */
static float float_below(double a) {
    const float f = (float)a;
    return (double)f > a ? neighbour(f, 1) : f;
}

static float float_above(double a) {
    const float f = (float)a;
    return (double)f < a ? neighbour(f, -1) : f;
}

/* One row: where tau is known to lie, and the sums it must meet. */
typedef struct search {
    const job *j;
    const float *x;
    double all_w, left, right;
} search;

static void thresholds(const job *j, double tau, float *range) {
    range[0] = (float)j->lo;
    range[1] = (float)j->hi;
    range[2] = float_below(j->lo - tau);
    range[3] = float_above(j->hi - tau);
}

/* The shift that the sets of `s`, found at `tau`, ask for: a Newton step, or half of the bracket
 * where that leaves it. *solved tells which. */
static double next_shift(search *a, const cq_alloc_sums *s, double tau, int *solved) {
    const job *j = a->j;
    const double want = j->target * a->all_w;
    const double ends = j->lo * s->low_w + j->hi * s->high_w;
    const double miss = want - (ends + s->free_x + tau * s->free_w);
    *solved = 1;
    if (miss == 0.0) return tau;
    if (miss > 0.0)
        a->left = tau;
    else
        a->right = tau;
    const double newton = s->free_w > 0.0 ? (want - ends - s->free_x) / s->free_w : NAN;
    if (newton == tau || (newton > a->left && newton < a->right)) return newton;
    if (isinf(a->left) || isinf(a->right)) { /* shifts at which all are at lo, all at hi */
        float mn, mx;
        j->k->minmax_f32_row(a->x, j->C, &mn, &mx);
        a->left = fmax(a->left, j->lo - (double)mx);
        a->right = fmin(a->right, j->hi - (double)mn);
    }
    *solved = 0;
    return 0.5 * (a->left + a->right);
}

/* Two Newton steps with float sums, at half the price of double sums: from the wishes themselves,
 * or, where most of those lie outside the ends (logits, say), from the row moved to the mean.
 * NaN for a row with NaN or infinity. */
static double first_guess(const job *j, const float *x) {
    const double n = (double)j->C, want = j->target * n;
    float sum;
    size_t inside;
    double tau = 0.0;
    j->k->alloc_guess_f32(x, j->C, (float)j->lo, (float)j->hi, &sum, &inside);
    if (isnan(sum)) return NAN;
    if (2 * inside < j->C) {
        j->k->alloc_guess_f32(x, j->C, -INFINITY, INFINITY, &sum, &inside);
        tau = j->target - (double)sum / n;
        if (!isfinite(tau)) tau = 0.0; /* the float sum overflowed */
    } else {
        tau = (want - (double)sum) / (double)inside;
    }
    j->k->alloc_guess_f32(x, j->C, float_below(j->lo - tau), float_above(j->hi - tau), &sum,
                          &inside);
    if (!inside || !isfinite(sum)) return tau;
    return tau + (want - (double)sum - n * tau) / (double)inside;
}

/* Improve *tau until the sets of the last sums and of the result are the same: then it solves them.
 * 1: `out` holds the result already. */
static int solve(const job *j, const float *x, float *out, double *tau) {
    cq_alloc_sums s;
    search a = {j, x, j->all_w, -INFINITY, INFINITY};
    for (int step = 0, solved = 0; step < 200 && !cq_stop(j->cx); step++) {
        float range[4];
        thresholds(j, *tau, range);
        j->k->alloc_sums_f32(x, j->weight, j->C, range[2], range[3], &s);
        const double next = next_shift(&a, &s, *tau, &solved);
        if (next == *tau || !(next >= a.left && next <= a.right)) break;
        *tau = next;
        /* A row in place is overwritten, so the test of the sets is a pass of its own. */
        if (!solved || out == x) continue;
        size_t ends[2];
        thresholds(j, *tau, range);
        j->k->alloc_shift_f32(x, j->C, *tau, range, out, ends);
        if (ends[0] == s.ends[0] && ends[1] == s.ends[1]) return 1;
    }
    return 0;
}

/* From this shift on a double has too few bits left for fractions of a bit. */
#define FAR_SHIFT 0x1p27

/* One row. Where the shift is far, the row is moved there first: differences of wishes that can be
 * between the ends together are exact in float. */
static void project(const job *j, const float *x, float *out) {
    double tau = first_guess(j, x);
    if (isnan(tau)) {
        for (size_t c = 0; c < j->C; c++) out[c] = NAN;
        return;
    }
    int written = solve(j, x, out, &tau);
    for (int round = 0; round < 4 && fabs(tau) >= FAR_SHIFT; round++) {
        const float at = (float)fmin(fmax(-tau, -(double)FLT_MAX), (double)FLT_MAX);
        for (size_t c = 0; c < j->C; c++) out[c] = cq_clampf(x[c] - at, -FLT_MAX, FLT_MAX);
        x = out;
        tau = first_guess(j, x);
        written = solve(j, x, out, &tau);
    }
    if (written) return;
    float range[4];
    size_t ends[2];
    thresholds(j, tau, range);
    j->k->alloc_shift_f32(x, j->C, tau, range, out, ends);
}

static void project_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++) project(j, j->x + r * j->C, j->out + r * j->C);
}

static void backward_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->alloc_project_bwd_f32_row(j->g + r * j->C, j->x + r * j->C, j->weight, j->C,
                                        (float)j->lo, (float)j->hi, j->out + r * j->C);
}

static void round_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->alloc_round_f32_row(j->x + r * j->C, j->C, (int)j->lo, (int)j->hi, j->total,
                                  j->bits + r * j->C);
}

static cq_status check_weight(cq_ctx *cx, const float *weight, size_t C) {
    for (size_t c = 0; weight && c < C; c++)
        if (!(weight[c] > 0.0f) || isinf(weight[c]))
            return cq_refuse(cx, CQ_BAD_WEIGHT, c, (double)weight[c]);
    return CQ_OK;
}

static cq_status check_range(cq_ctx *cx, double lo, double hi) {
    if (!((double)(float)lo == lo) || isinf(lo)) return cq_refuse(cx, CQ_BAD_RANGE, 0, lo);
    if (!((double)(float)hi == hi) || isinf(hi)) return cq_refuse(cx, CQ_BAD_RANGE, 1, hi);
    return lo <= hi ? CQ_OK : cq_refuse(cx, CQ_BAD_RANGE, 1, hi);
}

cq_status cq_project_row(cq_ctx *cx, const float *x, const float *weight, double lo, double hi,
                         double target, float *out, size_t R, size_t C) {
    CQ_TRY(check_range(cx, lo, hi));
    if (!(target >= lo && target <= hi)) return cq_refuse(cx, CQ_BAD_TARGET, 0, target);
    CQ_TRY(check_weight(cx, weight, C));
    double all_w = weight ? 0.0 : (double)C;
    for (size_t c = 0; weight && c < C; c++) all_w += (double)weight[c];
    job j = {cx, cx->k, x, NULL, weight, out, NULL, lo, hi, target, all_w, 0, C};
    if (C == 0) return CQ_OK;
    return cq_parallel_rows(cx, R, cq_grain(C * 4), project_rows, &j);
}

cq_status cq_project_bwd_row(cq_ctx *cx, const float *g, const float *b, const float *weight,
                             double lo, double hi, float *gx, size_t R, size_t C) {
    CQ_TRY(check_range(cx, lo, hi));
    CQ_TRY(check_weight(cx, weight, C));
    if (!C) return CQ_OK; /* however many rows */
    job j = {cx, cx->k, b, g, weight, gx, NULL, lo, hi, 0.0, 0.0, 0, C};
    return cq_parallel_rows(cx, R, cq_grain(C * 4), backward_rows, &j);
}

cq_status cq_round_bits_row(cq_ctx *cx, const float *b, int lo, int hi, int64_t total, uint8_t *out,
                            size_t R, size_t C) {
    if (lo > hi) return cq_refuse(cx, CQ_BAD_RANGE, 1, hi);
    const int64_t n = (int64_t)C;
    if (total < lo * n || total > hi * n) return cq_refuse(cx, CQ_BAD_TOTAL, 0, (double)total);
    if (!C) return CQ_OK;
    for (size_t i = 0; i < R * C; i++) {
        if (!isfinite(b[i])) return cq_refuse(cx, CQ_NOT_FINITE, i, (double)b[i]);
        if (i % 4194304 == 0 && cq_stop(cx)) return CQ_INTERRUPTED;
    }
    job j = {cx, cx->k, b, NULL, NULL, NULL, out, lo, hi, 0.0, 0.0, total, C};
    return cq_parallel_rows(cx, R, cq_grain(C * 64), round_rows, &j);
}
