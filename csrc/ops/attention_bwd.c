/* SPDX-License-Identifier: Apache-2.0 */
/* Backward: layer norm, output projection, then a task per batch element and head that makes the
 * probabilities again from the saved logarithms of their sums, 64 rows at a time, and keeps the
 * transposed sums of dK and dV of its head to itself; then the gradients of the projections. Every
 * sum has one order, whatever the number of threads. */
#include "attention_parts.h"

#include <math.h>
#include <string.h>

enum { ROWS = 64, NORM_ROWS = 64, COLUMNS = 256, SUM_ROWS = 32 };

typedef struct job {
    cq_att_run *run;
    const cq_attention_saved *s;
    const float *g, *dy;
    float *dy_out, *dq; /* dq holds the gradient of ctx until its head is done */
    float *dk, *dv;     /* transposed, of a group of heads: [E / groups, B * Lk] */
    size_t h0, group;   /* first head of the group, heads in it */
    float *partial;     /* layer norm: [blocks, 2, Do] */
} job;

typedef struct pieces {
    char *k_scores, *k_rows, *v_scores; /* k by keys, k by depth, v by keys */
    char *q, *q_turned, *d, *d_turned;  /* q and the gradient of ctx, both ways */
    char *p_keys, *ds_keys, *ds_rows;   /* probabilities, gradient of scores */
    float *score, *dscore;              /* [ROWS, keys] */
    float *dk, *dv;                     /* this head of the transposed gradients */
} pieces;

static size_t lay_out(const cq_attention_args *a, char *slot, pieces *x) {
    const size_t w = a->E / a->H, keys = cq_att_panels(a->Lk), wide = cq_att_panels(w);
    const size_t by_w = cq_att_panel(w, a->planes), by_keys = cq_att_panel(a->Lk, a->planes);
    const size_t by_rows = cq_att_panel(ROWS, a->planes), ld = cq_att_depth(a->Lk);
    char *at = slot;
    x->k_scores = cq_att_carve(&at, keys * by_w);
    x->v_scores = cq_att_carve(&at, keys * by_w);
    x->k_rows = cq_att_carve(&at, wide * by_keys);
    x->q = cq_att_carve(&at, ROWS / CQ_ATT_LANES * by_w);
    x->d = cq_att_carve(&at, ROWS / CQ_ATT_LANES * by_w);
    x->q_turned = cq_att_carve(&at, wide * by_rows);
    x->d_turned = cq_att_carve(&at, wide * by_rows);
    x->p_keys = cq_att_carve(&at, keys * by_rows);
    x->ds_keys = cq_att_carve(&at, keys * by_rows);
    x->ds_rows = cq_att_carve(&at, ROWS / CQ_ATT_LANES * by_keys);
    x->score = (float *)(void *)cq_att_carve(&at, ROWS * ld * sizeof(float));
    x->dscore = (float *)(void *)cq_att_carve(&at, ROWS * ld * sizeof(float));
    return (size_t)(at - slot);
}

size_t cq_att_bwd_slot(const cq_attention_args *a) {
    char *none = NULL;
    pieces x;
    return lay_out(a, none, &x);
}

/* c [m, n] (+)= panels a (depth) . panels b. */
static void small(const cq_att_run *run, const char *a, const char *b, size_t m, size_t n,
                  size_t depth, float *c, size_t ldc, int add) {
    const size_t bytes = cq_att_panel(depth, run->a->planes);
    const cq_att_block t = {.a = a,
                            .b = b,
                            .a_stride = bytes,
                            .b_stride = bytes,
                            .m = m,
                            .n = n,
                            .depth = depth,
                            .c = c,
                            .ldc = ldc,
                            .planes = run->a->planes,
                            .add = add};
    run->cx->k->attention_block_f32(&t);
}

