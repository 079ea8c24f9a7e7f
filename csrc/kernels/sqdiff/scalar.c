/* SPDX-License-Identifier: Apache-2.0 */
/* sqdiff: the sum of squared differences of n elements, and its gradient.
 *
 *   *sum = sum (a - b)^2              difference and square in float32, sums in double in lanes i %
 * 8, added pairwise ((0+4)+(2+6))+((1+5)+(3+7)) out  = (a - b) factor
 *
 * NaN stays NaN. `out` may be a or b. Exactness: EXACT. */
#include "core/dispatch.h"

void cq_sqdiff_f32_scalar(const float *a, const float *b, size_t n, double *sum) {
    double lane[8] = {0};
    for (size_t i = 0; i < n; i++) {
        const float d = a[i] - b[i];
        lane[i % 8] += (double)(d * d);
    }
    *sum = cq_sum_lanes(lane);
}

void cq_sqdiff_bwd_f32_scalar(const float *a, const float *b, size_t n, float factor, float *out) {
    for (size_t i = 0; i < n; i++) out[i] = (a[i] - b[i]) * factor;
}
