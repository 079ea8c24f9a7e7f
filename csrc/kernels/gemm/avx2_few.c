/* SPDX-License-Identifier: Apache-2.0 */
/* As avx512_few.c, up to 6 rows at a time; more rows read the same part of B again, which is in L1
 * by then. Columns are turned 8 x 8. Measured over packing B, 1 .. 12 rows x 4096 x 4096 from DRAM:
 * 2.1 to 2.7 times as fast by rows, 1.5 to 2.4 by columns. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

enum { DEEP = 8 };

/* Inputs k .. k + deep - 1 of R rows and 8 V whole vectors of columns from j on. */
CQ_INLINE void chunk(const size_t R, const size_t V, const cq_gemm_f32_few *t, const float *a,
                     size_t k, size_t deep, size_t j, float *sums, size_t ld) {
    const size_t rsb = t->rsb, lda = t->lda;
    const float *b = t->b + k * rsb + j;
    __m256 acc[12];
    a += k * lda;
#pragma GCC unroll 12
    for (size_t i = 0; i < R * V; i++)
        acc[i] = k ? _mm256_load_ps(sums + i / V * ld + i % V * 8) : _mm256_setzero_ps();
    for (; deep; deep--, a += lda, b += rsb) {
        __m256 w[4];
#pragma GCC unroll 4
        for (size_t v = 0; v < V; v++) {
            if (v % 2 == 0) _mm_prefetch((const char *)(b + DEEP * rsb + 8 * v), _MM_HINT_T1);
            w[v] = _mm256_loadu_ps(b + 8 * v);
        }
#pragma GCC unroll 6
        for (size_t r = 0; r < R; r++) {
            const __m256 x = _mm256_broadcast_ss(a + r);
#pragma GCC unroll 4
            for (size_t v = 0; v < V; v++)
                acc[r * V + v] = _mm256_fmadd_ps(x, w[v], acc[r * V + v]);
        }
    }
#pragma GCC unroll 12
    for (size_t i = 0; i < R * V; i++) _mm256_store_ps(sums + i / V * ld + i % V * 8, acc[i]);
}

/* The whole vectors of columns of R rows from row i on, as sums [R, ld]. */
CQ_INLINE void by_rows(const size_t R, const size_t V, const cq_gemm_f32_few *t, size_t i, size_t k,
                       float *sums, size_t ld) {
    const size_t deep = cq_min_size(t->kc - k, DEEP);
    size_t j = 0;
    for (; j + 8 * V <= ld; j += 8 * V) chunk(R, V, t, t->a + i, k, deep, j, sums + j, ld);
    for (; j < ld; j += 8) chunk(R, 1, t, t->a + i, k, deep, j, sums + j, ld);
}

/* v[q]: element k + q of 8 columns. */
CQ_INLINE void turn(const float *const *column, size_t k, __m256 v[8]) {
    __m256 w[8];
#pragma GCC unroll 4
    for (size_t l = 0; l < 8; l += 2) {
        const __m256 a = _mm256_loadu_ps(column[l] + k), b = _mm256_loadu_ps(column[l + 1] + k);
        w[l] = _mm256_unpacklo_ps(a, b);
        w[l + 1] = _mm256_unpackhi_ps(a, b);
    }
#pragma GCC unroll 2
    for (size_t l = 0; l < 8; l += 4) /* v[l + q]: elements q, q + 4 of columns l .. l + 3 */
#pragma GCC unroll 2
        for (size_t h = 0; h < 2; h++) {
            v[l + 2 * h] = _mm256_shuffle_ps(w[l + h], w[l + h + 2], 0x44);
            v[l + 2 * h + 1] = _mm256_shuffle_ps(w[l + h], w[l + h + 2], 0xEE);
        }
#pragma GCC unroll 4
    for (size_t q = 0; q < 4; q++) {
        const __m256 a = v[q], b = v[q + 4];
        v[q] = _mm256_permute2f128_ps(a, b, 0x20);
        v[q + 4] = _mm256_permute2f128_ps(a, b, 0x31);
    }
}