static float dot(const float *x, const float *y, size_t n) {
    float lane[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t c = 0; c < 8; c++) lane[c] += x[i + c] * y[i + c];
    for (; i < n; i++) lane[i % 8] += x[i] * y[i];
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

static void soft_rows(const job *j, const pieces *x, size_t b, size_t h, size_t i, size_t m) {
    const cq_attention_args *a = j->run->a;
    const size_t w = a->E / a->H, ld = cq_att_depth(a->Lk);
    for (size_t r = 0; r < m; r++) {
        const size_t at = (b * a->Lq + i + r) * a->E + h * w;
        const float delta = dot(j->dq + at, j->s->ctx + at, w);
        const cq_att_row row = {.s = x->score + r * ld,
                                .d = x->dscore + r * ld,
                                .mask = a->mask ? a->mask + b * a->Lk : NULL,
                                .n = a->Lk,
                                .scale = 1.0f / sqrtf((float)w),
                                .lse = j->s->lse[(b * a->H + h) * a->Lq + i + r],
                                .delta = delta};
        j->run->cx->k->attention_dsoftmax_f32(&row);
    }
}

/* m rows from row i of one head: adds to dk and dv, replaces the rows of dq. */
static void some_rows(const job *j, const pieces *x, size_t b, size_t h, size_t i, size_t m) {
    const cq_attention_args *a = j->run->a;
    const cq_att_run *run = j->run;
    const size_t w = a->E / a->H, ld = cq_att_depth(a->Lk), n = a->Lk, keys = a->B * n;
    const float *q = j->s->q + (b * a->Lq + i) * a->E + h * w;
    float *d = j->dq + (b * a->Lq + i) * a->E + h * w;
    cq_att_pack(run, q, a->E, 1, m, w, 0, x->q);
    cq_att_pack(run, d, a->E, 1, m, w, 0, x->d);
    cq_att_pack(run, q, 1, a->E, w, m, 0, x->q_turned);
    cq_att_pack(run, d, 1, a->E, w, m, 0, x->d_turned);
    small(run, x->q, x->k_scores, m, n, w, x->score, ld, 0);
    small(run, x->d, x->v_scores, m, n, w, x->dscore, ld, 0);
    soft_rows(j, x, b, h, i, m);
    cq_att_pack(run, x->score, 1, ld, n, m, 1, x->p_keys);
    cq_att_pack(run, x->dscore, 1, ld, n, m, 1, x->ds_keys);
    cq_att_pack(run, x->dscore, ld, 1, m, n, 0, x->ds_rows);
    small(run, x->d_turned, x->p_keys, w, n, m, x->dv, keys, i > 0);
    small(run, x->q_turned, x->ds_keys, w, n, m, x->dk, keys, i > 0);
    small(run, x->ds_rows, x->k_rows, m, w, n, d, a->E, 0);
}

static void heads(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const cq_attention_args *a = j->run->a;
    const size_t w = a->E / a->H;
    pieces x;
    char *slot;
    (void)block;
    const int taken = cq_att_take(j->run, &slot);
    lay_out(a, slot, &x);
    for (size_t t = begin; t < end; t++) {
        const size_t b = t / j->group, own = t % j->group, h = j->h0 + own;
        const size_t at = b * a->Lk * a->E + h * w, turned = own * w * a->B * a->Lk + b * a->Lk;
        cq_att_pack(j->run, j->s->k + at, a->E, 1, a->Lk, w, 1, x.k_scores);
        cq_att_pack(j->run, j->s->v + at, a->E, 1, a->Lk, w, 1, x.v_scores);
        cq_att_pack(j->run, j->s->k + at, 1, a->E, w, a->Lk, 1, x.k_rows);
        x.dk = j->dk + turned;
        x.dv = j->dv + turned;
        for (size_t i = 0; i < a->Lq && !cq_stop(j->run->cx); i += ROWS)
            some_rows(j, &x, b, h, i, cq_min_size(ROWS, a->Lq - i));
    }
    cq_att_give(j->run, taken);
}

static void norm_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const cq_attention_args *a = j->run->a;
    float *dgamma = j->partial + block * 2 * a->Do;
    memset(dgamma, 0, 2 * a->Do * sizeof(float));
    for (size_t r = begin; r < end; r++)
        j->run->cx->k->layernorm_bwd_f32_row(j->g + r * a->Do, j->s->y + r * a->Do, a->Do,
                                             j->s->stat + 2 * r, a->gamma, j->dy_out + r * a->Do,
                                             dgamma, dgamma + a->Do);
}

