/* SPDX-License-Identifier: Apache-2.0 */
/* Packed linear layers: the rows of x become int8 (one row each, or CQ_DIGITS for float32), then
 * threads take runs of strips. A strip is multiplied by up to CHUNK rows at a time, finished (scale
 * of the row, bias, activation, residual) while its sums are in the L1 cache, and written. */
#include "core/half.h"
#include "core/parallel.h"
#include "ops.h"

#include <string.h>

enum { CHUNK = 32 };

typedef struct job {
    const cq_kernels *k;
    cq_ctx *cx;
    const cq_qlinear *a;
    cq_epilogue e;
    int8_t *x;
    int32_t *xsum;
    float *xstep, *xscale, *rows; /* rows: bfloat16 x as float32 */
    size_t *offset;               /* of the strips, if they differ in width */
    size_t ldx, blocks, digits;
    int pairs; /* whether this level multiplies two strips at once */
    size_t x_bytes, sum_bytes, step_bytes, scale_bytes, rows_bytes, offset_bytes;
} job;

static size_t round64(size_t bytes) { return cq_round_up(bytes, 64); }

static job plan(const cq_qlinear *a) {
    const cq_tiles *w = &a->w;
    job j = {.a = a, .e = a->e};
    const int f32 = a->mode == CQ_QLINEAR_F32;
    j.digits = f32 ? CQ_DIGITS : 1;
    j.blocks = w->K ? cq_blocks(w->K, w->G, f32) : 0;
    j.ldx = cq_ceil_div(w->K, CQ_TILE) * CQ_TILE;
    if (j.ldx / CQ_TILE % 2 == 0) j.ldx += CQ_TILE; /* rows 4 KiB apart would share a cache set */
    j.x_bytes = cq_mul(a->M, j.digits * j.ldx);
    j.sum_bytes = round64(cq_mul(a->M, j.blocks * (f32 ? 2 : 1) * sizeof(int32_t)));
    j.step_bytes = f32 ? round64(cq_mul(a->M, j.blocks * sizeof(float))) : 0;
    j.scale_bytes = round64(cq_mul(a->M, sizeof(float)));
    j.rows_bytes = a->e.bf16 ? round64(cq_mul(a->M, w->K * sizeof(float))) : 0;
    j.offset_bytes = w->strip_bits ? round64(cq_strips(w->N) * sizeof(size_t)) : 0;
    return j;
}

size_t cq_qlinear_workspace(const cq_ctx *cx, const cq_qlinear *a) {
    if (cq_qprefill_fits(cx, a)) return cq_qprefill_workspace(cx, a);
    const job j = plan(a);
    const size_t sums = cq_add(j.sum_bytes, j.step_bytes),
                 rows = cq_add(j.scale_bytes, j.rows_bytes);
    return cq_add(cq_add(cq_add(j.x_bytes, sums), rows), 64 + j.offset_bytes);
}

static job start(cq_ctx *cx, const cq_qlinear *a, uint8_t *work) {
    job j = plan(a);
    work += (64 - (uintptr_t)work % 64) % 64;
    j.k = cx->k;
    const cq_kernels *plain = cq_isa_table(CQ_ISA_scalar);
    j.pairs = cx->k->qlinear_s8_pair != plain->qlinear_s8_pair ||
              cx->k->qlinear_f32_pair != plain->qlinear_f32_pair;
    j.cx = cx;
    j.x = (int8_t *)work;
    j.xsum = (int32_t *)(void *)(work += j.x_bytes);
    j.xstep = (float *)(void *)(work += j.sum_bytes);
    j.xscale = (float *)(void *)(work += j.step_bytes);
    j.rows = (float *)(void *)(work += j.scale_bytes);
    j.offset = (size_t *)(void *)(work + j.rows_bytes);
    if (a->mode == CQ_QLINEAR_DYNAMIC) j.e.xscale = j.xscale;
    size_t at = 0;
    for (size_t s = 0; s < cq_strips(a->w.N) && a->w.strip_bits; s++) {
        j.offset[s] = at;
        at += cq_strip_bytes(a->w.K, a->w.G, a->w.strip_bits[s], a->w.asymmetric);
    }
    return j;
}

/* Row m as float32. */
static const float *float_row(const job *j, size_t m) {
    const size_t K = j->a->w.K;
    if (!j->e.bf16) return (const float *)j->a->x + m * K;
    const uint16_t *from = (const uint16_t *)j->a->x + m * K;
    float *to = j->rows + m * K;
    for (size_t k = 0; k < K; k++) to[k] = cq_bits_float((uint32_t)from[k] << 16);
    return to;
}

