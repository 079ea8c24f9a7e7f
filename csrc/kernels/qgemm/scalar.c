/* SPDX-License-Identifier: Apache-2.0 */
/* s8_sum: sum = sum of x[k], k < n <= 2**24: exact. Exactness: EXACT. */
#include "core/dispatch.h"

void cq_qgemm_s8_sum_scalar(const int8_t *x, size_t n, int32_t *sum) {
    int32_t all = 0;
    for (size_t k = 0; k < n; k++) all += x[k];
    *sum = all;
}
