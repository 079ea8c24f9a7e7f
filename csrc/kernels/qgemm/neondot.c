/* SPDX-License-Identifier: Apache-2.0 */
/* sdot multiplies signed bytes: a panel is [ceil(kc / 4)][CQ_QGEMM_NB][4] bytes code - 128, and the
 * sum of the row of x over the panel, times 128, is added back: sum x c = sum x (c - 128) + 128 sum
 * x. Past the last input the bytes are 0. 4 rows x 16 outputs in 16 registers, 4 rows of x one
 * register each. Not measured on hardware. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neondot.h"

#include <string.h>

void cq_qgemm_s8_sum_neondot(const int8_t *x, size_t n, int32_t *sum) {
    int32x4_t acc = vdupq_n_s32(0);
    size_t k = 0;
    for (; k + 16 <= n; k += 16) acc = vdotq_s32(acc, vld1q_s8(x + k), vdupq_n_s8(1));
    int32_t rest;
    cq_qgemm_s8_sum_scalar(x + k, n - k, &rest);
    *sum = rest + vaddvq_s32(acc);
}

void cq_qgemm_s8_panel_neondot(const uint8_t *codes, size_t kc, size_t strip, uint8_t *panel) {
    for (size_t k = 0; k < kc; k += 4)
        for (size_t n = 0; n < CQ_QGEMM_STRIP; n++)
            for (size_t i = 0; i < 4; i++) {
                const uint8_t code = k + i < kc ? codes[n * CQ_QGEMM_KC + k + i] : 128;
                panel[k * CQ_QGEMM_NB + 4 * (strip + n) + i] = code ^ 128;
            }
}

typedef struct quad { /* 16 outputs of one row */
    int32x4_t a, b, c, d;
} quad;

CQ_INLINE void dot(quad *s, const int8_t *x, const int8x16_t *w) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    const int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four));
    s->a = vdotq_s32(s->a, w[0], v);
    s->b = vdotq_s32(s->b, w[1], v);
    s->c = vdotq_s32(s->c, w[2], v);
    s->d = vdotq_s32(s->d, w[3], v);
}

CQ_INLINE void spill(const quad *s, int32_t *to) {
    vst1q_s32(to, s->a);
    vst1q_s32(to + 4, s->b);
    vst1q_s32(to + 8, s->c);
    vst1q_s32(to + 12, s->d);
}

/* Outputs n .. n + 15 of row m. */
CQ_INLINE void finish(const cq_qgemm_s8_tile *t, size_t m, size_t n, const int32_t *dots) {
    int32_t *part = t->part + m * CQ_QGEMM_NB + n;
    float *out = t->out + m * t->ldo + n;
    const int32_t sum = t->xsum[m * t->ldsum];
    for (size_t i = 0; i < 16; i++) {
        const int32_t all = dots[i] + (t->begin ? 0 : part[i]);
        if (!t->end) part[i] = all;
        if (!t->end || n + i >= t->n) continue;
        const float centred = (float)(all - t->zero[n + i] * sum);
        float acc = (t->first ? 0.0f : out[i]) + t->scale[n + i] * centred;
        if (t->xscale) acc *= t->xscale[m];
        if (t->bias) acc += t->bias[n + i];
        out[i] = acc;
    }
}

/* R rows from m on, R a constant; x [R, CQ_QGEMM_KC], padded with zeros to a multiple of 4. */
CQ_INLINE void rows(const size_t R, const cq_qgemm_s8_tile *t, size_t m, const int8_t *x,
                    const int32_t *offset) {
    for (size_t n = 0; n < t->n; n += 16) {
        quad c[4];
        int32_t dots[16];
        for (size_t r = 0; r < R; r++) {
            const int32x4_t start = vdupq_n_s32(offset[r]);
            c[r] = (quad){start, start, start, start};
        }
        for (size_t k = 0; k < t->kc; k += 4) {
            const int8_t *from = (const int8_t *)t->panel + k * CQ_QGEMM_NB + 4 * n;
            const int8x16_t w[4] = {vld1q_s8(from), vld1q_s8(from + 16), vld1q_s8(from + 32),
                                    vld1q_s8(from + 48)};
            for (size_t r = 0; r < R; r++) dot(&c[r], x + r * CQ_QGEMM_KC + k, w);
        }
        for (size_t r = 0; r < R; r++) {
            spill(&c[r], dots);
            finish(t, m + r, n, dots);
        }
    }
}

void cq_qgemm_s8_tile_neondot(const cq_qgemm_s8_tile *t) {
    for (size_t m = 0, R; m < t->m; m += R) {
        int8_t x[4 * CQ_QGEMM_KC] = {0};
        int32_t offset[4];
        R = cq_min_size(t->m - m, 4) == 4 ? 4 : 1;
        for (size_t r = 0; r < R; r++) {
            memcpy(x + r * CQ_QGEMM_KC, t->x + (m + r) * t->ldx, t->kc);
            cq_qgemm_s8_sum_neondot(x + r * CQ_QGEMM_KC, t->kc, &offset[r]);
            offset[r] *= 128;
        }
        if (R == 4)
            rows(4, t, m, x, offset);
        else
            rows(1, t, m, x, offset);
    }
}

#include "core/isa_end.h"
#endif
