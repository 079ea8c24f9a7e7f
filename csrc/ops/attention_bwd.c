/* SPDX-License-Identifier: Apache-2.0 */
/* Backward: layer norm, output projection, then a task per batch element and head that makes the
 * probabilities again from the logarithms of their sums, 64 rows at a time, and keeps the
 * transposed sums of dK and dV of its head to itself; then the gradients of the projections. Every
 * sum has one order, whatever the number of threads.
 *
 * Where nothing was saved, the forward pass is repeated for a few batch elements at a time, and
 * matrices make room for others: y for dy (in the gradient of xq), kv lies in the gradient of xk,
 * ctx makes room for its gradient and that of q, k and v for theirs, q for the gradient of kv. */
#include "attention_parts.h"

#include <math.h>
#include <string.h>

enum { ROWS = 64, NORM_ROWS = 64 };

typedef struct job {
    cq_att_run *run;
    const cq_attention_args *a; /* of the batch elements at hand */
    const cq_att_state *s;
    const float *g, *dy;
    float *dy_out, *dq;   /* dq holds the gradient of ctx until its head is done */
    float *dk, *dv, *dkv; /* dk and dv transposed: [E, B * Lk] */
    float *partial;       /* layer norm: [blocks, 2, Do] */
    size_t blocks;
    cq_attention_grads d;
    int more; /* not the first batch elements: gradients of parameters are added to */
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

static void soft_rows(const job *j, const pieces *x, size_t b, size_t h, size_t i, size_t m) {
    const cq_attention_args *a = j->a;
    const size_t w = a->E / a->H, ld = cq_att_depth(a->Lk);
    for (size_t r = 0; r < m; r++) {
        const cq_att_row row = {.s = x->score + r * ld,
                                .d = x->dscore + r * ld,
                                .mask = a->mask ? a->mask + b * a->Lk : NULL,
                                .n = a->Lk,
                                .scale = 1.0f / sqrtf((float)w),
                                .lse = j->s->lse[(b * a->H + h) * a->Lq + i + r]};
        j->run->cx->k->attention_dsoftmax_f32(&row);
    }
}

/* m rows from row i of one head: adds to dk and dv, replaces the rows of dq. */
static void some_rows(const job *j, const pieces *x, size_t b, size_t h, size_t i, size_t m) {
    const cq_attention_args *a = j->a;
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
    const cq_attention_args *a = j->a;
    const size_t w = a->E / a->H, keys = a->B * a->Lk;
    pieces x;
    char *slot;
    (void)block;
    const int taken = cq_att_take(j->run, &slot);
    lay_out(a, slot, &x);
    for (size_t t = begin; t < end; t++) {
        const size_t b = t / a->H, h = t % a->H, at = h * w * keys + b * a->Lk;
        cq_att_pack(j->run, j->s->k + at, 1, keys, a->Lk, w, 1, x.k_scores);
        cq_att_pack(j->run, j->s->v + at, 1, keys, a->Lk, w, 1, x.v_scores);
        cq_att_pack(j->run, j->s->k + at, keys, 1, w, a->Lk, 1, x.k_rows);
        x.dk = j->dk + at;
        x.dv = j->dv + at;
        for (size_t i = 0; i < a->Lq && !cq_stop(j->run->cx); i += ROWS)
            some_rows(j, &x, b, h, i, cq_min_size(ROWS, a->Lq - i));
    }
    cq_att_give(j->run, taken);
}

static void norm_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const cq_attention_args *a = j->a;
    float *dgamma = j->partial + block * 2 * a->Do;
    memset(dgamma, 0, 2 * a->Do * sizeof(float));
    for (size_t r = begin; r < end; r++)
        j->run->cx->k->layernorm_bwd_f32_row(j->g + r * a->Do, j->s->y + r * a->Do, a->Do,
                                             j->s->stat + 2 * r, a->gamma, j->dy_out + r * a->Do,
                                             dgamma, dgamma + a->Do);
}

