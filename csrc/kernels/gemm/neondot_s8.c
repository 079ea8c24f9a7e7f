/* SPDX-License-Identifier: Apache-2.0 */
/* s8_tile: 4 rows x 16 columns in 16 registers, signed by signed. Checked under an emulator only:
 * speed is not measured. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neondot.h"

#include "kernels/gemm/dot_neon.h"
#include "kernels/gemm/sums_neon.h"

static const size_t TILE = 1024;

/* m <= 4 rows from row i on, n <= 16 columns from column j on. */
static void four_rows(const cq_gemm_f32_tile *t, size_t i, size_t j) {
    const int8_t *a = (const int8_t *)(t->a + i / CQ_GEMM_WIDE * t->psa);
    const int8_t *b = (const int8_t *)t->b + j / 16 * TILE;
    const size_t m = cq_min_size(t->m - i, 4), n = cq_min_size(t->n - j, 16);
    int32x4_t acc[16];
    int32_t sums[4 * 16];
    a += i % CQ_GEMM_WIDE / 16 * TILE + i % 16 * 64;
#pragma GCC unroll 16
    for (size_t r = 0; r < 16; r++) acc[r] = vdupq_n_s32(0);
    for (size_t k = 0; k < t->kc; k += 64, a += 2 * TILE, b += 2 * TILE)
        cq_dot_fours(acc, a, 64, b, 4, 4, 0);
#pragma GCC unroll 16
    for (size_t r = 0; r < 16; r++) vst1q_s32(sums + 4 * r, acc[r]);
    cq_put_sums(t, i, j, m, n, sums);
}

void cq_gemm_s8_tile_neondot(const cq_gemm_f32_tile *t) {
    for (size_t j = 0; j < t->n; j += 16)
        for (size_t i = 0; i < t->m; i += 4) four_rows(t, i, j);
}

#include "core/isa_end.h"
#endif
