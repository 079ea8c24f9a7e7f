/* SPDX-License-Identifier: Apache-2.0 */
/* tile: 12 rows x 8 columns in 24 registers; three loads give a column of a packed panel of A,
 * whose lanes are multiplied by two vectors of B. Rows that lie elsewhere are broadcast one by one.
 * The epilogue stays with the scalar file: compilers for aarch64 vectorise it there. Checked under
 * an emulator only: speed is not measured. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"

#include "kernels/neon.h"

#include <string.h>

typedef struct pair { /* 8 columns of one row */
    float32x4_t lo, hi;
} pair;

CQ_INLINE void multiply_lane(pair *c, pair b, float32x4_t a, const size_t lane) {
    switch (lane) {
    case 0:
        c->lo = vfmaq_laneq_f32(c->lo, b.lo, a, 0), c->hi = vfmaq_laneq_f32(c->hi, b.hi, a, 0);
        return;
    case 1:
        c->lo = vfmaq_laneq_f32(c->lo, b.lo, a, 1), c->hi = vfmaq_laneq_f32(c->hi, b.hi, a, 1);
        return;
    case 2:
        c->lo = vfmaq_laneq_f32(c->lo, b.lo, a, 2), c->hi = vfmaq_laneq_f32(c->hi, b.hi, a, 2);
        return;
    default: c->lo = vfmaq_laneq_f32(c->lo, b.lo, a, 3), c->hi = vfmaq_laneq_f32(c->hi, b.hi, a, 3);
    }
}

CQ_INLINE pair load(const float *b) { return (pair){vld1q_f32(b), vld1q_f32(b + 4)}; }

CQ_INLINE void store(float *c, pair v) { vst1q_f32(c, v.lo), vst1q_f32(c + 4, v.hi); }

/* m rows of 8 sums to c, of which column j is the first. Out of memory: kept in registers the sums
 * would be spilled around every branch. */
static void finish(const cq_gemm_f32_tile *t, const float *sums, size_t m, size_t j, float *c) {
    const size_t n = cq_min_size(t->n - j, 8);
    for (size_t r = 0; r < m; r++, sums += 8, c += t->ldc) {
        float some[8];
        if (n < 8) memcpy(some, c, n * sizeof *c);
        float *to = n < 8 ? some : c;
        pair v = load(sums);
        if (!t->first) {
            const pair old = load(to);
            v = (pair){vaddq_f32(old.lo, v.lo), vaddq_f32(old.hi, v.hi)};
        }
        store(to, v);
        if (n < 8) memcpy(c, some, n * sizeof *c);
    }
}

/* 4 Q rows of a packed panel, of which m are stored, and 8 columns from column j on. */
CQ_INLINE void packed_rows(const size_t Q, const cq_gemm_f32_tile *t, const float *a, size_t m,
                           size_t j, float *c) {
    const float32x4_t none = vdupq_n_f32(0.0f);
    const float *b = t->b + j;
    pair sum[12];
#pragma GCC unroll 12
    for (size_t r = 0; r < 4 * Q; r++) sum[r] = (pair){none, none};
    for (size_t k = t->kc; k > 0; k--, a += CQ_GEMM_MR, b += t->ldb) {
        const pair row = load(b);
        float32x4_t column[3];
#pragma GCC unroll 3
        for (size_t q = 0; q < Q; q++) column[q] = vld1q_f32(a + 4 * q);
#pragma GCC unroll 12
        for (size_t r = 0; r < 4 * Q; r++) multiply_lane(sum + r, row, column[r / 4], r % 4);
    }
    float sums[12 * 8];
#pragma GCC unroll 12
    for (size_t r = 0; r < 4 * Q; r++) store(sums + 8 * r, sum[r]);
    finish(t, sums, m, j, c);
}

/* R rows that lie rs apart, their inputs cs. */
CQ_INLINE void strided_rows(const size_t R, const cq_gemm_f32_tile *t, const float *a, size_t j,
                            float *c) {
    const float32x4_t none = vdupq_n_f32(0.0f);
    const float *b = t->b + j;
    pair sum[8];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) sum[r] = (pair){none, none};
    for (size_t k = t->kc; k > 0; k--, a += t->csa, b += t->ldb) {
        const pair row = load(b);
#pragma GCC unroll 8
        for (size_t r = 0; r < R; r++) {
            const float32x4_t v = vld1q_dup_f32(a + r * t->rsa);
            sum[r].lo = vfmaq_f32(sum[r].lo, row.lo, v);
            sum[r].hi = vfmaq_f32(sum[r].hi, row.hi, v);
        }
    }
    float sums[8 * 8];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) store(sums + 8 * r, sum[r]);
    finish(t, sums, R, j, c);
}

static void packed_panel(const cq_gemm_f32_tile *t, const float *a, size_t m, size_t j, float *c) {
    if (m > 8)
        packed_rows(3, t, a, m, j, c);
    else if (m > 4)
        packed_rows(2, t, a, m, j, c);
    else
        packed_rows(1, t, a, m, j, c);
}

static void strided_panel(const cq_gemm_f32_tile *t, const float *a, size_t m, size_t j, float *c) {
    if (m >= 8) strided_rows(8, t, a, j, c), a += 8 * t->rsa, c += 8 * t->ldc, m -= 8;
    if (m >= 4) strided_rows(4, t, a, j, c), a += 4 * t->rsa, c += 4 * t->ldc, m -= 4;
    for (; m; m--, a += t->rsa, c += t->ldc) strided_rows(1, t, a, j, c);
}

void cq_gemm_f32_tile_neon(const cq_gemm_f32_tile *t) {
    const int packed = t->rsa == 1 && t->csa == CQ_GEMM_MR;
    for (size_t j = 0; j < t->n; j += 8) {
        const float *a = t->a;
        for (size_t i = 0; i < t->m; i += CQ_GEMM_MR, a += t->psa) {
            const size_t m = cq_min_size(t->m - i, CQ_GEMM_MR);
            if (packed)
                packed_panel(t, a, m, j, t->c + i * t->ldc + j);
            else
                strided_panel(t, a, m, j, t->c + i * t->ldc + j);
        }
    }
}

void cq_gemm_f32_pack_neon(const float *x, size_t rs, size_t cs, size_t rows, size_t kc,
                           size_t width, float *panel) {
    if (rs == 1 && rows == width) {
        for (size_t k = 0; k < kc; k++) memcpy(panel + k * width, x + k * cs, width * sizeof *x);
        return;
    }
    if (cs != 1) {
        cq_gemm_f32_pack_scalar(x, rs, cs, rows, kc, width, panel);
        return;
    }
    for (size_t r0 = 0; r0 < width; r0 += 4) {
        const float *row[4];
        float *to = panel + r0;
        size_t k = 0;
        for (size_t r = 0; r < 4; r++) row[r] = x + cq_min_size(r0 + r, rows - 1) * rs;
        for (; k + 4 <= kc; k += 4)
            cq_transpose_store(vld1q_f32(row[0] + k), vld1q_f32(row[1] + k), vld1q_f32(row[2] + k),
                               vld1q_f32(row[3] + k), width, to + k * width);
        for (; k < kc; k++)
            for (size_t r = 0; r < 4; r++) to[k * width + r] = row[r][k];
    }
}

#include "core/isa_end.h"
#endif
