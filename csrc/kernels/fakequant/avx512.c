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
            cq_fakequant_fetch(x + i, CQ_FAKEQUANT_AHEAD);
            _mm512_stream_ps(out + i, r);
        } else {
            _mm512_storeu_ps(out + i, r);
        }
    }
    if (i < n) some(x + i, out + i, cq_tail_mask(n - i), p, fast);
}

/* The parameters of up to CHUNK + 1 rows as `multiplied` wants them: a broadcast from memory costs
 * no vector instruction, a division per row of 128 floats would cost as much as two of its lines.
 */
enum { CHUNK = 31 };
typedef struct grids {
    float y[CHUNK + 1], lo[CHUNK + 1], hi[CHUNK + 1];
    const float *s;
    uint32_t fast; /* one bit per row: cq_fakequant_fast() */
} grids;

CQ_INLINE uint32_t sixteen_grids(const cq_fakequant_block *b, size_t r, grids *t, size_t k) {
    __mmask16 m = r < b->rows ? cq_tail_mask(b->rows - r) : 0;
    const __m512 s = _mm512_mask_loadu_ps(_mm512_set1_ps(1.0f), m, b->scale + r);
    const __m512 lo = _mm512_maskz_loadu_ps(m, b->lo + r), hi = _mm512_maskz_loadu_ps(m, b->hi + r);
    _mm512_storeu_ps(t->y + k, _mm512_div_ps(_mm512_set1_ps(1.0f), s));
    _mm512_storeu_ps(t->lo + k, _mm512_mul_ps(lo, s));
    _mm512_storeu_ps(t->hi + k, _mm512_mul_ps(hi, s));
    m = _mm512_mask_cmp_ps_mask(m, s, _mm512_set1_ps(CQ_FAKEQUANT_LEAST), _CMP_GE_OQ);
    m = _mm512_mask_cmp_ps_mask(m, s, _mm512_set1_ps(CQ_FAKEQUANT_MOST), _CMP_LE_OQ);
    m = _mm512_mask_cmp_ps_mask(m, lo, _mm512_set1_ps(-CQ_FAKEQUANT_BOUND), _CMP_GE_OQ);
    return _mm512_mask_cmp_ps_mask(m, hi, _mm512_set1_ps(CQ_FAKEQUANT_BOUND), _CMP_LE_OQ);
}

CQ_INLINE void find_grids(const cq_fakequant_block *b, size_t r, grids *t) {
    t->s = b->scale + r;
    cq_fakequant_params(b->scale + r);
    cq_fakequant_params(b->lo + r);
    cq_fakequant_params(b->hi + r);
    t->fast = sixteen_grids(b, r, t, 0) | sixteen_grids(b, r + 16, t, 16) << 16;
}

CQ_INLINE grid fast_grid(const grids *t, size_t k) {
    return (grid){_mm512_set1_ps(t->s[k]), _mm512_set1_ps(t->y[k]), _mm512_set1_ps(t->lo[k]),
                  _mm512_set1_ps(t->hi[k])};
}

/* The end of row k and the start of the next in one cache line, `m` the lanes of the next: stored
 * as two parts, such a line would be fetched first (groups of 128: 10 against 6 ms). */
CQ_INLINE void seam(const float *x, float *out, const grids *t, size_t k, __mmask16 m,
                    const grid *p) {
    const grid both = {_mm512_mask_mov_ps(p->s, m, _mm512_set1_ps(t->s[k + 1])),
                       _mm512_mask_mov_ps(p->y, m, _mm512_set1_ps(t->y[k + 1])),
                       _mm512_mask_mov_ps(p->lo, m, _mm512_set1_ps(t->lo[k + 1])),
                       _mm512_mask_mov_ps(p->hi, m, _mm512_set1_ps(t->hi[k + 1]))};
    cq_fakequant_fetch(x, CQ_FAKEQUANT_AHEAD);
    _mm512_stream_ps(out, multiplied(_mm512_loadu_ps(x), &both));
}

/* n floats of row k of t from column `done` on; returns how much of the next row it did. */
CQ_INLINE size_t stream_row(const float *x, float *out, size_t n, const grids *t, size_t k,
                            int join) {
    const size_t head = (0 - (uintptr_t)out / sizeof *out) % 16, rest = (n - head) % 16;
    const grid p = fast_grid(t, k);
    join = join && rest;
    row(x, out, join ? n - rest : n, &p, 1, 1);
    if (!join) return 0;
    seam(x + n - rest, out + n - rest, t, k, (__mmask16)(0xFFFFu << rest), &p);
    return 16 - rest;
}

/* Rows [r, r + rows), of which `done` columns were done with the row before; returns how many of
 * the row after them it did. */
CQ_INLINE size_t some_rows(const cq_fakequant_block *b, size_t r, size_t rows, size_t done) {
    const size_t n = b->cols;
    const float *x = b->x + r * n;
    float *out = b->out + r * n;
    grids t;
    find_grids(b, r, &t);
    for (size_t k = 0; k < rows; k++, x += n, out += n) {
        const int fast = t.fast >> k & 1;
        if (fast && b->stream) {
            done = stream_row(x + done, out + done, n - done, &t, k, t.fast >> k >> 1 & 1);
        } else if (fast) {
            const grid p = fast_grid(&t, k);
            row(x, out, n, &p, 1, 0);
        } else {
            const grid p = {_mm512_set1_ps(t.s[k]), _mm512_setzero_ps(),
                            _mm512_set1_ps(b->lo[r + k]), _mm512_set1_ps(b->hi[r + k])};
            row(x + done, out + done, n - done, &p, 0, 0);
            done = 0;
        }
    }
    return done;
}

void cq_fakequant_f32_row_avx512(const cq_fakequant_block *b) {
    size_t done = 0;
    for (size_t r = 0; r < b->rows; r += CHUNK)
        done = some_rows(b, r, cq_min_size(CHUNK, b->rows - r), done);
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
            cq_fakequant_fetch(x, CQ_FAKEQUANT_AHEAD);
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
