/* SPDX-License-Identifier: Apache-2.0 */
/* gemm, qlinear and attention: t->R rows or tokens, t->C inputs. */
#include "parity.h"

static void gemm(run *t, int transposed, int planes, size_t M, size_t N, size_t K, size_t batch) {
    cq_gemm_args g = {.batch = batch, .inner = batch, .M = M, .N = N, .K = K};
    g.scale = 0.5f, g.planes = planes;
    float *c = take(t, batch * M * N * sizeof *c);
    g.a = finite(t, batch * M * K);
    g.b = finite(t, batch * K * N);
    g.c = c;
    g.rsa = transposed ? 1 : K, g.csa = transposed ? M : 1;
    g.rsb = transposed ? 1 : N, g.csb = transposed ? K : 1;
    g.batch_inner_a = M * K, g.batch_inner_b = K * N;
    report_status(t, cq_gemm(t->cx, &g, take(t, cq_gemm_workspace(t->cx, &g))));
    report_f32(t, c, batch * M * N);
}

static void gemm_rows(run *t) { gemm(t, 0, 0, t->R, 45, t->C, 2); }
static void gemm_columns(run *t) { gemm(t, 1, 0, t->R, 45, t->C, 2); }

/* In three planes of bfloat16, which is about float32; levels without them take float32. */
static void gemm_planes(run *t) {
    t->tolerance = 1e-3;
    gemm(t, 0, 3, t->R, 45, t->C, 1);
}

/* Results of more than CQ_STREAM_BYTES, for one shape of the sweep only. */
static void gemm_large(run *t) {
    if (t->R * t->C == 512) gemm(t, 0, 0, 130, 150, 8, 64);
}

/* int8, with and without requantisation; rows of A are apart. */
static void gemm_s8(run *t) {
    const size_t M = t->R, N = 45, K = t->C, n = M * N;
    int32_t *bias = take(t, N * 4), *m = take(t, N * 4), *e = take(t, N * 4);
    int32_t *sums = take(t, n * sizeof *sums);
    int8_t *codes = take(t, n);
    for (size_t j = 0; j < N; j++) {
        bias[j] = (int32_t)(draw(t) % 4096) - 2048;
        m[j] = (int32_t)(draw(t) % INT32_MAX);
        e[j] = (int32_t)(draw(t) % 10) + 36;
    }
    cq_gemm_s8_args g = {.M = M, .N = N, .K = K, .rsa = K + 3, .rsb = K};
    g.a = (int8_t *)bytes_below(t, M * (K + 3), 8);
    g.b = (int8_t *)bytes_below(t, N * K, 8);
    g.r = (cq_gemm_requant){bias, m, e, 3, -100, 120};
    g.codes = codes;
    report_status(t, cq_gemm_s8(t->cx, &g, take(t, cq_gemm_s8_workspace(t->cx, &g))));
    report_s8(t, codes, n);
    g.sums = sums;
    report_status(t, cq_gemm_s8(t->cx, &g, take(t, cq_gemm_s8_workspace(t->cx, &g))));
    report_u8(t, (uint8_t *)sums, n * sizeof *sums);
}

/* The tile form of a packed weight, made with the kernels under test. */
static cq_tiles tiles_of(run *t, size_t N, int bits) {
    const cq_packed w = packed_weight(t, N, bits, bits % 2);
    const cq_canonical from = {w.codes, w.zero, w.scale};
    cq_tiles tiles = {.N = N, .K = t->C, .G = w.G, .bits = bits, .asymmetric = bits % 2 == 0};
    uint8_t *data = take(t, cq_qtile_sizes(&tiles).tiles);
    report_status(t, cq_qgemm_repack(t->cx, &from, &tiles, data));
    tiles.data = data;
    return tiles;
}

