/* SPDX-License-Identifier: Apache-2.0 */
/* alloc: real bits of n channels with a given mean, and its gradient; rounding to
 * integers is in scalar_round.c.
 *
 *   project      out = min(hi, max(lo, x + tau)), with tau such that sum w out = target * sum w:
 *                the point of the box and budget nearest to x in the norm sum w d**2
 *   project_bwd  free = lo < b < hi;  gx = free * (g - w * sum_free g / sum_free w): the exact
 *                Jacobian of project at b = its result (one-sided where tau is at a corner)
 *
 * `weight` NULL: ones, otherwise > 0. lo <= target <= hi. A row with NaN or infinity becomes NaN,
 * its gradient 0. Zero is +0. tau is found by Newton steps on the piecewise linear sum (csrc/ops):
 * first with float sums of the clamped channels (`guess`: 64 lanes, i % 64), then with double sums
 * of the free ones (16 lanes, i % 16), inside a bracket; when the three sets (at lo, free, at hi)
 * are those that tau was solved for, it is exact. It is added as two floats, (x + float(tau)) +
 * float(tau - float(tau)), so a large common offset of x costs no accuracy. Lanes are added
 * pairwise; no FMA. Rows longer than CQ_ALLOC_PIECE are cut by the driver, at places that depend on
 * their length only, and what the pieces sum up is added in order. Exactness: EXACT.
 *
 * Source: reverse water-filling, Cover and Thomas, Elements of Information Theory, 13.3.3. */
#include "core/dispatch.h"
#include "core/grid.h"

#include <math.h>

/* Weights of one: sum of x clamped to [low, high] (NaN if any x is NaN or infinite), and how many x
 * lie inside, ends included. */
void cq_alloc_guess_f32_scalar(const float *x, size_t n, float low, float high, float *sum,
                               size_t *inside) {
    float lane[64] = {0};
    int odd = 0;
    *inside = 0;
    for (size_t i = 0; i < n; i++) {
        const float c = cq_clampf(x[i], low, high);
        lane[i % 64] += c;
        *inside += c == x[i];
        odd |= !isfinite(x[i]);
    }
    *sum = odd ? NAN : cq_alloc_lanes_f32(lane);
}

void cq_alloc_sums_f32_scalar(const float *x, const float *weight, size_t n, float low, float high,
                              cq_alloc_sums *out) {
    double free_w[16] = {0}, free_x[16] = {0}, low_w[16] = {0}, high_w[16] = {0};
    out->ends[0] = out->ends[1] = 0;
    for (size_t i = 0; i < n; i++) {
        const double w = weight ? (double)weight[i] : 1.0;
        const size_t l = i % 16;
        if (x[i] <= low) {
            low_w[l] += w;
            out->ends[0]++;
        } else if (x[i] >= high) {
            high_w[l] += w;
            out->ends[1]++;
        } else {
            free_w[l] += w;
            free_x[l] += w * (double)x[i];
        }
    }
    out->free_w = cq_alloc_lanes(free_w);
    out->free_x = cq_alloc_lanes(free_x);
    out->low_w = cq_alloc_lanes(low_w);
    out->high_w = cq_alloc_lanes(high_w);
}

/* range: lo, hi, and the float thresholds of lo - tau and hi - tau. `out` may be `x`. */
void cq_alloc_shift_f32_scalar(const float *x, size_t n, double tau, const float *range, float *out,
                               size_t *ends) {
    const float lo = range[0], hi = range[1], low = range[2], high = range[3];
    const float main = (float)tau, rest = (float)(tau - (double)main);
    ends[0] = ends[1] = 0;
    for (size_t i = 0; i < n; i++) {
        const float at = x[i], v = (at + main) + rest;
        ends[0] += at <= low;
        ends[1] += at >= high;
        out[i] = (v < lo ? lo : (v > hi ? hi : v)) + 0.0f;
    }
}

/* sums: of g, and of the weights, over the free channels; lanes as above. */
void cq_alloc_bwd_sums_f32_scalar(const float *g, const float *b, const float *weight, size_t n,
                                  float lo, float hi, double *sums) {
    double sum_g[16] = {0}, sum_w[16] = {0};
    for (size_t i = 0; i < n; i++) {
        if (!(b[i] > lo && b[i] < hi)) continue;
        sum_g[i % 16] += (double)g[i];
        sum_w[i % 16] += weight ? (double)weight[i] : 1.0;
    }
    sums[0] = cq_alloc_lanes(sum_g);
    sums[1] = cq_alloc_lanes(sum_w);
}

void cq_alloc_bwd_f32_scalar(const float *g, const float *b, const float *weight, size_t n,
                             float lo, float hi, float mean, float *gx) {
    for (size_t i = 0; i < n; i++) {
        const float w = weight ? weight[i] : 1.0f;
        gx[i] = b[i] > lo && b[i] < hi ? g[i] - w * mean : 0.0f;
    }
}
