/* SPDX-License-Identifier: Apache-2.0 */
/* s8_tile: both operands widened to int16, so that vpmaddwd, unlike vpmaddubsw, cannot saturate.
 * 2 rows x 16 columns in 8 registers, each 4 columns of two sums. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

#include <string.h>

static const size_t TILE = 1024;

typedef struct sixteen { /* 16 columns; named, not an array: gcc 12 spills arrays */
    __m256i v0, v1, v2, v3;
} sixteen;

CQ_INLINE __m256i wide(const int8_t *b) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)b));
}

CQ_INLINE void dot(sixteen *c, const int8_t *x, const sixteen *w) {
    int32_t four;
    memcpy(&four, x, 4);
    const __m256i v = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
    c->v0 = _mm256_add_epi32(c->v0, _mm256_madd_epi16(v, w->v0));
    c->v1 = _mm256_add_epi32(c->v1, _mm256_madd_epi16(v, w->v1));
    c->v2 = _mm256_add_epi32(c->v2, _mm256_madd_epi16(v, w->v2));
    c->v3 = _mm256_add_epi32(c->v3, _mm256_madd_epi16(v, w->v3));
}

/* Sums of the first n columns. */
CQ_INLINE void finish(sixteen v, float *to, size_t n, int first_block) {
    int32_t sum[16], *c = (int32_t *)(void *)to;
    const __m256i lo = _mm256_hadd_epi32(v.v0, v.v1), hi = _mm256_hadd_epi32(v.v2, v.v3);
    _mm256_storeu_si256((void *)sum, _mm256_permute4x64_epi64(lo, 0xD8));
    _mm256_storeu_si256((void *)(sum + 8), _mm256_permute4x64_epi64(hi, 0xD8));
    for (size_t j = 0; j < n; j++) c[j] = first_block ? sum[j] : c[j] + sum[j];
}

static void two_rows(const cq_gemm_f32_tile *t, size_t i, size_t j) {
    const int8_t *a = (const int8_t *)(t->a + i / CQ_GEMM_WIDE * t->psa);
    const int8_t *b = (const int8_t *)t->b + j / 16 * TILE;
    const __m256i zero = _mm256_setzero_si256();
    sixteen c0 = {zero, zero, zero, zero}, c1 = c0;
    a += i % CQ_GEMM_WIDE / 16 * TILE + i % 16 * 64;
    for (size_t k = 0; k < t->kc; k += 64, a += 2 * TILE, b += 2 * TILE) {
        for (size_t q = 0; q < 16; q++) {
            const int8_t *at = b + 64 * q;
            const sixteen w = {wide(at), wide(at + 16), wide(at + 32), wide(at + 48)};
            dot(&c0, a + 4 * q, &w);
            dot(&c1, a + 64 + 4 * q, &w);
        }
    }
    const size_t n = cq_min_size(t->n - j, 16);
    float *c = t->c + i * t->ldc + j;
    finish(c0, c, n, t->first);
    if (i + 1 < t->m) finish(c1, c + t->ldc, n, t->first);
}

void cq_gemm_s8_tile_avx2(const cq_gemm_f32_tile *t) {
    for (size_t i = 0; i < t->m; i += 2)
        for (size_t j = 0; j < t->n; j += 16) two_rows(t, i, j);
}

#include "core/isa_end.h"
#endif
