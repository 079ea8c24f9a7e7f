/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of channels, and the pieces of a long one. Where a row is cut depends on its length only. */
#ifndef CQ_ALLOC_PIECES_H
#define CQ_ALLOC_PIECES_H

#include "core/parallel.h"

/* Channels of a piece, and how many pieces there are, at most CQ_ALLOC_PIECES. */
CQ_INLINE size_t cq_alloc_piece(size_t C) {
    const size_t some = cq_ceil_div(C, CQ_ALLOC_PIECES);
    return some < CQ_ALLOC_PIECE ? CQ_ALLOC_PIECE : some;
}

CQ_INLINE size_t cq_alloc_pieces(size_t C) { return cq_ceil_div(C, cq_alloc_piece(C)); }

/* Call fn for every piece of a row of C channels. Not CQ_OK: interrupted, some may be missing. */
CQ_INLINE cq_status cq_alloc_each(cq_ctx *cx, size_t C, cq_block_fn fn, void *row) {
    if (C > CQ_ALLOC_PIECE) return cq_parallel_rows(cx, C, cq_alloc_piece(C), fn, row);
    fn(row, 0, C, 0);
    return CQ_OK;
}

/* Call fn for all rows, side by side; few long rows one after the other, each by all threads. */
CQ_INLINE cq_status cq_alloc_rows(cq_ctx *cx, size_t R, size_t C, size_t work, cq_block_fn fn,
                                  void *job) {
    if (C <= CQ_ALLOC_PIECE || R >= (size_t)cx->threads)
        return cq_parallel_rows(cx, R, cq_grain(C * work), fn, job);
    for (size_t r = 0; r < R && !cq_stop(cx); r++) fn(job, r, r + 1, 0);
    return cq_stop(cx) ? CQ_INTERRUPTED : CQ_OK;
}

#endif
