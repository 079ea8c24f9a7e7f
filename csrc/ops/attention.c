/* SPDX-License-Identifier: Apache-2.0 */
/* Forward: projections as products of whole matrices, k and v transposed, then a task per batch
 * element and head (or per batch element and rows, when averaged weights are wanted) that keeps 32
 * rows of scores at a time, then the output projection with residual and layer norm on each
 * finished block of rows. Where nothing is saved all of this is done for a few batch elements at a
 * time, so that little memory is in use besides the output. */
#include "attention_parts.h"

#include <math.h>
#include <string.h>

typedef struct job {
    cq_att_run *run;
    const cq_attention_args *a; /* of the batch elements at hand */
    const cq_att_state *s;
    size_t chunk, many; /* rows per task; tasks per batch element */
    const float *bias;  /* of the rows of a projection */
    float *turned;      /* its result */
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
    const cq_attention_args *a = j->a;
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
        if (j->s->entropy) j->s->entropy[at + r] = log_sum - t.weighted * inverse[r];
        if (!j->s->weights) continue;
        float *w = j->s->weights + (b * a->Lq + i + r) * a->Lk;
        const float share = inverse[r] / (float)a->H;
        for (size_t c = 0; c < a->Lk; c++) w[c] = (h ? w[c] : 0.0f) + share * row.s[c];
    }
}

/* Rows [begin, end) of one head. */
static void head(const job *j, const pieces *x, size_t b, size_t h, size_t begin, size_t end) {
    const cq_attention_args *a = j->a;
    const size_t w = a->E / a->H, ld = cq_att_depth(a->Lk), keys = a->B * a->Lk;
    const size_t from = h * w * keys + b * a->Lk;
    cq_att_pack(j->run, j->s->k + from, 1, keys, a->Lk, w, 1, x->k);
    cq_att_pack(j->run, j->s->v + from, keys, 1, w, a->Lk, 1, x->v);
    for (size_t i = begin; i < end; i += CQ_ATT_LANES) {
        const size_t m = cq_min_size(CQ_ATT_LANES, end - i), at = (b * a->Lq + i) * a->E + h * w;
        float inverse[CQ_ATT_LANES];
        cq_att_pack(j->run, j->s->q + at, a->E, 1, m, w, 0, x->q);
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
                                     .c = j->s->ctx + at,
                                     .ldc = a->E,
                                     .row = inverse,
                                     .planes = a->planes};
        j->run->cx->k->attention_block_f32(&values);
        if (cq_stop(j->run->cx)) return;
    }
}

static void attend(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const cq_attention_args *a = j->a;
    pieces x;
    char *slot;
    (void)block;
    const int taken = cq_att_take(j->run, &slot);
    lay_out(a, slot, &x);
    for (size_t t = begin; t < end && !cq_stop(j->run->cx); t++) {
        const size_t b = t / j->many, part = t % j->many;
        if (j->s->weights) {
            const size_t i = part * j->chunk, last = cq_min_size(a->Lq, i + j->chunk);
            for (size_t h = 0; h < a->H; h++) head(j, &x, b, h, i, last);
        } else {
            head(j, &x, b, part, 0, a->Lq);
        }
    }
    cq_att_give(j->run, taken);
}

static void residual_rows(void *ctx, size_t begin, size_t end) {
    const job *j = ctx;
    const size_t d = j->a->Do;
    memcpy(j->s->y + begin * d, j->a->xq + begin * d, (end - begin) * d * sizeof(float));
}

static void norm_rows(void *ctx, size_t begin, size_t end) {
    const job *j = ctx;
    const cq_attention_args *a = j->a;
    for (size_t r = begin; r < end; r++)
        j->run->cx->k->layernorm_f32_row(j->s->y + r * a->Do, a->Do, a->eps, a->gamma, a->beta,
                                         j->s->out + r * a->Do, j->s->stat + 2 * r);
}

