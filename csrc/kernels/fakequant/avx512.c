/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen floats at a time, heads and tails by mask. vmaxps/vminps return their second operand on
 * NaN, so (lo, v) and (hi, v) let NaN through.
 *
 * Rows divide by way of y = 1/scale, which is rounded correctly: q = x*y is within two units of
 * x/scale, one step q += (x - q*scale) * y brings it within one, and a second one rounds it as the
 * division does (P. Markstein, IBM J. Res. Dev. 34(1), 1990); the remainders are exact under FMA
 * where cq_fakequant_fast() holds and |x/scale| >= 1/4, and below that the result is 0 anyway. It
 * takes 5 cycles per vector, the divider 10 (L2: 71 against 40 GB/s). There x is clamped instead
 * of x/scale: at rint's input the bounds are within 1/8 of the integers lo and hi either way. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512.h"

typedef struct grid {
    __m512 s, y, lo, hi;
} grid;

CQ_INLINE __m512 divided(__m512 x, const grid *p) {
    const __m512 v = _mm512_min_ps(p->hi, _mm512_max_ps(p->lo, _mm512_div_ps(x, p->s)));
    const __m512 r = _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_add_ps(_mm512_mul_ps(r, p->s), _mm512_setzero_ps());
}

CQ_INLINE __m512 multiplied(__m512 x, const grid *p) {
    const __m512 magic = _mm512_set1_ps(12582912.0f);
    x = _mm512_min_ps(p->hi, _mm512_max_ps(p->lo, x));
    __m512 q = _mm512_mul_ps(x, p->y);
    q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, p->s, x), p->y, q);
    q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, p->s, x), p->y, q);
    const __m512 r = _mm512_sub_ps(_mm512_add_ps(q, magic), magic);
    return _mm512_fmadd_ps(r, p->s, _mm512_setzero_ps());
}

CQ_INLINE __m512 one(__m512 x, const grid *p, int fast) {
    return fast ? multiplied(x, p) : divided(x, p);
}

CQ_INLINE void some(const float *x, float *out, __mmask16 m, const grid *p, int fast) {
    _mm512_mask_storeu_ps(out, m, one(_mm512_maskz_loadu_ps(m, x), p, fast));
}

CQ_INLINE void row(const float *x, float *out, size_t n, const grid *p, int fast, int stream) {
    size_t i = stream ? (0 - (uintptr_t)out / sizeof *out) % 16 : 0;
    if (i) some(x, out, cq_tail_mask(i), p, fast); /* even an empty one fetches the line of out */
    for (; i + 16 <= n; i += 16) {
        const __m512 r = one(_mm512_loadu_ps(x + i), p, fast);
        if (stream) {
            _mm_prefetch((const char *)(x + i + CQ_FAKEQUANT_AHEAD), _MM_HINT_T0);
            _mm512_stream_ps(out + i, r);
        } else {
            _mm512_storeu_ps(out + i, r);
        }
    }
    if (i < n) some(x + i, out + i, cq_tail_mask(n - i), p, fast);
}

CQ_INLINE grid fast_grid(const cq_fakequant_block *b, size_t r) {
    const float s = b->scale[r];
    return (grid){_mm512_set1_ps(s), _mm512_set1_ps(1.0f / s), _mm512_set1_ps(b->lo[r] * s),
                  _mm512_set1_ps(b->hi[r] * s)};
}

static int fast_row(const cq_fakequant_block *b, size_t r) {
    return cq_fakequant_fast(b->scale[r], b->lo[r], b->hi[r]);
}

/* The end of row r and the start of the next in one cache line, `m` the lanes of the next: stored
 * as two parts, such a line would be fetched first (groups of 128: 10 against 6 ms). */
