/* SPDX-License-Identifier: Apache-2.0 */
#include "core/grid.h"
#include "core/parallel.h"
#include "ops.h"

#include <math.h>

enum { LONG_ROW = 65536 }; /* candidates of a shorter one are done in microseconds */

typedef struct job {
    cq_ctx *cx;
    const cq_kernels *k;
    const float *x;
    float *scale;
    uint8_t *zero;
    double *err, max_shrink;
    int bits, mode, n_grid;
    size_t C;
} job;

static void minmax_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++) {
        float mn, mx, zero;
        j->k->minmax_f32_row(j->x + r * j->C, j->C, &mn, &mx);
        cq_grid_params(mn, mx, j->bits, j->mode, j->scale + r, &zero);
        j->zero[r] = (uint8_t)zero;
    }
}

static void mse_row(const job *j, size_t r) {
    const float *x = j->x + r * j->C;
    const float top = (float)((1 << j->bits) - 1);
    float mn, mx;
    j->k->minmax_f32_row(x, j->C, &mn, &mx);
    for (int i = 0; i < j->n_grid; i++) {
        if ((i % 16 == 0 || j->C >= LONG_ROW) && cq_stop(j->cx)) return;
        const double keep = 1.0 - (double)i * j->max_shrink / (double)j->n_grid;
        float scale, zero;
        double err;
        cq_grid_params((float)((double)mn * keep), (float)((double)mx * keep), j->bits, j->mode,
                       &scale, &zero);
        j->k->sqerr_f32_row(x, j->C, (cq_affine){scale, -zero, top - zero}, &err);
        if (i > 0 && !(err < j->err[r])) continue;
        j->scale[r] = scale;
        j->zero[r] = (uint8_t)zero;
        j->err[r] = err;
    }
}

static void mse_rows(void *ctx, size_t begin, size_t end, size_t block) {
    (void)block;
    for (size_t r = begin; r < end; r++) mse_row(ctx, r);
}

static cq_status check_scales(cq_ctx *cx, const float *scale, size_t R) {
    for (size_t r = 0; r < R; r++)
        if (!isfinite(scale[r])) return cq_refuse(cx, CQ_BAD_SCALE, r, (double)scale[r]);
    return CQ_OK;
}

cq_status cq_qparams_row(cq_ctx *cx, const float *x, int bits, int mode, float *scale,
                         uint8_t *zero, size_t R, size_t C) {
    if (R && !C) return cq_refuse(cx, CQ_EMPTY, 1, 0.0);
    job j = {cx, cx->k, x, scale, zero, NULL, 0.0, bits, mode, 0, C};
    CQ_TRY(cq_parallel_rows(cx, R, cq_grain(C), minmax_rows, &j));
    return check_scales(cx, scale, R);
}

cq_status cq_qparams_mse_row(cq_ctx *cx, const float *x, int bits, int mode, int n_grid,
                             double max_shrink, float *scale, uint8_t *zero, double *err, size_t R,
                             size_t C) {
    if (R && !C) return cq_refuse(cx, CQ_EMPTY, 1, 0.0);
    if (!(max_shrink >= 0.0 && max_shrink <= 1.0))
        return cq_refuse(cx, CQ_BAD_SHRINK, 0, max_shrink);
    job j = {cx, cx->k, x, scale, zero, err, max_shrink, bits, mode, n_grid, C};
    CQ_TRY(cq_parallel_rows(cx, R, cq_grain(C * (size_t)n_grid), mse_rows, &j));
    return check_scales(cx, scale, R);
}
