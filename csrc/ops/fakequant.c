/* SPDX-License-Identifier: Apache-2.0 */
#include "core/grid.h"
#include "core/parallel.h"
#include "ops.h"

#include <float.h>
#include <string.h>

static int bad_scale(float scale) { return !(scale > 0.0f) | !(scale <= FLT_MAX); }

/* Bounds are integers of at most 2**22: rounding changes nothing. */
static int bad_bound(float bound) {
    const float limit = 4194304.0f;
    return !(bound >= -limit) | !(bound <= limit) | (cq_rint_small(bound) != bound);
}

/* Refuse a scale that is not finite and > 0, and bounds that are not small ordered integers. The
 * first loop has no branches, so that the compiler makes it as wide as the machine. */
static cq_status check_affine(cq_ctx *cx, const float *scale, const float *lo, const float *hi,
                              size_t n) {
    int good = 1;
    for (size_t i = 0; i < n; i++)
        good &= !bad_scale(scale[i]) & !bad_bound(lo[i]) & !bad_bound(hi[i]) & (hi[i] >= lo[i]);
    for (size_t i = 0; !good && i < n; i++) {
        if (bad_scale(scale[i])) return cq_refuse(cx, CQ_BAD_SCALE, i, (double)scale[i]);
        if (bad_bound(lo[i])) return cq_refuse(cx, CQ_BAD_BOUNDS, i, (double)lo[i]);
        if (bad_bound(hi[i]) || hi[i] < lo[i])
            return cq_refuse(cx, CQ_BAD_BOUNDS, i, (double)hi[i]);
    }
    return CQ_OK;
}

typedef void (*block_kernel)(const cq_fakequant_block *b);

typedef struct job {
    block_kernel kernel;
    cq_fakequant_block all;
    size_t chunks; /* of a row, for long rows */
    double *partial;
} job;

/* Rows [begin, end), parameters per row. */
static void whole_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t at = begin * j->all.cols;
    cq_fakequant_block b = j->all;
    (void)block;
    b.x += at;
    b.out += at;
    b.rows = end - begin;
    b.scale += begin;
    b.lo += begin;
    b.hi += begin;
    if (b.g) {
        b.g += at;
        b.gscale += begin;
    }
    j->kernel(&b);
}

/* Chunk `begin` of all rows: rows long enough to be cut. */
static void one_chunk(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t r = begin / j->chunks, first = begin % j->chunks * CQ_FAKEQUANT_CHUNK;
    const size_t at = r * j->all.cols + first;
    cq_fakequant_block b = j->all;
    (void)end;
    (void)block;
    b.x += at;
    b.out += at;
    b.rows = 1;
    b.cols = cq_min_size(CQ_FAKEQUANT_CHUNK, j->all.cols - first);
    b.stream = b.stream && b.cols >= 16;
    b.scale += r;
    b.lo += r;
    b.hi += r;
    if (b.g) {
        b.g += at;
        b.gscale = j->partial + begin;
    }
    j->kernel(&b);
}

/* Rows [begin, end), parameters per column. */
static void all_columns(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t at = begin * j->all.cols;
    cq_fakequant_block b = j->all;
    b.x += at;
    b.out += at;
    b.rows = end - begin;
    if (b.g) {
        b.g += at;
        b.gscale = j->partial + block * b.cols;
        memset(b.gscale, 0, b.cols * sizeof *b.gscale);
    }
    j->kernel(&b);
}

static cq_status run_rows(cq_ctx *cx, job *j) {
    const size_t R = j->all.rows, C = j->all.cols;
    if (j->chunks < 2) return cq_parallel_rows(cx, R, cq_grain(C), whole_rows, j);
    return cq_parallel_rows(cx, R * j->chunks, 1, one_chunk, j);
}

static cq_status by_row(cq_ctx *cx, block_kernel kernel, const float *x, const float *scale,
                        const float *lo, const float *hi, float *out, size_t R, size_t C) {
    const int stream = cq_fakequant_streams(x, out, R, C);
    job j = {kernel,
             {x, NULL, out, NULL, scale, lo, hi, R, C, stream},
             cq_ceil_div(C, CQ_FAKEQUANT_CHUNK),
             NULL};
    return run_rows(cx, &j);
}

static cq_status by_col(cq_ctx *cx, block_kernel kernel, const float *x, const float *scale,
                        const float *lo, const float *hi, float *out, size_t R, size_t C) {
    const int stream = cq_fakequant_streams(x, out, R, C);
    job j = {kernel, {x, NULL, out, NULL, scale, lo, hi, R, C, stream}, 0, NULL};
    return cq_parallel_rows(cx, R, cq_grain(C), all_columns, &j);
}

cq_status cq_fakequant_row(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                           const float *hi, float *out, size_t R, size_t C) {
    CQ_TRY(check_affine(cx, scale, lo, hi, R));
    return by_row(cx, cx->k->fakequant_f32_row, x, scale, lo, hi, out, R, C);
}

