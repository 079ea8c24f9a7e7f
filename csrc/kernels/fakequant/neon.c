/* SPDX-License-Identifier: Apache-2.0 */
/* Four floats at a time; fmax and fmin of aarch64 let NaN through by themselves. gscale of a row
 * keeps the eight double lanes of the contract in four registers. Written for correctness under an
 * emulator: not measured on hardware, `stream` is not used. */
#include "core/dispatch.h"
#if CQ_ARM64
#include "core/isa_begin_neon.h"

typedef struct grid {
    float32x4_t s, lo, hi;
} grid;

typedef struct sums {
    float64x2_t low, high; /* two lanes each */
} sums;

/* cq_rint_small(cq_clampf(v, lo, hi)) */
CQ_INLINE float32x4_t rounded(float32x4_t v, const grid *p) {
    const float32x4_t magic = vdupq_n_f32(12582912.0f);
    return vsubq_f32(vaddq_f32(vminq_f32(p->hi, vmaxq_f32(p->lo, v)), magic), magic);
}

CQ_INLINE void forward(const float *x, float *out, const grid *p) {
    const float32x4_t r = rounded(vdivq_f32(vld1q_f32(x), p->s), p);
    vst1q_f32(out, vaddq_f32(vmulq_f32(r, p->s), vdupq_n_f32(0.0f)));
}

CQ_INLINE void backward(const float *x, const float *g, float *gx, const grid *p, sums *sum) {
    const float32x4_t v = vdivq_f32(vld1q_f32(x), p->s), gv = vld1q_f32(g);
    const uint32x4_t inside = vandq_u32(vcgeq_f32(v, p->lo), vcleq_f32(v, p->hi));
    const uint32x4_t kept = vandq_u32(inside, vreinterpretq_u32_f32(v));
    const float32x4_t d = vsubq_f32(rounded(v, p), vreinterpretq_f32_u32(kept));
    sum->low = vaddq_f64(sum->low,
                         vmulq_f64(vcvt_f64_f32(vget_low_f32(gv)), vcvt_f64_f32(vget_low_f32(d))));
    sum->high = vaddq_f64(sum->high, vmulq_f64(vcvt_high_f64_f32(gv), vcvt_high_f64_f32(d)));
    vst1q_f32(gx, vreinterpretq_f32_u32(vandq_u32(inside, vreinterpretq_u32_f32(gv))));
}

/* Columns [begin, end) of row r; their gscale goes to `gscale`. */
static cq_fakequant_block part_of(const cq_fakequant_block *b, size_t r, size_t begin, size_t end,
                                  size_t param, double *gscale) {
    const size_t at = r * b->cols + begin;
    cq_fakequant_block part = *b;
    part.x += at;
    part.out += at;
    if (b->g) part.g += at;
    part.gscale = gscale;
    part.scale += param;
    part.lo += param;
    part.hi += param;
    part.rows = 1;
    part.cols = end - begin;
    return part;
}

void cq_fakequant_f32_row_neon(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++) {
        const grid p = {vdupq_n_f32(b->scale[r]), vdupq_n_f32(b->lo[r]), vdupq_n_f32(b->hi[r])};
        const size_t at = r * b->cols, whole = b->cols / 4 * 4;
        for (size_t i = 0; i < whole; i += 4) forward(b->x + at + i, b->out + at + i, &p);
        const cq_fakequant_block rest = part_of(b, r, whole, b->cols, r, NULL);
        cq_fakequant_f32_row_scalar(&rest);
    }
}

void cq_fakequant_f32_col_neon(const cq_fakequant_block *b) {
    const size_t whole = b->cols / 4 * 4;
    for (size_t r = 0; r < b->rows; r++) {
        const size_t at = r * b->cols;
        for (size_t i = 0; i < whole; i += 4) {
            const grid p = {vld1q_f32(b->scale + i), vld1q_f32(b->lo + i), vld1q_f32(b->hi + i)};
            forward(b->x + at + i, b->out + at + i, &p);
        }
        const cq_fakequant_block rest = part_of(b, r, whole, b->cols, whole, NULL);
        cq_fakequant_f32_col_scalar(&rest);
    }
}

void cq_fakequant_bwd_f32_row_neon(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++) {
        const grid p = {vdupq_n_f32(b->scale[r]), vdupq_n_f32(b->lo[r]), vdupq_n_f32(b->hi[r])};
        const float64x2_t none = vdupq_n_f64(0.0);
        sums even = {none, none}, odd = {none, none}; /* lanes 0..3 and 4..7 */
        const size_t at = r * b->cols, whole = b->cols / 8 * 8;
        for (size_t i = at; i < at + whole; i += 8) {
            backward(b->x + i, b->g + i, b->out + i, &p, &even);
            backward(b->x + i + 4, b->g + i + 4, b->out + i + 4, &p, &odd);
        }
        double lane[8];
        vst1q_f64(lane, even.low);
        vst1q_f64(lane + 2, even.high);
        vst1q_f64(lane + 4, odd.low);
        vst1q_f64(lane + 6, odd.high);
        for (size_t i = whole; i < b->cols; i++) {
            double one; /* a single element: all other lanes of the scalar kernel are zero */
            const cq_fakequant_block part = part_of(b, r, i, i + 1, r, &one);
            cq_fakequant_bwd_f32_row_scalar(&part);
            lane[i % 8] += one;
        }
        b->gscale[r] = cq_sum_lanes(lane);
    }
}

void cq_fakequant_bwd_f32_col_neon(const cq_fakequant_block *b) {
    const size_t whole = b->cols / 4 * 4;
    for (size_t r = 0; r < b->rows; r++) {
        for (size_t i = 0; i < whole; i += 4) {
            const size_t at = r * b->cols + i;
            const grid p = {vld1q_f32(b->scale + i), vld1q_f32(b->lo + i), vld1q_f32(b->hi + i)};
            sums sum = {vld1q_f64(b->gscale + i), vld1q_f64(b->gscale + i + 2)};
            backward(b->x + at, b->g + at, b->out + at, &p, &sum);
            vst1q_f64(b->gscale + i, sum.low);
            vst1q_f64(b->gscale + i + 2, sum.high);
        }
        const cq_fakequant_block rest = part_of(b, r, whole, b->cols, whole, b->gscale + whole);
        cq_fakequant_bwd_f32_col_scalar(&rest);
    }
}

#include "core/isa_end.h"
#endif
