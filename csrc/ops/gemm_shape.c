/* SPDX-License-Identifier: Apache-2.0 */
/* Which way a product goes, and the sizes of its tasks and of what they keep. */
#include "gemm_shape.h"

enum {
    BLOCK_ROWS = 960,        /* rows of a task by blocks or rows, at most */
    BLOCK_COLS = 1024,       /* columns of a task by blocks, at most */
    SHARED_ROWS = 2112,      /* rows of A packed at a time */
    SHARED_COLS = 2048,      /* columns of B packed at a time */
    SHARED_INPUTS = 1024,    /* inputs packed at a time, if more than a block are */
    SHARED_L2 = 1 << 19,     /* words of panels that are read from L2: 2 MiB */
    ROWS_B_FLOATS = 1 << 17, /* largest packed B of a task by rows: 512 KiB */
    THIN_TASKS = 16,         /* of a product of few rows, */
    THIN_COLS = 128          /* unless they had fewer columns */
};

static size_t align_floats(size_t n) { return cq_gemm_up(n, 16); }

/* Words of all panels of `n` lanes. */
static size_t operand_words(const cq_gemm_plan *p, size_t n, size_t lanes, size_t kc) {
    return align_floats(cq_ceil_div(n, lanes) * cq_gemm_panel_words(p, lanes, kc));
}

size_t cq_gemm_shared_inputs(const cq_gemm_plan *p) {
    const size_t block = cq_gemm_block_inputs(p);
    const size_t lanes = cq_min_size(p->M, SHARED_ROWS) + cq_min_size(p->N, SHARED_COLS);
    return block >= SHARED_INPUTS || lanes * block <= SHARED_L2 ? block : SHARED_INPUTS;
}

static void shape_shared(const cq_gemm_plan *p, cq_gemm_shape *s) {
    const size_t kc = cq_min_size(p->K, cq_gemm_shared_inputs(p));
    s->rows = cq_min_size(p->M, SHARED_ROWS);
    s->cols = cq_min_size(p->N, SHARED_COLS);
    s->a_floats = operand_words(p, s->rows, cq_gemm_lanes_a(p), kc);
    s->b_floats = operand_words(p, s->cols, CQ_GEMM_NR, kc);
}

/* Rows of a task, so that there are some for every thread. */
static size_t task_rows(const cq_gemm_plan *p) {
    const size_t most = p->batch < 4 && p->M > (size_t)2 * CQ_GEMM_MC ? CQ_GEMM_MC : BLOCK_ROWS;
    return cq_gemm_up(cq_ceil_div(p->M, cq_ceil_div(p->M, most)), cq_gemm_lanes_a(p));
}

static void shape_rows(const cq_gemm_plan *p, cq_gemm_shape *s) {
    s->rows = task_rows(p);
    s->cols = p->N;
    s->stream = p->c && p->ldc == p->N && p->K <= CQ_GEMM_KC / 2 &&
                p->batch * p->M * p->N * sizeof(float) >= CQ_STREAM_BYTES;
    const size_t kc = cq_min_size(p->K, cq_gemm_block_inputs(p));
    s->a_floats = p->a.pack ? operand_words(p, 1, cq_gemm_lanes_a(p), kc) : 0;
    s->b_floats = p->b.pack ? operand_words(p, p->N, CQ_GEMM_NR, p->K) : 0;
    s->c_floats = p->c && !s->stream ? 0 : align_floats(cq_gemm_lanes_a(p) * p->N);
}

static void shape_blocks(const cq_gemm_plan *p, cq_gemm_shape *s) {
    const size_t kc = cq_min_size(p->K, cq_gemm_block_inputs(p)),
                 work = p->M && p->K ? p->M * p->K : 1;
    /* At least a million multiply-adds, if there are as many columns. */
    const size_t least = cq_gemm_up(cq_ceil_div((size_t)1 << 20, work), CQ_GEMM_NR);
    s->rows = task_rows(p);
    s->cols = p->batch == 1 ? CQ_GEMM_NR * 4 : BLOCK_COLS;
    s->cols = least > s->cols ? cq_min_size(least, BLOCK_COLS) : s->cols;
    s->cols = cq_min_size(s->cols, cq_gemm_up(p->N, CQ_GEMM_NR));
    s->a_floats = p->a.pack ? operand_words(p, s->rows, cq_gemm_lanes_a(p), kc) : 0;
    s->b_floats = p->b.pack ? operand_words(p, 1, CQ_GEMM_NR, kc) : 0;
    s->c_floats = p->c ? 0 : align_floats(cq_min_size(s->rows, p->M) * s->cols);
}

/* As wide as there is work for every thread: what lies together is read fastest. */
static void shape_thin(const cq_gemm_plan *p, int threads, cq_gemm_shape *s) {
    const size_t most = CQ_GEMM_FEW / p->M / CQ_GEMM_NR * CQ_GEMM_NR;
    const size_t share = cq_gemm_up(cq_ceil_div(p->N, (size_t)threads), CQ_GEMM_NR);
    s->rows = p->M;
    s->cols = cq_min_size(share < THIN_COLS ? THIN_COLS : share, most);
    s->a_floats = p->a.pack ? operand_words(p, 1, CQ_GEMM_MR, p->K) : 0;
    s->c_floats = p->c ? 0 : CQ_GEMM_FEW;
}

cq_gemm_shape cq_gemm_shape_of(const cq_gemm_plan *p, int threads) {
    cq_gemm_shape s = {.way = CQ_GEMM_BLOCKS};
    if (!p->batch || !p->M || !p->N) return s;
    if (p->few) {
        s.way = CQ_GEMM_THIN;
        shape_thin(p, threads, &s);
        s.tasks = p->batch * cq_ceil_div(p->N, s.cols);
        return s;
    }
    const int both = p->a.pack && p->b.pack && p->K;
    if (p->M > 8 && p->K && operand_words(p, p->N, CQ_GEMM_NR, p->K) <= ROWS_B_FLOATS)
        s.way = CQ_GEMM_ROWS;
    else if (both && p->batch == 1 && p->c && p->M > 8 && p->N > 4 * CQ_GEMM_NR)
        s.way = CQ_GEMM_SHARED;
    if (s.way == CQ_GEMM_SHARED)
        shape_shared(p, &s);
    else if (s.way == CQ_GEMM_ROWS)
        shape_rows(p, &s);
    else
        shape_blocks(p, &s);
    if (s.way != CQ_GEMM_SHARED)
        s.tasks = p->batch * cq_ceil_div(p->M, s.rows) * cq_ceil_div(p->N, s.cols);
    return s;
}

int cq_gemm_plan_shared(const cq_gemm_plan *p) {
    return cq_gemm_shape_of(p, 1).way == CQ_GEMM_SHARED;
}

size_t cq_gemm_plan_workspace(const cq_gemm_plan *p, int threads) {
    const cq_gemm_shape s = cq_gemm_shape_of(p, threads);
    const size_t slots = s.way == CQ_GEMM_SHARED ? 1 : cq_min_size((size_t)threads, s.tasks);
    return 64 + slots * cq_gemm_slot_floats(&s) * sizeof(float);
}
