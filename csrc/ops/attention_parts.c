/* SPDX-License-Identifier: Apache-2.0 */
#include "attention_parts.h"

/* A block of A, BLOCK_ROWS rows by DEPTH deep, stays in L2 (384 KiB with three planes) while the
 * panels of B come past it: SPAN columns are packed at a time. Larger blocks were slower. */
enum { DEPTH = 512, SPAN = 1024, BLOCK_ROWS = 128, CHUNK_ROWS = 1024 };

static size_t span_of(size_t k, size_t most) { return cq_att_depth(cq_min_size(k, most)); }

static size_t largest(const size_t *x, size_t n) {
    size_t w = 0;
    for (size_t i = 0; i < n; i++) w = x[i] > w ? x[i] : w;
    return w;
}

size_t cq_att_elements(const cq_attention_args *a, int saved) {
    const size_t rows = a->Lq > a->Lk ? a->Lq : a->Lk;
    if (saved || rows == 0) return a->B;
    return cq_min_size(a->B, rows > CHUNK_ROWS ? 1 : CHUNK_ROWS / rows);
}

cq_attention_args cq_att_part(const cq_attention_args *a, size_t first, size_t count) {
    cq_attention_args part = *a;
    part.B = count;
    part.xq = a->xq + first * a->Lq * a->Dq;
    part.xk = a->xk + first * a->Lk * a->Dk;
    part.mask = a->mask ? a->mask + first * a->Lk : NULL;
    return part;
}

/* Lanes and depths of products are widths and rows. */
static size_t widest(const cq_attention_args *a, int saved, size_t most) {
    const size_t n = cq_att_elements(a, saved), nq = cq_mul(n, a->Lq), nk = cq_mul(n, a->Lk);
    return span_of(largest((const size_t[]){a->Dq, a->Dk, a->P, a->E, a->Do, nk, nq}, 7), most);
}

static size_t shared_bytes(const cq_attention_args *a, int saved) {
    return cq_att_panels(widest(a, saved, SPAN)) * cq_att_panel(widest(a, saved, DEPTH), a->planes);
}

static size_t slot_bytes(const cq_attention_args *a, int saved, int backward) {
    const size_t depth = widest(a, saved, DEPTH), lanes = widest(a, saved, BLOCK_ROWS);
    const size_t product = cq_att_panels(lanes) * cq_att_panel(depth, a->planes);
    const size_t head = backward ? cq_att_bwd_slot(a) : 0;
    return cq_round_up(largest((const size_t[]){product, head, cq_att_fwd_slot(a)}, 3), 4096);
}

static size_t slots_of(int threads) {
    return (size_t)(threads > CQ_ATT_SLOTS ? CQ_ATT_SLOTS : threads);
}

size_t cq_att_begin_bytes(const cq_attention_args *a, int threads, int saved, int backward) {
    /* Without batch elements Lk can be anything; a slot takes less than this. */
    if (cq_mul(cq_mul(cq_add(a->Lk, 64), a->E), 4096) == SIZE_MAX) return SIZE_MAX;
    const size_t slots = cq_mul(slot_bytes(a, saved, backward), slots_of(threads));
    return cq_add(cq_add(shared_bytes(a, saved), slots), 64);
}

void cq_att_begin(cq_att_run *run, cq_ctx *cx, const cq_attention_args *a, char **work, int saved,
                  int backward) {
    if (cx->threads > CQ_ATT_SLOTS) cx->threads = CQ_ATT_SLOTS;
    run->cx = cx;
    run->a = a;
    *work += (64 - (uintptr_t)*work % 64) % 64;
    run->shared = cq_att_carve(work, shared_bytes(a, saved));
    run->slot_bytes = slot_bytes(a, saved, backward);
    run->slots = cq_att_carve(work, run->slot_bytes * (size_t)cx->threads);
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
    if (p->after) p->after(p->ctx, 0, p->M);
}

/* Rows per block: few and equal blocks, one for every thread at least. No bit depends on it. */
static size_t block_rows(size_t m, int threads) {
    size_t blocks = cq_ceil_div(m, BLOCK_ROWS);
    blocks = cq_ceil_div(blocks, (size_t)threads) * (size_t)threads;
    return cq_att_depth(cq_ceil_div(m, blocks ? blocks : 1));
}

cq_status cq_att_multiply(cq_att_run *run, const cq_att_product *p) {
    if (!p->M || !p->N) return CQ_OK;
    if (p->K == 0) no_depth(p);
    const size_t parts = cq_ceil_div(p->K, DEPTH);
    const size_t deep = cq_att_depth(cq_ceil_div(p->K, parts ? parts : 1));
    const size_t block = block_rows(p->M, run->cx->threads);
    for (size_t j = 0; j < p->N; j += SPAN) {
        for (size_t k = 0; k < p->K; k += deep) {
            stage s = {run, p, j, cq_min_size(SPAN, p->N - j), k, cq_min_size(deep, p->K - k)};
            CQ_TRY(cq_parallel_rows(run->cx, cq_att_panels(s.n), 2, pack_b, &s));
            CQ_TRY(cq_parallel_rows(run->cx, p->M, block, rows, &s));
        }
    }
    return CQ_OK;
}