static cq_status project_out(job *j) {
    const cq_attention_args *a = j->a;
    const cq_att_product p = {.A = {j->s->ctx, a->E, 0},
                              .B = {a->wo, a->E, 1},
                              .M = a->B * a->Lq,
                              .N = a->Do,
                              .K = a->E,
                              .c = j->s->y,
                              .ldc = a->Do,
                              .bias = a->bo,
                              .add = a->residual,
                              .before = a->residual ? residual_rows : NULL,
                              .after = a->gamma && j->s->out ? norm_rows : NULL,
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

static void add_bias(void *ctx, size_t begin, size_t end) {
    const job *j = ctx;
    const size_t n = j->a->B * j->a->Lk;
    for (size_t r = begin; r < end; r++)
        for (size_t c = 0; c < n; c++) j->turned[r * n + c] += j->bias[r];
}

/* out [rows of w, B * Lk] = w kv^T + bias, the bias of a row for all of it. */
static cq_status project_turned(job *j, const float *w, const float *bias, float *out) {
    const cq_attention_args *a = j->a;
    j->bias = bias;
    j->turned = out;
    const cq_att_product p = {.A = {w, a->P, 0},
                              .B = {j->s->kv, a->P, 1},
                              .M = a->E,
                              .N = a->B * a->Lk,
                              .K = a->P,
                              .c = out,
                              .ldc = a->B * a->Lk,
                              .after = bias ? add_bias : NULL,
                              .ctx = j};
    return cq_att_multiply(j->run, &p);
}

cq_status cq_att_forward(cq_att_run *run, const cq_attention_args *a, cq_att_state *s, float *kv) {
    const size_t nq = a->B * a->Lq;
    job j = {.run = run, .a = a, .s = s, .chunk = CQ_ATT_LANES * 6};
    j.many = s->weights ? cq_ceil_div(a->Lq, j.chunk) : a->H;
    if (a->wp) CQ_TRY(project(run, a->xk, a->B * a->Lk, a->Dk, a->wp, a->bp, a->P, kv));
    s->kv = a->wp ? kv : a->xk;
    CQ_TRY(project(run, a->xq, nq, a->Dq, a->wq, a->bq, a->E, s->q));
    CQ_TRY(project_turned(&j, a->wk, a->bk, s->k));
    CQ_TRY(project_turned(&j, a->wv, a->bv, s->v));
    CQ_TRY(cq_parallel_rows(run->cx, a->B * j.many, 1, attend, &j));
    return s->y ? project_out(&j) : CQ_OK;
}

/* The first projection lies in the rows of `out` where it fits: y comes there later. */
static int kv_in_out(const cq_attention_args *a) {
    return cq_mul(a->Lk, a->P) <= cq_mul(a->Lq, a->Do);
}

size_t cq_attention_workspace(const cq_attention_args *a, int saved, int threads) {
    const size_t n = cq_att_elements(a, saved), nq = cq_mul(n, a->Lq), nk = cq_mul(n, a->Lk);
    const size_t begin = cq_att_begin_bytes(a, threads, saved, 0);
    if (saved) return begin;
    const size_t kv = a->wp && !kv_in_out(a) ? cq_att_bytes(nk, a->P) : 0;
    const size_t held = cq_mul(2, cq_att_bytes(nk, a->E));
    return cq_add(cq_add(begin, cq_att_bytes(nq, a->E)), cq_add(kv, held));
}

/* Point a state at what is saved. */
static void to_saved(const cq_attention_args *a, const cq_attention_saved *s, float *out,
                     cq_att_state *t) {
    t->q = s->q;
    t->k = s->k;
    t->v = s->v;
    t->ctx = s->ctx;
    t->y = a->gamma ? s->y : out;
}

cq_status cq_attention(cq_ctx *cx, const cq_attention_args *a, const cq_attention_saved *s,
                       float *out, float *entropy, float *weights, char *work) {
    cq_att_run run;
    const int saved = s->q != NULL;
    cq_att_begin(&run, cx, a, &work, saved, 0);
    const size_t n = cq_att_elements(a, saved);
    cq_att_state t = {0};
    float *kv = s->kv;
    if (saved) {
        to_saved(a, s, out, &t);
    } else {
        t.q = t.ctx = cq_att_floats(&work, n * a->Lq * a->E);
        t.k = cq_att_floats(&work, n * a->Lk * a->E);
        t.v = cq_att_floats(&work, n * a->Lk * a->E);
        kv = (float *)(void *)work;
    }
    for (size_t b = 0; b < a->B; b += n) {
        const cq_attention_args part = cq_att_part(a, b, cq_min_size(n, a->B - b));
        t.out = out + b * a->Lq * a->Do;
        if (!saved) t.y = t.out;
        t.lse = s->lse + b * a->H * a->Lq;
        t.stat = s->stat + b * a->Lq * 2;
        t.entropy = cq_att_from(entropy, b * a->H * a->Lq);
        t.weights = cq_att_from(weights, b * a->Lq * a->Lk);
        float *to = !saved && a->wp && kv_in_out(a) ? t.out : kv;
        CQ_TRY(cq_att_forward(&run, &part, &t, to));
    }
    return CQ_OK;
}
