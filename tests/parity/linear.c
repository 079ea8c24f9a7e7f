/* SPDX-License-Identifier: Apache-2.0 */
/* Packed linear layers: t->R rows, t->C inputs. */
#include "parity.h"

#include <string.h>

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

/* Strips of different widths in groups of 8 or 24 inputs, which begin inside the halves of tiles;
 * of one row also 33 rows in one group, which takes several steps of a block, or tiles of 8 bits
 * where they lie. */
static void qlinear_mixed(run *t) {
    static const uint8_t bits[] = {3, 8, 6};
    const int one_group = t->R == 1 && t->C > 64;
    const size_t M = one_group ? 33 : t->R, N = 37, K = t->C;
    const size_t group = one_group ? K : K % 24 == 0 ? 24 : K % 8 == 0 ? 8 : K;
    float *x = finite(t, M * K), *out = take(t, M * N * sizeof *out);
    for (int mode = CQ_QLINEAR_F32; mode <= CQ_QLINEAR_CODES; mode++) {
        cq_tiles w = {.strip_bits = bits, .N = N, .K = K, .G = K ? K / group : 1, .bits = 8};
        w.asymmetric = mode % 2 == 0;
        if (one_group && mode == CQ_QLINEAR_CODES) w.strip_bits = NULL;
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

/* The largest products there are: codes of all ones, no zero points, times -128. */
static void qlinear_extreme(run *t) {
    const size_t M = cq_min_size(t->R, 33), N = 17;
    int8_t *x = take(t, M * t->C);
    memset(x, -128, M * t->C);
    float *out = take(t, M * N * sizeof *out);
    for (int bits = 2; bits <= 8; bits++) {
        cq_tiles w = tiles_of(t, N, bits);
        uint8_t *data = take(t, cq_qtile_sizes(&w).tiles);
        memset(data, 0xFF, cq_qtile_sizes(&w).tiles);
        for (size_t s = 0; s < cq_strips(N); s++) {
            uint8_t *head = data + s * cq_strip_bytes(w.K, w.G, bits, w.asymmetric);
            memset(head, 0, cq_strip_head(w.G, w.asymmetric));
            memset(head, 0x3C, 2 * w.G * CQ_STRIP); /* scales of 1.06 */
        }
        w.data = data;
        cq_qlinear a = {.M = M, .x = x, .w = w, .mode = CQ_QLINEAR_CODES};
        a.e = (cq_epilogue){.out = out, .ldo = N};
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

const parity_case linear_cases[] = {
    {"qlinear_f32", qlinear_f32},     {"qlinear_dynamic", qlinear_dynamic},
    {"qlinear_codes", qlinear_codes}, {"qlinear_mixed", qlinear_mixed},
    {"qlinear_bf16", qlinear_bf16},   {"qlinear_extreme", qlinear_extreme},
};
const size_t linear_count = sizeof linear_cases / sizeof *linear_cases;
