/* SPDX-License-Identifier: Apache-2.0 */
/* tile: 12 rows x 32 columns in 24 registers, fewer rows by the same code; named variables, because
 * gcc 12 spills arrays. Packed panels have their own loops: twelve_avx512.h where they are whole.
 * The cache lines of c are fetched while the sums run: they come from far away. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

#include "kernels/gemm/finish.h"
#include "kernels/gemm/twelve_avx512.h"

typedef struct pair { /* 32 columns of one row */
    __m512 lo, hi;
} pair;

CQ_INLINE void multiply_add(pair *c, const float *a, __m512 lo, __m512 hi) {
    const __m512 v = _mm512_set1_ps(*a);
    c->lo = _mm512_fmadd_ps(v, lo, c->lo);
    c->hi = _mm512_fmadd_ps(v, hi, c->hi);
}

CQ_INLINE void finish(pair v, const cq_gemm_f32_tile *t, float *c) {
    const __mmask16 lo = cq_tail_mask(t->n), hi = cq_tail_mask(t->n > 16 ? t->n - 16 : 0);
    if (!t->first) {
        v.lo = _mm512_add_ps(_mm512_maskz_loadu_ps(lo, c), v.lo);
        v.hi = _mm512_add_ps(_mm512_maskz_loadu_ps(hi, c + 16), v.hi);
    }
    _mm512_mask_storeu_ps(c, lo, v.lo);
    _mm512_mask_storeu_ps(c + 16, hi, v.hi);
}

CQ_INLINE void fetch(const cq_gemm_f32_tile *t, const float *c, size_t m) {
    for (size_t r = 0; r < m; r++) {
        __builtin_prefetch(c + r * t->ldc, 1);
        __builtin_prefetch(c + r * t->ldc + t->n - 1, 1);
    }
}

/* R rows, a constant; the strides are constants too where the panels are packed. */
CQ_INLINE void rows(const size_t R, const cq_gemm_f32_tile *t, const float *a, const size_t rs,
                    const size_t cs, const size_t ldb, float *c) {
    const __m512 none = _mm512_setzero_ps();
    const size_t ldc = t->ldc;
    const float *b = t->b;
    pair c0 = {none, none}, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0;
    pair c6 = c0, c7 = c0, c8 = c0, c9 = c0, c10 = c0, c11 = c0;
    fetch(t, c, R);
    const float *a3 = a + 3 * rs, *a6 = a + 6 * rs, *a9 = a + 9 * rs;
#pragma GCC unroll 2
    for (size_t k = t->kc; k > 0; k--) {
        const __m512 lo = _mm512_loadu_ps(b), hi = _mm512_loadu_ps(b + 16);
        multiply_add(&c0, a, lo, hi);
        if (R > 1) multiply_add(&c1, a + rs, lo, hi);
        if (R > 2) multiply_add(&c2, a + 2 * rs, lo, hi);
        if (R > 3) multiply_add(&c3, a3, lo, hi);
        if (R > 4) multiply_add(&c4, a3 + rs, lo, hi);
        if (R > 5) multiply_add(&c5, a3 + 2 * rs, lo, hi);
        if (R > 6) multiply_add(&c6, a6, lo, hi);
        if (R > 7) multiply_add(&c7, a6 + rs, lo, hi);
        if (R > 8) multiply_add(&c8, a6 + 2 * rs, lo, hi);
        if (R > 9) multiply_add(&c9, a9, lo, hi);
        if (R > 10) multiply_add(&c10, a9 + rs, lo, hi);
        if (R > 11) multiply_add(&c11, a9 + 2 * rs, lo, hi);
        a += cs, a3 += cs, a6 += cs, a9 += cs, b += ldb;
    }
    finish(c0, t, c);
    if (R > 1) finish(c1, t, c + ldc);
    if (R > 2) finish(c2, t, c + 2 * ldc);
    if (R > 3) finish(c3, t, c + 3 * ldc);
    if (R > 4) finish(c4, t, c + 4 * ldc);
    if (R > 5) finish(c5, t, c + 5 * ldc);
    if (R > 6) finish(c6, t, c + 6 * ldc);
    if (R > 7) finish(c7, t, c + 7 * ldc);
    if (R > 8) finish(c8, t, c + 8 * ldc);
    if (R > 9) finish(c9, t, c + 9 * ldc);
    if (R > 10) finish(c10, t, c + 10 * ldc);
    if (R > 11) finish(c11, t, c + 11 * ldc);
}

