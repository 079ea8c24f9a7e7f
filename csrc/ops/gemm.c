/* SPDX-License-Identifier: Apache-2.0 */
/* Float products of strided matrices. Rows of A that lie together are used where they are when
 * there are too few columns to pay for packing. */
#include "core/half.h"
#include "ops.h"

#include <math.h>

enum { REPAIR_INPUTS = 64 };

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

static size_t batch_offset(const cq_gemm_matrix *m, size_t batch) {
    const size_t inner = m->inner ? m->inner : 1;
    return batch / inner * m->batch_outer + batch % inner * m->batch_inner;
}

/* The same for a matrix of bfloat16. */
static void pack_half(const void *ctx, size_t batch, size_t r0, size_t rows, size_t k0, size_t kc,
                      float *panel) {
    const cq_gemm_matrix *m = ctx;
    const uint16_t *x = (const uint16_t *)m->x + batch_offset(m, batch) + r0 * m->rs + k0 * m->cs;
    for (size_t k = 0; k < kc; k++)
        for (size_t r = 0; r < m->width; r++) {
            const uint32_t h = x[cq_min_size(r, rows - 1) * m->rs + k * m->cs];
            panel[k * m->width + r] = cq_bits_float(h << 16);
        }
}

static cq_gemm_operand operand(const cq_gemm_matrix *m, int direct, int rounded) {
    cq_gemm_operand o = {.ctx = m,
                         .rs = m->rs,
                         .cs = m->cs,
                         .inner = m->inner,
                         .batch_outer = m->batch_outer,
                         .batch_inner = m->batch_inner};
    if (m->planes)
        o.pack = cq_gemm_pack_bf16;
    else if (m->half)
        o.pack = pack_half;
    else if (rounded)
        o.pack = pack_rounded;
    else if (!direct)
        o.pack = cq_gemm_pack_matrix;
    if (!o.pack) o.data = m->x;
    o.ps = m->width * m->rs;
    return o;
}

typedef struct finisher {
    const cq_kernels *k;
    const cq_gemm_args *g;
    const cq_gemm_matrix *m; /* A and B */
    int more;                /* there is something to do after the sums */
} finisher;

/* Sums of split operands that are not finite: what float32 makes of them, for an infinity times a
 * plane that happens to be 0 is NaN. The others are not touched, so that no sum depends on what is
 * beside it. */
static void repair(const finisher *to, size_t batch, size_t m0, size_t m, size_t n0, size_t n,
                   float *c, size_t ldc) {
    _Alignas(64) float pa[3 * CQ_GEMM_MR * REPAIR_INPUTS], pb[CQ_GEMM_NR * REPAIR_INPUTS];
    _Alignas(64) float again[CQ_GEMM_WIDE * CQ_GEMM_NR] = {0};
    const cq_gemm_matrix *a = &to->m[0], *b = &to->m[1];
    const float *xa = (const float *)a->x + batch_offset(a, batch) + m0 * a->rs;
    const float *xb = (const float *)b->x + batch_offset(b, batch) + n0 * b->rs;
    int finite;
    to->k->gemm_f32_finite(c, ldc, m, n, &finite);
    if (finite) return;
    cq_gemm_f32_tile t = {.a = pa, .b = pb, .c = again, .rsa = 1, .csa = CQ_GEMM_MR};
    t.m = m, t.n = n, t.ldc = t.ldb = CQ_GEMM_NR;
    for (size_t k = 0; k < to->g->K; k += t.kc) {
        t.kc = cq_min_size(to->g->K - k, REPAIR_INPUTS);
        t.psa = CQ_GEMM_MR * t.kc;
        t.first = k == 0;
        for (size_t r = 0; r < m; r += CQ_GEMM_MR)
            to->k->gemm_f32_pack(xa + r * a->rs + k * a->cs, a->rs, a->cs,
                                 cq_min_size(m - r, CQ_GEMM_MR), t.kc, CQ_GEMM_MR, pa + r * t.kc);
        to->k->gemm_f32_pack(xb + k * b->cs, b->rs, b->cs, n, t.kc, CQ_GEMM_NR, pb);
        to->k->gemm_f32_tile(&t);
    }
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            if (!isfinite(c[i * ldc + j])) c[i * ldc + j] = again[i * CQ_GEMM_NR + j];
}

static void finish(const void *ctx, size_t batch, size_t m0, size_t m, size_t n0, size_t n,
                   float *c, size_t ldc) {
    const finisher *to = ctx;
    const cq_gemm_args *g = to->g;
    const size_t home = (batch * g->M + m0) * g->N + n0;
    float residual[CQ_GEMM_WIDE * CQ_GEMM_NR];
    cq_gemm_finish f = {g->scale, g->act, g->bias, g->residual, g->N};
    if (to->m[0].planes > 1) repair(to, batch, m0, m, n0, n, c, ldc);
    if (f.bias) f.bias += n0;
    if (f.residual) f.residual += home;
    if (g->residual16) {
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++)
                residual[i * CQ_GEMM_NR + j] =
                    cq_bits_float((uint32_t)g->residual16[home + i * g->N + j] << 16);
        f.residual = residual, f.ldr = CQ_GEMM_NR;
    }
    if (to->more) to->k->gemm_f32_finish(&f, c, ldc, m, n);
    if (!g->c) to->k->gemm_bf16_round(c, ldc, m, n, g->c16 + home, g->N);
}

