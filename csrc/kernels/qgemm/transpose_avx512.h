/* SPDX-License-Identifier: Apache-2.0 */
/* Transposing codes for the panel kernels; included inside a section compiled for AVX-512. */
#ifndef CQ_QGEMM_TRANSPOSE_AVX512_H
#define CQ_QGEMM_TRANSPOSE_AVX512_H

/* 16 bytes of rows i, 4 + i, 8 + i and 12 + i. */
CQ_INLINE __m512i cq_four_rows(const uint8_t *row) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const void *)row));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row + 4 * CQ_QGEMM_KC)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row + 8 * CQ_QGEMM_KC)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row + 12 * CQ_QGEMM_KC)), 3);
}

/* 16 codes of 16 rows: lane n of out[j] becomes codes 4 j .. 4 j + 3 of row n. */
CQ_INLINE void cq_transpose_codes(const uint8_t *codes, __m512i out[4]) {
    const __m512i r0 = cq_four_rows(codes), r1 = cq_four_rows(codes + CQ_QGEMM_KC);
    const __m512i r2 = cq_four_rows(codes + 2 * CQ_QGEMM_KC);
    const __m512i r3 = cq_four_rows(codes + 3 * CQ_QGEMM_KC);
    const __m512i a = _mm512_unpacklo_epi32(r0, r1), b = _mm512_unpacklo_epi32(r2, r3);
    const __m512i c = _mm512_unpackhi_epi32(r0, r1), d = _mm512_unpackhi_epi32(r2, r3);
    out[0] = _mm512_unpacklo_epi64(a, b);
    out[1] = _mm512_unpackhi_epi64(a, b);
    out[2] = _mm512_unpacklo_epi64(c, d);
    out[3] = _mm512_unpackhi_epi64(c, d);
}

#endif
