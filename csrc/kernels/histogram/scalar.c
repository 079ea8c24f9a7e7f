/* SPDX-License-Identifier: Apache-2.0 */
/* histogram: counts of values, order statistics, and the clip of least divergence.
 *
 *   histogram  bins[4][size] += 1 at floor(x * scale) - first, in table i % 4. `scale` is a power
 * of two, so the place is exact; every x lies in a bin (the driver looks first) magnitude
 * bins[4][size] += 1 at min(size - 1, floor(|x| * scale)), |x| * scale finite digits bins[4][2048]
 * += 1 at key(x) >> 21, where key orders floats as unsigned integers and -0 counts as +0; no NaN
 *   gather     the keys of all x whose digit is `digit`, in order; returns how many
 *   klclip     of one histogram of magnitudes [size]: for i = levels .. size the divergence of
 *                P = counts[0..i), the rest added to bin i - 1, from
 *                Q = counts[0..i) in `levels` groups (from floor(g i / levels)), the sum of a group
 *                    spread evenly over its bins that are not empty,
 *              both scaled to sum 1; *best is the first i of least divergence, *least that. An i
 *              with P > 0 = Q in some bin is passed over, and one that clips into the first bin
 *              that is not empty: P then is one number, which any Q equals. size if all are (or
 *              nothing is counted).
 *
 * Counts are exact, so tables may be added in any order. klclip uses sums of counts, of bins that
 * are not empty, and of c log c: O(levels) per i. Sums in double, in order. Exactness: EXACT.
 *
 * Source of klclip: Migacz, "8-bit inference with TensorRT", GTC 2017 (there 2048 bins, 128
 * levels, and the middle of bin i as the clip; here its lower edge). So a lone outlier, with empty
 * bins before it, is not clipped. */
#include "core/dispatch.h"
#include "core/histogram.h"

#include <math.h>

void cq_histogram_f32_scalar(const float *x, size_t n, float scale, int64_t first, size_t size,
                             uint32_t *bins) {
    for (size_t i = 0; i < n; i++) {
        const float at = floorf(x[i] * scale);
        const int64_t place = (int64_t)at - (x[i] < 0.0f && at == 0.0f); /* product underflowed */
        bins[i % 4 * size + (size_t)(place - first)]++;
    }
}

void cq_histogram_magnitude_f32_scalar(const float *x, size_t n, float scale, size_t size,
                                       uint32_t *bins) {
    for (size_t i = 0; i < n; i++) {
        const size_t at = (size_t)(fabsf(x[i]) * scale);
        bins[i % 4 * size + (at < size ? at : size - 1)]++;
    }
}

void cq_histogram_digits_f32_scalar(const float *x, size_t n, uint32_t *bins) {
    for (size_t i = 0; i < n; i++) bins[i % 4 * CQ_DIGIT_BINS + (cq_float_key(x[i]) >> 21)]++;
}

void cq_histogram_gather_f32_scalar(const float *x, size_t n, uint32_t digit, uint32_t *keys,
                                    size_t *count) {
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t key = cq_float_key(x[i]);
        if (key >> 21 == digit) keys[found++] = key;
    }
    *count = found;
}

/* sums: three rows of size + 1: of counts, of bins that are not empty, of c log c. */
void cq_histogram_klclip_scalar(const uint32_t *counts, size_t size, size_t levels, double *sums,
                                uint32_t *best, double *least) {
    double *sum = sums, *full = sums + size + 1, *entropy = full + size + 1;
    sum[0] = full[0] = entropy[0] = 0.0;
    for (size_t b = 0; b < size; b++) {
        const double c = (double)counts[b];
        sum[b + 1] = sum[b] + c;
        full[b + 1] = full[b] + (c > 0.0);
        entropy[b + 1] = entropy[b] + (c > 0.0 ? c * log(c) : 0.0);
    }
    const double all = sum[size];
    *best = (uint32_t)size;
    *least = INFINITY;
    for (size_t i = levels; i <= size && all > 0.0; i++) {
        const double rest = all - sum[i], last = (double)counts[i - 1] + rest;
        if (sum[i] == 0.0 || (rest > 0.0 && (counts[i - 1] == 0 || sum[i - 1] == 0.0))) continue;
        double cross = 0.0;
        for (size_t g = 0; g < levels; g++) {
            const size_t from = g * i / levels, to = (g + 1) * i / levels;
            const double mass = sum[to] - sum[from];
            const double p = mass + (to == i ? rest : 0.0);
            if (mass > 0.0) cross += p * log(mass / (full[to] - full[from]));
        }
        const double own = entropy[i - 1] + (last > 0.0 ? last * log(last) : 0.0);
        const double kl = (own - cross) / all + log(sum[i] / all);
        if (!(kl < *least)) continue;
        *least = kl;
        *best = (uint32_t)i;
    }
}
