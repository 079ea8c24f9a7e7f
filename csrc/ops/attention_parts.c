/* SPDX-License-Identifier: Apache-2.0 */
#include "attention_parts.h"

/* Rows of A packed at a time: with a depth of CQ_ATT_SPAN they stay in half of a 2 MB L2. */
enum { BLOCK_ROWS = 128 };

static size_t span_of(size_t k) { return cq_min_size(cq_att_depth(k), CQ_ATT_SPAN); }

static size_t widest(const cq_attention_args *a, int with_rows) {
    size_t w = a->Dq;
    const size_t all[] = {a->Dk, a->E, a->Do, with_rows ? a->B * a->Lq : 0,
                          with_rows ? a->B * a->Lk : 0};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) w = all[i] > w ? all[i] : w;
    return w;
}

size_t cq_att_shared_bytes(const cq_attention_args *a) {
    const size_t lanes = span_of(widest(a, 0)), depth = span_of(widest(a, 1));
    return cq_att_panels(lanes) * cq_att_panel(depth, a->planes);
}

size_t cq_att_slot_bytes(const cq_attention_args *a, int backward) {
    const size_t product =
        BLOCK_ROWS / CQ_ATT_LANES * cq_att_panel(span_of(widest(a, backward)), a->planes);
    const size_t rows = backward ? cq_att_bwd_slot(a) : cq_att_fwd_slot(a);
    return cq_ceil_div(product > rows ? product : rows, 4096) * 4096;
}

void cq_att_begin(cq_att_run *run, cq_ctx *cx, const cq_attention_args *a, char *work,
                  int backward) {
    if (cx->threads > CQ_ATT_SLOTS) cx->threads = CQ_ATT_SLOTS;
    run->cx = cx;
    run->a = a;
    work += (64 - (uintptr_t)work % 64) % 64;
    run->shared = cq_att_carve(&work, cq_att_shared_bytes(a));
    run->slot_bytes = cq_att_slot_bytes(a, backward);
    run->slots = cq_att_carve(&work, run->slot_bytes * (size_t)cx->threads);
    run->rest = work;
    atomic_init(&run->busy, 0);
}

int cq_att_take(cq_att_run *run, char **slot) {
    unsigned long long busy = atomic_load(&run->busy);
    for (;;) {
        int i = 0;
        while ((busy >> i) & 1) i++;
        if (atomic_compare_exchange_weak(&run->busy, &busy, busy | 1ull << i)) {
            *slot = run->slots + (size_t)i * run->slot_bytes;
            return i;
        }
    }
}

void cq_att_give(cq_att_run *run, int slot) { atomic_fetch_and(&run->busy, ~(1ull << slot)); }

void cq_att_pack(const cq_att_run *run, const float *x, size_t lane_stride, size_t depth_stride,
                 size_t count, size_t depth, int side, void *panels) {
    const size_t bytes = cq_att_panel(depth, run->a->planes);
    for (size_t i = 0; i < count; i += CQ_ATT_LANES) {
        const cq_att_source s = {x + i * lane_stride,
                                 lane_stride,
                                 depth_stride,
                                 cq_min_size(CQ_ATT_LANES, count - i),
                                 depth,
                                 side,
                                 run->a->planes};
        run->cx->k->attention_pack_f32(&s, (char *)panels + i / CQ_ATT_LANES * bytes);
    }
}

typedef struct stage {
    cq_att_run *run;
    const cq_att_product *p;
    size_t j, n, k, depth; /* columns j .. j + n, depth k .. k + depth */
} stage;

static void pack_b(void *ctx, size_t begin, size_t end, size_t block) {
    const stage *s = ctx;
    const cq_att_matrix *b = &s->p->B;
    (void)block;
    const size_t lane = b->transposed ? b->ld : 1, deep = b->transposed ? 1 : b->ld;
    const size_t from = begin * CQ_ATT_LANES, to = cq_min_size(end * CQ_ATT_LANES, s->n);
    cq_att_pack(s->run, b->x + (s->j + from) * lane + s->k * deep, lane, deep, to - from, s->depth,
                1, s->run->shared + begin * cq_att_panel(s->depth, s->run->a->planes));
}

static void rows(void *ctx, size_t begin, size_t end, size_t block) {
    const stage *s = ctx;
    const cq_att_product *p = s->p;
    char *slot;
    (void)block;
    const int taken = cq_att_take(s->run, &slot);
    const size_t lane = p->A.transposed ? 1 : p->A.ld, deep = p->A.transposed ? p->A.ld : 1;
    const size_t bytes = cq_att_panel(s->depth, s->run->a->planes);
    const int last = s->k + s->depth == p->K, final = last && s->j + s->n == p->N;
    cq_att_pack(s->run, p->A.x + begin * lane + s->k * deep, lane, deep, end - begin, s->depth, 0,
                slot);
    if (p->before && s->j == 0 && s->k == 0) p->before(p->ctx, begin, end);
    for (size_t j = 0; j < s->n; j += CQ_ATT_LANES) {
        const size_t next = j + CQ_ATT_LANES < s->n ? j + CQ_ATT_LANES : 0;
        const cq_att_block t = {.a = slot,
                                .b = s->run->shared + j / CQ_ATT_LANES * bytes,
                                .ahead = s->run->shared + next / CQ_ATT_LANES * bytes,
                                .a_stride = bytes,
                                .b_stride = bytes,
                                .m = end - begin,
                                .n = cq_min_size(CQ_ATT_LANES, s->n - j),
                                .depth = s->depth,
                                .c = p->c + begin * p->ldc + s->j + j,
                                .ldc = p->ldc,
                                .bias = p->bias && last ? p->bias + s->j + j : NULL,
                                .planes = s->run->a->planes,
                                .add = p->add || s->k > 0};
        s->run->cx->k->attention_block_f32(&t);
        if (cq_stop(s->run->cx)) break;
    }
    cq_att_give(s->run, taken);
    if (p->after && final) p->after(p->ctx, begin, end);
}

static void no_depth(const cq_att_product *p) {
    for (size_t i = 0; i < p->M && !p->add; i++)
        for (size_t j = 0; j < p->N; j++) p->c[i * p->ldc + j] = p->bias ? p->bias[j] : 0.0f;
}

cq_status cq_att_multiply(cq_att_run *run, const cq_att_product *p) {
    if (p->K == 0) no_depth(p);
    const size_t parts = cq_ceil_div(p->K, CQ_ATT_SPAN);
    const size_t deep = cq_att_depth(cq_ceil_div(p->K, parts ? parts : 1));
    for (size_t j = 0; j < p->N; j += CQ_ATT_SPAN) {
        for (size_t k = 0; k < p->K; k += deep) {
            stage s = {
                run, p, j, cq_min_size(CQ_ATT_SPAN, p->N - j), k, cq_min_size(deep, p->K - k)};
            CQ_TRY(cq_parallel_rows(run->cx, cq_att_panels(s.n), 2, pack_b, &s));
            CQ_TRY(cq_parallel_rows(run->cx, p->M, BLOCK_ROWS, rows, &s));
        }
    }
    return CQ_OK;
}
