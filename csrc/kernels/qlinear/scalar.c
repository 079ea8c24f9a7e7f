/* SPDX-License-Identifier: Apache-2.0 */
/* qlinear: activations times one strip of a packed weight (core/qgemm.h). All sums of products are
 * int32 and exact; floats appear once per block, in one order, so no result depends on the ISA.
 *
 *   f32_digits  one row of x, blocks of a group in order, b = block, k in b:
 *               E = exponent of max |x[k]| (2**E <= max < 2**(E + 1)), at least -90
 *               q[k] = rint(x[k] * 2**(29 - E)), |q| < 2**30
 *               q = ((d3 * 256 + d2) * 256 + d1) * 256 + d0,   digits d0 .. d2 in -128 .. 127
 *               step[b] = 2**(E - 29);   sum[b] = sum d3 * 256 + d2,  sum d1 * 256 + d0
 *               Inputs from K up to a multiple of CQ_TILE get digits 0. NaN or infinity in a block
 *               make its digits 0 and its step NaN, and so the whole row of results NaN.
 *   f32_strip   D_i = sum d_i[k] * (code - zero) over the block
 *               f = fmaf((float)(D3 * 256 + D2), 65536, (float)(D1 * 256 + D0))
 *               acc = fmaf(scale * step, f, acc), blocks in order, from 0
 *   s8_strip    acc = fmaf(scale, (float)(sum x[k] * (code - zero)), acc), groups in order, from 0
 *
 *   finish      y = acc * xscale[m] (if any);  y = y + bias[n] (if any);  y = act(y);
 *               y = y * up[m][n] (if any);  y = y + residual[m][n] (if any);  stored as float32 or
 *               rounded to bfloat16 (half to even; up and residual are then bfloat16 too)
 *
 * An input of f32 is exact from 2**-6 of the largest of its block up, below it is off by at most
 * 2**-30 of the largest: |error| <= 2**-30 * max |x| * sum |w| + 2**-22 * sum over blocks of
 * |scale * step * f| + the roundings of acc. Groups of s8 have at most 65793 inputs. `stride` of
 * the sums and steps is between blocks. No aliasing. Exactness: EXACT; FMA where written. */
#include "core/activation.h"
#include "core/dispatch.h"
#include "kernels/qlinear/digits.h"

#include <math.h>

/* Magnitudes compare like their bits. */
static uint32_t largest(const float *x, size_t n) {
    uint32_t most = 0;
    for (size_t k = 0; k < n; k++) {
        const uint32_t bits = cq_float_bits(x[k]) & 0x7FFFFFFFu;
        most = bits > most ? bits : most;
    }
    return most;
}

static void put_block(const float *x, size_t n, float factor, const cq_qlinear_digits *t, size_t k,
                      int32_t *sum) {
    int8_t *to = t->x + k;
    sum[0] = sum[1] = 0;
    for (size_t i = 0; i < n; i++, to++) {
        const int32_t q = factor != 0.0f ? (int32_t)rintf(x[i] * factor) : 0;
        const uint32_t d = ((uint32_t)q + 0x00808080u) ^ 0x00808080u;
        for (size_t b = 0; b < CQ_DIGITS; b++) to[b * t->ldx] = (int8_t)(uint8_t)(d >> (8 * b));
        sum[0] += to[3 * t->ldx] * 256 + to[2 * t->ldx];
        sum[1] += to[t->ldx] * 256 + to[0];
    }
}

void cq_qlinear_f32_digits_scalar(const float *x, const cq_qlinear_digits *t) {
    cq_digits_any(x, t, largest, put_block);
}

/* Codes of one output of the strip, read where they are. */
static int code(const uint8_t *tiles, int bits, size_t n, size_t k) {
    const uint8_t *plane = tiles + k / CQ_TILE * cq_tile_bytes(bits);
    const size_t q = k % CQ_TILE / 4, byte = 4 * n + k % 4;
    if (bits == 8) return plane[q * 64 + byte];
    int value = 0, low = 0;
    for (int w = 4; w; w /= 2) {
        if (!(bits & w)) continue;
        const size_t bit = q * (size_t)w;
        value |= (plane[bit / 8 * 64 + byte] >> (bit % 8) & ((1 << w) - 1)) << low;
        plane += 128 * (size_t)w;
        low += w;
    }
    return value;
}

