/* SPDX-License-Identifier: Apache-2.0 */
/* Four ways through a product; the sums of an element are the same in all (core/gemm.h).
 * *Rows*: an operand B that fits in L2 is packed as a whole; then 12 rows at a time are finished,
 * for all columns and inputs, so that a large c can be streamed past the caches. For batches.
 * *Blocks*: a task is a block of c with all its inputs; panels of B are packed right before they
 * are used, so they are in L1. For few rows, few columns and products without c. *Shared*: one
 * large product; for four blocks of inputs, all threads pack both operands once, then share out
 * blocks of c, which stay in L2 from one block of inputs to the next. *Thin*: at most 12 rows times
 * a B that is read once, where it lies; a task is some columns. */
#include "core/parallel.h"
#include "gemm_shape.h"

#include <stdatomic.h>

enum {
    SHARED_NC = 512,  /* columns of a shared task, */
    SHARED_TASKS = 16 /* half as many where that leaves fewer tasks */
};

typedef struct job {
    cq_ctx *cx;
    const cq_kernels *k;
    void (*tile)(const cq_gemm_f32_tile *t);
    const cq_gemm_plan *p;
    cq_gemm_shape s;
    float *work;
    size_t i0, m, j0, n, k0, kc; /* shared: the block of c and of the inputs */
    size_t task_rows, task_cols;
    atomic_size_t next;
} job;

static size_t offset(const cq_gemm_operand *o, size_t batch) {
    const size_t inner = o->inner ? o->inner : 1;
    return batch / inner * o->batch_outer + batch % inner * o->batch_inner;
}

/* Set the operands of a tile: rows from panel `pa` and columns of panel `pb` of the whole operands,
 * or of the packed blocks where there are such. */
static void set_a(const cq_gemm_plan *p, size_t batch, size_t pa, size_t k0, const float *packed,
                  cq_gemm_f32_tile *t) {
    const cq_gemm_operand *a = &p->a;
    t->rsa = packed ? 1 : a->rs;
    t->csa = packed ? CQ_GEMM_MR : a->cs;
    t->psa = packed ? cq_gemm_panel_words(p, cq_gemm_lanes_a(p), t->kc) : a->ps;
    t->a = packed ? packed : a->data + offset(a, batch) + pa * a->ps + k0 * a->cs;
}

static void set_b(const cq_gemm_plan *p, size_t batch, size_t pb, size_t k0, const float *packed,
                  cq_gemm_f32_tile *t) {
    const cq_gemm_operand *b = &p->b;
    t->ldb = packed ? CQ_GEMM_NR : b->cs;
    t->b = packed ? packed : b->data + offset(b, batch) + pb * b->ps + k0 * b->cs;
}

/* Multiply; on the last block of inputs hand tile by tile to the epilogue. t is set up for rows m0
 * on and one panel of columns n0 on. */
static void multiply(const job *j, cq_gemm_f32_tile *t, size_t batch, size_t m0, size_t n0,
                     int last) {
    const cq_gemm_plan *p = j->p;
    if (!last || !p->epilogue) {
        j->tile(t);
        return;
    }
    cq_gemm_f32_tile one = *t;
    const size_t lanes = cq_gemm_lanes_a(p);
    for (size_t i = 0; i < t->m; i += lanes, one.a += t->psa, one.c += lanes * t->ldc) {
        if (i) one.ahead = NULL;
        one.m = cq_min_size(t->m - i, lanes);
        j->tile(&one);
        p->epilogue(p->epilogue_ctx, batch, m0 + i, one.m, n0, one.n, one.c, one.ldc);
    }
}

static void pack_panels(const cq_gemm_plan *p, const cq_gemm_operand *o, size_t batch, size_t width,
                        size_t r0, size_t r1, size_t k0, size_t kc, float *to) {
    const size_t words = cq_gemm_panel_words(p, width, kc);
    for (; r0 < r1; r0 += width, to += words)
        o->pack(o->ctx, batch, r0, cq_min_size(r1 - r0, width), k0, kc, to);
}

