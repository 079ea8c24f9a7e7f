/* SPDX-License-Identifier: Apache-2.0 */
/* Inside cq_gemm_run: how a product is cut into tasks (gemm_plan.c says what the ways are). */
#ifndef CQ_GEMM_SHAPE_H
#define CQ_GEMM_SHAPE_H

#include "gemm_plan.h"

enum { CQ_GEMM_MC = 240 }; /* rows of A in L2: 240 x 256 floats are 240 KiB */

CQ_INLINE size_t cq_gemm_up(size_t n, size_t to) { return cq_ceil_div(n, to) * to; }

/* Lanes of a panel of A, inputs of a block, and words of kc inputs of a panel. */
CQ_INLINE size_t cq_gemm_lanes_a(const cq_gemm_plan *p) {
    return p->kind == CQ_GEMM_F32 ? CQ_GEMM_MR : CQ_GEMM_WIDE;
}

CQ_INLINE size_t cq_gemm_block_inputs(const cq_gemm_plan *p) {
    if (p->kind == CQ_GEMM_S8) return CQ_GEMM_KC_S8;
    return p->kind == CQ_GEMM_F32 ? CQ_GEMM_KC : CQ_GEMM_KC_WIDE;
}

CQ_INLINE size_t cq_gemm_panel_words(const cq_gemm_plan *p, size_t lanes, size_t kc) {
    if (p->kind == CQ_GEMM_F32) return lanes * kc;
    if (p->kind == CQ_GEMM_S8) return lanes * cq_gemm_up(kc, 64) / 4;
    return lanes * cq_gemm_up(kc, 32) * (size_t)p->planes / 2;
}

/* As many words as `k` inputs take that come before a block. */
CQ_INLINE size_t cq_gemm_words_before(const cq_gemm_plan *p, size_t n, size_t lanes, size_t k) {
    return cq_ceil_div(n, lanes) * cq_gemm_panel_words(p, lanes, k);
}

typedef enum cq_gemm_way { CQ_GEMM_ROWS, CQ_GEMM_BLOCKS, CQ_GEMM_SHARED, CQ_GEMM_THIN } cq_gemm_way;

/* Rows and columns of a task, how many tasks, and the floats that a thread (shared: the product)
 * needs for panels of A, of B and sums. */
typedef struct cq_gemm_shape {
    cq_gemm_way way;
    int stream; /* c is written past the caches */
    size_t rows, cols, tasks, a_floats, b_floats, c_floats;
} cq_gemm_shape;

/* `threads` only matters to how many tasks a thin product has. */
cq_gemm_shape cq_gemm_shape_of(const cq_gemm_plan *p, int threads);

/* Inputs packed at a time, shared: one block where its panels fit in L2. */
size_t cq_gemm_shared_inputs(const cq_gemm_plan *p);

CQ_INLINE size_t cq_gemm_slot_floats(const cq_gemm_shape *s) {
    return s->a_floats + s->b_floats + s->c_floats;
}

#endif
