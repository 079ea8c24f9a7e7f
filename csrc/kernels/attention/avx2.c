/* SPDX-License-Identifier: Apache-2.0 */
/* Products of panels laid out as scalar.c packs them, [depth][32 lanes] for both operands: 4 rows
 * by 16 columns of c stay in eight registers while columns of A are broadcast. */
#include "attention.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

enum { STRIP = 4, WIDE = 16 };

/* sum[STRIP][WIDE] = a b. */
CQ_INLINE void strip(const float *a, const float *b, size_t depth, float *sum) {
    __m256 acc0[STRIP], acc1[STRIP];
#pragma GCC unroll 4
    for (size_t r = 0; r < STRIP; r++) acc0[r] = acc1[r] = _mm256_setzero_ps();
    for (size_t k = 0; k < depth; k++, a += CQ_ATT_LANES, b += CQ_ATT_LANES) {
        const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 4
        for (size_t r = 0; r < STRIP; r++) {
            const __m256 v = _mm256_broadcast_ss(a + r);
            acc0[r] = _mm256_fmadd_ps(v, b0, acc0[r]);
            acc1[r] = _mm256_fmadd_ps(v, b1, acc1[r]);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < STRIP; r++) {
        _mm256_storeu_ps(sum + r * WIDE, acc0[r]);
        _mm256_storeu_ps(sum + r * WIDE + 8, acc1[r]);
    }
}

static void finish(const cq_att_block *t, size_t i, size_t j, const float *sum) {
    const size_t rows = cq_min_size(STRIP, t->m - i), columns = cq_min_size(WIDE, t->n - j);
    for (size_t r = 0; r < rows; r++) {
        float *c = t->c + (i + r) * t->ldc + j;
        const float row = t->row ? t->row[i + r] : 1.0f;
        for (size_t q = 0; q < columns; q++) {
            const float scaled = row * sum[r * WIDE + q], bias = t->bias ? t->bias[j + q] : 0.0f;
            c[q] = ((t->add ? c[q] : 0.0f) + scaled) + bias;
        }
    }
}

void cq_attention_block_f32_avx2(const cq_att_block *t) {
    float sum[STRIP * WIDE];
    for (size_t j = 0; j < t->n; j += WIDE) {
        const float *b = cq_att_at(t->b, j, t->b_stride);
        for (size_t i = 0; i < t->m; i += STRIP) {
            const float *a = cq_att_at(t->a, i, t->a_stride);
            strip(a + i % CQ_ATT_LANES, b + j % CQ_ATT_LANES, t->depth, sum);
            finish(t, i, j, sum);
        }
    }
}

#include "core/isa_end.h"
#endif