/* Rows m0 .. m0 + m - 1 of one product, all of B packed. */
static void rows_task(job *j, size_t task, float *slot) {
    const cq_gemm_plan *p = j->p;
    const size_t row_tasks = cq_ceil_div(p->M, j->s.rows), batch = task / row_tasks;
    const size_t m0 = task % row_tasks * j->s.rows, end = cq_min_size(p->M, m0 + j->s.rows);
    const size_t lanes = cq_gemm_lanes_a(p), most = cq_gemm_block_inputs(p);
    float *pa = p->a.pack ? slot : NULL, *pb = p->b.pack ? slot + j->s.a_floats : NULL;
    float *scratch = j->s.c_floats ? slot + j->s.a_floats + j->s.b_floats : NULL;
    for (size_t k0 = 0; pb && k0 < p->K; k0 += most)
        pack_panels(p, &p->b, batch, CQ_GEMM_NR, 0, p->N, k0, cq_min_size(p->K - k0, most),
                    pb + cq_gemm_words_before(p, p->N, CQ_GEMM_NR, k0));
    for (size_t m = m0; m < end; m += lanes) {
        if (cq_stop(j->cx)) return;
        const size_t home = batch * p->batch_c + m * p->ldc;
        float *to = scratch ? scratch : p->c + home;
        cq_gemm_f32_tile t = {.ldc = scratch ? p->N : p->ldc, .planes = p->planes};
        t.m = cq_min_size(end - m, lanes);
        for (size_t k0 = 0; k0 < p->K; k0 += t.kc) {
            t.kc = cq_min_size(p->K - k0, most);
            t.first = k0 == 0;
            if (pa) p->a.pack(p->a.ctx, batch, m, t.m, k0, t.kc, pa);
            set_a(p, batch, m / lanes, k0, pa, &t);
            const float *b = pb ? pb + cq_gemm_words_before(p, p->N, CQ_GEMM_NR, k0) : NULL;
            for (size_t n = 0; n < p->N; n += CQ_GEMM_NR) {
                t.n = cq_min_size(p->N - n, CQ_GEMM_NR);
                t.c = to + n;
                set_b(p, batch, n / CQ_GEMM_NR, k0, b, &t);
                if (b) b += cq_gemm_panel_words(p, CQ_GEMM_NR, t.kc);
                multiply(j, &t, batch, m, n, k0 + t.kc == p->K);
            }
        }
        if (j->s.stream) j->k->gemm_f32_stream(scratch, p->c + home, t.m * p->N);
    }
}

static void block_task(job *j, size_t task, float *slot) {
    const cq_gemm_plan *p = j->p;
    const size_t row_tasks = cq_ceil_div(p->M, j->s.rows), col_tasks = cq_ceil_div(p->N, j->s.cols);
    const size_t batch = task / (row_tasks * col_tasks), at = task % (row_tasks * col_tasks);
    const size_t m0 = at / col_tasks * j->s.rows, m = cq_min_size(p->M - m0, j->s.rows);
    const size_t n0 = at % col_tasks * j->s.cols, n1 = cq_min_size(p->N, n0 + j->s.cols);
    float *pa = p->a.pack ? slot : NULL, *pb = p->b.pack ? slot + j->s.a_floats : NULL;
    float *scratch = slot + j->s.a_floats + j->s.b_floats;
    cq_gemm_f32_tile t = {.m = m, .ldc = p->c ? p->ldc : n1 - n0, .planes = p->planes};
    float *c = p->c ? p->c + batch * p->batch_c + m0 * p->ldc + n0 : scratch;
    size_t k0 = 0;
    do { /* once for K = 0 */
        t.kc = cq_min_size(p->K - k0, cq_gemm_block_inputs(p));
        t.first = k0 == 0;
        if (pa) pack_panels(p, &p->a, batch, cq_gemm_lanes_a(p), m0, m0 + m, k0, t.kc, pa);
        set_a(p, batch, m0 / cq_gemm_lanes_a(p), k0, pa, &t);
        for (size_t n = n0; n < n1; n += CQ_GEMM_NR) {
            if (cq_stop(j->cx)) return;
            t.n = cq_min_size(n1 - n, CQ_GEMM_NR);
            t.c = c + (n - n0);
            if (pb && t.kc) p->b.pack(p->b.ctx, batch, n, t.n, k0, t.kc, pb);
            set_b(p, batch, n / CQ_GEMM_NR, k0, pb, &t);
            multiply(j, &t, batch, m0, n, k0 + t.kc == p->K);
        }
        k0 += t.kc;
    } while (k0 < p->K);
}

