/* SPDX-License-Identifier: Apache-2.0 */
/* gemm: the int8 kernels (core/gemm.h has the layout of a panel and the formula of a requantised
 * sum).
 *
 * gemm_s8_pack puts `rows` <= 32 lanes, rs apart, of kc contiguous inputs into a panel. Lanes past
 * `rows` and inputs past kc are 0.
 *
 * gemm_s8_tile: c = or += sum over kc inputs of a[i, k] b[k, j], in int32; `a`, `b` and `c` of the
 * tile are panels and sums of integers. Up to 131071 inputs in all cannot overflow: 2^14 each.
 *
 * gemm_s8_finish: the dyadic requantisation of I-BERT (Kim et al. 2021, arXiv 2101.01321, section
 * 3.5), p / 2^e rounded half to even, in integers: I-BERT's own code does it in float64, exact for
 * |c| < 2^22. Arithmetic shifts of negative numbers, as all supported compilers do them. `out` must
 * not overlap c.
 *
 * Exactness: EXACT, all. */
#include "core/dispatch.h"

#include <string.h>

enum { TILE = 1024 };

/* Byte of lane r and input k. */
static size_t place(size_t r, size_t k, int is_b) {
    const size_t tile = (k / 64 * 2 + r / 16) * TILE;
    return tile + (is_b ? k % 64 / 4 * 64 + r % 16 * 4 + k % 4 : r % 16 * 64 + k % 64);
}

void cq_gemm_s8_pack_scalar(const int8_t *x, size_t rs, size_t rows, size_t kc, int is_b,
                            int8_t *panel) {
    memset(panel, 0, cq_ceil_div(kc, 64) * 2 * TILE);
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < kc; k++) panel[place(r, k, is_b)] = x[r * rs + k];
}

void cq_gemm_s8_tile_scalar(const cq_gemm_f32_tile *t) {
    const int8_t *b = (const int8_t *)t->b;
    for (size_t i = 0; i < t->m; i++) {
        const int8_t *a = (const int8_t *)(t->a + i / CQ_GEMM_WIDE * t->psa);
        int32_t *c = (int32_t *)(void *)(t->c + i * t->ldc);
        for (size_t j = 0; j < t->n; j++) {
            int32_t acc = t->first ? 0 : c[j];
            for (size_t k = 0; k < t->kc; k++)
                acc += a[place(i % CQ_GEMM_WIDE, k, 0)] * b[place(j, k, 1)];
            c[j] = acc;
        }
    }
}

/* p / 2^e to the nearest, half to even; 0 <= e <= 62. */
static int64_t shift_round(int64_t p, int e) {
    const int64_t whole = p >> e, one = (int64_t)1 << e, rest = p & (one - 1);
    return whole + (2 * rest + (whole & 1) > one);
}

void cq_gemm_s8_finish_scalar(const cq_gemm_requant *r, const int32_t *c, size_t ldc, size_t m,
                              size_t n, int8_t *out, size_t ldo) {
    const int64_t lo = r->lo - r->zero, hi = r->hi - r->zero;
    const int zero = r->zero;
    for (size_t i = 0; i < m; i++, c += ldc, out += ldo) {
        for (size_t j = 0; j < n; j++) {
            const int64_t sum = (int64_t)c[j] + (r->bias ? r->bias[j] : 0);
            int64_t v = shift_round(sum * r->multiplier[j], r->shift[j]);
            v = v < lo ? lo : v;
            v = v > hi ? hi : v;
            out[j] = (int8_t)((int)v + zero);
        }
    }
}
