/* SPDX-License-Identifier: Apache-2.0 */
/* gemm: the kernels of a float matrix product (core/gemm.h has the layout).
 *
 * gemm_f32_pack copies `rows` <= width lanes and kc inputs of a matrix, element (r, k) at
 * x[r * rs + k * cs], to panel[k * width + r]. Lanes past `rows` repeat the last one: they are
 * multiplied like the others and never stored. width is a multiple of 4, rows at least 1.
 *
 * gemm_f32_tile: acc = +0; for k = 0 .. kc - 1: acc = fma(a[i, k], b[k, j], acc); then c = acc for
 * the first block of inputs and c = c + acc for the others. NaN and infinity follow IEEE. `c` must
 * not overlap a or b.
 *
 * gemm_f32_few: the same sums, of few rows times a B that is not packed.
 *
 * gemm_f32_stream copies n finished sums to where they stay, past the caches if that is faster.
 *
 * gemm_f32_finish: c = activation(c * scale + bias[j]) + residual[i, j], every step rounded to
 * float32; the activations are in core/activation.h. A missing step is left out.
 *
 * gemm_f32_finite: 1 when no element is infinite or NaN. gemm_bf16_round: to bfloat16, half to
 * even; what is past the largest becomes infinite, NaN stays NaN.
 *
 * Exactness: EXACT, all. Against exact arithmetic, with u = 2^-24 and B = ceil(K / KC) blocks, a
 * sum over K inputs errs by at most (min(K, KC) + B) u / (1 - (min(K, KC) + B) u) * sum |a b|
 * (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). */
#include "core/dispatch.h"
#include "kernels/gemm/finish.h"

#include <math.h>
#include <string.h>

void cq_gemm_f32_pack_scalar(const float *x, size_t rs, size_t cs, size_t rows, size_t kc,
                             size_t width, float *panel) {
    for (size_t k = 0; k < kc; k++)
        for (size_t r = 0; r < width; r++)
            panel[k * width + r] = x[(r < rows ? r : rows - 1) * rs + k * cs];
}

void cq_gemm_f32_stream_scalar(const float *from, float *to, size_t n) {
    memcpy(to, from, n * sizeof *to);
}

void cq_gemm_f32_tile_scalar(const cq_gemm_f32_tile *t) {
    for (size_t i = 0; i < t->m; i++) {
        const float *a = t->a + i / CQ_GEMM_MR * t->psa + i % CQ_GEMM_MR * t->rsa;
        float *c = t->c + i * t->ldc;
        for (size_t j = 0; j < t->n; j++) {
            float acc = 0.0f;
            for (size_t k = 0; k < t->kc; k++) acc = fmaf(a[k * t->csa], t->b[k * t->ldb + j], acc);
            c[j] = t->first ? acc : c[j] + acc;
        }
    }
}

void cq_gemm_f32_few_scalar(const cq_gemm_f32_few *t) {
    for (size_t i = 0; i < t->m; i++)
        for (size_t j = 0; j < t->n; j++) {
            const float *b = t->b + j * t->csb;
            float *c = t->c + i * t->ldc + j, acc = 0.0f;
            for (size_t k = 0; k < t->kc; k++) acc = fmaf(t->a[k * t->lda + i], b[k * t->rsb], acc);
            *c = t->first ? acc : *c + acc;
        }
}

void cq_gemm_f32_finish_scalar(const cq_gemm_finish *f, float *c, size_t ldc, size_t m, size_t n) {
    cq_gemm_finish_any(f, c, ldc, m, n);
}

void cq_gemm_f32_finite_scalar(const float *c, size_t ldc, size_t m, size_t n, int *finite) {
    *finite = cq_gemm_finite_any(c, ldc, m, n);
}

void cq_gemm_bf16_round_scalar(const float *c, size_t ldc, size_t m, size_t n, uint16_t *out,
                               size_t ldo) {
    cq_gemm_round_any(c, ldc, m, n, out, ldo);
}
