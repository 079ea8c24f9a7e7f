/* SPDX-License-Identifier: Apache-2.0 */
/* reduce: minimum, maximum, largest magnitude and sum of magnitudes of rows or columns.
 *
 *   minmax  mn = min x, mx = max x; one NaN makes both NaN; never -0
 *   absmax  out = max |x|; one NaN makes it NaN; 0 for no elements
 *   abssum  out = sum weight * |x| in double
 *
 * Shapes: _row reduces `n` (minmax: at least 1) elements to one result; _col takes `rows` rows of
 * `n` columns, `stride` elements apart, and updates `n` running results, which the driver starts; a
 * row of weight 0 is not read (`weight` NULL: ones). Exactness: EXACT. abssum of _row sums in eight
 * lanes, lane i % 8, added pairwise ((0+4)+(2+6))+((1+5)+(3+7)); of _col in the order of the rows;
 * no FMA. */
#include "core/dispatch.h"

#include <math.h>

void cq_minmax_f32_row_scalar(const float *x, size_t n, float *mn, float *mx) {
    float low = x[0], high = x[0];
    int nan = 0;
    for (size_t i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        nan |= isnan(x[i]);
    }
    *mn = nan ? NAN : low + 0.0f;
    *mx = nan ? NAN : high + 0.0f;
}

void cq_minmax_f32_col_scalar(const float *x, size_t rows, size_t stride, size_t n, float *mn,
                              float *mx) {
    for (size_t r = 0; r < rows; r++, x += stride)
        for (size_t i = 0; i < n; i++) {
            const int nan = isnan(x[i]);
            mn[i] = (x[i] < mn[i]) | nan ? x[i] : mn[i];
            mx[i] = (x[i] > mx[i]) | nan ? x[i] : mx[i];
        }
}

void cq_absmax_f32_row_scalar(const float *x, size_t n, float *out) {
    float high = 0.0f;
    int nan = 0;
    for (size_t i = 0; i < n; i++) {
        const float a = fabsf(x[i]);
        high = a > high ? a : high;
        nan |= isnan(a);
    }
    *out = nan ? NAN : high;
}

void cq_absmax_f32_col_scalar(const float *x, size_t rows, size_t stride, size_t n, float *out) {
    for (size_t r = 0; r < rows; r++, x += stride)
        for (size_t i = 0; i < n; i++) {
            const float a = fabsf(x[i]);
            out[i] = (a > out[i]) | isnan(a) ? a : out[i];
        }
}

void cq_abssum_f32_row_scalar(const float *x, size_t n, double *out) {
    double lane[8] = {0};
    for (size_t i = 0; i < n; i++) lane[i % 8] += (double)fabsf(x[i]);
    *out = cq_sum_lanes(lane);
}

void cq_abssum_f32_col_scalar(const float *x, size_t rows, size_t stride, size_t n,
                              const double *weight, double *out) {
    for (size_t r = 0; r < rows; r++, x += stride) {
        const double w = weight ? weight[r] : 1.0;
        if (w == 0.0) continue;
        for (size_t i = 0; i < n; i++) out[i] += w * (double)fabsf(x[i]);
    }
}
