/* SPDX-License-Identifier: Apache-2.0 */
/* sdot multiplies signed by signed bytes, so x stays as it is and shift is not used; `row` is the
 * scalar kernel, a copy; tiles of 8 bits are multiplied less 128, which centre adds. 4 rows x 16
 * outputs, or the 4 digits of a row, in 16 registers. Checked under an emulator only: speed is not
 * measured. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neondot.h"

#include "kernels/gemm/dot_neon.h"
#include "kernels/qlinear/tile_neon.h"

#include <string.h>

static const size_t STEP = CQ_QPREFILL_STEP;

/* Zero points of outputs 4 m .. 4 m + 3, each four times. */
CQ_INLINE uint8x16_t four_times(const uint8_t *zero, uint8_t m) {
    const uint32x4_t first = {0x00000000u, 0x01010101u, 0x02020202u, 0x03030303u};
    const uint8x16_t index = vaddq_u8(vreinterpretq_u8_u32(first), vdupq_n_u8((uint8_t)(4 * m)));
    return vqtbl1q_u8(vld1q_u8(zero), index);
}

CQ_INLINE void put(uint8x16_t codes, uint8x16_t zero, int8_t *to) {
    vst1q_s8(to, vreinterpretq_s8_u8(vsubq_u8(codes, zero)));
}

/* One group: `quads` fours of inputs from input k on. */
CQ_INLINE void fill(const uint8_t *tiles, const size_t bits, size_t k, size_t quads,
                    const uint8x16_t *zero, int8_t *to) {
    for (size_t done; quads; quads -= done, k += 4 * done, to += 64 * done) {
        const uint8_t *tile = tiles + k / CQ_TILE * cq_tile_bytes((int)bits);
        done = k % 32 == 0 && quads >= 8 ? 8 : 1;
        if (done == 8) {
#pragma GCC unroll 4
            for (size_t m = 0; m < 4; m++)
#pragma GCC unroll 8
                for (size_t q = 0; q < 8; q++)
                    put(cq_half_codes(tile, bits, k / 32 % 2, q, m), zero[m], to + 64 * q + 16 * m);
            continue;
        }
        for (size_t m = 0; m < 4; m++)
            put(cq_any_codes(tile, bits, k % CQ_TILE / 4, m), zero[m], to + 16 * m);
    }
}

CQ_INLINE void panel(const cq_qprefill_strip *s, const size_t bits) {
    const size_t quads = cq_ceil_div(s->inputs, 4);
    for (size_t g = 0; g < s->groups; g++) {
        int8_t *to = s->panel + g * s->steps * STEP;
        uint8x16_t zero[4];
        for (uint8_t m = 0; m < 4; m++)
            zero[m] =
                s->zero ? four_times(s->zero + 16 * g, m) : vdupq_n_u8((uint8_t)(1 << (bits - 1)));
        fill(s->tiles, bits, s->k0 + g * s->group, quads, zero, to);
        memset(to + 64 * quads, 0, s->steps * STEP - 64 * quads);
    }
}

void cq_qprefill_panel_neondot(const cq_qprefill_strip *s) {
    switch (s->bits) {
    case 2: panel(s, 2); return;
    case 3: panel(s, 3); return;
    case 4: panel(s, 4); return;
    case 5: panel(s, 5); return;
    case 6: panel(s, 6); return;
    case 7: panel(s, 7); return;
    default: panel(s, 8); return;
    }
}

CQ_INLINE void scale_add(float *acc, int keep, float32x4_t scale, float32x4_t f) {
    const float32x4_t old = keep ? vld1q_f32(acc) : vdupq_n_f32(0.0f);
    vst1q_f32(acc, vfmaq_f32(old, scale, f));
}

/* What becomes of the sums dot[4][16] of rows r .. r + 3 of block row i, strip j, group g; `off`
 * was taken off every code. */
static void finish(const cq_qprefill_block *b, size_t i, size_t j, size_t r, size_t g,
                   const int32_t *dot, int32_t off) {
    const size_t at = (i * b->n + j / 2) * 1024 + r / 16 * 512 + j % 2 * 256 + r % 16 * 16;
    const size_t n = g * b->ld + j * CQ_STRIP;
    const int32_t *xsum = b->xsum + (i * CQ_QPREFILL_BLOCK + r) * b->ldsum + g;
    for (size_t q = 0; q < 16; q++, dot += 4) {
        int32x4_t sum = vld1q_s32(dot);
        int32_t *part = b->part + at + 4 * q;
        if (!b->begin) sum = vaddq_s32(sum, vld1q_s32(part));
        if (!b->end) {
            vst1q_s32(part, sum);
            continue;
        }
        if (b->centre)
            sum = vmlaq_s32(sum, vaddq_s32(vld1q_s32(b->centre + n + q % 4 * 4), vdupq_n_s32(off)),
                            vdupq_n_s32(xsum[q / 4 * b->ldsum]));
        scale_add(b->acc + at + 4 * q, !b->first || g, vld1q_f32(b->scale + n + q % 4 * 4),
                  vcvtq_f32_s32(sum));
    }
}