CQ_INLINE void seam(const cq_fakequant_block *b, size_t r, size_t i, __mmask16 m, const grid *p) {
    const grid q = fast_grid(b, r + 1);
    const grid both = {_mm512_mask_mov_ps(p->s, m, q.s), _mm512_mask_mov_ps(p->y, m, q.y),
                       _mm512_mask_mov_ps(p->lo, m, q.lo), _mm512_mask_mov_ps(p->hi, m, q.hi)};
    const size_t at = r * b->cols + i;
    _mm512_stream_ps(b->out + at, multiplied(_mm512_loadu_ps(b->x + at), &both));
}

/* Row r from column `begin` on; returns how much of the next row it did. */
CQ_INLINE size_t stream_row(const cq_fakequant_block *b, size_t r, size_t begin) {
    const float *x = b->x + r * b->cols + begin;
    float *out = b->out + r * b->cols + begin;
    const size_t n = b->cols - begin, head = (0 - (uintptr_t)out / sizeof *out) % 16;
    const size_t rest = (n - head) % 16;
    const grid p = fast_grid(b, r);
    const int join = rest && r + 1 < b->rows && fast_row(b, r + 1);
    row(x, out, join ? n - rest : n, &p, 1, 1);
    if (!join) return 0;
    seam(b, r, b->cols - rest, (__mmask16)(0xFFFFu << rest), &p);
    return 16 - rest;
}

void cq_fakequant_f32_row_avx512(const cq_fakequant_block *b) {
    size_t done = 0; /* of this row, with the one before it */
    for (size_t r = 0; r < b->rows; r++) {
        const size_t at = r * b->cols + done;
        if (fast_row(b, r) && b->stream) {
            done = stream_row(b, r, done);
        } else if (fast_row(b, r)) {
            const grid p = fast_grid(b, r);
            row(b->x + at, b->out + at, b->cols, &p, 1, 0);
        } else {
            const grid p = {_mm512_set1_ps(b->scale[r]), _mm512_setzero_ps(),
                            _mm512_set1_ps(b->lo[r]), _mm512_set1_ps(b->hi[r])};
            row(b->x + at, b->out + at, b->cols - done, &p, 0, 0);
            done = 0;
        }
    }
    if (b->stream) _mm_sfence();
}

/* Up to four rows of sixteen columns: the parameters are read once for them. */
CQ_INLINE void columns(const cq_fakequant_block *b, size_t r, size_t rows, size_t i, __mmask16 m,
                       int stream) {
    const grid p = {_mm512_mask_loadu_ps(_mm512_set1_ps(1.0f), m, b->scale + i),
                    _mm512_setzero_ps(), _mm512_maskz_loadu_ps(m, b->lo + i),
                    _mm512_maskz_loadu_ps(m, b->hi + i)};
    for (size_t k = r; k < r + rows; k++) {
        const float *x = b->x + k * b->cols + i;
        float *out = b->out + k * b->cols + i;
        if (stream) {
            _mm_prefetch((const char *)(x + CQ_FAKEQUANT_AHEAD), _MM_HINT_T0);
            _mm512_stream_ps(out, divided(_mm512_loadu_ps(x), &p));
        } else {
            some(x, out, m, &p, 0);
        }
    }
}

void cq_fakequant_f32_col_avx512(const cq_fakequant_block *b) {
    const size_t n = b->cols;
    /* Every row must start at the same place of a cache line. */
    const int stream = b->stream && n % 16 == 0;
    const size_t head = stream ? (0 - (uintptr_t)b->out / sizeof *b->out) % 16 : 0;
    for (size_t r = 0; r < b->rows; r += 4) {
        const size_t rows = cq_min_size(4, b->rows - r);
        size_t i = head;
        if (head) columns(b, r, rows, 0, cq_tail_mask(head), 0);
        if (stream)
            for (; i + 16 <= n; i += 16) columns(b, r, rows, i, 0xFFFF, 1);
        for (; i < n; i += 16) columns(b, r, rows, i, cq_tail_mask(n - i), 0);
    }
    if (stream) _mm_sfence();
}

#include "core/isa_end.h"
#endif
