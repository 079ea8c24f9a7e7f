/* SPDX-License-Identifier: Apache-2.0 */
/* Forward: projections as products of whole matrices, then a task per batch element and head (or
 * per batch element and rows, when averaged weights are wanted) that keeps 32 rows of scores at a
 * time, then the output projection with residual and layer norm on each finished block of rows. */
#include "attention_parts.h"

#include <math.h>
#include <string.h>

typedef struct job {
    cq_att_run *run;
    const cq_attention_saved *s;
    float *q, *ctx, *y, *out, *entropy, *weights;
    size_t h0, heads;   /* heads of this group */
    size_t chunk, many; /* rows per task; tasks per batch element */
} job;

/* Pieces of a slot. */
typedef struct pieces {
    char *k, *v, *q, *p;
    float *score;
} pieces;

static size_t lay_out(const cq_attention_args *a, char *slot, pieces *x) {
    const size_t w = a->E / a->H;
    char *at = slot;
    x->k = cq_att_carve(&at, cq_att_panels(a->Lk) * cq_att_panel(w, a->planes));
    x->v = cq_att_carve(&at, cq_att_panels(w) * cq_att_panel(a->Lk, a->planes));
    x->q = cq_att_carve(&at, cq_att_panel(w, a->planes));
    x->p = cq_att_carve(&at, cq_att_panel(a->Lk, a->planes));
    x->score = (float *)(void *)cq_att_carve(&at, CQ_ATT_LANES * cq_att_depth(a->Lk) * 4);
    return (size_t)(at - slot);
}

size_t cq_att_fwd_slot(const cq_attention_args *a) {
    char *none = NULL;
    pieces x;
    return lay_out(a, none, &x);
}

static void soft_rows(const job *j, const pieces *x, size_t b, size_t h, size_t i, size_t m,
                      float *inverse) {
    const cq_attention_args *a = j->run->a;
    const size_t ld = cq_att_depth(a->Lk), at = (b * a->H + h) * a->Lq + i;
    const size_t head = a->E / a->H;
    for (size_t r = 0; r < m; r++) {
        const cq_att_row row = {.s = x->score + r * ld,
                                .mask = a->mask ? a->mask + b * a->Lk : NULL,
                                .n = a->Lk,
                                .scale = 1.0f / sqrtf((float)head)};
        cq_att_stats t = {-INFINITY, 0.0f, 0.0f};
        j->run->cx->k->attention_softmax_f32(&row, &t);
        inverse[r] = t.sum == 0.0f ? 0.0f : 1.0f / t.sum;
        const float log_sum = t.sum == 0.0f ? 0.0f : logf(t.sum);
        j->s->lse[at + r] = t.top + log_sum;
        if (j->entropy) j->entropy[at + r] = log_sum - t.weighted * inverse[r];
        if (!j->weights) continue;
        float *w = j->weights + (b * a->Lq + i + r) * a->Lk;
        const float share = inverse[r] / (float)a->H;
        for (size_t c = 0; c < a->Lk; c++) w[c] = (h ? w[c] : 0.0f) + share * row.s[c];
    }
}

/* Rows [begin, end) of one head. */
static void head(const job *j, const pieces *x, size_t b, size_t h, size_t begin, size_t end) {
    const cq_attention_args *a = j->run->a;
    const size_t w = a->E / a->H, ld = cq_att_depth(a->Lk), kv = j->s->KV;
    const size_t from = b * a->Lk * kv + (h - j->h0) * w;
    cq_att_pack(j->run, j->s->k + from, kv, 1, a->Lk, w, 1, x->k);
    cq_att_pack(j->run, j->s->v + from, 1, kv, w, a->Lk, 1, x->v);
    for (size_t i = begin; i < end; i += CQ_ATT_LANES) {
        const size_t m = cq_min_size(CQ_ATT_LANES, end - i), at = (b * a->Lq + i) * a->E + h * w;
        float inverse[CQ_ATT_LANES];
        cq_att_pack(j->run, j->q + at, a->E, 1, m, w, 0, x->q);
        const cq_att_block scores = {.a = x->q,
                                     .b = x->k,
                                     .b_stride = cq_att_panel(w, a->planes),
                                     .m = m,
                                     .n = a->Lk,
                                     .depth = w,
                                     .c = x->score,
                                     .ldc = ld,
                                     .planes = a->planes};
        j->run->cx->k->attention_block_f32(&scores);
        soft_rows(j, x, b, h, i, m, inverse);
        cq_att_pack(j->run, x->score, ld, 1, m, a->Lk, 0, x->p);
        const cq_att_block values = {.a = x->p,
                                     .b = x->v,
                                     .b_stride = cq_att_panel(a->Lk, a->planes),
                                     .m = m,
                                     .n = w,
                                     .depth = a->Lk,
                                     .c = j->ctx + at,
                                     .ldc = a->E,
                                     .row = inverse,
                                     .planes = a->planes};
        j->run->cx->k->attention_block_f32(&values);
        if (cq_stop(j->run->cx)) return;
    }
}

