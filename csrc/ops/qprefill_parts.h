/* SPDX-License-Identifier: Apache-2.0 */
/* Inside cq_qprefill_run: how a product is cut, and x laid out in steps (qprefill_rows.c). */
#ifndef CQ_QPREFILL_PARTS_H
#define CQ_QPREFILL_PARTS_H

#include "ops.h"

#include <stdatomic.h>

enum { CQ_QPREFILL_SLOTS = 256 };

/* How a product is cut (for float32 a group here is a block of core/qgemm.h, the last of a group of
 * the weight may be shorter), and the offsets in `work`, in a slot, of what is kept there. */
typedef struct cq_qprefill_plan {
    size_t rows, cols, row_tasks, col_tasks; /* of a task, a multiple of 32; of the output */
    size_t digits;                           /* rows of bytes per row of x */
    int tiles;                               /* whether there is no panel */
    size_t wide, per;                        /* inputs of a group of the weight; groups in it */
    size_t group, steps, groups, total;      /* inputs, steps of a group; groups, steps of a row */
    size_t chunk_steps, chunk_groups;        /* a chunk: groups, or steps of one group */
    size_t xscale, xsum, zeros, slots;       /* in work, after the steps of x */
    size_t part, panel, grids, line, slot;   /* in a slot, after acc; its size */
    size_t slot_count, bytes;
} cq_qprefill_plan;

typedef struct cq_qprefill_job {
    cq_ctx *cx;
    const cq_kernels *k;
    const cq_qlinear *a;
    cq_epilogue e;
    cq_qprefill_plan p;
    int centred; /* whether a strip is off centre */
    uint8_t *work;
    atomic_uchar busy[CQ_QPREFILL_SLOTS];
} cq_qprefill_job;

CQ_INLINE size_t cq_up(size_t n, size_t to) { return cq_ceil_div(n, to) * to; }

/* There are as many slots as threads, so one is free. */
CQ_INLINE size_t cq_qprefill_take(cq_qprefill_job *j) {
    for (size_t i = 0;; i = (i + 1) % j->p.slot_count)
        if (!atomic_exchange_explicit(&j->busy[i], 1, memory_order_acquire)) return i;
}

CQ_INLINE void cq_qprefill_free(cq_qprefill_job *j, size_t i) {
    atomic_store_explicit(&j->busy[i], 0, memory_order_release);
}

/* Lay out rows by blocks of CQ_QPREFILL_BLOCK, for cq_parallel_rows. */
void cq_qprefill_lay_out(void *ctx, size_t begin, size_t end, size_t block);

#endif
