/* SPDX-License-Identifier: Apache-2.0 */
/* The only door to threads. Blocks depend on the problem (n, grain), never on the thread count, so
 * a reduction that keeps one partial per block gives the same bits on 1 and on 64 threads. */
#ifndef CQ_PARALLEL_H
#define CQ_PARALLEL_H

#include "dispatch.h"

typedef void (*cq_block_fn)(void *ctx, size_t begin, size_t end, size_t block);

/* Call fn(ctx, begin, end, block) for every block of `grain` rows of [0, n). Runs serially when
 * there is one block, one thread, inside another parallel region, or in a forked child. Between
 * blocks the calling thread asks cq_stop; CQ_INTERRUPTED when that ended the work early, and then
 * some blocks may be missing. Forward it with CQ_TRY. */
__attribute__((warn_unused_result)) cq_status cq_parallel_rows(cq_ctx *cx, size_t n, size_t grain,
                                                               cq_block_fn fn, void *ctx);

/* 1 when the call must end at once (its results no longer matter). Ask between pieces of work of a
 * few milliseconds, on any thread: it looks at a coarse clock, and 20 times a second the calling
 * thread runs cx->poll. cq_parallel_rows asks between blocks; a block that takes longer than that
 * asks by itself. */
int cq_stop(cq_ctx *cx);

/* Rows per block so that a block costs about 64 K units of work; at least 1. */
size_t cq_grain(size_t work_per_row);

/* Install the fork handler; called once when the module is loaded. 0 on success. */
int cq_parallel_init(void);

/* 1 in a process that was forked after the module was loaded (drivers then run serially). */
int cq_parallel_forked(void);

#endif
