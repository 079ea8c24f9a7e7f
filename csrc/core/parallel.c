/* SPDX-License-Identifier: Apache-2.0 */
/* libgomp keeps its threads in the parent: a forked child that opens a region after the parent did
 * waits for them for ever. The child handler therefore sets one atomic and regions become loops. */
#define _DEFAULT_SOURCE
#include "parallel.h"

#include <time.h>
#if !defined(CMIBQ_PTHREADS)
#include <omp.h>
#endif

enum { POLL_MS = 50 };

static atomic_int forked;

static void on_fork_child(void) { atomic_store(&forked, 1); }

int cq_parallel_init(void) { return pthread_atfork(NULL, NULL, on_fork_child); }

int cq_parallel_forked(void) { return atomic_load(&forked); }

/* A few nanoseconds per look, good to some milliseconds. */
static long long clock_ms(void) {
#if defined(CLOCK_MONOTONIC_COARSE)
    const clockid_t which = CLOCK_MONOTONIC_COARSE;
#else
    const clockid_t which = CLOCK_MONOTONIC;
#endif
    struct timespec t = {0, 0};
    clock_gettime(which, &t);
    return (long long)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int cq_stop(cq_ctx *cx) {
    if (atomic_load_explicit(&cx->stopped, memory_order_relaxed)) return 1;
    if (!cx->poll || !pthread_equal(pthread_self(), cx->caller)) return 0;
    const long long now = clock_ms();
    if (cx->next_poll && now < cx->next_poll) return 0;
    const int first = cx->next_poll == 0;
    cx->next_poll = now + POLL_MS;
    if (first || !cx->poll(cx)) return 0;
    atomic_store_explicit(&cx->stopped, 1, memory_order_relaxed);
    return 1;
}

size_t cq_grain(size_t work_per_row) {
    const size_t target = 65536;
    return work_per_row >= target ? 1 : target / (work_per_row ? work_per_row : 1);
}

/* What all threads of one call share. */
typedef struct region {
    cq_ctx *cx;
    size_t n, grain;
    cq_block_fn fn;
    void *ctx;
    atomic_size_t next; /* block, where threads count themselves */
} region;

static void run_block(const region *r, size_t block) {
    const size_t begin = block * r->grain;
    r->fn(r->ctx, begin, cq_min_size(r->n, begin + r->grain), block);
}

#if defined(CMIBQ_PTHREADS)
/* Threads of its own for every region: for tools that do not know what libgomp does (thread
 * sanitizer, valgrind) and for programs without it. */
static void *run_blocks(void *shared) {
    region *r = shared;
    const size_t blocks = cq_ceil_div(r->n, r->grain);
    for (size_t b; (b = atomic_fetch_add(&r->next, 1)) < blocks && !cq_stop(r->cx);)
        run_block(r, b);
    return NULL;
}

static void run_threads(region *r, int threads) {
    enum { MOST = 64 };
    pthread_t others[MOST];
    int started = 0;
    while (started < threads - 1 && started < MOST &&
           pthread_create(&others[started], NULL, run_blocks, r) == 0)
        started++;
    run_blocks(r);
    while (started) pthread_join(others[--started], NULL);
}

static int omp_in_parallel(void) { return 0; }
#else
static void run_threads(const region *r, int threads) {
    const ptrdiff_t blocks = (ptrdiff_t)cq_ceil_div(r->n, r->grain);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (ptrdiff_t b = 0; b < blocks; b++)
        if (!cq_stop(r->cx)) run_block(r, (size_t)b);
}
#endif

cq_status cq_parallel_rows(cq_ctx *cx, size_t n, size_t grain, cq_block_fn fn, void *ctx) {
    region r = {.cx = cx, .n = n, .grain = grain, .fn = fn, .ctx = ctx};
    const size_t blocks = cq_ceil_div(n, grain);
    const int threads = blocks < (size_t)cx->threads ? (int)blocks : cx->threads;
    if (threads < 2 || omp_in_parallel() || cq_parallel_forked())
        for (size_t b = 0; b < blocks && !cq_stop(cx); b++) run_block(&r, b);
    else
        run_threads(&r, threads);
    return cq_stop(cx) ? CQ_INTERRUPTED : CQ_OK;
}
