/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen columns at a time, rows within: what belongs to columns stays in registers, the entries
 * of their tables stay in the first cache, from where they are gathered. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

#include "kernels/channel_bits/columns_avx512.h"

/* Adds sixteen floats to eight sums of doubles each half. */
CQ_INLINE void add_lanes(double *sum, __m512 v) {
    __m512d lane = _mm512_loadu_pd(sum);
    lane = _mm512_add_pd(lane, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
    lane = _mm512_add_pd(lane, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    _mm512_storeu_pd(sum, lane);
}

CQ_INLINE void forward(const cq_channel_tile *t, size_t c, int noisy, int rated) {
    const columns k = sixteen(t, c);
    for (size_t r = 0; r < t->rows; r++) {
        const __m512 x = _mm512_maskz_loadu_ps(k.m, t->x + r * t->ld + c);
        const __m512 above = _mm512_sub_ps(x, k.low);
        const float *noise = noisy ? t->noise + r * CQ_CHANNEL_COLS + c : NULL;
        const element a = rounded(&k, k.w, above, noise), b = rounded(&k, k.w + 1, above, noise);
        const __m512 y = _mm512_add_ps(_mm512_mul_ps(k.w[0].weight, a.level),
                                       _mm512_mul_ps(k.w[1].weight, b.level));
        _mm512_mask_storeu_ps(t->y + r * t->ld + c, k.m, y);
        if (!rated) continue;
        const __m512 r0 = look_up(&k, t->tables, k.w, a.code);
        const __m512 r1 = look_up(&k, t->tables, k.w + 1, b.code);
        add_lanes(t->rate + 8 * r, _mm512_add_ps(_mm512_mul_ps(k.w[0].weight, r0),
                                                 _mm512_mul_ps(k.w[1].weight, r1)));
    }
}

void cq_channel_bits_f32_avx512(const cq_channel_tile *t) {
    for (size_t c = 0; c < t->cols; c += 16) {
        if (t->noise)
            t->tables ? forward(t, c, 1, 1) : forward(t, c, 1, 0);
        else
            t->tables ? forward(t, c, 0, 1) : forward(t, c, 0, 0);
    }
}

#include "core/isa_end.h"
#endif
