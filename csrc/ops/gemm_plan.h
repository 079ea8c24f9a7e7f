/* SPDX-License-Identifier: Apache-2.0 */
/* The driver of every matrix product: a packer per operand, an epilogue, and tasks for the threads,
 * on whose number neither bits nor the calls of the epilogue depend. core/gemm.h has the layouts;
 * csrc/ops/gemm.c is the plainest user. */
#ifndef CQ_GEMM_PLAN_H
#define CQ_GEMM_PLAN_H

#include "core/dispatch.h"

/* What panels hold; see core/gemm.h. Sums are float32, of int8 int32 in the same places. */
typedef enum cq_gemm_kind { CQ_GEMM_F32, CQ_GEMM_BF16, CQ_GEMM_S8 } cq_gemm_kind;

/* Fill `panel` with lanes r0 .. r0 + rows - 1 (rows of A, columns of B) and inputs k0 .. k0 + kc -
 * 1 of one product of the batch: lane r, input k at panel[k * width + r]; width is CQ_GEMM_MR (A)
 * or CQ_GEMM_NR (B), kc at most CQ_GEMM_KC (bfloat16: CQ_GEMM_WIDE, CQ_GEMM_KC_WIDE, and tiles), r0
 * a multiple of width. Lanes from `rows` to width hold anything defined. Called from several
 * threads at once, maybe more than once per panel. */
typedef void (*cq_gemm_pack_fn)(const void *ctx, size_t batch, size_t r0, size_t rows, size_t k0,
                                size_t kc, float *panel);

/* Rows m0 .. m0 + m - 1 and columns n0 .. n0 + n - 1 of one product are summed: c [m, n], row
 * stride ldc. m0 is a multiple of CQ_GEMM_MR, m at most CQ_GEMM_MR, and the same with n and
 * CQ_GEMM_NR. Called once per tile, from several threads at once; `c` may be changed. */
typedef void (*cq_gemm_epilogue_fn)(const void *ctx, size_t batch, size_t m0, size_t m, size_t n0,
                                    size_t n, float *c, size_t ldc);

/* With `pack`: an operand made panel by panel. Without: panels in memory, lane r and input k of
 * panel p at data[batch offset + p * ps + r * rs + k * cs]; B needs rs = 1 and CQ_GEMM_NR readable
 * lanes in every panel. The offset of product i is i / inner * batch_outer + i % inner *
 * batch_inner. */
typedef struct cq_gemm_operand {
    cq_gemm_pack_fn pack;
    const void *ctx;
    const float *data;
    size_t ps, rs, cs;
    size_t inner, batch_outer, batch_inner;
} cq_gemm_operand;

/* batch products [M, K] . [K, N]. c: [M, N] each, row stride ldc, `batch_c` floats apart; or NULL:
 * only the epilogue sees the sums. */
typedef struct cq_gemm_plan {
    cq_gemm_kind kind;
    int planes; /* of bfloat16, 1 .. 3; 0 for float32 */
    int few;    /* b is a matrix in memory, with b.rs or b.cs 1; M <= CQ_GEMM_MR; a.pack or M = 1 */
    size_t batch, M, N, K;
    cq_gemm_operand a, b;
    float *c;
    size_t ldc, batch_c;
    cq_gemm_epilogue_fn epilogue; /* or NULL */
    const void *epilogue_ctx;
} cq_gemm_plan;

/* Bytes of `work`, content free, for this many threads; and the product itself. Reads of the plan:
 * sizes, `pack` being set, `c` being set. */
size_t cq_gemm_plan_workspace(const cq_gemm_plan *p, int threads);
cq_status cq_gemm_run(cq_ctx *cx, const cq_gemm_plan *p, void *work);

/* 1 when a large product with c would be shared out in blocks, so that it is faster with c. */
int cq_gemm_plan_shared(const cq_gemm_plan *p);

/* A float matrix as an operand: element (lane r, input k) of product i at x[i / inner * batch_outer
 * + i % inner * batch_inner + r * rs + k * cs]. `width` is CQ_GEMM_MR or CQ_GEMM_NR. */
typedef struct cq_gemm_matrix {
    const cq_kernels *k;
    const void *x; /* float32, or bfloat16 where `half`: cq_gemm_pack_bf16 only */
    size_t rs, cs, width;
    size_t inner, batch_outer, batch_inner;
    int planes, is_b, half; /* bfloat16 only */
} cq_gemm_matrix;

void cq_gemm_pack_matrix(const void *ctx, size_t batch, size_t r0, size_t rows, size_t k0,
                         size_t kc, float *panel);
/* The same for panels of bfloat16. */
void cq_gemm_pack_bf16(const void *ctx, size_t batch, size_t r0, size_t rows, size_t k0, size_t kc,
                       float *panel);

#endif
