/* SPDX-License-Identifier: Apache-2.0 */
/* Drivers: check values, split rows into fixed blocks, call the kernel table. Shapes and dtypes
 * were checked by the binding. Every driver returns CQ_OK or what it refused (see cq_refuse). */
#ifndef CQ_OPS_H
#define CQ_OPS_H

#include "core/dispatch.h"

/* Refuse a scale that is not finite and > 0, and bounds that are not small ordered integers. */
cq_status cq_check_affine(cq_ctx *cx, const float *scale, const float *lo, const float *hi,
                          size_t n);

/* x, out [R, C]; scale, lo, hi [R] (row) or [C] (col). */
cq_status cq_fakequant_row(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                           const float *hi, float *out, size_t R, size_t C);
cq_status cq_fakequant_col(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                           const float *hi, float *out, size_t R, size_t C);

/* g, gx [R, C]; gscale [R] or [C] float64. `work` of the column form: [blocks, C] float64 zeros,
 * with blocks = cq_fakequant_bwd_blocks(R, C). */
size_t cq_fakequant_bwd_blocks(size_t R, size_t C);
cq_status cq_fakequant_bwd_row(cq_ctx *cx, const float *x, const float *g, const float *scale,
                               const float *lo, const float *hi, float *gx, double *gscale,
                               size_t R, size_t C);
cq_status cq_fakequant_bwd_col(cq_ctx *cx, const float *x, const float *g, const float *scale,
                               const float *lo, const float *hi, float *gx, double *gscale,
                               double *work, size_t R, size_t C);

#endif
