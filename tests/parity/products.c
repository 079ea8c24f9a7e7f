/* SPDX-License-Identifier: Apache-2.0 */
/* gemm and qlinear: t->R rows or tokens, t->C inputs. */
#include "parity.h"

static void gemm(run *t, int transposed, size_t M, size_t N, size_t K, size_t batch) {
    cq_gemm_args g = {.batch = batch, .inner = batch, .M = M, .N = N, .K = K};
    float *c = take(t, batch * M * N * sizeof *c);
    g.a = finite(t, batch * M * K);
    g.b = finite(t, batch * K * N);
    g.c = c;
    g.rsa = transposed ? 1 : K, g.csa = transposed ? M : 1;
    g.rsb = transposed ? 1 : N, g.csb = transposed ? K : 1;
    g.batch_inner_a = M * K, g.batch_inner_b = K * N;
    report_status(t, cq_gemm(t->cx, &g, take(t, cq_gemm_workspace(&g, t->cx->threads))));
    report_f32(t, c, batch * M * N);
}

static void gemm_rows(run *t) { gemm(t, 0, t->R, 45, t->C, 2); }
static void gemm_columns(run *t) { gemm(t, 1, t->R, 45, t->C, 2); }

/* Results of more than CQ_STREAM_BYTES, for one shape of the sweep only. */
static void gemm_large(run *t) {
    if (t->R * t->C == 512) gemm(t, 0, 130, 150, 8, 64);
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

const parity_case product_cases[] = {
    {"gemm_rows", gemm_rows},
    {"gemm_columns", gemm_columns},
    {"gemm_large", gemm_large},
    {"qlinear_f32", qlinear_f32},
    {"qlinear_dynamic", qlinear_dynamic},
    {"qlinear_codes", qlinear_codes},
};
const size_t product_count = sizeof product_cases / sizeof *product_cases;
