/* SPDX-License-Identifier: Apache-2.0 */
/* As for VNNI x is stored plus 128, and shift takes off 128 times the sum of the weights. Measured
 * on one core, 256 rows, groups of 128, beside the strip kernels: 4 bits 2.0 x (float32 rows 1.75
 * x), 2 bits 2.4 x, 8 bits 1.07 x. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

#include "kernels/qlinear/tile_avx2.h"
#include "kernels/qprefill/dots_avx2.h"

#include <string.h>

static const size_t STEP = CQ_QPREFILL_STEP;

void cq_qprefill_row_avx2(const int8_t *x, size_t groups, size_t group, uint8_t *to) {
    const __m256i flip = _mm256_set1_epi8(-128);
    for (size_t g = 0; g < groups; g++) {
        for (size_t k = 0; k < group; k += CQ_TILE, to += STEP) {
            const size_t count = cq_min_size(group - k, CQ_TILE);
            int8_t bytes[64] = {0};
            memcpy(bytes, x + k, count);
            for (size_t h = 0; h < 64; h += 32) {
                const __m256i v = _mm256_loadu_si256((const void *)(bytes + h));
                _mm256_store_si256((void *)(to + h), _mm256_xor_si256(v, flip));
            }
        }
        x += group;
    }
}

/* 8 bytes, each to the four bytes of its lane. */
static __m256i four_times(const uint8_t *zero) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)zero));
    return _mm256_mullo_epi32(wide, _mm256_set1_epi32(0x01010101));
}

static __m256i sum_of_fours(__m256i v) {
    const __m256i twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
    return _mm256_madd_epi16(twos, _mm256_set1_epi16(1));
}

/* Half h (8 outputs) of group g. */
static void half_panel(const cq_qprefill_strip *s, size_t g, size_t h) {
    const size_t first = (s->k0 + g * s->group) / 4, quads = cq_ceil_div(s->inputs, 4);
    int8_t *to = s->panel + g * s->steps * STEP + 32 * h;
    const __m256i zero = s->zero ? four_times(s->zero + 16 * g + 8 * h)
                                 : _mm256_set1_epi8((char)(1 << (s->bits - 1)));
    __m256i sum = _mm256_setzero_si256();
    for (size_t q = 0; q < 16 * s->steps; q++) {
        __m256i v = _mm256_setzero_si256();
        if (q < quads) {
            const uint8_t *tile = s->tiles + (first + q) / 16 * cq_tile_bytes(s->bits);
            v = _mm256_sub_epi8(cq_codes_avx2(tile, s->bits, (first + q) % 16, h), zero);
            sum = _mm256_add_epi32(sum, sum_of_fours(v));
        }
        _mm256_store_si256((void *)(to + 64 * q), v);
    }
    _mm256_storeu_si256((void *)(s->shift + g * s->ldshift + 8 * h),
                        _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, 7)));
}

void cq_qprefill_panel_avx2(const cq_qprefill_strip *s) {
    for (size_t g = 0; g < s->groups; g++) {
        half_panel(s, g, 0);
        half_panel(s, g, 1);
    }
}

/* Row r of block row i, 8 outputs at n of group g: its dots to acc. */
static void scale_add(const cq_qprefill_block *b, size_t r, size_t n, size_t g, __m256i dot,
                      float *acc) {
    if (b->centre) {
        const __m256i centre = _mm256_loadu_si256((const void *)(b->centre + g * b->ld + n));
        const __m256i sum = _mm256_set1_epi32(b->xsum[r * b->ldsum + g]);
        dot = _mm256_add_epi32(dot, _mm256_mullo_epi32(centre, sum));
    }
    const __m256 before = b->first && g == 0 ? _mm256_setzero_ps() : _mm256_load_ps(acc);
    const __m256 scale = _mm256_loadu_ps(b->scale + g * b->ld + n);
    _mm256_store_ps(acc, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), before));
}

/* Rows r .. r + 3 of block row i, strip j. */
static void four_rows(const cq_qprefill_block *b, size_t i, size_t j, size_t r) {
    const size_t bytes = b->steps * STEP;
    const size_t at = (i * b->n + j / 2) * 1024 + r / 16 * 512 + j % 2 * 256 + r % 16 * 16;
    const uint8_t *x = b->x + (2 * i + r / 16) * b->ldx + r % 16 * 64;
    _Alignas(32) int32_t sum[64];
    for (size_t g = 0; g < b->groups; g++) {
        const int32_t *shift = b->shift + g * b->ld + 16 * j;
        dots(x + g * bytes, 64, b->panel + j * b->ldpanel + g * bytes, b->steps, b->quads,
             b->most[j], shift, sum);
        for (size_t q = 0; q < 64; q += 8) {
            __m256i dot = load_quad(sum + q);
            if (!b->begin) dot = _mm256_add_epi32(dot, load_quad(b->part + at + q));
            if (b->end)
                scale_add(b, 32 * i + r + q / 16, 16 * j + q % 16, g, dot, b->acc + at + q);
            else
                _mm256_store_si256((void *)(b->part + at + q), dot);
        }
    }
}

void cq_qprefill_block_avx2(const cq_qprefill_block *b) {
    for (size_t i = 0; i < b->m; i++)
        for (size_t j = 0; j < 2 * b->n; j++)
            for (size_t r = 0; r < 32; r += 4) four_rows(b, i, j, r);
}

#include "core/isa_end.h"
#endif
