/* SPDX-License-Identifier: Apache-2.0 */
/* Real bits of a given mean. A long row is cut into pieces, which are looked at by all threads;
 * what the pieces find is put together in order. */
#include "alloc_pieces.h"
#include "core/grid.h"
#include "ops.h"

#include <float.h>
#include <math.h>

typedef struct job {
    cq_ctx *cx;
    const cq_kernels *k;
    const float *x, *g, *weight;
    float *out;
    double lo, hi, target, all_w;
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

/* What one look at a piece finds. */
typedef struct part {
    cq_alloc_sums s;
    size_t inside;
    float sum, mn, mx;
} part;

/* One row, and what the next look at its pieces needs. */
typedef struct row {
    const job *j;
    const float *x, *g;
    float *out;
    double tau;
    float range[4], at;
    part parts[CQ_ALLOC_PIECES];
} row;

/* Not CQ_OK: interrupted, and some parts may be missing. */
static cq_status each(row *r, cq_block_fn fn) { return cq_alloc_each(r->j->cx, r->j->C, fn, r); }

static size_t pieces(const row *r) { return cq_alloc_pieces(r->j->C); }

static void guess_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *r = ctx;
    part *p = r->parts + block;
    r->j->k->alloc_guess_f32(r->x + begin, end - begin, r->range[2], r->range[3], &p->sum,
                             &p->inside);
}

static void sums_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *r = ctx;
    const float *w = r->j->weight ? r->j->weight + begin : NULL;
    r->j->k->alloc_sums_f32(r->x + begin, w, end - begin, r->range[2], r->range[3],
                            &r->parts[block].s);
}

static void ends_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *r = ctx;
    part *p = r->parts + block;
    r->j->k->minmax_f32_row(r->x + begin, end - begin, &p->mn, &p->mx);
}

static void shift_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *r = ctx;
    r->j->k->alloc_shift_f32(r->x + begin, end - begin, r->tau, r->range, r->out + begin,
                             r->parts[block].s.ends);
}

static void move_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *r = ctx;
    (void)block;
    for (size_t c = begin; c < end; c++) r->out[c] = cq_clampf(r->x[c] - r->at, -FLT_MAX, FLT_MAX);
}

static void spoil_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *r = ctx;
    (void)block;
    for (size_t c = begin; c < end; c++) r->out[c] = NAN;
}

static void bwd_sums_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *r = ctx;
    const job *j = r->j;
    double sums[2];
    j->k->alloc_bwd_sums_f32(r->g + begin, r->x + begin, j->weight ? j->weight + begin : NULL,
                             end - begin, (float)j->lo, (float)j->hi, sums);
    r->parts[block].s.free_x = sums[0];
    r->parts[block].s.free_w = sums[1];
}

static void bwd_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *r = ctx;
    const job *j = r->j;
    (void)block;
    j->k->alloc_bwd_f32(r->g + begin, r->x + begin, j->weight ? j->weight + begin : NULL,
                        end - begin, (float)j->lo, (float)j->hi, r->at, r->out + begin);
}

/* Sum of the channels clamped to [low, high], NaN if any is NaN or infinite, and how many lie
 * inside. */
static cq_status guess(row *r, float low, float high, double *sum, size_t *inside) {
    r->range[2] = low;
    r->range[3] = high;
    CQ_TRY(each(r, guess_piece));
    *sum = (double)r->parts[0].sum;
    *inside = r->parts[0].inside;
    for (size_t p = 1; p < pieces(r); p++) {
        *sum += (double)r->parts[p].sum;
        *inside += r->parts[p].inside;
    }
    return CQ_OK;
}

/* The sums of the parts, in order. */
static cq_alloc_sums add_up(const row *r) {
    cq_alloc_sums all = r->parts[0].s;
    for (size_t p = 1; p < pieces(r); p++) {
        const cq_alloc_sums *s = &r->parts[p].s;
        all.free_w += s->free_w;
        all.free_x += s->free_x;
        all.low_w += s->low_w;
        all.high_w += s->high_w;
        all.ends[0] += s->ends[0];
        all.ends[1] += s->ends[1];
    }
    return all;
}

