/* SPDX-License-Identifier: Apache-2.0 */
/* The only door to threads. Blocks depend on the problem (n, grain), never on the thread count, so
 * a reduction that keeps one partial per block gives the same bits on 1 and on 64 threads. */
#ifndef CQ_PARALLEL_H
#define CQ_PARALLEL_H

#include "cq.h"

typedef void (*cq_block_fn)(void *ctx, size_t begin, size_t end, size_t block);

/* Call fn(ctx, begin, end, block) for every block of `grain` rows of [0, n). Runs serially when
 * there is one block, one thread, inside another parallel region, or in a forked child. */
void cq_parallel_rows(size_t n, size_t grain, int threads, cq_block_fn fn, void *ctx);

/* Rows per block so that a block costs about 64 K units of work; at least 1. */
size_t cq_grain(size_t work_per_row);

/* Install the fork handler; called once when the module is loaded. 0 on success. */
int cq_parallel_init(void);

/* 1 in a process that was forked after the module was loaded (drivers then run serially). */
int cq_parallel_forked(void);

#endif
