/* SPDX-License-Identifier: Apache-2.0 */
/* s8_tile without dot products: smull multiplies 16 inputs of B by four of A, repeated, and sadalp
 * adds pairs to int32; two products of -128 do not fit an int16, so nothing is added before that. 2
 * rows x 16 columns in 16 registers of two sums per column. Checked under an emulator only: speed
 * is not measured. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"

#include "kernels/gemm/sums_neon.h"
#include "kernels/neon.h"

#include <string.h>

static const size_t TILE = 1024;

/* Four inputs of 16 lanes: transposed words. */
static void put_fours(const int8_t *const *row, size_t k, int8_t *to) {
    for (size_t r = 0; r < 16; r += 4) {
        const int32x4_t a = vreinterpretq_s32_s8(vld1q_s8(row[r] + k));
        const int32x4_t b = vreinterpretq_s32_s8(vld1q_s8(row[r + 1] + k));
        const int32x4_t c = vreinterpretq_s32_s8(vld1q_s8(row[r + 2] + k));
        const int32x4_t d = vreinterpretq_s32_s8(vld1q_s8(row[r + 3] + k));
        const int64x2_t ab0 = vreinterpretq_s64_s32(vtrn1q_s32(a, b));
        const int64x2_t ab1 = vreinterpretq_s64_s32(vtrn2q_s32(a, b));
        const int64x2_t cd0 = vreinterpretq_s64_s32(vtrn1q_s32(c, d));
        const int64x2_t cd1 = vreinterpretq_s64_s32(vtrn2q_s32(c, d));
        vst1q_s8(to + 4 * r, vreinterpretq_s8_s64(vtrn1q_s64(ab0, cd0)));
        vst1q_s8(to + 4 * r + 64, vreinterpretq_s8_s64(vtrn1q_s64(ab1, cd1)));
        vst1q_s8(to + 4 * r + 128, vreinterpretq_s8_s64(vtrn2q_s64(ab0, cd0)));
        vst1q_s8(to + 4 * r + 192, vreinterpretq_s8_s64(vtrn2q_s64(ab1, cd1)));
    }
}

void cq_gemm_s8_pack_neon(const int8_t *x, size_t rs, size_t rows, size_t kc, int is_b,
                          int8_t *panel) {
    for (size_t k = 0; k < kc; k += 64) {
        const size_t n = cq_min_size(kc - k, 64);
        for (size_t r0 = 0; r0 < CQ_GEMM_WIDE; r0 += 16, panel += TILE) {
            int8_t some[16 * 64] = {0};
            const int8_t *row[16];
            for (size_t r = 0; r < 16; r++) {
                row[r] = some + 64 * r;
                if (r0 + r >= rows) continue;
                if (n == 64)
                    row[r] = x + (r0 + r) * rs + k;
                else
                    memcpy(some + 64 * r, x + (r0 + r) * rs + k, n);
            }
            for (size_t i = 0; i < 64 && is_b; i += 16) put_fours(row, i, panel + 16 * i);
            for (size_t r = 0; r < 16 && !is_b; r++) memcpy(panel + 64 * r, row[r], 64);
        }
    }
}

/* acc[2 i], acc[2 i + 1]: columns 4 i .. 4 i + 3, two sums each. */
CQ_INLINE void multiply_add(int32x4_t *acc, const int8_t *x, int8x16_t w) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    const int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four));
    acc[0] = vpadalq_s16(acc[0], vmull_s8(vget_low_s8(w), vget_low_s8(v)));
    acc[1] = vpadalq_s16(acc[1], vmull_high_s8(w, v));
}

/* Rows i and i + 1, n <= 16 columns from column j on. */
static void two_rows(const cq_gemm_f32_tile *t, size_t i, size_t j) {
    const int8_t *a = (const int8_t *)(t->a + i / CQ_GEMM_WIDE * t->psa);
    const int8_t *b = (const int8_t *)t->b + j / 16 * TILE;
    const size_t n = cq_min_size(t->n - j, 16), m = cq_min_size(t->m - i, 2);
    int32x4_t acc[16];
    int32_t sums[2 * 16];
    a += i % CQ_GEMM_WIDE / 16 * TILE + i % 16 * 64;
#pragma GCC unroll 16
    for (size_t r = 0; r < 16; r++) acc[r] = vdupq_n_s32(0);
    for (size_t k = 0; k < t->kc; k += 64, a += 2 * TILE, b += 2 * TILE)
        for (size_t q = 0; q < 16; q++) {
#pragma GCC unroll 4
            for (size_t c = 0; c < 4; c++) {
                const int8x16_t w = vld1q_s8(b + 64 * q + 16 * c);
                multiply_add(acc + 2 * c, a + 4 * q, w);
                multiply_add(acc + 8 + 2 * c, a + 64 + 4 * q, w);
                CQ_LOADS_STAY;
            }
        }
#pragma GCC unroll 8
    for (size_t r = 0; r < 8; r++) vst1q_s32(sums + 4 * r, vpaddq_s32(acc[2 * r], acc[2 * r + 1]));
    cq_put_sums(t, i, j, m, n, sums);
}

void cq_gemm_s8_tile_neon(const cq_gemm_f32_tile *t) {
    for (size_t j = 0; j < t->n; j += 16)
        for (size_t i = 0; i < t->m; i += 2) two_rows(t, i, j);
}

#include "core/isa_end.h"
#endif
