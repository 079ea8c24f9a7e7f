/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors of codes out of a tile (core/qgemm.h), 512 bits at a time. Include between isa_begin and
 * isa_end. */
#ifndef CQ_TILE_AVX512_H
#define CQ_TILE_AVX512_H

#include "core/qgemm.h"

CQ_INLINE __m512i cq_load_codes(const uint8_t *p) { return _mm512_loadu_si512((const void *)p); }

/* Ask for what comes after `lines` lines of codes: into the L1 cache soon, into the L2 cache
 * before. Measured, one row x 4096 x 4096 from DRAM, one core of a busy Sapphire Rapids VM, where a
 * bare read loop takes 0.42 / 0.55 / 1.08 ms (3, 4, 8 bits): nothing asked for 0.74 / 0.80 / 1.37,
 * only 2 KiB ahead 0.60 / 0.64 / 1.24, both 0.50 / 0.61 / 1.17; further ahead is worse again. */
CQ_INLINE void cq_ask(const uint8_t *codes, const int lines) {
#pragma GCC unroll 8
    for (int i = 0; i < lines; i++) {
        _mm_prefetch((const char *)codes + 2048 + 64 * (size_t)i, _MM_HINT_T0);
        _mm_prefetch((const char *)codes + 4096 + 64 * (size_t)i, _MM_HINT_T1);
    }
}

/* v | the field of `mask` after a shift to the right by `by` bits (to the left if negative). */
CQ_INLINE __m512i cq_field(__m512i p, int by, __m512i mask, __m512i v) {
    __m512i moved = p;
    if (by > 0) moved = _mm512_srl_epi16(p, _mm_cvtsi32_si128(by));
    if (by < 0) moved = _mm512_sll_epi16(p, _mm_cvtsi32_si128(-by));
    return _mm512_ternarylogic_epi32(moved, mask, v, 0xEA); /* (moved & mask) | v */
}

/* One plane of `w` bits of half a tile, to bits `low` .. of its vectors. */
CQ_INLINE void cq_plane(const uint8_t *plane, const int w, const int low, const int half,
                        __m512i v[8]) {
    const __m512i mask = _mm512_set1_epi8((char)(((1 << w) - 1) << low));
    const int per = 8 / w; /* vectors in one */
#pragma GCC unroll 4
    for (int j = 0; j < w; j++) {
        const __m512i p = cq_load_codes(plane + 64 * (size_t)(half * w + j));
#pragma GCC unroll 8
        for (int i = 0; i < per; i++)
            v[j * per + i] = cq_field(p, w * i - low, mask, v[j * per + i]);
    }
}

/* Vectors 8 * half .. 8 * half + 7 of a tile; bits and half are constants. */
CQ_INLINE void cq_half_tile(const uint8_t *tile, const int bits, const int half, __m512i v[8]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        v[i] =
            bits == 8 ? cq_load_codes(tile + 64 * (size_t)(8 * half + i)) : _mm512_setzero_si512();
    if (bits == 8) return;
    int low = 0;
    if (bits & 4) cq_plane(tile, 4, 0, half, v), low = 4, tile += 512;
    if (bits & 2) cq_plane(tile, 2, low, half, v), low += 2, tile += 256;
    if (bits & 1) cq_plane(tile, 1, low, half, v);
}

#endif
