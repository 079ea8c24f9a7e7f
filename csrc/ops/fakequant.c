/* SPDX-License-Identifier: Apache-2.0 */
#include "core/parallel.h"
#include "ops.h"

#include <math.h>

/* Refuse a scale that is not finite and > 0, and bounds that are not small ordered integers. */
static cq_status check_affine(cq_ctx *cx, const float *scale, const float *lo, const float *hi,
                              size_t n) {
    const float limit = 4194304.0f;
    for (size_t i = 0; i < n; i++) {
        if (!(scale[i] > 0.0f) || isinf(scale[i]))
            return cq_refuse(cx, CQ_BAD_SCALE, i, (double)scale[i]);
        if (!(lo[i] >= -limit) || rintf(lo[i]) != lo[i])
            return cq_refuse(cx, CQ_BAD_BOUNDS, i, (double)lo[i]);
        if (!(hi[i] <= limit) || !(hi[i] >= lo[i]) || rintf(hi[i]) != hi[i])
            return cq_refuse(cx, CQ_BAD_BOUNDS, i, (double)hi[i]);
    }
    return CQ_OK;
}

typedef struct job {
    const cq_kernels *k;
    const float *x, *g, *scale, *lo, *hi;
    float *out;
    double *gscale;
    size_t C;
} job;

static void forward_row(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->fakequant_f32_row(j->x + r * j->C, j->out + r * j->C, j->C,
                                (cq_affine){j->scale[r], j->lo[r], j->hi[r]});
}

static void forward_col(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->fakequant_f32_col(j->x + r * j->C, j->out + r * j->C, j->C, j->scale, j->lo, j->hi);
}

static void backward_row(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->fakequant_bwd_f32_row(j->x + r * j->C, j->g + r * j->C, j->out + r * j->C, j->C,
                                    (cq_affine){j->scale[r], j->lo[r], j->hi[r]}, j->gscale + r);
}

static void backward_col(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    for (size_t r = begin; r < end; r++)
        j->k->fakequant_bwd_f32_col(j->x + r * j->C, j->g + r * j->C, j->out + r * j->C, j->C,
                                    j->scale, j->lo, j->hi, j->gscale + block * j->C);
}

cq_status cq_fakequant_row(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                           const float *hi, float *out, size_t R, size_t C) {
    CQ_TRY(check_affine(cx, scale, lo, hi, R));
    job j = {cx->k, x, NULL, scale, lo, hi, out, NULL, C};
    cq_parallel_rows(R, cq_grain(C), cx->threads, forward_row, &j);
    return CQ_OK;
}

cq_status cq_fakequant_col(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                           const float *hi, float *out, size_t R, size_t C) {
    CQ_TRY(check_affine(cx, scale, lo, hi, C));
    job j = {cx->k, x, NULL, scale, lo, hi, out, NULL, C};
    cq_parallel_rows(R, cq_grain(C), cx->threads, forward_col, &j);
    return CQ_OK;
}

cq_status cq_fakequant_bwd_row(cq_ctx *cx, const float *x, const float *g, const float *scale,
                               const float *lo, const float *hi, float *gx, double *gscale,
                               size_t R, size_t C) {
    CQ_TRY(check_affine(cx, scale, lo, hi, R));
    job j = {cx->k, x, g, scale, lo, hi, gx, gscale, C};
    cq_parallel_rows(R, cq_grain(C), cx->threads, backward_row, &j);
    return CQ_OK;
}

size_t cq_fakequant_bwd_blocks(size_t R, size_t C) { return cq_ceil_div(R, cq_grain(C)); }

cq_status cq_fakequant_bwd_col(cq_ctx *cx, const float *x, const float *g, const float *scale,
                               const float *lo, const float *hi, float *gx, double *gscale,
                               double *work, size_t R, size_t C) {
    CQ_TRY(check_affine(cx, scale, lo, hi, C));
    job j = {cx->k, x, g, scale, lo, hi, gx, work, C};
    cq_parallel_rows(R, cq_grain(C), cx->threads, backward_col, &j);
    for (size_t c = 0; c < C; c++) gscale[c] = 0.0;
    for (size_t b = 0; b < cq_fakequant_bwd_blocks(R, C); b++)
        for (size_t c = 0; c < C; c++) gscale[c] += work[b * C + c];
    return CQ_OK;
}