static cq_status norm(job *j, const cq_attention_grads *d) {
    const cq_attention_args *a = j->run->a;
    const size_t rows = a->B * a->Lq, blocks = cq_ceil_div(rows, NORM_ROWS);
    CQ_TRY(cq_parallel_rows(j->run->cx, rows, NORM_ROWS, norm_rows, j));
    for (size_t c = 0; c < a->Do; c++) {
        double gamma = 0.0, beta = 0.0;
        for (size_t b = 0; b < blocks; b++) {
            gamma += (double)j->partial[b * 2 * a->Do + c];
            beta += (double)j->partial[b * 2 * a->Do + a->Do + c];
        }
        if (d->gamma) d->gamma[c] = (float)gamma;
        if (d->beta) d->beta[c] = (float)beta;
    }
    return CQ_OK;
}

typedef struct sums {
    const float *x;
    size_t rows, cols;
    float *out;
} sums;

static void column_sums(void *ctx, size_t begin, size_t end, size_t block) {
    const sums *s = ctx;
    double acc[COLUMNS] = {0};
    (void)block;
    for (size_t r = 0; r < s->rows; r += SUM_ROWS) {
        float part[COLUMNS] = {0};
        for (size_t q = r; q < cq_min_size(s->rows, r + SUM_ROWS); q++) {
            const float *x = s->x + q * s->cols + begin;
            for (size_t c = 0; c < end - begin; c++) part[c] += x[c];
        }
        for (size_t c = 0; c < end - begin; c++) acc[c] += (double)part[c];
    }
    for (size_t c = begin; c < end; c++) s->out[c] = (float)acc[c - begin];
}

/* The same for x transposed: sums of rows. */
static void row_sums(void *ctx, size_t begin, size_t end, size_t block) {
    const sums *s = ctx;
    (void)block;
    for (size_t c = begin; c < end; c++) {
        double lane[8] = {0};
        for (size_t r = 0; r < s->rows; r++) lane[r % 8] += (double)s->x[c * s->rows + r];
        s->out[c] = (float)cq_sum_lanes(lane);
    }
}

/* Gradients of one linear layer y = x w^T + b, where wanted; dx is added to where `add`. dy is
 * [rows, n], `turned` [n, rows]. */
typedef struct linear {
    const float *dy, *x, *w;
    size_t rows, n, k;
    float *dw, *db, *dx;
    int add, turned;
} linear;

static cq_status linear_bwd(cq_att_run *run, const linear *l) {
    const size_t ld = l->turned ? l->rows : l->n;
    if (l->db) {
        sums s = {l->dy, l->rows, l->n, l->db};
        CQ_TRY(cq_parallel_rows(run->cx, l->n, COLUMNS, l->turned ? row_sums : column_sums, &s));
    }
    if (l->dw) {
        const cq_att_product p = {.A = {l->dy, ld, !l->turned},
                                  .B = {l->x, l->k, 0},
                                  .M = l->n,
                                  .N = l->k,
                                  .K = l->rows,
                                  .c = l->dw,
                                  .ldc = l->k};
        CQ_TRY(cq_att_multiply(run, &p));
    }
    if (!l->dx) return CQ_OK;
    const cq_att_product p = {.A = {l->dy, ld, l->turned},
                              .B = {l->w, l->k, 0},
                              .M = l->rows,
                              .N = l->k,
                              .K = l->n,
                              .c = l->dx,
                              .ldc = l->k,
                              .add = l->add};
    return cq_att_multiply(run, &p);
}