/* m <= 12 rows. */
CQ_INLINE void panel(const cq_gemm_f32_tile *t, const float *a, const size_t rs, const size_t cs,
                     const size_t ldb, size_t m, float *c) {
    if (m == CQ_GEMM_MR) {
        rows(12, t, a, rs, cs, ldb, c);
        return;
    }
    if (m >= 8) rows(8, t, a, rs, cs, ldb, c), a += 8 * rs, c += 8 * t->ldc, m -= 8;
    if (m >= 4) rows(4, t, a, rs, cs, ldb, c), a += 4 * rs, c += 4 * t->ldc, m -= 4;
    if (m >= 2) rows(2, t, a, rs, cs, ldb, c), a += 2 * rs, c += 2 * t->ldc, m -= 2;
    if (m) rows(1, t, a, rs, cs, ldb, c);
}

void cq_gemm_f32_tile_avx512(const cq_gemm_f32_tile *t) {
    const int packed = t->rsa == 1 && t->csa == CQ_GEMM_MR && t->ldb == CQ_GEMM_NR;
    const float *a = t->a;
    /* Each of the panels of A brings its share of the next panel of B. */
    const size_t most = CQ_GEMM_NR * sizeof(float), share = cq_ceil_div(most * CQ_GEMM_MR, t->m);
    const size_t step = cq_min_size(share, most);
    const char *ahead = (const char *)t->ahead;
    for (size_t i = 0; i < t->m; i += CQ_GEMM_MR, a += t->psa) {
        const size_t m = cq_min_size(t->m - i, CQ_GEMM_MR);
        float *c = t->c + i * t->ldc;
        if (packed && m == CQ_GEMM_MR && t->kc) {
            fetch(t, c, CQ_GEMM_MR);
            twelve(t, a, c, ahead, step);
            if (ahead) ahead += step * t->kc;
        } else if (packed) {
            panel(t, a, 1, CQ_GEMM_MR, CQ_GEMM_NR, m, c);
        } else {
            panel(t, a, t->rsa, t->csa, t->ldb, m, c);
        }
    }
}

/* Four inputs of up to 16 lanes, stored one after the other: 128-bit lane l of row[q] is lane
 * 4 * l + q of the panel, and 8 unpacks transpose 4 x 4 blocks. */
CQ_INLINE void transpose_store(const float *const *row, size_t k, const size_t lanes, size_t width,
                               float *to) {
    __m512 v[4];
    for (size_t q = 0; q < 4; q++) {
        v[q] = _mm512_castps128_ps512(_mm_loadu_ps(row[q] + k));
        v[q] = _mm512_insertf32x4(v[q], _mm_loadu_ps(row[q + 4] + k), 1);
        v[q] = _mm512_insertf32x4(v[q], _mm_loadu_ps(row[q + 8] + k), 2);
        if (lanes > 12) v[q] = _mm512_insertf32x4(v[q], _mm_loadu_ps(row[q + 12] + k), 3);
    }
    const __m512 a = _mm512_unpacklo_ps(v[0], v[1]), b = _mm512_unpackhi_ps(v[0], v[1]);
    const __m512 c = _mm512_unpacklo_ps(v[2], v[3]), d = _mm512_unpackhi_ps(v[2], v[3]);
    const __m512d ad = _mm512_castps_pd(a), bd = _mm512_castps_pd(b);
    const __m512d cd = _mm512_castps_pd(c), dd = _mm512_castps_pd(d);
    const __mmask16 m = cq_tail_mask(lanes);
    _mm512_mask_storeu_ps(to, m, _mm512_castpd_ps(_mm512_unpacklo_pd(ad, cd)));
    _mm512_mask_storeu_ps(to + width, m, _mm512_castpd_ps(_mm512_unpackhi_pd(ad, cd)));
    _mm512_mask_storeu_ps(to + 2 * width, m, _mm512_castpd_ps(_mm512_unpacklo_pd(bd, dd)));
    _mm512_mask_storeu_ps(to + 3 * width, m, _mm512_castpd_ps(_mm512_unpackhi_pd(bd, dd)));
}

