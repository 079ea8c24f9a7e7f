/* SPDX-License-Identifier: Apache-2.0 */
/* Included inside a section compiled for avx512 or richer. */
#ifndef CQ_SCALELOSS_TRANSPOSE_H
#define CQ_SCALELOSS_TRANSPOSE_H

/* Transpose 16 x 16 dwords. */
CQ_INLINE void cq_transpose_dwords(__m512i r[16]) {
    __m512i t[16];
#pragma GCC unroll 4
    for (size_t i = 0; i < 16; i += 4) {
        const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        const __m512i b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]);
        const __m512i d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        const __m512i a = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xDD);
        const __m512i c = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xDD);
        r[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(a, c, 0xDD);
        r[i + 12] = _mm512_shuffle_i32x4(b, d, 0xDD);
    }
}

/* The same, and store row i at to + 32 i. */
CQ_INLINE void cq_transpose_pairs(__m512i r[16], uint16_t *to) {
    cq_transpose_dwords(r);
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; i++) _mm512_storeu_si512(to + 32 * i, r[i]);
}

#endif