/* Few rows multiply a matrix B of float32 where it lies: packing costs more than it saves. */
static int is_thin(const cq_kernels *k, const cq_gemm_args *g) {
    const cq_kernels *plain = cq_isa_table(CQ_ISA_scalar);
    const int worth =
        k->gemm_f32_few != plain->gemm_f32_few || k->gemm_f32_tile == plain->gemm_f32_tile;
    return worth && g->M <= CQ_GEMM_MR && g->N >= 16 && g->K && !g->half && !g->planes &&
           (g->rsb == 1 || g->csb == 1);
}

/* The plan, which points into `m`. */
static cq_gemm_plan plan(const cq_kernels *k, const cq_gemm_args *g, cq_gemm_matrix m[2]) {
    const int unit = k->gemm_bf16_tile != cq_gemm_bf16_tile_scalar ||
                     k->gemm_f32_tile == cq_gemm_f32_tile_scalar;
    const int planes = unit ? g->planes : 0, rounded = g->planes == 1 && !unit;
    const size_t lanes = planes ? CQ_GEMM_WIDE : CQ_GEMM_MR;
    m[0] = (cq_gemm_matrix){k,      g->a,     g->rsa,           g->csa,
                            lanes,  g->inner, g->batch_outer_a, g->batch_inner_a,
                            planes, 0,        g->half};
    m[1] = (cq_gemm_matrix){k,          g->b,     g->csb,           g->rsb,
                            CQ_GEMM_NR, g->inner, g->batch_outer_b, g->batch_inner_b,
                            planes,     1,        g->half};
    const int thin = is_thin(k, g), direct = thin ? g->M == 1 : g->N <= 2 * CQ_GEMM_NR || g->M <= 8;
    return (cq_gemm_plan){.kind = planes ? CQ_GEMM_BF16 : CQ_GEMM_F32,
                          .planes = planes,
                          .few = thin,
                          .batch = g->batch,
                          .M = g->M,
                          .N = g->N,
                          .K = g->K,
                          .a = operand(&m[0], (g->csa == 1 || thin) && direct, rounded),
                          .b = operand(&m[1], thin, rounded),
                          .c = g->c,
                          .ldc = g->N,
                          .batch_c = g->M * g->N};
}

/* Bytes of float32 sums where the result is bfloat16 and its blocks are shared out; `p` has c. */
static size_t sums_bytes(const cq_gemm_args *g, const cq_gemm_plan *p) {
    if (g->c || !cq_gemm_plan_shared(p)) return 0;
    return cq_ceil_div(g->M * g->N * sizeof(float), 64) * 64 + 64;
}

static size_t workspace(const cq_ctx *cx, const cq_gemm_args *g) {
    cq_gemm_matrix m[2];
    cq_gemm_plan p = plan(cx->k, g, m);
    float some;
    p.c = &some;
    const size_t sums = sums_bytes(g, &p);
    if (!g->c && !sums) p.c = NULL;
    return cq_gemm_plan_workspace(&p, cx->threads) + sums;
}

/* The strides of B are not known: with either of them 1, or none. */
size_t cq_gemm_workspace(const cq_ctx *cx, const cq_gemm_args *g) {
    cq_gemm_args thin = *g, wide = *g;
    thin.rsb = thin.csb = 1;
    wide.rsb = wide.csb = 2;
    const size_t least = workspace(cx, &thin), most = workspace(cx, &wide);
    return least < most ? most : least;
}

cq_status cq_gemm(cq_ctx *cx, const cq_gemm_args *g, void *work) {
    cq_gemm_matrix m[2];
    cq_gemm_plan p = plan(cx->k, g, m);
    finisher f = {cx->k, g, m, 0};
    f.more = g->scale != 1.0f || g->act || g->bias || g->residual || g->residual16;
    if (f.more || !g->c || m[0].planes > 1) p.epilogue = finish;
    p.epilogue_ctx = &f;
    if (!g->c) {
        p.c = work; /* for now: whether sums have a home of their own */
        const size_t sums = sums_bytes(g, &p);
        uint8_t *aligned = (uint8_t *)work + (64 - (uintptr_t)work % 64) % 64;
        p.c = sums ? (float *)(void *)aligned : NULL;
        work = (uint8_t *)work + sums;
    }
    return cq_gemm_run(cx, &p, work);
}