/* All of A in the slot, for as long as the product of the batch is the same. */
static void thin_rows(const cq_gemm_plan *p, size_t batch, float *pa) {
    for (size_t k0 = 0; k0 < p->K; k0 += CQ_GEMM_KC)
        p->a.pack(p->a.ctx, batch, 0, p->M, k0, cq_min_size(p->K - k0, CQ_GEMM_KC),
                  pa + k0 * CQ_GEMM_MR);
}

/* `packed`: the product whose A is in the slot. */
static void thin_task(job *j, size_t task, float *slot, size_t *packed) {
    const cq_gemm_plan *p = j->p;
    const size_t col_tasks = cq_ceil_div(p->N, j->s.cols), batch = task / col_tasks;
    const size_t n0 = task % col_tasks * j->s.cols, n1 = cq_min_size(p->N, n0 + j->s.cols);
    const float *a = p->a.pack ? slot : p->a.data + offset(&p->a, batch);
    const float *b = p->b.data + offset(&p->b, batch);
    const size_t lda = p->a.pack ? CQ_GEMM_MR : p->a.cs;
    const size_t step = p->b.rs == 1 ? n1 - n0 : 16; /* columns go one after the other */
    float *c = p->c ? p->c + batch * p->batch_c + n0 : slot + j->s.a_floats;
    const size_t ldc = p->c ? p->ldc : n1 - n0;
    if (p->a.pack && *packed != batch) thin_rows(p, batch, slot);
    *packed = batch;
    for (size_t n = n0; n < n1; n += step)
        for (size_t k0 = 0; k0 < p->K; k0 += CQ_GEMM_KC) {
            if (cq_stop(j->cx)) return;
            const cq_gemm_f32_few t = {.a = a + k0 * lda,
                                       .b = b + k0 * p->b.cs + n * p->b.rs,
                                       .c = c + (n - n0),
                                       .lda = lda,
                                       .rsb = p->b.cs,
                                       .csb = p->b.rs,
                                       .ldc = ldc,
                                       .m = p->M,
                                       .n = cq_min_size(n1 - n, step),
                                       .kc = cq_min_size(p->K - k0, CQ_GEMM_KC),
                                       .first = k0 == 0};
            j->k->gemm_f32_few(&t);
        }
    for (size_t n = n0; n < n1 && p->epilogue; n += CQ_GEMM_NR)
        p->epilogue(p->epilogue_ctx, batch, 0, p->M, n, cq_min_size(n1 - n, CQ_GEMM_NR),
                    c + (n - n0), ldc);
}

static void run_slot(void *ctx, size_t begin, size_t end, size_t block) {
    job *j = ctx;
    (void)begin, (void)end;
    float *slot = j->work + block * cq_gemm_slot_floats(&j->s);
    size_t packed = SIZE_MAX;
    for (size_t task; (task = atomic_fetch_add(&j->next, 1)) < j->s.tasks;)
        if (j->s.way == CQ_GEMM_THIN)
            thin_task(j, task, slot, &packed);
        else
            (j->s.way == CQ_GEMM_ROWS ? rows_task : block_task)(j, task, slot);
}

