/* SPDX-License-Identifier: Apache-2.0 */
/* noise: uniform and normal numbers of elements first .. first + n - 1 of a sample.
 *
 *   counter   = (16 (e / 64) + e % 16, sample, step, stream), word = (e % 64) / 16 of element e
 *   w         = Philox 4x32-10 of the counter under the key `seed`, that word
 *   uniform   = (w >> 8) 2^-24                                     in [0, 1)
 *   normal    = +-y(p), p = ((w & 0x7FFFFFFF) | 1) 2^-32, minus where the highest bit of w is set
 *
 * y is the inverse of the upper tail of the normal distribution, a parabola in each of 16 pieces of
 * each octave of p: y = t0 + f (t1 + f t2), f the place in the piece (19 bits); |error| < 2e-6,
 * |y| < 6.24. Sixteen successive counters give 64 elements, so vectors need no transposition.
 * e < 2^34. No FMA: torch computes the same. Exactness: EXACT. */
#include "core/dispatch.h"
#include "core/half.h"

static void words(const cq_noise *s, uint32_t group, uint32_t *w) {
    for (uint32_t lane = 0; lane < 16; lane++) {
        uint32_t c[4] = {16 * group + lane, s->sample, s->step, s->stream};
        cq_philox(c, s->seed[0], s->seed[1]);
        for (size_t k = 0; k < 4; k++) w[16 * k + lane] = c[k];
    }
}

static void uniform(const cq_noise *s, uint32_t group, float *out) {
    uint32_t w[CQ_NOISE_GROUP];
    words(s, group, w);
    for (size_t i = 0; i < CQ_NOISE_GROUP; i++) out[i] = (float)(int32_t)(w[i] >> 8) * 0x1p-24f;
}

/* The bits of m as a float, cut off after 24: clearing (m >> 24) keeps the conversion from rounding
 * up, and what it clears is cut off anyway. */
static void normal(const cq_noise *s, uint32_t group, float *out) {
    uint32_t w[CQ_NOISE_GROUP];
    words(s, group, w);
    for (size_t i = 0; i < CQ_NOISE_GROUP; i++) {
        const uint32_t m = (w[i] & 0x7FFFFFFFu) | 1u;
        const uint32_t bits = cq_float_bits((float)(int32_t)(m & ~(m >> 24)));
        const float *t = s->table + ((bits >> 19) - (127u << 4));
        const float f = (float)(int32_t)(bits & 0x7FFFFu) * 0x1p-19f;
        const float y = t[0] + f * (t[CQ_NOISE_PIECES] + f * t[(size_t)2 * CQ_NOISE_PIECES]);
        out[i] = cq_bits_float(cq_float_bits(y) ^ (w[i] & 0x80000000u));
    }
}

void cq_noise_uniform_f32_scalar(const cq_noise *s, uint64_t first, size_t n, float *out) {
    cq_noise_run(s, first, n, out, uniform);
}

void cq_noise_normal_f32_scalar(const cq_noise *s, uint64_t first, size_t n, float *out) {
    cq_noise_run(s, first, n, out, normal);
}