static void norm_columns(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t n = j->a->Do;
    (void)block;
    for (size_t c = begin; c < end; c++) {
        double gamma = 0.0, beta = 0.0;
        for (size_t b = 0; b < j->blocks; b++) {
            gamma += (double)j->partial[b * 2 * n + c];
            beta += (double)j->partial[b * 2 * n + n + c];
        }
        if (j->d.gamma) j->d.gamma[c] = (j->more ? j->d.gamma[c] : 0.0f) + (float)gamma;
        if (j->d.beta) j->d.beta[c] = (j->more ? j->d.beta[c] : 0.0f) + (float)beta;
    }
}

static cq_status norm(job *j) {
    const size_t rows = j->a->B * j->a->Lq;
    j->blocks = cq_ceil_div(rows, NORM_ROWS);
    CQ_TRY(cq_parallel_rows(j->run->cx, rows, NORM_ROWS, norm_rows, j));
    return cq_parallel_rows(j->run->cx, j->a->Do, CQ_ATT_LANES, norm_columns, j);
}

static size_t norm_bytes(const cq_attention_args *a, size_t rows) {
    return cq_att_bytes(cq_mul(cq_ceil_div(rows, NORM_ROWS), 2), a->Do);
}

/* Where the pieces lie: in what the call is given, or in the workspace (a null pointer to begin
 * with, to count its bytes). Sizes stay at SIZE_MAX. */
typedef struct places {
    float *q, *ctx, *k, *v, *kv, *lse; /* repeated forward pass */
    float *dy, *dq, *dk, *dv, *dkv, *partial;
} places;

enum { KEEP_XQ = 1, KEEP_XK = 2 };

static float *take(char **at, size_t *bytes, size_t rows, size_t columns) {
    *bytes = cq_add(*bytes, cq_att_bytes(rows, columns));
    return at ? cq_att_floats(at, rows * columns) : NULL;
}

static size_t spread(const cq_attention_args *a, int saved, int keep, char **at, places *x) {
    const size_t n = cq_att_elements(a, saved), nq = cq_mul(n, a->Lq), nk = cq_mul(n, a->Lk);
    const int own_dy = !(a->residual && (keep & KEEP_XQ)), wide = a->P == a->Dk;
    size_t sum = norm_bytes(a, nq);
    *x = (places){.partial = at ? (float *)(void *)cq_att_carve(at, sum) : NULL};
    x->dy = own_dy ? take(at, &sum, nq, a->Do) : NULL;
    if (saved) {
        x->dq = take(at, &sum, nq, a->E);
        x->dk = take(at, &sum, nk, a->E);
        x->dv = take(at, &sum, nk, a->E);
        x->dkv = a->wp ? take(at, &sum, nk, a->P) : NULL;
        return sum;
    }
    const int fits = !a->wp || cq_mul(nk, a->P) <= cq_mul(nq, a->E);
    x->q = take(at, &sum, nq, a->E);
    x->ctx = x->dq = take(at, &sum, nq, a->E);
    x->k = x->dk = take(at, &sum, nk, a->E);
    x->v = x->dv = take(at, &sum, nk, a->E);
    x->lse = take(at, &sum, cq_mul(n, a->H), a->Lq);
    x->kv = a->wp && !(wide && (keep & KEEP_XK)) ? take(at, &sum, nk, a->P) : NULL;
    x->dkv = fits ? x->q : take(at, &sum, nk, a->P);
    return sum;
}

size_t cq_attention_bwd_workspace(const cq_attention_args *a, int saved, int keep, int threads) {
    places x;
    return cq_add(cq_att_begin_bytes(a, threads, saved, 1), spread(a, saved, keep, NULL, &x));
}