static void attend(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const cq_attention_args *a = j->run->a;
    pieces x;
    char *slot;
    (void)block;
    const int taken = cq_att_take(j->run, &slot);
    lay_out(a, slot, &x);
    for (size_t t = begin; t < end && !cq_stop(j->run->cx); t++) {
        const size_t b = t / j->many, part = t % j->many;
        if (j->weights) {
            const size_t i = part * j->chunk, last = cq_min_size(a->Lq, i + j->chunk);
            for (size_t h = j->h0; h < j->h0 + j->heads; h++) head(j, &x, b, h, i, last);
        } else {
            head(j, &x, b, j->h0 + part, 0, a->Lq);
        }
    }
    cq_att_give(j->run, taken);
}

static void residual_rows(void *ctx, size_t begin, size_t end) {
    const job *j = ctx;
    const size_t d = j->run->a->Do;
    memcpy(j->y + begin * d, j->run->a->xq + begin * d, (end - begin) * d * sizeof(float));
}

static void norm_rows(void *ctx, size_t begin, size_t end) {
    const job *j = ctx;
    const cq_attention_args *a = j->run->a;
    for (size_t r = begin; r < end; r++)
        j->run->cx->k->layernorm_f32_row(j->y + r * a->Do, a->Do, a->eps, a->gamma, a->beta,
                                         j->out + r * a->Do, j->s->stat + 2 * r);
}

static cq_status project_out(job *j) {
    const cq_attention_args *a = j->run->a;
    const cq_att_product p = {.A = {j->ctx, a->E, 0},
                              .B = {a->wo, a->E, 1},
                              .M = a->B * a->Lq,
                              .N = a->Do,
                              .K = a->E,
                              .c = j->y,
                              .ldc = a->Do,
                              .bias = a->bo,
                              .add = a->residual,
                              .before = a->residual ? residual_rows : NULL,
                              .after = a->gamma ? norm_rows : NULL,
                              .ctx = j};
    return cq_att_multiply(j->run, &p);
}

static cq_status project(cq_att_run *run, const float *x, size_t rows, size_t depth, const float *w,
                         const float *bias, size_t n, float *out) {
    const cq_att_product p = {.A = {x, depth, 0},
                              .B = {w, depth, 1},
                              .M = rows,
                              .N = n,
                              .K = depth,
                              .c = out,
                              .ldc = n,
                              .bias = bias};
    return cq_att_multiply(run, &p);
}

size_t cq_attention_workspace(const cq_attention_args *a, int threads) {
    const size_t slots = (size_t)(threads > CQ_ATT_SLOTS ? CQ_ATT_SLOTS : threads);
    return cq_att_shared_bytes(a) + cq_att_slot_bytes(a, 0) * slots + 256;
}

int cq_attention_in_place(const cq_attention_args *a) {
    return a->E == a->Do && a->E <= CQ_ATT_SPAN;
}

cq_status cq_attention(cq_ctx *cx, const cq_attention_args *a, const cq_attention_saved *s,
                       float *out, float *entropy, float *weights, char *work) {
    cq_att_run run;
    cq_att_begin(&run, cx, a, work, 0);
    const size_t w = a->E / a->H, heads = s->KV / w;
    float *q = s->q ? s->q : out, *ctx = s->ctx ? s->ctx : q;
    job j = {&run,
             s,
             q,
             ctx,
             s->y && a->gamma ? s->y : out,
             out,
             entropy,
             weights,
             0,
             heads,
             CQ_ATT_LANES * 6,
             heads};
    if (weights) j.many = cq_ceil_div(a->Lq, j.chunk);
    CQ_TRY(project(&run, a->xq, a->B * a->Lq, a->Dq, a->wq, a->bq, a->E, q));
    for (; j.h0 < a->H; j.h0 += heads) {
        const size_t row = j.h0 * w;
        CQ_TRY(project(&run, a->xk, a->B * a->Lk, a->Dk, a->wk + row * a->Dk,
                       a->bk ? a->bk + row : NULL, s->KV, s->k));
        CQ_TRY(project(&run, a->xk, a->B * a->Lk, a->Dk, a->wv + row * a->Dk,
                       a->bv ? a->bv + row : NULL, s->KV, s->v));
        CQ_TRY(cq_parallel_rows(cx, a->B * j.many, 1, attend, &j));
    }
    return project_out(&j);
}