/* R rows from x on, ld apart, times a strip: one group. */
CQ_INLINE void dots(const cq_qprefill_block *b, const int8_t *x, size_t ld, const int8_t *w,
                    const size_t R, const int flip, int32_t *dot) {
    int32x4_t acc[16];
#pragma GCC unroll 16
    for (size_t q = 0; q < 4 * R; q++) acc[q] = vdupq_n_s32(0);
    for (size_t s = 0; s < b->steps; s++)
        cq_dot_fours(acc, x + s * STEP, ld, w + s * STEP, cq_ceil_div(b->quads, 4), R, flip);
#pragma GCC unroll 16
    for (size_t q = 0; q < 4 * R; q++) vst1q_s32(dot + 4 * q, acc[q]);
}

CQ_INLINE void blocks(const cq_qprefill_block *b, const int flip) {
    const size_t bytes = b->steps * STEP;
    int32_t dot[4 * 16];
    for (size_t i = 0; i < b->m; i++)
        for (size_t j = 0; j < 2 * b->n; j++)
            for (size_t r = 0; r < CQ_QPREFILL_BLOCK; r += 4) {
                const int8_t *x = (const int8_t *)b->x + (2 * i + r / 16) * b->ldx + r % 16 * 64;
                const int8_t *w = b->panel + j * b->ldpanel;
                for (size_t g = 0; g < b->groups; g++, x += bytes, w += bytes) {
                    dots(b, x, 64, w, 4, flip, dot);
                    finish(b, i, j, r, g, dot, flip ? 128 : 0);
                }
            }
}

void cq_qprefill_block_neondot(const cq_qprefill_block *b) { blocks(b, 0); }

void cq_qprefill_tiles_neondot(const cq_qprefill_block *b) { blocks(b, 1); }

/* high * 256 + low, plus the centre times the sum of x, as float. */
CQ_INLINE float32x4_t two(const int32_t *high, const int32_t *low, int32x4_t centre, int32_t sum) {
    const int32x4_t all = vaddq_s32(vshlq_n_s32(vld1q_s32(high), 8), vld1q_s32(low));
    return vcvtq_f32_s32(vmlaq_s32(all, centre, vdupq_n_s32(sum)));
}

/* Row `at` of all rows' steps and sums, group g, strip j, with the sums dot[digit][16]. */
static void finish_digits(const cq_qprefill_block *b, size_t at, size_t g, size_t j,
                          const int32_t *dot, float *acc) {
    const size_t n = g * b->ld + j * CQ_STRIP;
    const float32x4_t step = vdupq_n_f32(b->xstep[at]);
    for (size_t q = 0; q < 16; q += 4) {
        const int32x4_t centre = b->centre ? vld1q_s32(b->centre + n + q) : vdupq_n_s32(0);
        const int32_t *d = dot + q, *sum = b->xsum + 2 * at;
        const float32x4_t high = two(d + 48, d + 32, centre, b->centre ? sum[0] : 0);
        const float32x4_t low = two(d + 16, d, centre, b->centre ? sum[1] : 0);
        scale_add(acc + q, !b->first || g, vmulq_f32(vld1q_f32(b->scale + n + q), step),
                  vfmaq_f32(low, high, vdupq_n_f32(65536.0f)));
    }
}

/* Rows of x i of its 16 with strip j of the panel. */
static void digits_cell(const cq_qprefill_block *b, size_t i, size_t j) {
    const size_t bytes = b->steps * STEP;
    int32_t dot[4 * 16];
    for (size_t r = 0; r < 16; r++) {
        const int8_t *x = (const int8_t *)b->x + CQ_DIGITS * i * b->ldx + r * 64;
        const int8_t *w = b->panel + j * b->ldpanel;
        float *acc = b->acc + (i / 2 * b->n + j / 2) * 1024 + i % 2 * 512 + j % 2 * 256 + r * 16;
        for (size_t g = 0; g < b->groups; g++, x += bytes, w += bytes) {
            if (b->zeros[i * b->ldsum + g] < 2) {
                dots(b, x, b->ldx, w, 4, 0, dot);
            } else {
                memset(dot, 0, 2 * 16 * sizeof *dot);
                dots(b, x + 2 * b->ldx, b->ldx, w, 2, 0, dot + 32);
            }
            finish_digits(b, (i * b->ldsum + g) * 16 + r, g, j, dot, acc);
        }
    }
}

void cq_qprefill_digits_neondot(const cq_qprefill_block *b) {
    for (size_t i = 0; i < 2 * b->m; i++)
        for (size_t j = 0; j < 2 * b->n; j++) digits_cell(b, i, j);
}

#include "core/isa_end.h"
#endif