static void int8_row(const job *j, size_t m) {
    const size_t K = j->a->w.K, G = j->a->w.G, M = j->a->M;
    int8_t *to = j->x + m * j->ldx;
    if (j->a->mode == CQ_QLINEAR_DYNAMIC) {
        const float *x = float_row(j, m);
        float most;
        j->k->absmax_f32_row(x, K, &most);
        j->xscale[m] = cq_token_scale(most);
        j->k->codes_f32_s8_row(x, to, K, j->xscale[m]);
    } else if (K) {
        memcpy(to, (const int8_t *)j->a->x + m * K, K);
    }
    for (size_t k = K; k % CQ_TILE; k++) to[k] = 0;
    for (size_t g = 0; g < j->blocks; g++)
        j->k->qgemm_s8_sum(to + g * (K / G), K / G, j->xsum + g * M + m);
}

static void quantise_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t M = j->a->M;
    (void)block;
    for (size_t m = begin; m < end; m++) {
        if (j->a->mode != CQ_QLINEAR_F32) {
            int8_row(j, m);
            continue;
        }
        const cq_qlinear_digits to = {.x = j->x + m * CQ_DIGITS * j->ldx,
                                      .sum = j->xsum + 2 * m,
                                      .step = j->xstep + m,
                                      .ldx = j->ldx,
                                      .stride = M,
                                      .K = j->a->w.K,
                                      .G = j->a->w.G};
        if (j->blocks) j->k->qlinear_f32_digits(float_row(j, m), &to);
    }
}

static size_t place(const job *j, size_t strip) {
    const cq_tiles *w = &j->a->w;
    if (w->strip_bits) return j->offset[strip];
    return strip * cq_strip_bytes(w->K, w->G, w->bits, w->asymmetric);
}

static void multiply(const job *j, const cq_qlinear_strip *t, size_t strips) {
    if (j->digits > 1)
        strips > 1 ? j->k->qlinear_f32_pair(t) : j->k->qlinear_f32_strip(t);
    else
        strips > 1 ? j->k->qlinear_s8_pair(t) : j->k->qlinear_s8_strip(t);
}

static void run_strips(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const cq_tiles *w = &j->a->w;
    _Alignas(64) float sums[2 * CHUNK * 16];
    cq_qlinear_strip t = {.out = sums, .ldx = j->ldx, .K = w->K, .G = w->G};
    t.asymmetric = w->asymmetric;
    t.stride = j->a->M;
    (void)block;
    for (size_t s = begin, strips; s < end; s += strips) {
        t.head = w->data + place(j, s);
        t.bits = cq_bits_of_strip(w, s);
        t.apart = cq_strip_bytes(w->K, w->G, t.bits, w->asymmetric);
        strips = j->pairs && s + 1 < end && cq_bits_of_strip(w, s + 1) == t.bits ? 2 : 1;
        for (size_t m = 0; m < j->a->M; m += CHUNK) {
            if (cq_stop(j->cx)) return;
            t.M = cq_min_size(j->a->M - m, CHUNK);
            t.x = j->x + m * j->digits * j->ldx;
            t.xsum = j->xsum + m * (j->digits > 1 ? 2 : 1);
            t.xstep = j->xstep + m;
            if (!w->K)
                memset(sums, 0, sizeof sums);
            else
                multiply(j, &t, strips);
            for (size_t i = 0; i < strips; i++) {
                const size_t n0 = (s + i) * CQ_STRIP;
                const cq_epilogue_at at = {m, t.M, n0, cq_min_size(w->N - n0, CQ_STRIP)};
                j->k->qlinear_finish(sums + i * t.M * CQ_STRIP, &at, &j->e);
            }
        }
    }
}

/* Strips that one thread takes at a time, an even number: an eighth of its share, because every
 * jump in the stream of codes costs (measured with two threads, 4096 x 4096 of 4 bits: 2 strips at
 * a time 0.52 ms, 7 strips 0.46, 16 strips 0.43), but at least 64 KiB of codes for one row. */
static size_t grain_of(const cq_ctx *cx, const cq_qlinear *a) {
    const size_t bits = a->w.strip_bits ? 4 : (size_t)a->w.bits;
    const size_t strip = 1 + 2 * a->w.K * bits, rows = 1 + a->M / 4;
    const size_t share = cq_strips(a->w.N) / (8 * (size_t)(cx->threads > 0 ? cx->threads : 1));
    const size_t least = 65536 / strip / rows;
    return cq_round_up(share > least ? share : least + 1, 2);
}

cq_status cq_qlinear_run(cq_ctx *cx, const cq_qlinear *a, uint8_t *work) {
    if (!a->M || !a->w.N) return CQ_OK;
    if (cq_qprefill_fits(cx, a)) return cq_qprefill_run(cx, a, work);
    job j = start(cx, a, work);
    CQ_TRY(cq_parallel_rows(cx, a->M, cq_grain(2 * a->w.K), quantise_rows, &j));
    return cq_parallel_rows(cx, cq_strips(a->w.N), grain_of(cx, a), run_strips, &j);
}
