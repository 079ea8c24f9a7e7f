/* SPDX-License-Identifier: Apache-2.0 */
/* 4 rows x 16 outputs in 16 registers; every output is one chain of fused multiply-adds over k, as
 * in the contract. Not measured on hardware. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"

typedef struct quad { /* 16 outputs of one row */
    float32x4_t a, b, c, d;
} quad;

CQ_INLINE void multiply_add(quad *s, const float *x, const float *w) {
    const float v = *x;
    s->a = vfmaq_n_f32(s->a, vld1q_f32(w), v);
    s->b = vfmaq_n_f32(s->b, vld1q_f32(w + 4), v);
    s->c = vfmaq_n_f32(s->c, vld1q_f32(w + 8), v);
    s->d = vfmaq_n_f32(s->d, vld1q_f32(w + 12), v);
}

CQ_INLINE void finish(const quad *s, const cq_qgemm_f32_tile *t, size_t m, size_t n) {
    float *out = t->out + m * t->ldo + n, one[16];
    vst1q_f32(one, s->a);
    vst1q_f32(one + 4, s->b);
    vst1q_f32(one + 8, s->c);
    vst1q_f32(one + 12, s->d);
    for (size_t i = 0; i < 16 && n + i < t->n; i++) {
        out[i] = t->first ? one[i] : out[i] + one[i];
        if (t->bias) out[i] += t->bias[n + i];
    }
}

/* Rows m .. m + R - 1, R a constant, outputs n .. n + 15. */
CQ_INLINE void rows(const size_t R, const cq_qgemm_f32_tile *t, size_t m, size_t n) {
    const float32x4_t none = vdupq_n_f32(0.0f);
    quad c0 = {none, none, none, none}, c1 = c0, c2 = c0, c3 = c0;
    const size_t ld = t->ldx;
    const float *x = t->x + m * ld, *w = t->panel + n, *const end = w + t->kc * CQ_QGEMM_NB;
    for (; w < end; w += CQ_QGEMM_NB, x++) {
        multiply_add(&c0, x, w);
        if (R > 1) multiply_add(&c1, x + ld, w);
        if (R > 2) multiply_add(&c2, x + 2 * ld, w);
        if (R > 3) multiply_add(&c3, x + 3 * ld, w);
    }
    finish(&c0, t, m, n);
    if (R > 1) finish(&c1, t, m + 1, n);
    if (R > 2) finish(&c2, t, m + 2, n);
    if (R > 3) finish(&c3, t, m + 3, n);
}

void cq_qgemm_f32_tile_neon(const cq_qgemm_f32_tile *t) {
    for (size_t n = 0; n < t->n; n += 16) {
        size_t m = 0;
        for (; m + 4 <= t->m; m += 4) rows(4, t, m, n);
        for (; m < t->m; m++) rows(1, t, m, n);
    }
}

#include "core/isa_end.h"
#endif
