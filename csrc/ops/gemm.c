/* SPDX-License-Identifier: Apache-2.0 */
/* Float products of strided matrices. Rows of A that lie together are used where they are when
 * there are too few columns to pay for packing. */
#include "core/half.h"
#include "ops.h"

#include <math.h>

/* A panel of float32 rounded to bfloat16, for CPUs without products of bfloat16. */
static void pack_rounded(const void *ctx, size_t batch, size_t r0, size_t rows, size_t k0,
                         size_t kc, float *panel) {
    const cq_gemm_matrix *m = ctx;
    cq_gemm_pack_matrix(ctx, batch, r0, rows, k0, kc, panel);
    for (size_t i = 0; i < m->width * kc; i++) {
        const uint32_t u = cq_float_bits(panel[i]), up = (u + 0x7FFFu + (u >> 16 & 1u));
        if (!isnan(panel[i])) panel[i] = cq_bits_float(up & 0xFFFF0000u);
    }
}

static cq_gemm_operand operand(const cq_gemm_matrix *m, int direct, int rounded) {
    cq_gemm_operand o = {NULL, m, m->x, 0, m->rs, m->cs, m->inner, m->batch_outer, m->batch_inner};
    if (rounded)
        o.pack = pack_rounded;
    else if (m->planes)
        o.pack = cq_gemm_pack_bf16;
    else if (!direct)
        o.pack = cq_gemm_pack_matrix;
    o.ps = m->width * m->rs;
    return o;
}

typedef struct finisher {
    const cq_kernels *k;
    const cq_gemm_args *g;
} finisher;

static void finish(const void *ctx, size_t batch, size_t m0, size_t m, size_t n0, size_t n,
                   float *c, size_t ldc) {
    const finisher *to = ctx;
    const cq_gemm_args *g = to->g;
    cq_gemm_finish f = {g->scale, g->act, g->bias, g->residual, g->N};
    if (f.bias) f.bias += n0;
    if (f.residual) f.residual += (batch * g->M + m0) * g->N + n0;
    to->k->gemm_f32_finish(&f, c, ldc, m, n);
}

/* The plan, which points into `m`. */
static cq_gemm_plan plan(const cq_kernels *k, const cq_gemm_args *g, cq_gemm_matrix m[2]) {
    const int unit = k->gemm_bf16_tile != cq_gemm_bf16_tile_scalar ||
                     k->gemm_f32_tile == cq_gemm_f32_tile_scalar;
    const int planes = unit ? g->planes : 0, rounded = g->planes == 1 && !unit;
    const size_t lanes = planes ? CQ_GEMM_WIDE : CQ_GEMM_MR;
    m[0] = (cq_gemm_matrix){
        k, g->a, g->rsa, g->csa, lanes, g->inner, g->batch_outer_a, g->batch_inner_a, planes, 0};
    m[1] = (cq_gemm_matrix){k,          g->b,     g->csb,           g->rsb,
                            CQ_GEMM_NR, g->inner, g->batch_outer_b, g->batch_inner_b,
                            planes,     1};
    const int few = g->N <= 2 * CQ_GEMM_NR || g->M <= 8;
    return (cq_gemm_plan){.kind = planes ? CQ_GEMM_BF16 : CQ_GEMM_F32,
                          .planes = planes,
                          .batch = g->batch,
                          .M = g->M,
                          .N = g->N,
                          .K = g->K,
                          .a = operand(&m[0], g->csa == 1 && few, rounded),
                          .b = operand(&m[1], 0, rounded),
                          .c = g->c,
                          .ldc = g->N,
                          .batch_c = g->M * g->N};
}

size_t cq_gemm_workspace(const cq_ctx *cx, const cq_gemm_args *g) {
    cq_gemm_matrix m[2];
    cq_gemm_args with_c = *g;
    float some;
    with_c.c = &some;
    const cq_gemm_plan p = plan(cx->k, &with_c, m);
    return cq_gemm_plan_workspace(&p, cx->threads);
}

cq_status cq_gemm(cq_ctx *cx, const cq_gemm_args *g, void *work) {
    cq_gemm_matrix m[2];
    cq_gemm_plan p = plan(cx->k, g, m);
    const finisher f = {cx->k, g};
    p.epilogue_ctx = &f;
    if (g->scale != 1.0f || g->act || g->bias || g->residual) p.epilogue = finish;
    return cq_gemm_run(cx, &p, work);
}