/* Heads are worked off in two groups where they can be: half of dk and dv at a time. */
static size_t groups(const cq_attention_args *a) { return a->H % 2 ? 1 : 2; }

static size_t norm_bytes(const cq_attention_args *a) {
    return cq_ceil_div(a->B * a->Lq, NORM_ROWS) * 2 * a->Do * sizeof(float);
}

size_t cq_attention_bwd_workspace(const cq_attention_args *a, int keep_xq, int threads) {
    const size_t slots = (size_t)(threads > CQ_ATT_SLOTS ? CQ_ATT_SLOTS : threads);
    const size_t rows = a->B * a->Lq * sizeof(float);
    const size_t dy = a->residual && keep_xq ? 0 : rows * a->Do;
    return cq_att_shared_bytes(a) + (cq_att_slot_bytes(a, 1) + 64) * slots + rows * a->E + dy +
           2 * a->B * a->Lk * (a->E / groups(a)) * sizeof(float) + norm_bytes(a) + 512;
}

static float *from_row(float *x, size_t offset) { return x ? x + offset : NULL; }

/* One group of heads: scores, then the gradients of the two projections of xk. */
static cq_status keys_and_values(job *j, const cq_attention_grads *d, size_t width) {
    const cq_attention_args *a = j->run->a;
    const size_t rows = a->B * a->Lk, row = j->h0 * (a->E / a->H), at = row * a->Dk;
    CQ_TRY(cq_parallel_rows(j->run->cx, a->B * j->group, 1, heads, j));
    const linear k = {
        j->dk, a->xk,     a->wk + at, rows, width, a->Dk, from_row(d->wk, at), from_row(d->bk, row),
        d->xk, j->h0 > 0, 1};
    const linear v = {
        j->dv, a->xk, a->wv + at, rows, width, a->Dk, from_row(d->wv, at), from_row(d->bv, row),
        d->xk, 1,     1};
    CQ_TRY(linear_bwd(j->run, &k));
    return linear_bwd(j->run, &v);
}

cq_status cq_attention_bwd(cq_ctx *cx, const cq_attention_args *a, const cq_attention_saved *s,
                           const float *g, const cq_attention_grads *d, char *work) {
    cq_att_run run;
    cq_att_begin(&run, cx, a, work, 1);
    const size_t nq = a->B * a->Lq, nk = a->B * a->Lk, width = a->E / groups(a);
    char *at = run.rest;
    job j = {.run = &run, .s = s, .g = g, .dy = g};
    j.dq = (float *)(void *)cq_att_carve(&at, nq * a->E * sizeof(float));
    j.dk = (float *)(void *)cq_att_carve(&at, nk * width * sizeof(float));
    j.dv = (float *)(void *)cq_att_carve(&at, nk * width * sizeof(float));
    j.partial = (float *)(void *)cq_att_carve(&at, norm_bytes(a));
    j.dy_out = a->residual && d->xq ? d->xq : (float *)(void *)at;
    if (!a->Lq) memset(j.dk, 0, (size_t)((char *)j.partial - (char *)j.dk));
    if (a->gamma) {
        CQ_TRY(norm(&j, d));
        j.dy = j.dy_out;
    } else if (a->residual && d->xq) {
        memcpy(d->xq, g, nq * a->Do * sizeof(float));
    }
    const linear out = {j.dy, s->ctx, a->wo, nq, a->Do, a->E, d->wo, d->bo, j.dq, 0, 0};
    CQ_TRY(linear_bwd(&run, &out));
    j.group = a->H / groups(a);
    for (j.h0 = 0; j.h0 < a->H; j.h0 += j.group) CQ_TRY(keys_and_values(&j, d, width));
    const linear q = {j.dq, a->xq, a->wq, nq, a->E, a->Dq, d->wq, d->bq, d->xq, a->residual, 0};
    return linear_bwd(&run, &q);
}