/* Scores, then the gradients of the projections of kv and of xk. */
static cq_status keys_and_values(job *j) {
    const cq_attention_args *a = j->a;
    const cq_attention_grads *d = &j->d;
    const size_t rows = a->B * a->Lk;
    float *dkv = a->wp ? j->dkv : d->xk;
    CQ_TRY(cq_parallel_rows(j->run->cx, a->B * a->H, 1, heads, j));
    if (a->wp && !d->xk && !d->wp && !d->bp) dkv = NULL;
    const cq_att_linear k = {j->dk, j->s->kv, a->wk, rows, a->E, a->P,
                             d->wk, d->bk,    dkv,   0,    1,    j->more};
    const cq_att_linear v = {j->dv, j->s->kv, a->wv, rows, a->E, a->P,
                             d->wv, d->bv,    dkv,   1,    1,    j->more};
    CQ_TRY(cq_att_linear_bwd(j->run, &k));
    CQ_TRY(cq_att_linear_bwd(j->run, &v));
    if (!dkv || !a->wp) return CQ_OK;
    const cq_att_linear p = {dkv,   a->xk, a->wp, rows, a->P, a->Dk,
                             d->wp, d->bp, d->xk, 0,    0,    j->more};
    return cq_att_linear_bwd(j->run, &p);
}

static cq_status some_elements(job *j) {
    const cq_attention_args *a = j->a;
    const cq_attention_grads *d = &j->d;
    const size_t nq = a->B * a->Lq;
    j->dy = j->g;
    if (a->gamma) {
        CQ_TRY(norm(j));
        j->dy = j->dy_out;
    } else if (a->residual && d->xq) {
        memcpy(d->xq, j->g, nq * a->Do * sizeof(float));
    }
    /* dq may lie where ctx does: ctx is read before dq is written. */
    const cq_att_linear out = {j->dy, j->s->ctx, a->wo, nq, a->Do, a->E,
                               d->wo, d->bo,     j->dq, 0,  0,     j->more};
    CQ_TRY(cq_att_linear_bwd(j->run, &out));
    if (!a->Lq) {
        memset(j->dk, 0, a->B * a->Lk * a->E * sizeof(float));
        memset(j->dv, 0, a->B * a->Lk * a->E * sizeof(float));
    }
    CQ_TRY(keys_and_values(j));
    const cq_att_linear q = {j->dq, a->xq, a->wq, nq,          a->E, a->Dq,
                             d->wq, d->bq, d->xq, a->residual, 0,    j->more};
    return cq_att_linear_bwd(j->run, &q);
}

/* The forward pass again, up to y. */
static cq_status repeat(job *j, cq_att_state *t, const places *x) {
    const cq_attention_args *a = j->a;
    t->q = x->q;
    t->ctx = x->ctx;
    t->k = x->k;
    t->v = x->v;
    t->y = a->gamma ? j->dy_out : NULL;
    t->lse = x->lse;
    return cq_att_forward(j->run, a, t, x->kv ? x->kv : j->d.xk);
}

cq_status cq_attention_bwd(cq_ctx *cx, const cq_attention_args *a, const cq_attention_saved *s,
                           const float *g, const cq_attention_grads *d, char *work) {
    cq_att_run run;
    places x;
    const int saved = s->q != NULL, keep = (d->xq ? KEEP_XQ : 0) + (d->xk ? KEEP_XK : 0);
    cq_att_begin(&run, cx, a, &work, saved, 1);
    spread(a, saved, keep, &work, &x);
    const size_t n = cq_att_elements(a, saved);
    job j = {.run = &run, .dq = x.dq, .dk = x.dk, .dv = x.dv, .dkv = x.dkv, .partial = x.partial};
    for (size_t b = 0; b == 0 || b < a->B; b += n ? n : 1, j.more = 1) { /* once without elements */
        const cq_attention_args part = cq_att_part(a, b, cq_min_size(n, a->B - b));
        cq_att_state t = {.kv = a->wp ? s->kv : a->xk, .q = s->q, .k = s->k, .v = s->v};
        t.ctx = s->ctx, t.y = s->y;
        t.lse = s->lse + b * a->H * a->Lq, t.stat = s->stat + b * a->Lq * 2;
        j.a = &part, j.s = &t, j.d = *d, j.g = g + b * a->Lq * a->Do;
        j.d.xq = cq_att_from(d->xq, b * a->Lq * a->Dq);
        j.d.xk = cq_att_from(d->xk, b * a->Lk * a->Dk);
        j.dy_out = x.dy ? x.dy : j.d.xq;
        if (!saved) CQ_TRY(repeat(&j, &t, &x));
        CQ_TRY(some_elements(&j));
    }
    return CQ_OK;
}
