/* SPDX-License-Identifier: Apache-2.0 */
/* Transposing codes for the panel kernels; included inside a section compiled for AVX2. */
#ifndef CQ_QGEMM_TRANSPOSE_AVX2_H
#define CQ_QGEMM_TRANSPOSE_AVX2_H

/* 16 bytes of rows i and 4 + i. */
CQ_INLINE __m256i cq_two_rows(const uint8_t *row) {
    const __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const void *)row));
    return _mm256_inserti128_si256(
        v, _mm_loadu_si128((const void *)(row + (size_t)4 * CQ_QGEMM_KC)), 1);
}

/* 16 codes of 8 rows: lane n of out[j] becomes codes 4 j .. 4 j + 3 of row n. */
CQ_INLINE void cq_transpose_codes(const uint8_t *codes, __m256i out[4]) {
    const __m256i r0 = cq_two_rows(codes), r1 = cq_two_rows(codes + CQ_QGEMM_KC);
    const __m256i r2 = cq_two_rows(codes + 2 * CQ_QGEMM_KC);
    const __m256i r3 = cq_two_rows(codes + 3 * CQ_QGEMM_KC);
    const __m256i a = _mm256_unpacklo_epi32(r0, r1), b = _mm256_unpacklo_epi32(r2, r3);
    const __m256i c = _mm256_unpackhi_epi32(r0, r1), d = _mm256_unpackhi_epi32(r2, r3);
    out[0] = _mm256_unpacklo_epi64(a, b);
    out[1] = _mm256_unpackhi_epi64(a, b);
    out[2] = _mm256_unpacklo_epi64(c, d);
    out[3] = _mm256_unpackhi_epi64(c, d);
}

#endif