/* Shared: inputs and floats of block number `block` of those packed, and where its panels begin. */
static size_t shared_block(const job *j, size_t block) {
    return cq_min_size(j->kc - block * cq_gemm_block_inputs(j->p), cq_gemm_block_inputs(j->p));
}

static float *shared_panel(const job *j, int is_a, size_t block, size_t r) {
    const cq_gemm_plan *p = j->p;
    const size_t width = is_a ? cq_gemm_lanes_a(p) : CQ_GEMM_NR;
    return j->work + (is_a ? 0 : j->s.a_floats) +
           cq_gemm_words_before(p, is_a ? j->m : j->n, width, block * cq_gemm_block_inputs(p)) +
           cq_gemm_words_before(p, r, width, shared_block(j, block));
}

/* Shared: a panel and block of A, all blocks of a panel first; or, after those, of B. */
static void shared_pack(void *ctx, size_t begin, size_t end, size_t unused) {
    const job *j = ctx;
    const cq_gemm_plan *p = j->p;
    const size_t blocks = cq_ceil_div(j->kc, cq_gemm_block_inputs(p));
    const size_t of_a = cq_ceil_div(j->m, cq_gemm_lanes_a(p)) * blocks;
    const size_t panels_b = cq_ceil_div(j->n, CQ_GEMM_NR);
    (void)unused;
    for (size_t i = begin; i < end; i++) {
        const int is_a = i < of_a;
        const size_t width = is_a ? cq_gemm_lanes_a(p) : CQ_GEMM_NR;
        const size_t panel = is_a ? i / blocks : (i - of_a) % panels_b, r = panel * width;
        const size_t block = is_a ? i % blocks : (i - of_a) / panels_b;
        const cq_gemm_operand *o = is_a ? &p->a : &p->b;
        o->pack(o->ctx, 0, (is_a ? j->i0 : j->j0) + r, cq_min_size((is_a ? j->m : j->n) - r, width),
                j->k0 + block * cq_gemm_block_inputs(p), shared_block(j, block),
                shared_panel(j, is_a, block, r));
    }
}

static void shared_task(void *ctx, size_t begin, size_t end, size_t unused) {
    const job *j = ctx;
    const cq_gemm_plan *p = j->p;
    const size_t cols = cq_ceil_div(j->n, j->task_cols);
    const size_t blocks = cq_ceil_div(j->kc, cq_gemm_block_inputs(p));
    (void)unused, (void)end;
    const size_t i = begin / cols * j->task_rows, n0 = begin % cols * j->task_cols;
    const size_t n1 = cq_min_size(j->n, n0 + j->task_cols);
    cq_gemm_f32_tile t = {.ldc = p->ldc, .planes = p->planes};
    t.m = cq_min_size(j->m - i, j->task_rows);
    for (size_t block = 0; block < blocks; block++) {
        t.kc = shared_block(j, block);
        t.first = j->k0 + block == 0;
        set_a(p, 0, 0, 0, shared_panel(j, 1, block, i), &t);
        for (size_t n = n0; n < n1; n += CQ_GEMM_NR) {
            if (cq_stop(j->cx)) return;
            t.n = cq_min_size(n1 - n, CQ_GEMM_NR);
            t.c = p->c + (j->i0 + i) * p->ldc + j->j0 + n;
            set_b(p, 0, 0, 0, shared_panel(j, 0, block, n), &t);
            if (blocks == 1)
                t.ahead = NULL;
            else if (n + CQ_GEMM_NR < n1)
                t.ahead = shared_panel(j, 0, block, n + CQ_GEMM_NR);
            else
                t.ahead = block + 1 < blocks ? shared_panel(j, 0, block + 1, n0) : NULL;
            multiply(j, &t, 0, j->i0 + i, j->j0 + n, block + 1 == blocks && j->k0 + j->kc == p->K);
        }
    }
}