static void qlinear(run *t, cq_qlinear_mode mode, cq_act act) {
    const size_t M = t->R, N = 37, n = M * N;
    float *x = finite(t, M * t->C), *out = take(t, n * sizeof *out);
    uint8_t *codes = bytes_below(t, M * t->C, 8);
    for (int bits = 2; bits <= 8; bits++) {
        cq_qlinear a = {.M = M, .w = tiles_of(t, N, bits), .mode = mode};
        a.x = mode == CQ_QLINEAR_CODES ? (const void *)codes : x;
        a.e = (cq_epilogue){.bias = finite(t, N), .out = out, .ldo = N, .act = (int)act};
        a.e.residual = finite(t, n);
        if (act == CQ_ACT_SILU) a.e.up = finite(t, n);
        if (mode == CQ_QLINEAR_CODES) a.e.xscale = finite(t, M);
        report_status(t, cq_qlinear_run(t->cx, &a, take(t, cq_qlinear_workspace(t->cx, &a))));
        report_f32(t, out, n);
    }
}

static void qlinear_f32(run *t) { qlinear(t, CQ_QLINEAR_F32, CQ_ACT_NONE); }
static void qlinear_dynamic(run *t) { qlinear(t, CQ_QLINEAR_DYNAMIC, CQ_ACT_SILU); }
static void qlinear_codes(run *t) { qlinear(t, CQ_QLINEAR_CODES, CQ_ACT_GELU); }

/* Strips of different widths in groups of 8 or 24 inputs, which begin inside the halves of tiles.
 */
static void qlinear_mixed(run *t) {
    static const uint8_t bits[] = {3, 8, 6};
    const size_t M = t->R, N = 37, K = t->C, group = K % 24 == 0 ? 24 : K % 8 == 0 ? 8 : K;
    float *x = finite(t, M * K), *out = take(t, M * N * sizeof *out);
    for (int mode = CQ_QLINEAR_F32; mode <= CQ_QLINEAR_CODES; mode++) {
        cq_tiles w = {.strip_bits = bits, .N = N, .K = K, .G = K ? K / group : 1, .bits = 8};
        w.asymmetric = mode % 2 == 0;
        const cq_canonical_sizes size = cq_qtile_sizes(&w);
        uint16_t *scale = take(t, N * w.G * sizeof *scale);
        for (size_t i = 0; i < N * w.G; i++) scale[i] = (uint16_t)(draw(t) % 0x3000);
        const cq_canonical from = {bytes_below(t, size.codes, 8), bytes_below(t, size.zeros, 8),
                                   scale};
        uint8_t *data = take(t, size.tiles);
        report_status(t, cq_qgemm_repack(t->cx, &from, &w, data));
        w.data = data;
        cq_qlinear a = {.M = M, .x = x, .w = w, .mode = (cq_qlinear_mode)mode};
        if (mode == CQ_QLINEAR_CODES) a.x = bytes_below(t, M * K, 8);
        a.e = (cq_epilogue){.bias = finite(t, N), .out = out, .ldo = N, .act = CQ_ACT_GELU_TANH};
        report_status(t, cq_qlinear_run(t->cx, &a, take(t, cq_qlinear_workspace(t->cx, &a))));
        report_f32(t, out, M * N);
    }
}

/* bfloat16 in and out. */
static void qlinear_bf16(run *t) {
    const size_t M = t->R, N = 37, n = M * N;
    uint16_t *x = take(t, M * t->C * 2), *out = take(t, n * 2), *residual = take(t, n * 2);
    for (size_t i = 0; i < M * t->C; i++) x[i] = (uint16_t)(0x3C00 + draw(t) % 0x400);
    for (size_t i = 0; i < n; i++) residual[i] = (uint16_t)(draw(t) % 0x8000);
    cq_qlinear a = {.M = M, .x = x, .w = tiles_of(t, N, 4), .mode = CQ_QLINEAR_F32};
    a.e = (cq_epilogue){.residual = residual, .out = out, .ldo = N, .bf16 = 1};
    a.e.act = CQ_ACT_SILU;
    report_status(t, cq_qlinear_run(t->cx, &a, take(t, cq_qlinear_workspace(t->cx, &a))));
    report_u8(t, (uint8_t *)out, n * 2);
}

