/* SPDX-License-Identifier: Apache-2.0 */
/* vpdpbusd with ones. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512vnni.h"

void cq_qgemm_s8_sum_avx512vnni(const int8_t *x, size_t n, int32_t *sum) {
    __m512i acc = _mm512_setzero_si512();
    for (size_t k = 0; k < n; k += 64) {
        const __mmask64 m = n - k >= 64 ? ~0ULL : (1ULL << (n - k)) - 1;
        acc = _mm512_dpbusd_epi32(acc, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(m, x + k));
    }
    *sum = _mm512_reduce_add_epi32(acc);
}

#include "core/isa_end.h"
#endif