/* Dot products of the strip's outputs with one row over inputs k0 .. k1 - 1, less zero * sum. */
static void dots(const cq_qlinear_strip *t, const int8_t *x, size_t k0, size_t k1,
                 const int32_t *zero, int32_t *dot) {
    const uint8_t *tiles = t->head + cq_strip_head(t->G, t->asymmetric);
    for (size_t n = 0; n < CQ_STRIP; n++) {
        dot[n] = 0;
        for (size_t k = k0; k < k1; k++) dot[n] += x[k] * (code(tiles, t->bits, n, k) - zero[n]);
    }
}

static void grid(const cq_qlinear_strip *t, size_t g, float *scale, int32_t *zero) {
    const uint16_t *scales = (const uint16_t *)(const void *)t->head + g * CQ_STRIP;
    const uint8_t *zeros = t->head + (2 * t->G + g) * CQ_STRIP;
    for (size_t n = 0; n < CQ_STRIP; n++) {
        scale[n] = cq_half_to_float(scales[n]);
        zero[n] = t->asymmetric ? zeros[n] : 1 << (t->bits - 1);
    }
}

void cq_qlinear_s8_strip_scalar(const cq_qlinear_strip *t) {
    const size_t group = t->K / t->G;
    float scale[16];
    int32_t zero[16], dot[16];
    for (size_t i = 0; i < t->M * CQ_STRIP; i++) t->out[i] = 0.0f;
    for (size_t g = 0; g < t->G; g++) {
        grid(t, g, scale, zero);
        for (size_t m = 0; m < t->M; m++) {
            float *acc = t->out + m * CQ_STRIP;
            dots(t, t->x + m * t->ldx, g * group, (g + 1) * group, zero, dot);
            for (size_t n = 0; n < CQ_STRIP; n++) acc[n] = fmaf(scale[n], (float)dot[n], acc[n]);
        }
    }
}

void cq_qlinear_f32_strip_scalar(const cq_qlinear_strip *t) {
    const size_t group = t->K / t->G, block = cq_block_inputs(t->K, t->G, 1);
    float scale[16];
    int32_t zero[16], d[4][16];
    for (size_t i = 0; i < t->M * CQ_STRIP; i++) t->out[i] = 0.0f;
    size_t b = 0, end;
    for (size_t k0 = 0; k0 < t->K; k0 = end, b++) {
        end = cq_min_size(k0 + block, (k0 / group + 1) * group);
        grid(t, k0 / group, scale, zero);
        for (size_t m = 0; m < t->M; m++) {
            float *acc = t->out + m * CQ_STRIP, step = t->xstep[b * t->stride + m];
            for (size_t i = 0; i < CQ_DIGITS; i++)
                dots(t, t->x + (m * CQ_DIGITS + i) * t->ldx, k0, end, zero, d[i]);
            for (size_t n = 0; n < CQ_STRIP; n++) {
                const float high = (float)(d[3][n] * 256 + d[2][n]);
                const float f = fmaf(high, 65536.0f, (float)(d[1][n] * 256 + d[0][n]));
                acc[n] = fmaf(scale[n] * step, f, acc[n]);
            }
        }
    }
}

void cq_qlinear_s8_pair_scalar(const cq_qlinear_strip *t) {
    cq_each_strip(t, cq_qlinear_s8_strip_scalar);
}

void cq_qlinear_f32_pair_scalar(const cq_qlinear_strip *t) {
    cq_each_strip(t, cq_qlinear_f32_strip_scalar);
}

static float other(const void *p, size_t at, int bf16) {
    if (!bf16) return ((const float *)p)[at];
    return cq_bits_float((uint32_t)((const uint16_t *)p)[at] << 16);
}

/* Round half to even; NaN stays NaN. */
static uint16_t to_bf16(float y) {
    const uint32_t u = cq_float_bits(y);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

void cq_qlinear_finish_scalar(const float *acc, const cq_epilogue_at *at, const cq_epilogue *e) {
    for (size_t m = at->m; m < at->m + at->rows; m++, acc += CQ_STRIP) {
        for (size_t i = 0; i < at->cols; i++) {
            const size_t n = at->n + i, to = m * e->ldo + n;
            float y = acc[i];
            if (e->xscale) y *= e->xscale[m];
            if (e->bias) y += e->bias[n];
            y = cq_activate(y, e->act);
            if (e->up) y *= other(e->up, to, e->bf16);
            if (e->residual) y += other(e->residual, to, e->bf16);
            if (e->bf16)
                ((uint16_t *)e->out)[to] = to_bf16(y);
            else
                ((float *)e->out)[to] = y;
        }
    }
}
