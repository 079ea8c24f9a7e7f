/* SPDX-License-Identifier: Apache-2.0 */
/* The digits of a float row are the four rows that are multiplied at once. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

#include "kernels/qprefill/dots_avx2.h"

static const size_t STEP = CQ_QPREFILL_STEP;

/* high * 256 + low, plus the centre times the sum of x, as float. */
CQ_INLINE __m256 two(const int32_t *high, const int32_t *low, __m256i centre, int32_t sum) {
    const __m256i all = _mm256_add_epi32(_mm256_slli_epi32(load_quad(high), 8), load_quad(low));
    const __m256i more = _mm256_mullo_epi32(centre, _mm256_set1_epi32(sum));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(all, more));
}

/* 8 outputs at n of group g; row `at` of all rows' steps and sums. */
static void finish(const cq_qprefill_block *b, const int32_t *d, size_t at, size_t g, size_t n,
                   float *acc) {
    __m256i centre = _mm256_setzero_si256();
    int32_t high = 0, low = 0;
    if (b->centre) {
        centre = _mm256_loadu_si256((const void *)(b->centre + g * b->ld + n));
        high = b->xsum[2 * at], low = b->xsum[2 * at + 1];
    }
    const __m256 f = _mm256_fmadd_ps(two(d + 48, d + 32, centre, high), _mm256_set1_ps(65536.0f),
                                     two(d + 16, d, centre, low));
    const __m256 scale =
        _mm256_mul_ps(_mm256_loadu_ps(b->scale + g * b->ld + n), _mm256_set1_ps(b->xstep[at]));
    const __m256 before = b->first && g == 0 ? _mm256_setzero_ps() : _mm256_load_ps(acc);
    _mm256_store_ps(acc, _mm256_fmadd_ps(scale, f, before));
}

/* Row r of the 16 rows i, strip j. */
static void one_row(const cq_qprefill_block *b, size_t i, size_t j, size_t r) {
    const size_t bytes = b->steps * STEP;
    const uint8_t *x = b->x + CQ_DIGITS * i * b->ldx + r * 64;
    float *acc = b->acc + (i / 2 * b->n + j / 2) * 1024 + i % 2 * 512 + j % 2 * 256 + r * 16;
    _Alignas(32) int32_t d[64];
    for (size_t g = 0; g < b->groups; g++) {
        const int32_t *shift = b->shift + g * b->ld + 16 * j;
        dots(x + g * bytes, b->ldx, b->panel + j * b->ldpanel + g * bytes, b->steps, b->quads,
             b->most[j], shift, d);
        const size_t at = (i * b->ldsum + g) * 16 + r;
        finish(b, d, at, g, 16 * j, acc);
        finish(b, d + 8, at, g, 16 * j + 8, acc + 8);
    }
}

void cq_qprefill_digits_avx2(const cq_qprefill_block *b) {
    for (size_t i = 0; i < 2 * b->m; i++)
        for (size_t j = 0; j < 2 * b->n; j++)
            for (size_t r = 0; r < 16; r++) one_row(b, i, j, r);
}

#include "core/isa_end.h"
#endif
