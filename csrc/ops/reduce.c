/* SPDX-License-Identifier: Apache-2.0 */
/* Column results are split by columns, not by rows: no partials, the order of rows is kept. */
#include "core/parallel.h"
#include "ops.h"

#include <string.h>

typedef struct job {
    cq_ctx *cx;
    const cq_kernels *k;
    const float *x;
    const double *weight;
    float *mn, *mx;
    double *sum;
    size_t R, C;
} job;

static void minmax_row(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->minmax_f32_row(j->x + r * j->C, j->C, j->mn + r, j->mx + r);
}

static void absmax_row(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++) j->k->absmax_f32_row(j->x + r * j->C, j->C, j->mx + r);
}

static void abssum_row(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++) j->k->abssum_f32_row(j->x + r * j->C, j->C, j->sum + r);
}

/* A block of columns is as long as the matrix: it asks whether to stop every `piece` rows. */
static const size_t piece = 4096;

static void minmax_col(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t n = end - begin;
    (void)block;
    memcpy(j->mn + begin, j->x + begin, n * sizeof(float));
    memcpy(j->mx + begin, j->x + begin, n * sizeof(float));
    for (size_t r = 1; r < j->R && !cq_stop(j->cx); r += piece)
        j->k->minmax_f32_col(j->x + r * j->C + begin, cq_min_size(piece, j->R - r), j->C, n,
                             j->mn + begin, j->mx + begin);
    for (size_t c = begin; c < end; c++) { /* +0 turns -0 into +0 */
        j->mn[c] += 0.0f;
        j->mx[c] += 0.0f;
    }
}

static void absmax_col(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t c = begin; c < end; c++) j->mx[c] = 0.0f;
    for (size_t r = 0; r < j->R && !cq_stop(j->cx); r += piece)
        j->k->absmax_f32_col(j->x + r * j->C + begin, cq_min_size(piece, j->R - r), j->C,
                             end - begin, j->mx + begin);
}

static void abssum_col(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t c = begin; c < end; c++) j->sum[c] = 0.0;
    for (size_t r = 0; r < j->R && !cq_stop(j->cx); r += piece)
        j->k->abssum_f32_col(j->x + r * j->C + begin, cq_min_size(piece, j->R - r), j->C,
                             end - begin, j->weight ? j->weight + r : NULL, j->sum + begin);
}

/* Columns per block: whole cache lines, and long enough for the stream of each row. */
static const size_t col_grain = 1024;

cq_status cq_minmax_row(cq_ctx *cx, const float *x, float *mn, float *mx, size_t R, size_t C) {
    if (R && !C) return cq_refuse(cx, CQ_EMPTY, 1, 0.0);
    job j = {cx, cx->k, x, NULL, mn, mx, NULL, R, C};
    return cq_parallel_rows(cx, R, cq_grain(C), minmax_row, &j);
}

cq_status cq_minmax_col(cq_ctx *cx, const float *x, float *mn, float *mx, size_t R, size_t C) {
    if (C && !R) return cq_refuse(cx, CQ_EMPTY, 0, 0.0);
    job j = {cx, cx->k, x, NULL, mn, mx, NULL, R, C};
    return cq_parallel_rows(cx, C, col_grain, minmax_col, &j);
}

cq_status cq_absmax_row(cq_ctx *cx, const float *x, float *out, size_t R, size_t C) {
    job j = {cx, cx->k, x, NULL, NULL, out, NULL, R, C};
    return cq_parallel_rows(cx, R, cq_grain(C), absmax_row, &j);
}

cq_status cq_absmax_col(cq_ctx *cx, const float *x, float *out, size_t R, size_t C) {
    job j = {cx, cx->k, x, NULL, NULL, out, NULL, R, C};
    return cq_parallel_rows(cx, C, col_grain, absmax_col, &j);
}

cq_status cq_abssum_row(cq_ctx *cx, const float *x, double *out, size_t R, size_t C) {
    job j = {cx, cx->k, x, NULL, NULL, NULL, out, R, C};
    return cq_parallel_rows(cx, R, cq_grain(C), abssum_row, &j);
}

cq_status cq_abssum_col(cq_ctx *cx, const float *x, const double *weight, double *out, size_t R,
                        size_t C) {
    job j = {cx, cx->k, x, weight, NULL, NULL, out, R, C};
    return cq_parallel_rows(cx, C, col_grain, abssum_col, &j);
}
