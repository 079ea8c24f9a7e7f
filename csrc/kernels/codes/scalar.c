/* SPDX-License-Identifier: Apache-2.0 */
/* codes: values to the integer codes of an affine grid and back.
 *
 *   codes_f32_row     code = rint(min(hi, max(lo, x / scale))) - lo     unsigned, 0 .. hi - lo
 *   decode_f32_row    out  = (code + lo) * scale + 0                    equals fakequant
 *   codes_f32_s8_row  code = rint(min(127, max(-128, x / scale)))       signed
 *
 * `n` elements, one grid; real division, half to even; lo, hi integers with hi - lo <= 255. NaN
 * becomes code 0, infinity saturates; x / scale with an infinite or NaN scale is 0 or NaN, so the
 * codes are 0. No aliasing. Exactness: EXACT. */
#include "core/dispatch.h"
#include "core/grid.h"

#include <math.h>

void cq_codes_f32_row_scalar(const float *x, uint8_t *out, size_t n, cq_affine p) {
    for (size_t i = 0; i < n; i++) {
        const float v = x[i] / p.scale;
        const float c = cq_rint_small(cq_clampf(v, p.lo, p.hi)) - p.lo;
        out[i] = (uint8_t)(int32_t)(isnan(v) ? 0.0f : c);
    }
}

void cq_decode_f32_row_scalar(const uint8_t *codes, float *out, size_t n, cq_affine p) {
    for (size_t i = 0; i < n; i++) out[i] = ((float)codes[i] + p.lo) * p.scale + 0.0f;
}

void cq_codes_f32_s8_row_scalar(const float *x, int8_t *out, size_t n, float scale) {
    for (size_t i = 0; i < n; i++) {
        const float v = x[i] / scale;
        const float c = cq_rint_small(cq_clampf(v, -128.0f, 127.0f));
        out[i] = (int8_t)(int32_t)(isnan(v) ? 0.0f : c);
    }
}
