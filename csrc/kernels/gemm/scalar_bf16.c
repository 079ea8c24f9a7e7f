/* SPDX-License-Identifier: Apache-2.0 */
/* gemm: the bfloat16 kernels (core/gemm.h has the layout of a panel).
 *
 * gemm_bf16_pack writes the planes of up to 32 lanes: plane 0 is x rounded to bfloat16, half to
 * even; plane p is what the planes before leave of x, rounded the same way. With more than one
 * plane, a finite x that would round to infinity becomes the largest bfloat16, and plane 1 has the
 * rest; what an infinity or NaN leaves is NaN. Lanes past `rows` and inputs past kc are 0. One
 * plane of bfloat16 is copied; else denormals become 0. Exactness: EXACT.
 *
 * gemm_bf16_tile: c = or += sum of a_p b_q over the pairs of planes p + q < planes, products exact
 * and sums in float32; denormals of a and b count as 0. With one plane: the product of the rounded
 * operands. With two, terms below 2^-16 of |a b| are left out, with three below 2^-24. Exactness:
 * ULP. The order of the sums is the unit's own: this file adds input by input, AMX sums 32 inputs
 * from 0 and then adds them. Against the exact product of the operands over K inputs, with u =
 * 2^-24, |error| <= (2^-7.9 if planes = 1, 2^-15.4 if 2, 2^-22.4 if 3, + P K u) sum |a b|, P = 1,
 * 3, 6 products. An infinity or NaN in a or b gives one in c. */
#include "core/dispatch.h"
#include "core/half.h"

#include <math.h>

static uint16_t round_bf16(float x) {
    const uint32_t u = cq_float_bits(x), magnitude = u & 0x7FFFFFFFu;
    if (magnitude < 0x00800000u) return (uint16_t)(u >> 16 & 0x8000u);
    if (magnitude > 0x7F800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

static float grow(uint16_t h) { return cq_bits_float((uint32_t)h << 16); }

/* As the units read it. */
static float factor(uint16_t h) { return h & 0x7F80u ? grow(h) : grow(h & 0x8000u); }

/* Word index of lane r and input k of a plane. */
static size_t place(size_t r, size_t k, size_t plane, size_t planes, int is_b) {
    const size_t tile = ((k / 32 * planes + plane) * 2 + r / 16) * 512;
    return tile + (is_b ? k % 32 / 2 * 32 + r % 16 * 2 + k % 2 : r % 16 * 32 + k % 32);
}

void cq_gemm_bf16_pack_scalar(const cq_gemm_bf16_source *s, uint16_t *panel) {
    const size_t planes = (size_t)s->planes;
    for (size_t k = 0; k < cq_ceil_div(s->kc, 32) * 32; k++) {
        for (size_t r = 0; r < CQ_GEMM_WIDE; r++) {
            const size_t at = r * s->rs + k * s->cs;
            uint16_t bits = 0;
            float x = 0.0f;
            if (r < s->rows && k < s->kc && s->half)
                bits = ((const uint16_t *)s->x)[at], x = grow(bits);
            else if (r < s->rows && k < s->kc)
                x = ((const float *)s->x)[at];
            for (size_t p = 0; p < planes; p++) {
                uint16_t h = round_bf16(x);
                if (planes > 1 && (h & 0x7FFFu) == 0x7F80u && isfinite(x)) h--;
                if (s->half && planes == 1) h = bits;
                panel[place(r, k, p, planes, s->is_b)] = h;
                x -= grow(h);
            }
        }
    }
}

void cq_gemm_bf16_tile_scalar(const cq_gemm_f32_tile *t) {
    const size_t planes = (size_t)t->planes;
    const uint16_t *b = (const uint16_t *)(const void *)t->b;
    for (size_t i = 0; i < t->m; i++) {
        const uint16_t *a = (const uint16_t *)(const void *)(t->a + i / CQ_GEMM_WIDE * t->psa);
        for (size_t j = 0; j < t->n; j++) {
            float acc = 0.0f;
            for (size_t k = 0; k < t->kc; k++)
                for (size_t p = 0; p < planes; p++)
                    for (size_t q = 0; p + q < planes; q++)
                        acc = fmaf(factor(a[place(i % CQ_GEMM_WIDE, k, p, planes, 0)]),
                                   factor(b[place(j, k, q, planes, 1)]), acc);
            float *c = t->c + i * t->ldc + j;
            *c = t->first ? acc : *c + acc;
        }
    }
}
