/* SPDX-License-Identifier: Apache-2.0 */
/* fakequant, reduce, qparams, codes, pack, alloc, histogram, rmsnorm, noise, channel_bits,
 * sqdiff, rangecode. */
#include "parity.h"

#include <string.h>

static void fakequant(run *t, int col) {
    float *x = nasty(t, t->R * t->C), *out = take(t, t->R * t->C * sizeof *out);
    float *scale, *lo, *hi;
    grids(t, col ? t->C : t->R, &scale, &lo, &hi);
    report_status(
        t, (col ? cq_fakequant_col : cq_fakequant_row)(t->cx, x, scale, lo, hi, out, t->R, t->C));
    report_f32(t, out, t->R * t->C);
}

static void fakequant_row(run *t) { fakequant(t, 0); }
static void fakequant_col(run *t) { fakequant(t, 1); }

/* The other grids: powers of two with exponents of at most 5 bits, and reciprocals. */
static void fakequant_grids(run *t) {
    const size_t n = t->R * t->C, most = t->R > t->C ? t->R : t->C;
    float *x = nasty(t, n), *out = take(t, n * sizeof *out), *scale, *lo, *hi;
    grids(t, most, &scale, &lo, &hi);
    report_status(t, cq_fakequant_compat_row(t->cx, x, scale, lo, hi, out, t->R, t->C));
    report_f32(t, out, n);
    report_status(t, cq_fakequant_compat_col(t->cx, x, scale, lo, hi, out, t->R, t->C));
    report_f32(t, out, n);
    for (size_t i = 0; i < most; i++) {
        scale[i] = 0.3f + (float)(draw(t) % 8);
        lo[i] = -(float)(draw(t) % 16);
        hi[i] = (float)(draw(t) % 4);
    }
    report_status(t, cq_fakequant_log2_row(t->cx, x, scale, lo, hi, out, t->R, t->C));
    report_f32(t, out, n);
    report_status(t, cq_fakequant_log2_col(t->cx, x, scale, lo, hi, out, t->R, t->C));
    report_f32(t, out, n);
}

static void fakequant_bwd(run *t, int col) {
    const size_t n = t->R * t->C, results = col ? t->C : t->R;
    const size_t need = col ? cq_fakequant_bwd_blocks(t->R, t->C) * t->C
                            : cq_fakequant_bwd_row_workspace(t->R, t->C);
    float *x = nasty(t, n), *g = finite(t, n), *gx = take(t, n * sizeof *gx);
    double *gscale = take(t, results * sizeof *gscale), *work = take(t, need * sizeof *work);
    float *scale, *lo, *hi;
    grids(t, results, &scale, &lo, &hi);
    report_status(t, (col ? cq_fakequant_bwd_col : cq_fakequant_bwd_row)(
                         t->cx, x, g, scale, lo, hi, gx, gscale, work, t->R, t->C));
    report_f32(t, gx, n);
    report_f64(t, gscale, results);
}

static void fakequant_bwd_row(run *t) { fakequant_bwd(t, 0); }
static void fakequant_bwd_col(run *t) { fakequant_bwd(t, 1); }

static void fakequant_token(run *t) {
    float *x = nasty(t, t->R * t->C), *out = take(t, t->R * t->C * sizeof *out);
    report_status(t, cq_fakequant_token(t->cx, x, 5, out, t->R, t->C));
    report_f32(t, out, t->R * t->C);
}

static void minmax(run *t, int col, int plain) {
    const size_t n = col ? t->C : t->R;
    float *x = (plain ? finite : nasty)(t, t->R * t->C);
    float *mn = take(t, n * sizeof *mn), *mx = take(t, n * sizeof *mx);
    const cq_status status = (col ? cq_minmax_col : cq_minmax_row)(t->cx, x, mn, mx, t->R, t->C);
    report_status(t, status);
    if (status != CQ_OK) return;
    report_f32(t, mn, n);
    report_f32(t, mx, n);
    report_status(t, (col ? cq_absmax_col : cq_absmax_row)(t->cx, x, mx, t->R, t->C));
    report_f32(t, mx, n);
}

