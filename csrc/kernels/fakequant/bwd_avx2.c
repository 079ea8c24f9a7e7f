/* SPDX-License-Identifier: Apache-2.0 */
/* Eight floats at a time, gscale in two registers of four double lanes: together the scalar
 * kernel's lane i % 8. Single elements (heads, tails) go to the scalar kernel, column sums of four
 * rows stay in registers. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

typedef struct grid {
    __m256 s, lo, hi;
} grid;

typedef struct sums {
    __m256d even, odd; /* lanes 0..3 and 4..7 */
} sums;

/* Gradient of eight elements; adds their share of gscale. */
CQ_INLINE __m256 eight(const float *x, const float *g, const grid *p, sums *sum) {
    const __m256 v = _mm256_div_ps(_mm256_loadu_ps(x), p->s), gv = _mm256_loadu_ps(g);
    const __m256 inside =
        _mm256_and_ps(_mm256_cmp_ps(v, p->lo, _CMP_GE_OQ), _mm256_cmp_ps(v, p->hi, _CMP_LE_OQ));
    const __m256 clamped = _mm256_min_ps(p->hi, _mm256_max_ps(p->lo, v));
    const __m256 r = _mm256_round_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 d = _mm256_sub_ps(r, _mm256_and_ps(inside, v));
    sum->even = _mm256_add_pd(sum->even, _mm256_mul_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(gv)),
                                                       _mm256_cvtps_pd(_mm256_castps256_ps128(d))));
    sum->odd = _mm256_add_pd(sum->odd, _mm256_mul_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(gv, 1)),
                                                     _mm256_cvtps_pd(_mm256_extractf128_ps(d, 1))));
    return _mm256_and_ps(inside, gv);
}

/* Elements [begin, end) of row r, one by one, each to its lane. */
static void plain_row(const cq_fakequant_block *b, size_t r, size_t begin, size_t end,
                      double *lane) {
    for (size_t i = begin; i < end; i++) {
        const size_t at = r * b->cols + i;
        double one; /* a single element: all other lanes of the scalar kernel are zero */
        const cq_fakequant_block part = {.x = b->x + at,
                                         .g = b->g + at,
                                         .out = b->out + at,
                                         .gscale = &one,
                                         .scale = b->scale + r,
                                         .lo = b->lo + r,
                                         .hi = b->hi + r,
                                         .rows = 1,
                                         .cols = 1};
        cq_fakequant_bwd_f32_row_scalar(&part);
        lane[i % 8] += one;
    }
}

static void plain_col(const cq_fakequant_block *b, size_t r, size_t begin, size_t end) {
    const size_t at = r * b->cols + begin;
    const cq_fakequant_block part = {.x = b->x + at,
                                     .g = b->g + at,
                                     .out = b->out + at,
                                     .gscale = b->gscale + begin,
                                     .scale = b->scale + begin,
                                     .lo = b->lo + begin,
                                     .hi = b->hi + begin,
                                     .rows = 1,
                                     .cols = end - begin};
    cq_fakequant_bwd_f32_col_scalar(&part);
}

/* One row. The registers start at column `head`, so their lane j is lane (j + head) % 8. */
CQ_INLINE double row(const cq_fakequant_block *b, size_t r, size_t head, int stream) {
    const size_t at = r * b->cols, n = b->cols;
    const float *x = b->x + at, *g = b->g + at;
    float *gx = b->out + at;
    const grid p = {_mm256_set1_ps(b->scale[r]), _mm256_set1_ps(b->lo[r]),
                    _mm256_set1_ps(b->hi[r])};
    double lane[8] = {0}, turned[8];
    plain_row(b, r, 0, head, lane);
    for (size_t j = 0; j < 8; j++) turned[j] = lane[(j + head) % 8];
    sums sum = {_mm256_loadu_pd(turned), _mm256_loadu_pd(turned + 4)};
    size_t i = head;
    for (; i + 16 <= n; i += 16) {
        const __m256 a = eight(x + i, g + i, &p, &sum), c = eight(x + i + 8, g + i + 8, &p, &sum);
        if (stream) {
            cq_fakequant_fetch(x + i, CQ_FAKEQUANT_AHEAD_TWO);
            cq_fakequant_fetch(g + i, CQ_FAKEQUANT_AHEAD_TWO);
            _mm256_stream_ps(gx + i, a);
            _mm256_stream_ps(gx + i + 8, c);
        } else {
            _mm256_storeu_ps(gx + i, a);
            _mm256_storeu_ps(gx + i + 8, c);
        }
    }
    if (i + 8 <= n) {
        _mm256_storeu_ps(gx + i, eight(x + i, g + i, &p, &sum));
        i += 8;
    }
    _mm256_storeu_pd(turned, sum.even);
    _mm256_storeu_pd(turned + 4, sum.odd);
    for (size_t j = 0; j < 8; j++) lane[(j + head) % 8] = turned[j];
    plain_row(b, r, i, n, lane);
    return cq_sum_lanes(lane);
}

void cq_fakequant_bwd_f32_row_avx2(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++) {
        const float *out = b->out + r * b->cols;
        if (b->stream)
            b->gscale[r] = row(b, r, (0 - (uintptr_t)out / sizeof *out) % 8, 1);
        else
            b->gscale[r] = row(b, r, 0, 0);
    }
    if (b->stream) _mm_sfence();
}

/* Eight columns of up to four rows. */
CQ_INLINE void columns(const cq_fakequant_block *b, size_t r, size_t rows, size_t i, int stream) {
    const grid p = {_mm256_loadu_ps(b->scale + i), _mm256_loadu_ps(b->lo + i),
                    _mm256_loadu_ps(b->hi + i)};
    sums sum = {_mm256_loadu_pd(b->gscale + i), _mm256_loadu_pd(b->gscale + i + 4)};
    for (size_t k = r; k < r + rows; k++) {
        const size_t at = k * b->cols + i;
        const __m256 gx = eight(b->x + at, b->g + at, &p, &sum);
        if (stream) {
            cq_fakequant_fetch(b->x + at, CQ_FAKEQUANT_AHEAD_TWO);
            cq_fakequant_fetch(b->g + at, CQ_FAKEQUANT_AHEAD_TWO);
            _mm256_stream_ps(b->out + at, gx);
        } else {
            _mm256_storeu_ps(b->out + at, gx);
        }
    }
    _mm256_storeu_pd(b->gscale + i, sum.even);
    _mm256_storeu_pd(b->gscale + i + 4, sum.odd);
}

void cq_fakequant_bwd_f32_col_avx2(const cq_fakequant_block *b) {
    const size_t n = b->cols;
    /* Every row must start at the same place of a vector. */
    const int stream = b->stream && n % 8 == 0;
    const size_t head = stream ? (0 - (uintptr_t)b->out / sizeof *b->out) % 8 : 0;
    for (size_t r = 0; r < b->rows; r += 4) {
        const size_t rows = cq_min_size(4, b->rows - r);
        size_t i = head;
        if (stream)
            for (; i + 8 <= n; i += 8) columns(b, r, rows, i, 1);
        else
            for (; i + 8 <= n; i += 8) columns(b, r, rows, i, 0);
        for (size_t k = r; k < r + rows; k++) {
            if (head) plain_col(b, k, 0, head);
            if (i < n) plain_col(b, k, i, n);
        }
    }
    if (stream) _mm_sfence();
}

#include "core/isa_end.h"
#endif
