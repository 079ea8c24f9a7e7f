/* SPDX-License-Identifier: Apache-2.0 */
/* sdot with ones. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neondot.h"

void cq_qgemm_s8_sum_neondot(const int8_t *x, size_t n, int32_t *sum) {
    int32x4_t acc = vdupq_n_s32(0);
    size_t k = 0;
    for (; k + 16 <= n; k += 16) acc = vdotq_s32(acc, vld1q_s8(x + k), vdupq_n_s8(1));
    int32_t rest;
    cq_qgemm_s8_sum_scalar(x + k, n - k, &rest);
    *sum = rest + vaddvq_s32(acc);
}

#include "core/isa_end.h"
#endif