static void minmax_row(run *t) { minmax(t, 0, 0), minmax(t, 0, 1); }
static void minmax_col(run *t) { minmax(t, 1, 0), minmax(t, 1, 1); }

static void abssum(run *t) {
    float *x = nasty(t, t->R * t->C), *y = finite(t, t->R * t->C);
    double *out = take(t, (t->R + t->C) * sizeof *out), *weight = take(t, t->R * sizeof *weight);
    for (size_t r = 0; r < t->R; r++) weight[r] = (double)(draw(t) % 4);
    report_status(t, cq_abssum_row(t->cx, x, out, t->R, t->C));
    report_f64(t, out, t->R);
    report_status(t, cq_abssum_col(t->cx, y, weight, out, t->R, t->C));
    report_f64(t, out, t->C);
}

static void qparams(run *t) {
    float *x = finite(t, t->R * t->C), *scale = take(t, t->R * sizeof *scale);
    uint8_t *zero = take(t, t->R);
    double *err = take(t, t->R * sizeof *err);
    for (int mode = 0; mode < 8; mode++) {
        const int bits = 2 + mode % 7;
        cq_status status = cq_qparams_row(t->cx, x, bits, mode, scale, zero, t->R, t->C);
        report_status(t, status);
        if (status != CQ_OK) continue;
        report_f32(t, scale, t->R);
        report_u8(t, zero, t->R);
        status = cq_qparams_mse_row(t->cx, x, bits, mode, 9, 0.7, scale, zero, err, t->R, t->C);
        report_status(t, status);
        report_f32(t, scale, t->R);
        report_u8(t, zero, t->R);
        report_f64(t, err, t->R);
    }
}

static void codes(run *t) {
    const size_t n = t->R * t->C;
    float *x = nasty(t, n), *value = take(t, n * sizeof *value);
    float *scale, *lo, *hi;
    uint8_t *zero = bytes_below(t, t->R, 4), *out = take(t, n);
    int8_t *signs = take(t, n);
    grids(t, t->R, &scale, &lo, &hi);
    for (int bits = 4; bits <= 8; bits += 4) {
        report_status(t, cq_codes_row(t->cx, x, scale, zero, bits, out, t->R, t->C));
        report_u8(t, out, n);
        report_status(t, cq_decode_row(t->cx, out, scale, zero, value, t->R, t->C));
        report_f32(t, value, n);
    }
    report_status(t, cq_codes_token_s8(t->cx, x, signs, scale, t->R, t->C));
    report_s8(t, signs, n);
    report_f32(t, scale, t->R);
}

static void pack(run *t) {
    for (int bits = 1; bits <= 8; bits++) {
        const size_t B = cq_packed_bytes(t->C, bits);
        uint8_t *plain = bytes_below(t, t->R * t->C, bits), *packed = take(t, t->R * B);
        report_status(t, cq_pack_row(t->cx, plain, bits, packed, t->R, t->C));
        report_u8(t, packed, t->R * B);
        report_status(t, cq_unpack_row(t->cx, packed, bits, plain, t->R, t->C));
        report_u8(t, plain, t->R * t->C);
    }
}

/* Outputs of at least CQ_STREAM_BYTES are stored past the caches: for one shape of the sweep. */
static void fakequant_large(run *t) {
    if (t->R * t->C != 512) return;
    t->R = 1100;
    t->C = 1000;
    for (int col = 0; col < 2; col++) fakequant(t, col), fakequant_bwd(t, col);
}

