/* SPDX-License-Identifier: Apache-2.0 */
/* A vector of codes is two registers of 8 outputs x 4 inputs; vpmaddubsw with four inputs of a row
 * and vpmaddwd with ones add them to int32 lanes. Codes of 7 bits cannot saturate (2 * 127 * 128 <
 * 2**15); of 8 bits the highest goes its own way, times 128 in vpmaddwd. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

#include "kernels/qlinear/tile_avx2.h"

#include <string.h>

enum { ROWS = 4 };

CQ_INLINE __m256i add_dot(__m256i acc, __m256i codes, __m256i x, int bits) {
    const __m256i ones = _mm256_set1_epi16(1), seven = _mm256_set1_epi8(127);
    __m256i low = codes;
    if (bits == 8) {
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 7), _mm256_set1_epi8(1));
        const __m256i pairs = _mm256_maddubs_epi16(high, x);
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(128)));
        low = _mm256_and_si256(codes, seven);
    }
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), ones));
}

CQ_INLINE __m256i four_inputs(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

/* Sums of up to 4 rows over inputs k0 .. k1 - 1 (k0 a multiple of 4): dot[row][16]. */
static void dots(const cq_qlinear_strip *t, const int8_t *x, size_t k0, size_t k1, size_t R,
                 int32_t *dot) {
    const uint8_t *tiles = t->head + cq_strip_head(t->G, t->asymmetric);
    const int8_t *x0 = x, *x1 = R > 1 ? x + t->ldx : x, *x2 = R > 2 ? x + 2 * t->ldx : x;
    const int8_t *x3 = R > 3 ? x + 3 * t->ldx : x;
    const int bits = t->bits;
    for (size_t half = 0; half < 2; half++) {
        __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
        for (size_t k = k0; k < k1; k += 4) {
            const uint8_t *tile = tiles + k / CQ_TILE * cq_tile_bytes(bits);
            const __m256i v = cq_codes_avx2(tile, bits, k % CQ_TILE / 4, half);
            a = add_dot(a, v, four_inputs(x0 + k), bits);
            if (R == 1) continue;
            b = add_dot(b, v, four_inputs(x1 + k), bits);
            c = add_dot(c, v, four_inputs(x2 + k), bits);
            d = add_dot(d, v, four_inputs(x3 + k), bits);
        }
        _mm256_storeu_si256((void *)(dot + 8 * half), a);
        _mm256_storeu_si256((void *)(dot + 8 * half + 16), b);
        _mm256_storeu_si256((void *)(dot + 8 * half + 32), c);
        _mm256_storeu_si256((void *)(dot + 8 * half + 48), d);
    }
}

typedef struct grid { /* 8 outputs of a group */
    __m256 scale;
    __m256i zero;
} grid;

CQ_INLINE grid grid_of(const cq_qlinear_strip *t, size_t g, size_t half) {
    const uint8_t *at = t->head + 2 * g * CQ_STRIP + 16 * half;
    const __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)at));
    const __m256i normal =
        _mm256_add_epi32(_mm256_slli_epi32(h, 13), _mm256_set1_epi32(0x38000000));
    const __m256 tiny = _mm256_mul_ps(_mm256_cvtepi32_ps(h), _mm256_set1_ps(0x1p-24f));
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x400), h);
    grid a = {_mm256_blendv_ps(_mm256_castsi256_ps(normal), tiny, _mm256_castsi256_ps(small)),
              _mm256_set1_epi32(1 << (t->bits - 1))};
    if (t->asymmetric) {
        at = t->head + (2 * t->G + g) * CQ_STRIP + 8 * half;
        a.zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)at));
    }
    return a;
}

CQ_INLINE __m256 centred(__m256i dot, __m256i zero, int32_t sum) {
    const __m256i offset = _mm256_mullo_epi32(zero, _mm256_set1_epi32(sum));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(dot, offset));
}

CQ_INLINE void add_to(float *acc, __m256 scale, __m256 f) {
    _mm256_storeu_ps(acc, _mm256_fmadd_ps(scale, f, _mm256_loadu_ps(acc)));
}

CQ_INLINE __m256i load(const int32_t *dot) { return _mm256_loadu_si256((const void *)dot); }

void cq_qlinear_s8_strip_avx2(const cq_qlinear_strip *t) {
    const size_t group = t->K / t->G;
    int32_t dot[ROWS * 16];
    memset(t->out, 0, t->M * CQ_STRIP * sizeof(float));
    for (size_t g = 0; g < t->G; g++) {
        const grid a[2] = {grid_of(t, g, 0), grid_of(t, g, 1)};
        for (size_t m = 0, R; m < t->M; m += R) {
            R = cq_min_size(t->M - m, ROWS);
            dots(t, t->x + m * t->ldx, g * group, (g + 1) * group, R, dot);
            for (size_t i = 0; i < 2 * R; i++) {
                const int32_t sum = t->xsum[g * t->stride + m + i / 2];
                add_to(t->out + m * CQ_STRIP + 8 * i, a[i % 2].scale,
                       centred(load(dot + 8 * i), a[i % 2].zero, sum));
            }
        }
    }
}

void cq_qlinear_f32_strip_avx2(const cq_qlinear_strip *t) {
    const size_t group = t->K / t->G, block = cq_block_inputs(t->K, t->G, 1);
    int32_t dot[ROWS * 16];
    memset(t->out, 0, t->M * CQ_STRIP * sizeof(float));
    size_t b = 0, end;
    for (size_t k0 = 0; k0 < t->K; k0 = end, b++) {
        end = cq_min_size(k0 + block, (k0 / group + 1) * group);
        const grid a[2] = {grid_of(t, k0 / group, 0), grid_of(t, k0 / group, 1)};
        for (size_t m = 0; m < t->M; m++) {
            const int32_t *sum = t->xsum + 2 * (b * t->stride + m);
            const __m256 step = _mm256_set1_ps(t->xstep[b * t->stride + m]);
            dots(t, t->x + m * CQ_DIGITS * t->ldx, k0, end, CQ_DIGITS, dot);
            for (size_t h = 0; h < 2; h++) {
                const int32_t *d = dot + 8 * h;
                const __m256i up = _mm256_slli_epi32(load(d + 48), 8);
                const __m256i down = _mm256_slli_epi32(load(d + 16), 8);
                const __m256 high = centred(_mm256_add_epi32(up, load(d + 32)), a[h].zero, sum[0]);
                const __m256 low = centred(_mm256_add_epi32(down, load(d)), a[h].zero, sum[1]);
                const __m256 f = _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
                add_to(t->out + m * CQ_STRIP + 8 * h, _mm256_mul_ps(a[h].scale, step), f);
            }
        }
    }
}

#include "core/isa_end.h"
#endif
