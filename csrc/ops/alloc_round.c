/* SPDX-License-Identifier: Apache-2.0 */
/* Real bits to integers of a given sum. Who gets a step is found by their keys, ten bits at a time:
 * count all, then those in the bin that the number of steps ends in. Of a long row, pieces are
 * looked at by all threads; numbers are whole, so their order does not matter. */
#include "alloc_pieces.h"
#include "ops.h"

#include <math.h>
#include <string.h>

enum { TOP = 1 << 30 }; /* above all keys */

typedef struct job {
    cq_ctx *cx;
    const cq_kernels *k;
    const float *b;
    uint8_t *out;
    int lo, hi;
    int64_t total;
    size_t C;
    atomic_int odd; /* some b is NaN or infinite */
} job;

/* One row, and what the next look at its pieces needs. */
typedef struct row {
    job *j;
    const float *b;
    uint8_t *out;
    cq_alloc_round r;
    size_t bins[CQ_ALLOC_BINS + 16];
    int64_t sum[CQ_ALLOC_PIECES];
    size_t count[CQ_ALLOC_PIECES], room[CQ_ALLOC_PIECES]; /* of those with the last key */
} row;

static cq_status each(row *w, cq_block_fn fn) { return cq_alloc_each(w->j->cx, w->j->C, fn, w); }

static void floor_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *w = ctx;
    const job *j = w->j;
    j->k->alloc_floor_f32(w->b + begin, end - begin, j->lo, j->hi, w->out + begin, w->sum + block);
}

static void count_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *w = ctx;
    const cq_kernels *k = w->j->k;
    (void)block;
    if (w->j->C <= CQ_ALLOC_PIECE) {
        k->alloc_round_count_f32(&w->r, w->b + begin, w->out + begin, end - begin, w->bins);
        return;
    }
    size_t bins[CQ_ALLOC_BINS + 16] = {0};
    k->alloc_round_count_f32(&w->r, w->b + begin, w->out + begin, end - begin, bins);
    for (size_t i = 0; i < CQ_ALLOC_BINS; i++)
        if (bins[i]) __atomic_fetch_add(&w->bins[i], bins[i], __ATOMIC_RELAXED);
}

static void give_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *w = ctx;
    size_t count;
    (void)block;
    w->j->k->alloc_round_give_f32(&w->r, w->b + begin, end - begin, end - begin, w->out + begin,
                                  &count);
}

static void ties_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *w = ctx;
    w->j->k->alloc_round_give_f32(&w->r, w->b + begin, end - begin, 0, w->out + begin,
                                  w->count + block);
}

static void some_piece(void *ctx, size_t begin, size_t end, size_t block) {
    row *w = ctx;
    size_t count;
    if (!w->room[block]) return;
    w->j->k->alloc_round_give_f32(&w->r, w->b + begin, end - begin, w->room[block], w->out + begin,
                                  &count);
}

/* A step for the keys from `least` on. */
static cq_status give(row *w, uint32_t least) {
    w->r.least = least;
    w->r.most = TOP;
    return each(w, give_piece);
}

/* A step for the first `room` of those with the key `cut`. */
static cq_status give_ties(row *w, uint32_t cut, size_t room) {
    w->r.least = w->r.most = cut;
    w->room[0] = room;
    if (w->j->C > CQ_ALLOC_PIECE) {
        CQ_TRY(each(w, ties_piece));
        for (size_t p = 0; p < cq_alloc_pieces(w->j->C); p++) {
            w->room[p] = cq_min_size(room, w->count[p]);
            room -= w->room[p];
        }
    }
    return each(w, some_piece);
}

/* Give a step to `want` channels of largest keys, or to all that can have one; *given: how many. */
static cq_status spread(row *w, size_t want, size_t *given) {
    uint32_t cut = 0;
    size_t left = want, all = 0, bin = 0;
    for (w->r.shift = 20; w->r.shift >= 0; w->r.shift -= 10) {
        memset(w->bins, 0, sizeof w->bins);
        w->r.prefix = cut;
        CQ_TRY(each(w, count_piece));
        if (w->r.shift == 20) {
            for (size_t i = 0; i < CQ_ALLOC_BINS; i++) all += w->bins[i];
            *given = cq_min_size(want, all);
            if (all <= want) return give(w, 1);
        }
        for (bin = CQ_ALLOC_BINS - 1; w->bins[bin] < left; bin--) left -= w->bins[bin];
        cut = cut * CQ_ALLOC_BINS + (uint32_t)bin;
    }
    if (left == w->bins[bin]) return give(w, cut);
    CQ_TRY(give(w, cut + 1));
    return give_ties(w, cut, left);
}

static cq_status round_row(row *w) {
    CQ_TRY(each(w, floor_piece));
    int64_t left = w->j->total;
    for (size_t p = 0; p < cq_alloc_pieces(w->j->C); p++) left -= w->sum[p];
    w->r = (cq_alloc_round){.lo = w->j->lo, .hi = w->j->hi, .up = left > 0};
    size_t want = (size_t)(left > 0 ? left : -left), given = 0;
    for (; want; want -= given) /* more than one round only where b is far from the budget */
        CQ_TRY(spread(w, want, &given));
    return CQ_OK;
}

/* A row that is interrupted tells nobody: cq_parallel_rows does. */
static void rows(void *ctx, size_t begin, size_t end, size_t block) {
    job *j = ctx;
    row w;
    w.j = j;
    (void)block;
    for (size_t i = begin; i < end; i++) {
        w.b = j->b + i * j->C;
        w.out = j->out + i * j->C;
        if (round_row(&w) != CQ_OK) return;
    }
}

static void check(void *ctx, size_t begin, size_t end, size_t block) {
    job *j = ctx;
    int finite;
    (void)block;
    j->k->gemm_f32_finite(j->b + begin, end - begin, 1, end - begin, &finite);
    if (!finite) atomic_store_explicit(&j->odd, 1, memory_order_relaxed);
}

cq_status cq_round_bits_row(cq_ctx *cx, const float *b, int lo, int hi, int64_t total, uint8_t *out,
                            size_t R, size_t C) {
    if (lo > hi) return cq_refuse(cx, CQ_BAD_RANGE, 1, hi);
    const int64_t n = (int64_t)C;
    if (total < lo * n || total > hi * n) return cq_refuse(cx, CQ_BAD_TOTAL, 0, (double)total);
    if (!C) return CQ_OK;
    job j = {.cx = cx, .k = cx->k, .b = b, .out = out, .lo = lo, .hi = hi, .total = total, .C = C};
    CQ_TRY(cq_parallel_rows(cx, R * C, CQ_ALLOC_PIECE, check, &j));
    for (size_t i = 0; j.odd && i < R * C; i++)
        if (!isfinite(b[i])) return cq_refuse(cx, CQ_NOT_FINITE, i, (double)b[i]);
    return cq_alloc_rows(cx, R, C, 64, rows, &j);
}
