/* SPDX-License-Identifier: Apache-2.0 */
/* alloc, the steps of a table d [n, m] of distortions, options by growing cost:
 *
 *   steps  s[i, j] = (d[i, j] - d[i, j+1]) / gap[j]   for j < m - 1;  s[i, m-1] = 0
 *          in float, what a unit of cost buys; gap[m] with gap[m-1] not read. `odd` receives the
 *          units where this is not the whole truth: slopes that do not fall strictly, or that are
 *          not finite. Returns through *count how many.
 *   band   the steps of s [len], in rows of m, that lie above hi, or from lo to hi: cost[j] of
 *          column j (at most 32767; len <= 2**17) summed; index and value of the latter
 *   take   out[i] = how many of s[i, 0..m-1] are greater than hi
 *
 * 2 <= m <= 16, 0 < lo <= hi. Exactness: EXACT. */
#include "core/dispatch.h"

#include <math.h>

void cq_alloc_steps_f32_scalar(const float *d, size_t n, size_t m, const float *gap, float *s,
                               uint32_t *odd, size_t *count) {
    size_t found = 0;
    for (size_t i = 0; i < n; i++, d += m, s += m) {
        int fine = 1;
        for (size_t j = 0; j + 1 < m; j++) {
            s[j] = (d[j] - d[j + 1]) / gap[j];
            fine &= isfinite(s[j]) && (j == 0 || s[j - 1] > s[j]);
        }
        s[m - 1] = 0.0f;
        if (!fine) odd[found++] = (uint32_t)i;
    }
    *count = found;
}

void cq_alloc_band_f32_scalar(const float *s, size_t len, size_t m, const int32_t *cost, float lo,
                              float hi, uint32_t *index, float *value, cq_alloc_band *out) {
    *out = (cq_alloc_band){0, 0, 0};
    for (size_t f = 0, j = 0; f < len; f++, j = j + 1 == m ? 0 : j + 1) {
        if (s[f] > hi)
            out->above += cost[j];
        else if (s[f] >= lo) {
            out->inside += cost[j];
            index[out->count] = (uint32_t)f;
            value[out->count++] = s[f];
        }
    }
}

void cq_alloc_take_f32_scalar(const float *s, size_t n, size_t m, float hi, uint8_t *out) {
    for (size_t i = 0; i < n; i++, s += m) {
        unsigned taken = 0;
        for (size_t j = 0; j < m; j++) taken += s[j] > hi;
        out[i] = (uint8_t)taken;
    }
}