cq_status cq_fakequant_col(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                           const float *hi, float *out, size_t R, size_t C) {
    if (!C) return CQ_OK; /* however many rows */
    CQ_TRY(check_affine(cx, scale, lo, hi, C));
    return by_col(cx, cx->k->fakequant_f32_col, x, scale, lo, hi, out, R, C);
}

cq_status cq_fakequant_compat_row(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                                  const float *hi, float *out, size_t R, size_t C) {
    CQ_TRY(check_affine(cx, scale, lo, hi, R));
    return by_row(cx, cx->k->fakequant_compat_f32_row, x, scale, lo, hi, out, R, C);
}

cq_status cq_fakequant_compat_col(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                                  const float *hi, float *out, size_t R, size_t C) {
    if (!C) return CQ_OK;
    CQ_TRY(check_affine(cx, scale, lo, hi, C));
    return by_col(cx, cx->k->fakequant_compat_f32_col, x, scale, lo, hi, out, R, C);
}

/* As check_affine, and exponents of normal float32 numbers. */
static cq_status check_powers(cq_ctx *cx, const float *scale, const float *lo, const float *hi,
                              size_t n) {
    CQ_TRY(check_affine(cx, scale, lo, hi, n));
    for (size_t i = 0; i < n; i++) {
        if (lo[i] < -126.0f) return cq_refuse(cx, CQ_BAD_POWER, i, (double)lo[i]);
        if (hi[i] > 127.0f) return cq_refuse(cx, CQ_BAD_POWER, i, (double)hi[i]);
    }
    return CQ_OK;
}

cq_status cq_fakequant_log2_row(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                                const float *hi, float *out, size_t R, size_t C) {
    CQ_TRY(check_powers(cx, scale, lo, hi, R));
    return by_row(cx, cx->k->fakequant_log2_f32_row, x, scale, lo, hi, out, R, C);
}

cq_status cq_fakequant_log2_col(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                                const float *hi, float *out, size_t R, size_t C) {
    if (!C) return CQ_OK;
    CQ_TRY(check_powers(cx, scale, lo, hi, C));
    return by_col(cx, cx->k->fakequant_log2_f32_col, x, scale, lo, hi, out, R, C);
}

size_t cq_fakequant_bwd_row_workspace(size_t R, size_t C) {
    const size_t chunks = cq_ceil_div(C, CQ_FAKEQUANT_CHUNK);
    return chunks < 2 ? 0 : cq_mul(R, chunks);
}

cq_status cq_fakequant_bwd_row(cq_ctx *cx, const float *x, const float *g, const float *scale,
                               const float *lo, const float *hi, float *gx, double *gscale,
                               double *work, size_t R, size_t C) {
    CQ_TRY(check_affine(cx, scale, lo, hi, R));
    const int stream = cq_fakequant_streams(g, gx, R, C);
    job j = {cx->k->fakequant_bwd_f32_row,
             {x, g, gx, gscale, scale, lo, hi, R, C, stream},
             cq_ceil_div(C, CQ_FAKEQUANT_CHUNK),
             work};
    CQ_TRY(run_rows(cx, &j));
    for (size_t r = 0; j.chunks > 1 && r < R; r++) {
        gscale[r] = work[r * j.chunks];
        for (size_t k = 1; k < j.chunks; k++) gscale[r] += work[r * j.chunks + k];
    }
    return CQ_OK;
}

/* Rows per block of the column form: at most 32 blocks, for every one has sums to write and add. */
static size_t column_grain(size_t R, size_t C) {
    const size_t least = cq_grain(C), wanted = cq_ceil_div(R, 32);
    return wanted > least ? wanted : least;
}

size_t cq_fakequant_bwd_blocks(size_t R, size_t C) { return cq_ceil_div(R, column_grain(R, C)); }

cq_status cq_fakequant_bwd_col(cq_ctx *cx, const float *x, const float *g, const float *scale,
                               const float *lo, const float *hi, float *gx, double *gscale,
                               double *work, size_t R, size_t C) {
    if (!C) return CQ_OK;
    CQ_TRY(check_affine(cx, scale, lo, hi, C));
    const int stream = cq_fakequant_streams(g, gx, R, C);
    job j = {cx->k->fakequant_bwd_f32_col, {x, g, gx, NULL, scale, lo, hi, R, C, stream}, 0, work};
    CQ_TRY(cq_parallel_rows(cx, R, column_grain(R, C), all_columns, &j));
    for (size_t c = 0; c < C; c++) gscale[c] = 0.0;
    for (size_t b = 0; b < cq_fakequant_bwd_blocks(R, C); b++)
        for (size_t c = 0; c < C; c++) gscale[c] += work[b * C + c];
    return CQ_OK;
}
