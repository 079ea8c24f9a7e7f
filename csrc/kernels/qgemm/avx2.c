/* SPDX-License-Identifier: Apache-2.0 */
/* vpmaddubsw with ones cannot saturate: two bytes of x. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

void cq_qgemm_s8_sum_avx2(const int8_t *x, size_t n, int32_t *sum) {
    __m256i acc = _mm256_setzero_si256();
    size_t k = 0;
    for (; k + 32 <= n; k += 32) {
        const __m256i v = _mm256_loadu_si256((const void *)(x + k));
        const __m256i twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
    }
    int32_t lane[8], rest;
    _mm256_storeu_si256((void *)lane, acc);
    cq_qgemm_s8_sum_scalar(x + k, n - k, &rest);
    for (int i = 0; i < 8; i++) rest += lane[i];
    *sum = rest;
}

#include "core/isa_end.h"
#endif