/* Inputs are contiguous (cs = 1): `lanes` lanes of the panel from lane r0 on. */
CQ_INLINE void pack_rows(const float *x, size_t rs, size_t rows_, size_t r0, size_t kc,
                         const size_t lanes, size_t width, float *to) {
    const float *row[16];
    for (size_t r = 0; r < lanes; r++) row[r] = x + cq_min_size(r0 + r, rows_ - 1) * rs;
    size_t k = 0;
    for (; k + 4 <= kc; k += 4) {
        if (k % 16 == 0) /* the next block of inputs: its packing will not wait for memory */
            for (size_t r = 0; r < lanes; r++)
                _mm_prefetch((const char *)(row[r] + k + CQ_GEMM_KC), _MM_HINT_T1);
        transpose_store(row, k, lanes, width, to + k * width);
    }
    for (; k < kc; k++)
        for (size_t r = 0; r < lanes; r++) to[k * width + r] = row[r][k];
}

void cq_gemm_f32_pack_avx512(const float *x, size_t rs, size_t cs, size_t rows_, size_t kc,
                             size_t width, float *to) {
    if (cs == 1 && width == CQ_GEMM_MR) {
        pack_rows(x, rs, rows_, 0, kc, 12, width, to);
    } else if (cs == 1 && width % 16 == 0) {
        for (size_t r = 0; r < width; r += 16) pack_rows(x, rs, rows_, r, kc, 16, width, to + r);
    } else if (rs == 1 && rows_ == width) {
        for (size_t k = 0; k < kc; k++)
            for (size_t r = 0; r < width; r += 16) {
                const __mmask16 m = cq_tail_mask(width - r);
                const __m512 v = _mm512_maskz_loadu_ps(m, x + k * cs + r);
                _mm_prefetch((const char *)(x + k * cs + r + width), _MM_HINT_T1); /* next panel */
                _mm512_mask_storeu_ps(to + k * width + r, m, v);
            }
    } else {
        cq_gemm_f32_pack_scalar(x, rs, cs, rows_, kc, width, to);
    }
}

void cq_gemm_f32_stream_avx512(const float *from, float *to, size_t n) {
    const size_t head = cq_min_size((64 - (uintptr_t)to % 64) % 64 / sizeof(float), n);
    const __mmask16 m = cq_tail_mask(head);
    size_t i = head;
    _mm512_mask_storeu_ps(to, m, _mm512_maskz_loadu_ps(m, from));
    for (; i + 16 <= n; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
    const __mmask16 tail = cq_tail_mask(n - i);
    _mm512_mask_storeu_ps(to + i, tail, _mm512_maskz_loadu_ps(tail, from + i));
    _mm_sfence();
}

void cq_gemm_f32_finish_avx512(const cq_gemm_finish *f, float *c, size_t ldc, size_t m, size_t n) {
    cq_gemm_finish_any(f, c, ldc, m, n);
}

void cq_gemm_f32_finite_avx512(const float *c, size_t ldc, size_t m, size_t n, int *finite) {
    *finite = cq_gemm_finite_any(c, ldc, m, n);
}

void cq_gemm_bf16_round_avx512(const float *c, size_t ldc, size_t m, size_t n, uint16_t *out,
                               size_t ldo) {
    cq_gemm_round_any(c, ldc, m, n, out, ldo);
}

#include "core/isa_end.h"
#endif
