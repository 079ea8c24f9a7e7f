/* SPDX-License-Identifier: Apache-2.0 */
/* Four floats at a time, as avx2.c. Checked under an emulator only: speed is not measured. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"

#include <string.h>

typedef float32x4_t vec;
enum { LANES = 4, WIDE = 2 };

CQ_INLINE vec none(void) { return vdupq_n_f32(0.0f); }
CQ_INLINE vec spread(float x) { return vdupq_n_f32(x); }
CQ_INLINE vec madd(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
CQ_INLINE float total(vec v) { return vaddvq_f32(v); }
CQ_INLINE void totals(const vec *v, const size_t count, float *out, size_t stride) {
    for (size_t r = 0; r < count; r++) out[r * stride] = total(v[r]);
}
CQ_INLINE vec some(const void *p, size_t left, const int bf16) {
    uint32_t room[LANES] = {0};
    const void *from = p;
    if (left < LANES) {
        memcpy(room, p, left * (bf16 ? 2 : 4));
        from = room;
    }
    if (!bf16) return vld1q_f32(from);
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16));
}
CQ_INLINE void put(float *p, size_t left, vec v) {
    float room[LANES];
    vst1q_f32(room, v);
    memcpy(p, room, cq_min_size(left, LANES) * sizeof(float));
}

#include "kernels/attend/rows.h"

void cq_attend_scores_neon(const cq_attend_head *h) { attend_scores(h); }

void cq_attend_values_neon(const cq_attend_head *h) { attend_values(h); }

#include "core/isa_end.h"
#endif