static void alloc(run *t) {
    const size_t n = t->R * t->C;
    float *x = finite(t, n), *g = finite(t, n), *out = take(t, n * sizeof *out);
    float *weight = take(t, t->C * sizeof *weight);
    uint8_t *bits = take(t, n);
    for (size_t c = 0; c < t->C; c++) weight[c] = 0.25f + (float)(draw(t) % 8);
    for (int weighted = 0; weighted < 2; weighted++) {
        const float *w = weighted ? weight : NULL;
        report_status(t, cq_project_row(t->cx, x, w, 2.0, 8.0, 3.7, out, t->R, t->C));
        report_f32(t, out, n);
        report_status(t, cq_project_bwd_row(t->cx, g, out, w, 2.0, 8.0, g, t->R, t->C));
        report_f32(t, g, n);
    }
    report_status(t, cq_round_bits_row(t->cx, out, 2, 8, (int64_t)(4 * t->C), bits, t->R, t->C));
    report_u8(t, bits, n);
}

/* Rows that are cut, for one shape of the sweep. */
static void alloc_long(run *t) {
    if (t->R * t->C != 512) return;
    t->R = 1;
    t->C = 2 * CQ_ALLOC_PIECE + 21;
    alloc(t);
}

/* One of seven options for each of R * C units. */
static void allocate(run *t) {
    enum { M = 7 };
    static const int64_t cost[M] = {1, 2, 3, 4, 5, 6, 8};
    const size_t n = t->R * t->C;
    const cq_alloc_costs costs = {.cost = cost, .m = M};
    float *d = take(t, n * M * sizeof *d);
    uint8_t *choice = take(t, n), *work = take(t, cq_allocate_workspace(n, M));
    for (size_t i = 0; i < n; i++) {
        const float top = 1.0f + (float)(draw(t) % 100000);
        for (size_t k = 0; k < M; k++)
            d[i * M + k] = top / (float)((size_t)1 << (2 * k)) + (float)(draw(t) % 64) / 64.0f;
    }
    double info[3] = {0};
    int64_t spent = 0;
    const int64_t budget = (int64_t)(n * 7 / 2);
    const cq_status status = cq_allocate(t->cx, d, &costs, budget, choice, info, &spent, work, n);
    report_status(t, status);
    if (status != CQ_OK) return;
    report_u8(t, choice, n);
    report_f64(t, info, 3);
    report_f64(t, &(double){(double)spent}, 1);
}

static void histogram(run *t) {
    enum { BINS = 80, SIZE = 64, K = 3 };
    const size_t n = t->R * t->C, R = t->R;
    float *x = finite(t, n), *out = take(t, R * K * sizeof *out), *top = take(t, R * sizeof *top);
    int64_t bins[BINS] = {0}, ranks[K] = {0, (int64_t)(t->C / 2), (int64_t)t->C - 1};
    report_status(t, cq_histogram(t->cx, x, -3, -40, bins, take(t, cq_histogram_workspace(n, BINS)),
                                  n, BINS));
    for (size_t i = 0; i < BINS; i++) report_f64(t, &(double){(double)bins[i]}, 1);
    if (t->C) {
        uint32_t *work = take(t, cq_ranks_workspace(R, t->C));
        report_status(t, cq_ranks_row(t->cx, x, ranks, out, work, R, t->C, K));
        report_f32(t, out, R * K);
    }
    uint32_t *counts = take(t, R * SIZE * sizeof *counts), *best = take(t, R * sizeof *best);
    double *least = take(t, R * sizeof *least);
    uint32_t *work = take(t, cq_magnitudes_workspace(R, SIZE));
    report_status(t, cq_magnitudes_row(t->cx, x, counts, top, work, R, t->C, SIZE));
    report_u8(t, (const uint8_t *)counts, R * SIZE * sizeof *counts);
    report_f32(t, top, R);
    report_status(t, cq_klclip_row(t->cx, counts, 16, best, least,
                                   take(t, cq_klclip_workspace(R, SIZE)), R, SIZE));
    report_u8(t, (const uint8_t *)best, R * sizeof *best);
    report_f64(t, least, R);
}