/* R rows from row i on, 8 columns from column j on; whole eights of inputs. */
CQ_INLINE void by_columns(const size_t R, const cq_gemm_f32_few *t, size_t i,
                          const float *const *column, float *sums) {
    const float *a = t->a + i;
    __m256 acc[6], v[8];
#pragma GCC unroll 6
    for (size_t r = 0; r < R; r++) acc[r] = _mm256_setzero_ps();
    for (size_t k = 0; k + 8 <= t->kc; k += 8) {
        if (k % 16 == 0)
#pragma GCC unroll 8
            for (size_t l = 0; l < 8; l++)
                _mm_prefetch((const char *)(column[l] + k + 256), _MM_HINT_T1);
        turn(column, k, v);
#pragma GCC unroll 8
        for (size_t q = 0; q < 8; q++, a += t->lda)
#pragma GCC unroll 6
            for (size_t r = 0; r < R; r++)
                acc[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(a + r), v[q], acc[r]);
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < R; r++) _mm256_store_ps(sums + 8 * r, acc[r]);
}

CQ_INLINE void rows_of(const size_t m, const cq_gemm_f32_few *t, size_t i, size_t k, float *sums,
                       size_t ld) {
    switch (m) {
    case 1: by_rows(1, 4, t, i, k, sums, ld); return;
    case 2: by_rows(2, 4, t, i, k, sums, ld); return;
    case 3: by_rows(3, 4, t, i, k, sums, ld); return;
    case 4: by_rows(4, 2, t, i, k, sums, ld); return;
    case 5: by_rows(5, 2, t, i, k, sums, ld); return;
    default: by_rows(6, 2, t, i, k, sums, ld); return;
    }
}

CQ_INLINE void columns_of(const size_t m, const cq_gemm_f32_few *t, size_t i,
                          const float *const *column, float *sums) {
    switch (m) {
    case 1: by_columns(1, t, i, column, sums); return;
    case 2: by_columns(2, t, i, column, sums); return;
    case 3: by_columns(3, t, i, column, sums); return;
    case 4: by_columns(4, t, i, column, sums); return;
    case 5: by_columns(5, t, i, column, sums); return;
    default: by_columns(6, t, i, column, sums); return;
    }
}

/* c from the sums [m, ld] of n columns from j on. */
CQ_INLINE void put(const cq_gemm_f32_few *t, size_t j, size_t n, const float *sums, size_t ld) {
    for (size_t r = 0; r < t->m; r++) {
        float *c = t->c + r * t->ldc + j;
        // NOLINTNEXTLINE(clang-analyzer-core.*): there is at least one input, so all are written
        for (size_t l = 0; l < n; l++) c[l] = t->first ? sums[r * ld + l] : c[l] + sums[r * ld + l];
    }
}

/* Columns j .. n - 1, fewer than a vector, one by one. */
static void last_columns(const cq_gemm_f32_few *t, size_t j) {
    cq_gemm_f32_few rest = *t;
    rest.b += j * t->csb;
    rest.c += j;
    rest.n -= j;
    if (rest.n) cq_gemm_f32_few_scalar(&rest);
}

/* More inputs of sums of 8 columns, one by one: fewer than eight are left. */
static void last_inputs(const cq_gemm_f32_few *t, const float *const *column, float *sums) {
    for (size_t k = t->kc / 8 * 8; k < t->kc; k++)
        for (size_t r = 0; r < t->m; r++)
            for (size_t l = 0; l < 8; l++) {
                const __m128 x = _mm_load_ss(t->a + k * t->lda + r);
                const __m128 s = _mm_load_ss(sums + 8 * r + l);
                _mm_store_ss(sums + 8 * r + l, _mm_fmadd_ss(x, _mm_load_ss(column[l] + k), s));
            }
}

void cq_gemm_f32_few_avx2(const cq_gemm_f32_few *t) {
    _Alignas(32) float sums[CQ_GEMM_FEW];
    const size_t whole = t->n / 8 * 8;
    if (t->csb == 1) {
        for (size_t k = 0; k < t->kc; k += DEEP)
            for (size_t i = 0; i < t->m; i += 6)
                rows_of(cq_min_size(t->m - i, 6), t, i, k, sums + i * whole, whole);
        if (whole) put(t, 0, whole, sums, whole);
    } else {
        for (size_t j = 0; j < whole; j += 8) {
            const float *column[8];
            for (size_t l = 0; l < 8; l++) column[l] = t->b + (j + l) * t->csb;
            for (size_t i = 0; i < t->m; i += 6)
                columns_of(cq_min_size(t->m - i, 6), t, i, column, sums + 8 * i);
            last_inputs(t, column, sums);
            put(t, j, 8, sums, 8);
        }
    }
    last_columns(t, whole);
}

#include "core/isa_end.h"
#endif
