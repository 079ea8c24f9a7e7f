/* SPDX-License-Identifier: Apache-2.0 */
/* Products of int8 matrices. Both operands are packed once, in the words of the skeleton
 * (gemm_plan.h); then the sums of a tile are requantised while they are in L1. */
#include "core/parallel.h"
#include "ops.h"

typedef struct job {
    const cq_kernels *k;
    const cq_gemm_s8_args *g;
    float *a, *b; /* panels */
    size_t panel; /* words */
} job;

/* Words of a panel, whole tiles. */
static size_t panel_words(size_t K) { return cq_ceil_div(K, 64) * 512; }

static size_t panels(size_t lanes) { return cq_ceil_div(lanes, CQ_GEMM_WIDE); }

/* Panels begin .. end - 1 of A or, after those, of B. */
static void pack(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const cq_gemm_s8_args *g = j->g;
    const size_t of_a = panels(g->M);
    (void)block;
    for (size_t i = begin; i < end; i++) {
        const int is_b = i >= of_a;
        const size_t at = is_b ? i - of_a : i, r = at * CQ_GEMM_WIDE, rs = is_b ? g->rsb : g->rsa;
        const size_t rows = cq_min_size((is_b ? g->N : g->M) - r, CQ_GEMM_WIDE);
        float *to = (is_b ? j->b : j->a) + at * j->panel;
        j->k->gemm_s8_pack((is_b ? g->b : g->a) + r * rs, rs, rows, g->K, is_b, (int8_t *)to);
    }
}

static void finish(const void *ctx, size_t batch, size_t m0, size_t m, size_t n0, size_t n,
                   float *c, size_t ldc) {
    const job *j = ctx;
    const cq_gemm_s8_args *g = j->g;
    cq_gemm_requant r = g->r;
    int32_t *sums = (int32_t *)(void *)c;
    (void)batch;
    if (g->sums) {
        for (size_t i = 0; i < m; i++)
            for (size_t x = 0; x < n; x++) sums[i * ldc + x] += r.bias[n0 + x];
        return;
    }
    if (r.bias) r.bias += n0;
    r.multiplier += n0;
    r.shift += n0;
    j->k->gemm_s8_finish(&r, sums, ldc, m, n, g->codes + m0 * g->N + n0, g->N);
}

/* Panels in memory: a word holds 4 inputs of one lane, tiles of 64 inputs follow one another. */
static cq_gemm_operand in_memory(const job *j, const float *data) {
    return (cq_gemm_operand){.data = data, .ps = j->panel, .cs = CQ_GEMM_WIDE / 4};
}

static cq_gemm_plan plan(const job *j) {
    const cq_gemm_s8_args *g = j->g;
    return (cq_gemm_plan){.kind = CQ_GEMM_S8,
                          .batch = 1,
                          .M = g->M,
                          .N = g->N,
                          .K = g->K,
                          .a = in_memory(j, j->a),
                          .b = in_memory(j, j->b),
                          .c = (float *)(void *)g->sums,
                          .ldc = g->N,
                          .epilogue = g->sums && !g->r.bias ? NULL : finish,
                          .epilogue_ctx = j};
}

size_t cq_gemm_s8_workspace(const cq_ctx *cx, const cq_gemm_s8_args *g) {
    if (!g->M || !g->N) return 64;
    const job j = {.g = g, .panel = panel_words(g->K)};
    const cq_gemm_plan p = plan(&j);
    return 64 + (panels(g->M) + panels(g->N)) * j.panel * sizeof(float) +
           cq_gemm_plan_workspace(&p, cx->threads);
}

static cq_status check(cq_ctx *cx, const cq_gemm_s8_args *g) {
    if (g->K > CQ_GEMM_S8_K) return cq_refuse(cx, CQ_BIG_K, 1, (double)g->K);
    const int64_t room = INT32_MAX - (int64_t)g->K * 16384;
    for (size_t n = 0; n < g->N; n++) {
        const int64_t bias = g->sums && g->r.bias ? g->r.bias[n] : 0;
        if (bias > room || bias < -room) return cq_refuse(cx, CQ_BAD_BIAS, n, (double)bias);
        if (!g->sums && (g->r.shift[n] < 0 || g->r.shift[n] > 62))
            return cq_refuse(cx, CQ_BAD_SHIFT, n, g->r.shift[n]);
    }
    if (g->r.lo > g->r.hi) return cq_refuse(cx, CQ_BAD_BOUNDS, 0, g->r.lo);
    return CQ_OK;
}

cq_status cq_gemm_s8(cq_ctx *cx, const cq_gemm_s8_args *g, void *work) {
    CQ_TRY(check(cx, g));
    if (!g->M || !g->N) return CQ_OK;
    uint8_t *aligned = (uint8_t *)work + (64 - (uintptr_t)work % 64) % 64;
    job j = {.k = cx->k, .g = g, .a = (float *)(void *)aligned, .panel = panel_words(g->K)};
    j.b = j.a + panels(g->M) * j.panel;
    const size_t all = panels(g->M) + panels(g->N);
    CQ_TRY(cq_parallel_rows(cx, all, cq_grain(j.panel * 4), pack, &j));
    const cq_gemm_plan p = plan(&j);
    return cq_gemm_run(cx, &p, j.b + panels(g->N) * j.panel);
}
