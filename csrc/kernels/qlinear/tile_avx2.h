/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors of codes out of a tile (core/qgemm.h), 256 bits at a time. Include between isa_begin and
 * isa_end. */
#ifndef CQ_TILE_AVX2_H
#define CQ_TILE_AVX2_H

#include "core/qgemm.h"

/* Bytes 32 * half .. of vector q of a tile; planes as in core/qgemm.h. */
CQ_INLINE __m256i cq_codes_avx2(const uint8_t *tile, int bits, size_t q, size_t half) {
    if (bits == 8) return _mm256_loadu_si256((const void *)(tile + 64 * q + 32 * half));
    __m256i v = _mm256_setzero_si256();
    int low = 0;
    for (int w = 4; w; w /= 2) {
        if (!(bits & w)) continue;
        const size_t bit = q * (size_t)w;
        const __m256i p = _mm256_loadu_si256((const void *)(tile + bit / 8 * 64 + 32 * half));
        const __m256i mask = _mm256_set1_epi8((char)((1 << w) - 1));
        const __m256i field =
            _mm256_and_si256(_mm256_srl_epi16(p, _mm_cvtsi32_si128((int)(bit % 8))), mask);
        v = _mm256_or_si256(v, _mm256_sll_epi16(field, _mm_cvtsi32_si128(low)));
        tile += 128 * (size_t)w;
        low += w;
    }
    return v;
}

#endif