static float *small(run *t, size_t n) {
    float *x = finite(t, n);
    for (size_t i = 0; i < n; i++) x[i] *= 0.25f;
    return x;
}

/* A fusion block, forward and backward: t->R queries, t->C keys, some of them left out. */
static void attention(run *t) {
    const size_t B = 2, Lq = cq_min_size(t->R, 33), Lk = cq_min_size(t->C, 130);
    const size_t Dk = 24, E = 32, D = 16, H = 4, nq = B * Lq, nk = B * Lk;
    const int threads = t->cx->threads;
    cq_attention_args a = {.B = B, .Lq = Lq, .Lk = Lk, .Dq = D, .Dk = Dk, .E = E, .Do = D, .H = H};
    a.xq = small(t, nq * D), a.xk = small(t, nk * Dk);
    a.wq = small(t, E * D), a.bq = small(t, E), a.wk = small(t, E * Dk), a.bk = small(t, E);
    a.wv = small(t, E * Dk), a.bv = small(t, E), a.wo = small(t, D * E), a.bo = small(t, D);
    a.gamma = small(t, D), a.beta = small(t, D), a.mask = bytes_below(t, nk, 1);
    a.eps = 1e-5f, a.residual = 1, a.planes = CQ_ATT_HIGHEST;
    cq_attention_saved s = {.q = take(t, nq * E * 4), .ctx = take(t, nq * E * 4), .KV = E};
    s.k = take(t, nk * E * 4), s.v = take(t, nk * E * 4), s.y = take(t, nq * D * 4);
    s.stat = take(t, 2 * nq * 4), s.lse = take(t, nq * H * 4);
    float *out = take(t, nq * D * 4), *entropy = take(t, nq * H * 4);
    float *weights = take(t, nq * Lk * 4);
    t->tolerance = 1e-3;
    report_status(t, cq_attention(t->cx, &a, &s, out, entropy, weights,
                                  take(t, cq_attention_workspace(&a, threads))));
    report_f32(t, out, nq * D);
    report_f32(t, entropy, nq * H);
    report_f32(t, weights, nq * Lk);
    cq_attention_grads d = {.xq = take(t, nq * D * 4), .xk = take(t, nk * Dk * 4)};
    d.wq = take(t, E * D * 4), d.bq = take(t, E * 4), d.wk = take(t, E * Dk * 4);
    d.bk = take(t, E * 4), d.wv = take(t, E * Dk * 4), d.bv = take(t, E * 4);
    d.wo = take(t, D * E * 4), d.bo = take(t, D * 4);
    d.gamma = take(t, D * 4), d.beta = take(t, D * 4);
    report_status(t, cq_attention_bwd(t->cx, &a, &s, small(t, nq * D), &d,
                                      take(t, cq_attention_bwd_workspace(&a, 1, threads))));
    report_f32(t, d.xq, nq * D);
    report_f32(t, d.xk, nk * Dk);
    report_f32(t, d.wq, E * D);
    report_f32(t, d.wo, D * E);
    report_f32(t, d.gamma, D);
}

const parity_case product_cases[] = {
    {"gemm_rows", gemm_rows},         {"gemm_columns", gemm_columns},
    {"gemm_planes", gemm_planes},     {"gemm_s8", gemm_s8},
    {"attention", attention},         {"gemm_large", gemm_large},
    {"qlinear_f32", qlinear_f32},     {"qlinear_dynamic", qlinear_dynamic},
    {"qlinear_codes", qlinear_codes}, {"qlinear_mixed", qlinear_mixed},
    {"qlinear_bf16", qlinear_bf16},
};
const size_t product_count = sizeof product_cases / sizeof *product_cases;