static void thresholds(row *r) {
    const job *j = r->j;
    r->range[0] = (float)j->lo;
    r->range[1] = (float)j->hi;
    r->range[2] = float_below(j->lo - r->tau);
    r->range[3] = float_above(j->hi - r->tau);
}

/* Where tau is known to lie. */
typedef struct bracket {
    double left, right;
} bracket;

/* Shifts at which all channels are at lo, all at hi. */
static cq_status close_bracket(row *r, bracket *a) {
    CQ_TRY(each(r, ends_piece));
    float mn = r->parts[0].mn, mx = r->parts[0].mx;
    for (size_t p = 1; p < pieces(r); p++) {
        mn = fminf(mn, r->parts[p].mn);
        mx = fmaxf(mx, r->parts[p].mx);
    }
    a->left = fmax(a->left, r->j->lo - (double)mx);
    a->right = fmin(a->right, r->j->hi - (double)mn);
    return CQ_OK;
}

/* The shift that the sets of `s`, found at r->tau, ask for: a Newton step, or half of the bracket
 * where that leaves it. *solved tells which. */
static cq_status next_shift(row *r, bracket *a, const cq_alloc_sums *s, double *next, int *solved) {
    const job *j = r->j;
    const double want = j->target * j->all_w;
    const double ends = j->lo * s->low_w + j->hi * s->high_w;
    const double miss = want - (ends + s->free_x + r->tau * s->free_w);
    *solved = 1;
    *next = r->tau;
    if (miss == 0.0) return CQ_OK;
    if (miss > 0.0)
        a->left = r->tau;
    else
        a->right = r->tau;
    const double newton = s->free_w > 0.0 ? (want - ends - s->free_x) / s->free_w : NAN;
    *next = newton;
    if (newton == r->tau || (newton > a->left && newton < a->right)) return CQ_OK;
    if (isinf(a->left) || isinf(a->right)) CQ_TRY(close_bracket(r, a));
    *solved = 0;
    *next = 0.5 * (a->left + a->right);
    return CQ_OK;
}

/* Two Newton steps with float sums, at half the price of double sums: from the wishes themselves,
 * or, where most of those lie outside the ends (logits, say), from the row moved to the mean. tau
 * is NaN for a row with NaN or infinity. */
static cq_status first_guess(row *r) {
    const job *j = r->j;
    const double n = (double)j->C, want = j->target * n;
    double sum;
    size_t inside;
    r->tau = NAN;
    CQ_TRY(guess(r, (float)j->lo, (float)j->hi, &sum, &inside));
    if (isnan(sum)) return CQ_OK;
    r->tau = 0.0;
    if (2 * inside < j->C) {
        CQ_TRY(guess(r, -INFINITY, INFINITY, &sum, &inside));
        if (isfinite(sum)) r->tau = j->target - sum / n; /* else the float sum overflowed */
    } else {
        r->tau = (want - sum) / (double)inside;
    }
    CQ_TRY(guess(r, float_below(j->lo - r->tau), float_above(j->hi - r->tau), &sum, &inside));
    if (inside && isfinite(sum)) r->tau += (want - sum - n * r->tau) / (double)inside;
    return CQ_OK;
}

/* Improve tau until the sets of the last sums and of the result are the same: then it solves them.
 * *written: `out` holds the result already. */
static cq_status solve(row *r, int *written) {
    bracket a = {-INFINITY, INFINITY};
    *written = 0;
    for (int step = 0, solved = 0; step < 200; step++) {
        double next;
        thresholds(r);
        CQ_TRY(each(r, sums_piece));
        const cq_alloc_sums s = add_up(r);
        CQ_TRY(next_shift(r, &a, &s, &next, &solved));
        if (next == r->tau || !(next >= a.left && next <= a.right)) break;
        r->tau = next;
        /* A row in place is overwritten, so the test of the sets is a pass of its own. */
        if (!solved || r->out == r->x) continue;
        thresholds(r);
        CQ_TRY(each(r, shift_piece));
        const cq_alloc_sums now = add_up(r);
        if (now.ends[0] == s.ends[0] && now.ends[1] == s.ends[1]) {
            *written = 1;
            break;
        }
    }
    return CQ_OK;
}

