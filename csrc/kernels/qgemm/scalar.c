/* SPDX-License-Identifier: Apache-2.0 */
/* qgemm: rows of activations times packed low-bit weights, one panel (core/qgemm.h) at a time.
 *
 *   f32_panel   panel[k][n] = fma(codes[n][k], scale[n], shift[n]),  shift = -zero * scale
 *   f32_tile    acc = 0;  acc = fma(x[m][k], panel[k][n], acc) for k = 0, 1, .. kc - 1
 *               out = (first ? 0 : out) + acc;  then out + bias[n]
 *
 * f32_panel: one strip of CQ_QGEMM_STRIP rows of codes with row stride CQ_QGEMM_KC, to as many
 * columns of the panel. A float16 scale has 11 significant bits and code - zero 9, so panel values
 * are exact: (code - zero) * scale. f32_tile: 1 <= n <= CQ_QGEMM_NB; every output is one chain over
 * k, so it does not depend on m, on n, or on the other rows. NaN and infinity pass through.
 *
 *   s8_sum      sum = sum x[k], k < n
 *   s8_panel    put a strip of codes at output `strip` of the panel of s8_tile
 *   s8_tile     dot = (begin ? 0 : part) + sum_k x[m][k] * codes[n][k]    int32
 *               not end: part = dot;  otherwise
 *               acc = (first ? 0 : out) + scale[n] * (float)(dot - zero[n] * xsum[m])
 *               out = acc;  in the last group acc * xscale[m] + bias[n]
 *
 * No aliasing. Exactness: EXACT; FMA where written and
 * nowhere else. f32 against the sum of products in exact arithmetic:
 * |error| <= (min(K, 128) + K / 128 + 2) * 2**-24 * (sum |x * w| + |bias|), to first order.
 * The integers of the s8 kernels are exact for groups of up to 65793 inputs. */
#include "core/dispatch.h"

#include <math.h>
#include <string.h>

void cq_qgemm_f32_panel_scalar(const uint8_t *codes, size_t kc, const float *scale,
                               const float *shift, float *panel) {
    for (size_t k = 0; k < kc; k++)
        for (size_t n = 0; n < CQ_QGEMM_STRIP; n++)
            panel[k * CQ_QGEMM_NB + n] =
                fmaf((float)codes[n * CQ_QGEMM_KC + k], scale[n], shift[n]);
}

void cq_qgemm_f32_tile_scalar(const cq_qgemm_f32_tile *t) {
    for (size_t m = 0; m < t->m; m++) {
        for (size_t n = 0; n < t->n; n++) {
            float *out = t->out + m * t->ldo + n, acc = 0.0f;
            for (size_t k = 0; k < t->kc; k++)
                acc = fmaf(t->x[m * t->ldx + k], t->panel[k * CQ_QGEMM_NB + n], acc);
            *out = t->first ? acc : *out + acc;
            if (t->bias) *out += t->bias[n];
        }
    }
}

void cq_qgemm_s8_sum_scalar(const int8_t *x, size_t n, int32_t *sum) {
    int32_t all = 0;
    for (size_t k = 0; k < n; k++) all += x[k];
    *sum = all;
}

void cq_qgemm_s8_panel_scalar(const uint8_t *codes, size_t kc, size_t strip, uint8_t *panel) {
    for (size_t k = 0; k < kc; k++)
        for (size_t n = 0; n < CQ_QGEMM_STRIP; n++)
            panel[k * CQ_QGEMM_NB + strip + n] = codes[n * CQ_QGEMM_KC + k];
}

static void s8_output(const cq_qgemm_s8_tile *t, size_t m, size_t n, int32_t dot) {
    float *out = t->out + m * t->ldo + n;
    const int32_t centred = dot - t->zero[n] * t->xsum[m * t->ldsum];
    float acc = (t->first ? 0.0f : *out) + t->scale[n] * (float)centred;
    if (t->xscale) acc *= t->xscale[m];
    if (t->bias) acc += t->bias[n];
    *out = acc;
}

void cq_qgemm_s8_tile_scalar(const cq_qgemm_s8_tile *t) {
    for (size_t m = 0; m < t->m; m++) {
        int32_t dot[CQ_QGEMM_NB] = {0}, *part = t->part + m * CQ_QGEMM_NB;
        if (!t->begin) memcpy(dot, part, sizeof dot);
        for (size_t k = 0; k < t->kc; k++)
            for (size_t n = 0; n < CQ_QGEMM_NB; n++)
                dot[n] += t->x[m * t->ldx + k] * t->panel[k * CQ_QGEMM_NB + n];
        if (t->end)
            for (size_t n = 0; n < t->n; n++) s8_output(t, m, n, dot[n]);
        else
            memcpy(part, dot, sizeof dot);
    }
}
