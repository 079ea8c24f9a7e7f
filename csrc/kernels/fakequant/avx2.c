/* SPDX-License-Identifier: Apache-2.0 */
/* Eight floats at a time; vmaxps/vminps return their second operand on NaN, so (lo, v) and (hi, v)
 * let NaN through. Heads and tails go to the scalar kernel. Rows divide by way of the reciprocal,
 * with the same bits: see avx512.c. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

typedef struct grid {
    __m256 s, y, lo, hi;
} grid;

CQ_INLINE __m256 divided(__m256 x, const grid *p) {
    const __m256 v = _mm256_min_ps(p->hi, _mm256_max_ps(p->lo, _mm256_div_ps(x, p->s)));
    const __m256 r = _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_add_ps(_mm256_mul_ps(r, p->s), _mm256_setzero_ps());
}

CQ_INLINE __m256 multiplied(__m256 x, const grid *p) {
    const __m256 magic = _mm256_set1_ps(12582912.0f);
    x = _mm256_min_ps(p->hi, _mm256_max_ps(p->lo, x));
    __m256 q = _mm256_mul_ps(x, p->y);
    q = _mm256_fmadd_ps(_mm256_fnmadd_ps(q, p->s, x), p->y, q);
    q = _mm256_fmadd_ps(_mm256_fnmadd_ps(q, p->s, x), p->y, q);
    const __m256 r = _mm256_sub_ps(_mm256_add_ps(q, magic), magic);
    return _mm256_fmadd_ps(r, p->s, _mm256_setzero_ps());
}

CQ_INLINE __m256 one(__m256 x, const grid *p, int fast) {
    return fast ? multiplied(x, p) : divided(x, p);
}

/* Columns [begin, end) of row r by the scalar kernel. */
static void plain_row(const cq_fakequant_block *b, size_t r, size_t begin, size_t end) {
    const size_t at = r * b->cols + begin;
    const cq_fakequant_block part = {.x = b->x + at,
                                     .out = b->out + at,
                                     .scale = b->scale + r,
                                     .lo = b->lo + r,
                                     .hi = b->hi + r,
                                     .rows = 1,
                                     .cols = end - begin};
    cq_fakequant_f32_row_scalar(&part);
}

static void plain_col(const cq_fakequant_block *b, size_t r, size_t begin, size_t end) {
    const size_t at = r * b->cols + begin;
    const cq_fakequant_block part = {.x = b->x + at,
                                     .out = b->out + at,
                                     .scale = b->scale + begin,
                                     .lo = b->lo + begin,
                                     .hi = b->hi + begin,
                                     .rows = 1,
                                     .cols = end - begin};
    cq_fakequant_f32_col_scalar(&part);
}

/* Vectors of a row from column i on; returns where they end. A cache line at a time, which is what
 * non-temporal stores need to leave the core as one transfer. */
CQ_INLINE size_t row(const float *x, float *out, size_t i, size_t n, const grid *p, int fast,
                     int stream) {
    for (; i + 16 <= n; i += 16) {
        const __m256 a = one(_mm256_loadu_ps(x + i), p, fast);
        const __m256 c = one(_mm256_loadu_ps(x + i + 8), p, fast);
        if (stream) {
            cq_fakequant_fetch(x + i, CQ_FAKEQUANT_AHEAD);
            _mm256_stream_ps(out + i, a);
            _mm256_stream_ps(out + i + 8, c);
        } else {
            _mm256_storeu_ps(out + i, a);
            _mm256_storeu_ps(out + i + 8, c);
        }
    }
    if (i + 8 > n) return i;
    _mm256_storeu_ps(out + i, one(_mm256_loadu_ps(x + i), p, fast));
    return i + 8;
}

void cq_fakequant_f32_row_avx2(const cq_fakequant_block *b) {
    for (size_t r = 0; r < b->rows; r++) {
        const float scale = b->scale[r], lo = b->lo[r], hi = b->hi[r];
        const float *x = b->x + r * b->cols;
        float *out = b->out + r * b->cols;
        const size_t head = b->stream ? (0 - (uintptr_t)out / sizeof *out) % 16 : 0;
        grid p = {_mm256_set1_ps(scale), _mm256_set1_ps(1.0f / scale), _mm256_set1_ps(lo),
                  _mm256_set1_ps(hi)};
        size_t i = head;
        if (head) plain_row(b, r, 0, head);
        if (!cq_fakequant_fast(scale, lo, hi)) {
            i = row(x, out, i, b->cols, &p, 0, 0);
        } else {
            p.lo = _mm256_mul_ps(p.lo, p.s);
            p.hi = _mm256_mul_ps(p.hi, p.s);
            i = b->stream ? row(x, out, i, b->cols, &p, 1, 1) : row(x, out, i, b->cols, &p, 1, 0);
        }
        if (i < b->cols) plain_row(b, r, i, b->cols);
    }
    if (b->stream) _mm_sfence();
}

/* Sixteen columns of up to four rows: the parameters are read once for them. */
CQ_INLINE void columns(const cq_fakequant_block *b, size_t r, size_t rows, size_t i, int stream) {
    grid p[2];
    for (size_t h = 0; h < 2; h++) {
        p[h].s = _mm256_loadu_ps(b->scale + i + 8 * h);
        p[h].lo = _mm256_loadu_ps(b->lo + i + 8 * h);
        p[h].hi = _mm256_loadu_ps(b->hi + i + 8 * h);
    }
    for (size_t k = r; k < r + rows; k++) {
        const float *x = b->x + k * b->cols + i;
        float *out = b->out + k * b->cols + i;
        const __m256 a = divided(_mm256_loadu_ps(x), p);
        const __m256 c = divided(_mm256_loadu_ps(x + 8), p + 1);
        if (stream) {
            cq_fakequant_fetch(x, CQ_FAKEQUANT_AHEAD);
            _mm256_stream_ps(out, a);
            _mm256_stream_ps(out + 8, c);
        } else {
            _mm256_storeu_ps(out, a);
            _mm256_storeu_ps(out + 8, c);
        }
    }
}

void cq_fakequant_f32_col_avx2(const cq_fakequant_block *b) {
    const size_t n = b->cols;
    /* Every row must start at the same place of a cache line. */
    const int stream = b->stream && n % 16 == 0;
    const size_t head = stream ? (0 - (uintptr_t)b->out / sizeof *b->out) % 16 : 0;
    for (size_t r = 0; r < b->rows; r += 4) {
        const size_t rows = cq_min_size(4, b->rows - r);
        size_t i = head;
        if (stream)
            for (; i + 16 <= n; i += 16) columns(b, r, rows, i, 1);
        else
            for (; i + 16 <= n; i += 16) columns(b, r, rows, i, 0);
        for (size_t k = r; k < r + rows; k++) {
            if (head) plain_col(b, k, 0, head);
            if (i < n) plain_col(b, k, i, n);
        }
    }
    if (stream) _mm_sfence();
}

#include "core/isa_end.h"
#endif