/* From this shift on a double has too few bits left for fractions of a bit. */
#define FAR_SHIFT 0x1p27

/* Where the shift is far, the row is moved there first: differences of wishes that can be between
 * the ends together are exact in float. */
static cq_status project(row *r) {
    int written;
    CQ_TRY(first_guess(r));
    if (isnan(r->tau)) return each(r, spoil_piece);
    CQ_TRY(solve(r, &written));
    for (int round = 0; round < 4 && fabs(r->tau) >= FAR_SHIFT; round++) {
        r->at = (float)fmin(fmax(-r->tau, -(double)FLT_MAX), (double)FLT_MAX);
        CQ_TRY(each(r, move_piece));
        r->x = r->out;
        CQ_TRY(first_guess(r));
        CQ_TRY(solve(r, &written));
    }
    if (written) return CQ_OK;
    thresholds(r);
    return each(r, shift_piece);
}

static cq_status project_bwd(row *r) {
    CQ_TRY(each(r, bwd_sums_piece));
    cq_alloc_sums all = r->parts[0].s;
    for (size_t p = 1; p < pieces(r); p++) {
        all.free_x += r->parts[p].s.free_x;
        all.free_w += r->parts[p].s.free_w;
    }
    r->at = all.free_w > 0.0 ? (float)(all.free_x / all.free_w) : 0.0f;
    return each(r, bwd_piece);
}

/* A row that is interrupted tells nobody: cq_parallel_rows does. */
static void rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    row r;
    r.j = j;
    (void)block;
    for (size_t i = begin; i < end; i++) {
        r.x = j->x + i * j->C;
        r.out = j->out + i * j->C;
        r.g = j->g ? j->g + i * j->C : NULL;
        if ((j->g ? project_bwd : project)(&r) != CQ_OK) return;
    }
}

enum { LOOK = 1 << 20 };

/* Checks the weights; *sum of them. */
static cq_status sum_weight(cq_ctx *cx, const float *weight, size_t C, double *sum) {
    *sum = weight ? 0.0 : (double)C;
    for (size_t c = 0; weight && c < C; c++) {
        if (!(weight[c] > 0.0f) || isinf(weight[c]))
            return cq_refuse(cx, CQ_BAD_WEIGHT, c, (double)weight[c]);
        if (c % LOOK == 0 && cq_stop(cx)) return CQ_INTERRUPTED;
        *sum += (double)weight[c];
    }
    return CQ_OK;
}

static cq_status check_range(cq_ctx *cx, double lo, double hi) {
    if (!((double)(float)lo == lo) || isinf(lo)) return cq_refuse(cx, CQ_BAD_RANGE, 0, lo);
    if (!((double)(float)hi == hi) || isinf(hi)) return cq_refuse(cx, CQ_BAD_RANGE, 1, hi);
    return lo <= hi ? CQ_OK : cq_refuse(cx, CQ_BAD_RANGE, 1, hi);
}

cq_status cq_project_row(cq_ctx *cx, const float *x, const float *weight, double lo, double hi,
                         double target, float *out, size_t R, size_t C) {
    job j = {cx, cx->k, x, NULL, weight, out, lo, hi, target, 0.0, C};
    CQ_TRY(check_range(cx, lo, hi));
    if (!(target >= lo && target <= hi)) return cq_refuse(cx, CQ_BAD_TARGET, 0, target);
    CQ_TRY(sum_weight(cx, weight, C, &j.all_w));
    return C ? cq_alloc_rows(cx, R, C, 4, rows, &j) : CQ_OK;
}

cq_status cq_project_bwd_row(cq_ctx *cx, const float *g, const float *b, const float *weight,
                             double lo, double hi, float *gx, size_t R, size_t C) {
    job j = {cx, cx->k, b, g, weight, gx, lo, hi, 0.0, 0.0, C};
    CQ_TRY(check_range(cx, lo, hi));
    CQ_TRY(sum_weight(cx, weight, C, &j.all_w));
    return C ? cq_alloc_rows(cx, R, C, 4, rows, &j) : CQ_OK; /* no columns: however many rows */
}
