/* SPDX-License-Identifier: Apache-2.0 */
/* layernorm of one row of n floats, n >= 1.
 *
 * forward   stat[0] = mean of y, stat[1] = 1 / sqrt(mean of (y - stat[0])^2 + eps), both rounded
 * from double; out[i] = (y[i] - stat[0]) * stat[1] * gamma[i] + beta[i]. out may be y. backward  h
 * = (y - stat[0]) * stat[1], e = g * gamma: dy = stat[1] * (e - mean(e) - h * mean(e h)); g * h is
 * added to dgamma, g to dbeta. dy may be g or y. Exactness: ULP, 2^-20 of the largest magnitude of
 * a row's terms. NaN and infinity spread over their row. Source: Ba, Kiros, Hinton, "Layer
 * Normalization", 2016, eq. 4. */
#include "core/dispatch.h"

#include <math.h>

void cq_layernorm_f32_row_scalar(const float *y, size_t n, float eps, const float *gamma,
                                 const float *beta, float *out, float *stat) {
    double sum = 0.0, square = 0.0;
    for (size_t i = 0; i < n; i++) sum += (double)y[i];
    const double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) square += ((double)y[i] - mean) * ((double)y[i] - mean);
    stat[0] = (float)mean;
    stat[1] = (float)(1.0 / sqrt(square / (double)n + (double)eps));
    for (size_t i = 0; i < n; i++) out[i] = (y[i] - stat[0]) * stat[1] * gamma[i] + beta[i];
}

void cq_layernorm_bwd_f32_row_scalar(const float *g, const float *y, size_t n, const float *stat,
                                     const float *gamma, float *dy, float *dgamma, float *dbeta) {
    double plain = 0.0, along = 0.0;
    for (size_t i = 0; i < n; i++) {
        const float h = (y[i] - stat[0]) * stat[1], e = g[i] * gamma[i];
        plain += (double)e;
        along += (double)e * (double)h;
    }
    const float a = (float)(plain / (double)n), b = (float)(along / (double)n);
    for (size_t i = 0; i < n; i++) {
        const float h = (y[i] - stat[0]) * stat[1], e = g[i] * gamma[i];
        dgamma[i] += g[i] * h;
        dbeta[i] += g[i];
        dy[i] = stat[1] * (e - a - h * b);
    }
}
