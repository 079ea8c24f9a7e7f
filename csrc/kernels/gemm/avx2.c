/* SPDX-License-Identifier: Apache-2.0 */
/* tile: 6 rows x 16 columns in 12 registers, fewer rows by the same code: a panel of A is two of
 * these high, a panel of B two wide; named variables, because gcc 12 spills arrays. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

#include "kernels/gemm/finish.h"

typedef struct pair { /* 16 columns of one row */
    __m256 lo, hi;
} pair;

CQ_INLINE void multiply_add(pair *c, const float *a, __m256 lo, __m256 hi) {
    const __m256 v = _mm256_broadcast_ss(a);
    c->lo = _mm256_fmadd_ps(v, lo, c->lo);
    c->hi = _mm256_fmadd_ps(v, hi, c->hi);
}

CQ_INLINE __m256i tail_mask(size_t left) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)cq_min_size(left, 8)), lane);
}

CQ_INLINE void finish(pair v, const cq_gemm_f32_tile *t, size_t n, float *c) {
    if (n >= 16) {
        if (!t->first) {
            v.lo = _mm256_add_ps(_mm256_loadu_ps(c), v.lo);
            v.hi = _mm256_add_ps(_mm256_loadu_ps(c + 8), v.hi);
        }
        _mm256_storeu_ps(c, v.lo);
        _mm256_storeu_ps(c + 8, v.hi);
        return;
    }
    const __m256i lo = tail_mask(n), hi = tail_mask(n > 8 ? n - 8 : 0);
    if (!t->first) {
        v.lo = _mm256_add_ps(_mm256_maskload_ps(c, lo), v.lo);
        v.hi = _mm256_add_ps(_mm256_maskload_ps(c + 8, hi), v.hi);
    }
    _mm256_maskstore_ps(c, lo, v.lo);
    _mm256_maskstore_ps(c + 8, hi, v.hi);
}

/* R rows, a constant, and n columns from column j on. */
CQ_INLINE void rows(const size_t R, const cq_gemm_f32_tile *t, const float *a, const size_t rs,
                    const size_t cs, size_t j, float *c) {
    const __m256 none = _mm256_setzero_ps();
    const size_t ldc = t->ldc, ldb = t->ldb, n = t->n - j;
    pair c0 = {none, none}, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0;
    const float *b = t->b + j, *a3 = a + 3 * rs;
    for (size_t r = 0; r < R; r++) __builtin_prefetch(c + r * ldc, 1);
    for (size_t k = t->kc; k > 0; k--) {
        const __m256 lo = _mm256_loadu_ps(b), hi = _mm256_loadu_ps(b + 8);
        multiply_add(&c0, a, lo, hi);
        if (R > 1) multiply_add(&c1, a + rs, lo, hi);
        if (R > 2) multiply_add(&c2, a + 2 * rs, lo, hi);
        if (R > 3) multiply_add(&c3, a3, lo, hi);
        if (R > 4) multiply_add(&c4, a3 + rs, lo, hi);
        if (R > 5) multiply_add(&c5, a3 + 2 * rs, lo, hi);
        a += cs, a3 += cs, b += ldb;
    }
    finish(c0, t, n, c);
    if (R > 1) finish(c1, t, n, c + ldc);
    if (R > 2) finish(c2, t, n, c + 2 * ldc);
    if (R > 3) finish(c3, t, n, c + 3 * ldc);
    if (R > 4) finish(c4, t, n, c + 4 * ldc);
    if (R > 5) finish(c5, t, n, c + 5 * ldc);
}

/* m <= 6 rows. */
CQ_INLINE void half_panel(const cq_gemm_f32_tile *t, const float *a, const size_t rs,
                          const size_t cs, size_t m, size_t j, float *c) {
    if (m == 6) {
        rows(6, t, a, rs, cs, j, c);
        return;
    }
    if (m >= 4) rows(4, t, a, rs, cs, j, c), a += 4 * rs, c += 4 * t->ldc, m -= 4;
    if (m >= 2) rows(2, t, a, rs, cs, j, c), a += 2 * rs, c += 2 * t->ldc, m -= 2;
    if (m) rows(1, t, a, rs, cs, j, c);
}

void cq_gemm_f32_tile_avx2(const cq_gemm_f32_tile *t) {
    const int packed = t->rsa == 1 && t->csa == CQ_GEMM_MR;
    for (size_t j = 0; j < t->n; j += 16)
        for (size_t i = 0; i < t->m; i += 6) {
            const float *a = t->a + i / CQ_GEMM_MR * t->psa + i % CQ_GEMM_MR * t->rsa;
            const size_t m = cq_min_size(t->m - i, 6);
            float *c = t->c + i * t->ldc + j;
            if (packed)
                half_panel(t, a, 1, CQ_GEMM_MR, m, j, c);
            else
                half_panel(t, a, t->rsa, t->csa, m, j, c);
        }
}

/* Four inputs of four lanes, stored one after the other. */
CQ_INLINE void transpose_store(const float *const *row, size_t k, size_t width, float *to) {
    __m128 a = _mm_loadu_ps(row[0] + k), b = _mm_loadu_ps(row[1] + k);
    __m128 c = _mm_loadu_ps(row[2] + k), d = _mm_loadu_ps(row[3] + k);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a);
    _mm_storeu_ps(to + width, b);
    _mm_storeu_ps(to + 2 * width, c);
    _mm_storeu_ps(to + 3 * width, d);
}

void cq_gemm_f32_pack_avx2(const float *x, size_t rs, size_t cs, size_t rows_, size_t kc,
                           size_t width, float *panel) {
    if (rs == 1 && rows_ == width) {
        for (size_t k = 0; k < kc; k++)
            for (size_t r = 0; r < width; r += 4)
                _mm_storeu_ps(panel + k * width + r, _mm_loadu_ps(x + k * cs + r));
        return;
    }
    if (cs != 1) {
        cq_gemm_f32_pack_scalar(x, rs, cs, rows_, kc, width, panel);
        return;
    }
    for (size_t r0 = 0; r0 < width; r0 += 4) {
        const float *row[4];
        float *to = panel + r0;
        size_t k = 0;
        for (size_t r = 0; r < 4; r++) row[r] = x + cq_min_size(r0 + r, rows_ - 1) * rs;
        for (; k + 4 <= kc; k += 4) transpose_store(row, k, width, to + k * width);
        for (; k < kc; k++)
            for (size_t r = 0; r < 4; r++) to[k * width + r] = row[r][k];
    }
}

void cq_gemm_f32_finish_avx2(const cq_gemm_finish *f, float *c, size_t ldc, size_t m, size_t n) {
    cq_gemm_finish_any(f, c, ldc, m, n);
}

void cq_gemm_f32_finite_avx2(const float *c, size_t ldc, size_t m, size_t n, int *finite) {
    *finite = cq_gemm_finite_any(c, ldc, m, n);
}

void cq_gemm_bf16_round_avx2(const float *c, size_t ldc, size_t m, size_t n, uint16_t *out,
                             size_t ldo) {
    cq_gemm_round_any(c, ldc, m, n, out, ldo);
}

#include "core/isa_end.h"
#endif
