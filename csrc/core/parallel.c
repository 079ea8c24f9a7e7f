/* SPDX-License-Identifier: Apache-2.0 */
/* libgomp keeps its threads in the parent: a forked child that opens a region after the parent did
 * waits for them for ever. The child handler therefore sets one atomic and regions become loops. */
#include "parallel.h"

#include <omp.h>
#include <pthread.h>
#include <stdatomic.h>

static atomic_int forked;

static void on_fork_child(void) { atomic_store(&forked, 1); }

int cq_parallel_init(void) { return pthread_atfork(NULL, NULL, on_fork_child); }

int cq_parallel_forked(void) { return atomic_load(&forked); }

size_t cq_grain(size_t work_per_row) {
    const size_t target = 65536;
    return work_per_row >= target ? 1 : target / (work_per_row ? work_per_row : 1);
}

void cq_parallel_rows(size_t n, size_t grain, int threads, cq_block_fn fn, void *ctx) {
    const ptrdiff_t blocks = (ptrdiff_t)cq_ceil_div(n, grain);
    const int serial = blocks < 2 || threads < 2 || omp_in_parallel() || cq_parallel_forked();
    if (serial) {
        for (ptrdiff_t b = 0; b < blocks; b++) {
            const size_t begin = (size_t)b * grain;
            fn(ctx, begin, cq_min_size(n, begin + grain), (size_t)b);
        }
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(blocks < threads ? (int)blocks : threads)
    for (ptrdiff_t b = 0; b < blocks; b++) {
        const size_t begin = (size_t)b * grain;
        fn(ctx, begin, cq_min_size(n, begin + grain), (size_t)b);
    }
}