/* Rows of a shared task: equal parts that fit in L2. */
static size_t shared_rows(const cq_gemm_plan *p, size_t m) {
    const size_t most = p->planes > 1 ? CQ_GEMM_MC / 2 : CQ_GEMM_MC;
    return cq_gemm_up(cq_ceil_div(m, cq_ceil_div(m, most)), cq_gemm_lanes_a(p));
}

static cq_status run_shared(job *j) {
    const cq_gemm_plan *p = j->p;
    for (j->j0 = 0; j->j0 < p->N; j->j0 += j->n) {
        j->n = cq_min_size(p->N - j->j0, j->s.cols);
        for (j->i0 = 0; j->i0 < p->M; j->i0 += j->m) {
            j->m = cq_min_size(p->M - j->i0, j->s.rows);
            j->task_rows = shared_rows(p, j->m);
            const size_t row_tasks = cq_ceil_div(j->m, j->task_rows);
            j->task_cols = SHARED_NC;
            if (row_tasks * cq_ceil_div(j->n, SHARED_NC) < SHARED_TASKS) j->task_cols /= 2;
            const size_t tasks = row_tasks * cq_ceil_div(j->n, j->task_cols);
            const size_t panels =
                cq_ceil_div(j->m, cq_gemm_lanes_a(p)) + cq_ceil_div(j->n, CQ_GEMM_NR);
            for (j->k0 = 0; j->k0 < p->K; j->k0 += j->kc) {
                j->kc = cq_min_size(p->K - j->k0, cq_gemm_shared_inputs(p));
                const size_t blocks = cq_ceil_div(j->kc, cq_gemm_block_inputs(p));
                CQ_TRY(cq_parallel_rows(j->cx, panels * blocks, 4, shared_pack, j));
                CQ_TRY(cq_parallel_rows(j->cx, tasks, 1, shared_task, j));
            }
        }
    }
    return CQ_OK;
}

cq_status cq_gemm_run(cq_ctx *cx, const cq_gemm_plan *p, void *work) {
    if (!p->batch || !p->M || !p->N) return CQ_OK;
    uint8_t *aligned = (uint8_t *)work + (64 - (uintptr_t)work % 64) % 64;
    job j = {.cx = cx,
             .k = cx->k,
             .p = p,
             .s = cq_gemm_shape_of(p, cx->threads),
             .work = (float *)(void *)aligned};
    j.tile = p->kind == CQ_GEMM_F32 ? cx->k->gemm_f32_tile : cx->k->gemm_bf16_tile;
    if (p->kind == CQ_GEMM_S8) j.tile = cx->k->gemm_s8_tile;
    if (j.s.way == CQ_GEMM_SHARED) return run_shared(&j);
    return cq_parallel_rows(cx, cq_min_size((size_t)cx->threads, j.s.tasks), 1, run_slot, &j);
}

void cq_gemm_pack_matrix(const void *ctx, size_t batch, size_t r0, size_t rows, size_t k0,
                         size_t kc, float *panel) {
    const cq_gemm_matrix *m = ctx;
    const size_t inner = m->inner ? m->inner : 1;
    const float *x =
        (const float *)m->x + batch / inner * m->batch_outer + batch % inner * m->batch_inner;
    m->k->gemm_f32_pack(x + r0 * m->rs + k0 * m->cs, m->rs, m->cs, rows, kc, m->width, panel);
}

void cq_gemm_pack_bf16(const void *ctx, size_t batch, size_t r0, size_t rows, size_t k0, size_t kc,
                       float *panel) {
    const cq_gemm_matrix *m = ctx;
    const size_t inner = m->inner ? m->inner : 1;
    const size_t at =
        batch / inner * m->batch_outer + batch % inner * m->batch_inner + r0 * m->rs + k0 * m->cs;
    const void *x = (const uint8_t *)m->x + at * (m->half ? sizeof(uint16_t) : sizeof(float));
    const cq_gemm_bf16_source s = {x, m->rs, m->cs, rows, kc, m->planes, m->half, m->is_b};
    m->k->gemm_bf16_pack(&s, (uint16_t *)(void *)panel);
}