static void rmsnorm(run *t) {
    const size_t n = t->R * t->C;
    float *x = finite(t, n), *weight = finite(t, t->C), *out = take(t, n * sizeof *out);
    uint16_t *half = take(t, (n + t->C) * sizeof *half);
    report_status(t, cq_rmsnorm(t->cx, x, weight, 1e-5, 0, out, t->R, t->C));
    report_f32(t, out, n);
    for (size_t i = 0; i < n + t->C; i++)
        half[i] = cq_bf16_from_float(i < n ? x[i] : weight[i - n]);
    report_status(t, cq_rmsnorm(t->cx, half, half + n, 1e-5, 1, half, t->R, t->C));
    report_u8(t, (const uint8_t *)half, n * sizeof *half);
}

/* Pieces of a table that is not the inverse normal, and elements from within a group. */
static void noise(run *t) {
    float *table = finite(t, (size_t)3 * CQ_NOISE_PIECES),
          *out = take(t, t->R * t->C * sizeof *out);
    const cq_noise s = {{(uint32_t)draw(t), (uint32_t)draw(t)},
                        (uint32_t)draw(t),
                        (uint32_t)draw(t),
                        (uint32_t)draw(t),
                        table};
    for (int normal = 0; normal < 2; normal++) {
        report_status(t, cq_noise_fill(t->cx, &s, normal, draw(t) % 4096, out, t->R, t->C));
        report_f32(t, out, t->R * t->C);
    }
}

/* Widths of every third row, so that rows of a tile end with a group; with all that is optional and
 * without. */
static void channel_bits_with(run *t, int rated, int noisy, int drawn) {
    const size_t R = t->R, C = t->C, G = R % 3 ? 1 : R / 3, n = R * C;
    float *low = finite(t, C), *high = take(t, C * sizeof *high), *bits = take(t, G * C * 4);
    float *y = take(t, n * sizeof *y), *rate = take(t, R * sizeof *rate);
    for (size_t c = 0; c < C; c++) high[c] = low[c] + (float)(draw(t) % 4) * 0.75f;
    for (size_t i = 0; i < G * C; i++) bits[i] = (float)(draw(t) % 33) * 0.25f;
    const cq_noise noise = {{1, 2}, 3, 4, 5, NULL};
    const cq_noise latent = {{1, 2}, 3, 4, 6, finite(t, (size_t)3 * CQ_NOISE_PIECES)};
    const cq_channel_args a = {.x = nasty(t, n),
                               .low = low,
                               .high = high,
                               .bits = bits,
                               .tables = rated ? finite(t, C * CQ_CHANNEL_TABLE) : NULL,
                               .logvar = drawn ? finite(t, n) : NULL,
                               .noise = noisy ? &noise : NULL,
                               .latent = &latent,
                               .R = R,
                               .C = C,
                               .G = G,
                               .T = R};
    report_status(t, cq_channel_bits(t->cx, &a, y, rate));
    report_f32(t, y, n);
    report_f32(t, rate, R);
    double *ends = take(t, 2 * C * sizeof *ends);
    float *tables = take(t, C * CQ_CHANNEL_TABLE * sizeof *tables);
    double *work = take(t, cq_channel_workspace(C) * sizeof *work);
    float *out = take(t, G * C * sizeof *out);
    float *glogvar = take(t, n * sizeof *glogvar);
    const cq_channel_grads g = {y, out, ends, ends + C, tables, work, glogvar};
    report_status(t, cq_channel_bits_bwd(t->cx, &a, finite(t, n), finite(t, R), &g));
    report_f32(t, y, n);
    report_f32(t, out, G * C);
    report_f64(t, ends, 2 * C);
    if (rated) report_f32(t, tables, C * CQ_CHANNEL_TABLE);
    if (drawn) report_f32(t, glogvar, n);
}

