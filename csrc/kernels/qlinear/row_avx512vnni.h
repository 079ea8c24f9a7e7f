/* SPDX-License-Identifier: Apache-2.0 */
/* One row of int8 times a strip, whose groups are whole tiles. Here the fields of a vector of codes
 * are not moved: an AND leaves field i of w bits times 2**(w * i), its sums are that much larger
 * (at most 255 * 128 per input, as codes of 8 bits), and are shifted once per group. Include
 * between isa_begin and isa_end. */
#ifndef CQ_ROW_AVX512VNNI_H
#define CQ_ROW_AVX512VNNI_H

#include "kernels/qlinear/sums_avx512.h"
#include "kernels/qlinear/tile_avx512.h"

/* Not the intrinsic: with it gcc 12 copies and spills the sums. */
CQ_INLINE __m512i dpbusd(__m512i acc, __m512i codes, const int8_t *four) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(acc)
            : "v"(codes), "m"(*(const int32_t *)(const void *)four));
    return acc;
}

/* Chains of sums of each field of a plane of w bits, so that enough of them are in flight. */
CQ_INLINE int chains_of(const int bits, const int w) {
    return w == 4 ? (bits == 4 ? 4 : 2) : w == 2 && bits == 2 ? 2 : 1;
}

/* Half a tile of a plane: acc [chains][fields]. */
CQ_INLINE void add_plane(const uint8_t *plane, const int bits, const int w, const int half,
                         const int8_t *x, __m512i *acc) {
    const int fields = 8 / w, chains = chains_of(bits, w);
#pragma GCC unroll 4
    for (int j = 0; j < w; j++) {
        const __m512i p = cq_load_codes(plane + 64 * (size_t)(half * w + j));
#pragma GCC unroll 8
        for (int i = 0; i < fields; i++) {
            const __m512i mask = _mm512_set1_epi8((char)(((1 << w) - 1) << (w * i)));
            const int to = j % chains * fields + i;
            acc[to] = dpbusd(acc[to], _mm512_and_si512(p, mask),
                             x + 4 * (size_t)(8 * half + j * fields + i));
        }
    }
}

/* The sum of a plane whose lowest bit is bit `low` of the codes. */
CQ_INLINE __m512i plane_sum(const int bits, const int w, const int low, const __m512i *acc) {
    const int fields = 8 / w, chains = chains_of(bits, w);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < fields; i++) {
        __m512i field = acc[i];
#pragma GCC unroll 4
        for (int c = 1; c < chains; c++) field = _mm512_add_epi32(field, acc[c * fields + i]);
        sum = _mm512_add_epi32(sum, _mm512_srai_epi32(field, (unsigned)(w * i)));
    }
    return _mm512_slli_epi32(sum, (unsigned)low);
}

/* Sums over a group of `tiles` tiles; 8 vectors of sums per plane. */
CQ_INLINE __m512i row_dot(const uint8_t *tile, size_t tiles, const int bits, const int8_t *x) {
    const size_t two = bits & 4 ? 512 : 0, one = two + (bits & 2 ? 256 : 0);
    const int low2 = bits & 4, low1 = bits & 6;
    __m512i acc[24];
#pragma GCC unroll 24
    for (int i = 0; i < 24; i++) acc[i] = _mm512_setzero_si512();
    for (size_t k = 0; k < tiles; k++, tile += cq_tile_bytes(bits), x += CQ_TILE) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            cq_ask(tile + 64 * (size_t)(half * bits), bits);
            if (bits & 4) add_plane(tile, bits, 4, half, x, acc);
            if (bits & 2) add_plane(tile + two, bits, 2, half, x, acc + 8);
            if (bits & 1) add_plane(tile + one, bits, 1, half, x, acc + 16);
#pragma GCC unroll 8
            for (int q = 0; q < 8 && bits == 8; q++)
                acc[q] = dpbusd(acc[q], cq_load_codes(tile + 64 * (size_t)(8 * half + q)),
                                x + 4 * (size_t)(8 * half + q));
        }
    }
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int q = 0; q < 8 && bits == 8; q++) sum = _mm512_add_epi32(sum, acc[q]);
    if (bits & 4) sum = plane_sum(bits, 4, 0, acc);
    if (bits & 2) sum = _mm512_add_epi32(sum, plane_sum(bits, 2, low2, acc + 8));
    if (bits & 1) sum = _mm512_add_epi32(sum, plane_sum(bits, 1, low1, acc + 16));
    return sum;
}

CQ_INLINE void one_row(const cq_qlinear_strip *t, const int bits) {
    const uint8_t *tiles = t->head + cq_strip_head(t->G, t->asymmetric);
    const size_t group = t->K / t->G, per_group = cq_ceil_div(group, CQ_TILE);
    __m512 acc = _mm512_setzero_ps();
    for (size_t g = 0; g < t->G; g++) {
        const grid a = grid_of(t, t->head, g);
        const size_t at = g * per_group * cq_tile_bytes(bits);
        const __m512i dot = row_dot(tiles + at, per_group, bits, t->x + g * group);
        const __m512 f = centred(dot, zeros_of(&a, t->xsum[g * t->stride]));
        acc = _mm512_fmadd_ps(a.scale, f, acc);
    }
    _mm512_storeu_ps(t->out, acc);
}

#endif
