/* SPDX-License-Identifier: Apache-2.0 */
/* What NEON kernels of several operators share. Include between isa_begin and isa_end. */
#ifndef CQ_NEON_H
#define CQ_NEON_H

/* Keeps the scheduler of gcc 12 from loading so far ahead that sums are spilled. */
#define CQ_LOADS_STAY __asm__ volatile("" ::: "memory")

/* Four lanes at four depths, a .. d, stored one depth after the other, `ld` floats apart. */
CQ_INLINE void cq_transpose_store(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d,
                                  size_t ld, float *to) {
    const float64x2_t ab0 = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
    const float64x2_t ab1 = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
    const float64x2_t cd0 = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
    const float64x2_t cd1 = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
    vst1q_f32(to, vreinterpretq_f32_f64(vtrn1q_f64(ab0, cd0)));
    vst1q_f32(to + ld, vreinterpretq_f32_f64(vtrn1q_f64(ab1, cd1)));
    vst1q_f32(to + 2 * ld, vreinterpretq_f32_f64(vtrn2q_f64(ab0, cd0)));
    vst1q_f32(to + 3 * ld, vreinterpretq_f32_f64(vtrn2q_f64(ab1, cd1)));
}

#endif