static void channel_bits(run *t) {
    channel_bits_with(t, 0, 0, 1);
    channel_bits_with(t, 1, t->C % 2, 0);
}

static void sqdiff(run *t) {
    const size_t n = t->R * t->C;
    float *a = nasty(t, n), *b = finite(t, n), *out = take(t, n * sizeof *out);
    double *sum = take(t, t->R * sizeof *sum);
    double *work = take(t, cq_sqdiff_workspace(t->R, t->C) * sizeof *work);
    report_status(t, cq_sqdiff_row(t->cx, a, b, sum, work, t->R, t->C));
    report_f64(t, sum, t->R);
    for (size_t r = 0; r < t->R; r++) sum[r] = 0.125 * (double)(draw(t) % 9);
    report_status(t, cq_sqdiff_bwd_row(t->cx, a, b, sum, out, t->R, t->C));
    report_f32(t, out, n);
}

/* Tables of 1, 2 and 4 symbols; what was coded, and what bytes that nobody coded stand for. */
static void rangecode(run *t) {
    static const uint16_t cdf[] = {0, 0, 65000, 0, 1, 30000, 65535};
    static const uint32_t first[] = {0, 1, 3, 7};
    const size_t R = t->R, C = t->C, lanes = 1 + C % CQ_RANGE_LANES, n = R * C;
    const size_t room = cq_rangecode_bytes(R, C, lanes);
    int32_t *context = take(t, C * sizeof *context), *group = take(t, R * sizeof *group);
    uint8_t *symbols = take(t, n), *again = take(t, n), *out = take(t, lanes * room);
    uint32_t *work = take(t, cq_rangecode_workspace(1, C));
    uint8_t whole[CQ_RANGE_LANES];
    int64_t sizes[CQ_RANGE_LANES];
    for (size_t c = 0; c < C; c++) context[c] = (int32_t)(draw(t) % 3);
    for (size_t r = 0; r < R; r++) group[r] = 0;
    for (size_t i = 0; i < n; i++)
        symbols[i] = (uint8_t)(draw(t) % (first[context[i % C] + 1] - first[context[i % C]]));
    const cq_range_model m = {cdf, first, context, group, 7, 3, 1, C, R};
    report_status(t, cq_rangecode_encode(t->cx, &m, symbols, out, sizes, lanes, room, work));
    size_t size = 0;
    for (size_t i = 0; i < lanes; i++) {
        report_u8(t, out + i * room, (size_t)sizes[i]);
        memmove(out + size, out + i * room, (size_t)sizes[i]);
        size += (size_t)sizes[i];
    }
    for (int trial = 0; trial < 2; trial++) {
        report_status(t,
                      cq_rangecode_decode(t->cx, &m, out, size, sizes, again, whole, lanes, work));
        report_u8(t, again, n);
        report_u8(t, whole, lanes);
        for (size_t i = 0; i < size; i += 3) out[i] ^= (uint8_t)draw(t);
    }
}

const parity_case elementwise_cases[] = {
    {"fakequant_row", fakequant_row},
    {"fakequant_col", fakequant_col},
    {"fakequant_grids", fakequant_grids},
    {"fakequant_bwd_row", fakequant_bwd_row},
    {"fakequant_bwd_col", fakequant_bwd_col},
    {"fakequant_token", fakequant_token},
    {"fakequant_large", fakequant_large},
    {"minmax_row", minmax_row},
    {"minmax_col", minmax_col},
    {"abssum", abssum},
    {"qparams", qparams},
    {"codes", codes},
    {"pack", pack},
    {"alloc", alloc},
    {"alloc_long", alloc_long},
    {"allocate", allocate},
    {"histogram", histogram},
    {"rmsnorm", rmsnorm},
    {"noise", noise},
    {"channel_bits", channel_bits},
    {"sqdiff", sqdiff},
    {"rangecode", rangecode},
};
const size_t elementwise_count = sizeof elementwise_cases / sizeof *elementwise_cases;
