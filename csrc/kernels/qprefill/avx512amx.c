/* SPDX-License-Identifier: Apache-2.0 */
/* 32 rows x 32 outputs of a group in four tile registers, read and written as they lie in memory.
 * Storing a tile holds the tile unit as long as one product does, and a load soon after it stalls:
 * so the dots of a pair of groups wait in memory while the next pair is multiplied, and are scaled
 * between its instructions, two groups per visit of acc. Groups of 128 are thus bound by 2/3 of the
 * peak. Measured alone, one core: groups of 128 2.0 TOP/s (panel in L1: 2.9), whole rows 3.0;
 * the tile unit 6.8, VNNI 0.65. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512amx.h"

#include "kernels/qprefill/tiles_avx512amx.h"

enum { STEP = 1024, DOTS = 1024 };

/* The dots of up to two groups, to be scaled and added to acc. */
typedef struct pending {
    __m512 a0, a1, b0, b1; /* scales of the groups, 16 outputs each */
    float *acc;
    const int32_t *dot; /* [2][DOTS] */
    __mmask16 keep;     /* 0: acc starts from 0 */
} pending;

/* Vectors at .. at + count - 1 of 64. */
CQ_INLINE void scale_dots(const pending *p, const size_t at, const size_t count) {
#pragma GCC unroll 8
    for (size_t q = at; q < at + count; q++) {
        const __m512 a = _mm512_cvtepi32_ps(_mm512_load_si512((const void *)(p->dot + 16 * q)));
        const __m512 b =
            _mm512_cvtepi32_ps(_mm512_load_si512((const void *)(p->dot + DOTS + 16 * q)));
        const int second = q / 16 % 2;
        __m512 acc = _mm512_maskz_load_ps(p->keep, p->acc + 16 * q);
        acc = _mm512_fmadd_ps(second ? p->a1 : p->a0, a, acc);
        _mm512_store_ps(p->acc + 16 * q, _mm512_fmadd_ps(second ? p->b1 : p->b0, b, acc));
    }
}

typedef struct sides { /* both tiles of both operands */
    const uint8_t *x0, *x1;
    const int8_t *w0, *w1;
} sides;

/* One step; between its products `count` vectors each of what is pending, from `at` on. */
CQ_INLINE void step(sides s, const int codes, int32_t *to, const int last, const pending *p,
                    const size_t at, const size_t count) {
    _tile_loadd(4, s.x0, 64);
    _tile_loadd(6, s.w0, 64);
    product(0, codes);
    if (last) _tile_stored(0, to, 64);
    scale_dots(p, at, count);
    _tile_loadd(7, s.w1, 64);
    product(1, codes);
    if (last) _tile_stored(1, to + 256, 64);
    scale_dots(p, at + count, count);
    _tile_loadd(5, s.x1, 64);
    product(2, codes);
    if (last) _tile_stored(2, to + 512, 64);
    scale_dots(p, at + 2 * count, count);
    product(3, codes);
    if (last) _tile_stored(3, to + 768, 64);
    scale_dots(p, at + 3 * count, count);
}

CQ_INLINE sides next(sides s) {
    return (sides){s.x0 + STEP, s.x1 + STEP, s.w0 + STEP, s.w1 + STEP};
}

CQ_INLINE void start(const int32_t *part) {
    if (part) {
        _tile_loadd(0, part, 64);
        _tile_loadd(1, part + 256, 64);
        _tile_loadd(2, part + 512, 64);
        _tile_loadd(3, part + 768, 64);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}

/* The dots of a group; meanwhile half of what is pending. `steps` is 1, 2, or 3 for more. */
CQ_INLINE void group(const size_t steps, const int codes, size_t count, sides s,
                     const int32_t *part, int32_t *to, const pending *p, const size_t half) {
    start(part);
    if (steps == 1) {
        step(s, codes, to, 1, p, 32 * half, 8);
        return;
    }
    step(s, codes, to, 0, p, 32 * half, 4);
    s = next(s);
    step(s, codes, to, steps == 2, p, 32 * half + 16, 4);
    if (steps == 2) return;
    for (size_t i = 3; i < count; i++) step(s = next(s), codes, to, 0, p, 0, 0);
    step(next(s), codes, to, 1, p, 0, 0);
}

/* Add centre * xsum to the dots of a group of a block. */
static void centre_dots(const cq_qprefill_block *b, size_t i, size_t n, size_t g, int32_t *dot) {
    const int32_t *centre = b->centre + g * b->ld + n;
    for (size_t r = 0; r < 32; r++) {
        const __m512i sum = _mm512_set1_epi32(b->xsum[(32 * i + r) * b->ldsum + g]);
        for (size_t h = 0; h < 2; h++) {
            int32_t *to = dot + r / 16 * 512 + h * 256 + r % 16 * 16;
            const __m512i c = _mm512_loadu_si512((const void *)(centre + 16 * h));
            const __m512i d = _mm512_load_si512((const void *)to);
            _mm512_store_si512((void *)to, _mm512_add_epi32(d, _mm512_mullo_epi32(c, sum)));
        }
    }
}

/* All groups of block (i, j), leaving the last pair pending; `dots` alternates between two pairs.
 */
CQ_INLINE void one_block(const cq_qprefill_block *b, const size_t steps, const int codes, size_t i,
                         size_t j, int32_t *dots, size_t *turn, pending *p) {
    const size_t N = b->ld, strip = b->ldpanel, at = (i * b->n + j) * 1024;
    const int32_t *part = b->begin ? NULL : b->part + at;
    sides s = {b->x + 2 * i * b->ldx, b->x + (2 * i + 1) * b->ldx, b->panel + 2 * j * strip,
               b->panel + (2 * j + 1) * strip};
    for (size_t g = 0; g < b->groups; g += 2, *turn ^= 1) {
        int32_t *dot = dots + *turn * 2 * DOTS;
        const float *scale = b->scale + g * N + 32 * j;
        const int two = g + 1 < b->groups;
        group(steps, codes, b->steps, s, part, dot, p, 0);
        s.x0 += b->steps * STEP, s.x1 += b->steps * STEP;
        s.w0 += b->steps * STEP, s.w1 += b->steps * STEP;
        if (two) {
            group(steps, codes, b->steps, s, NULL, dot + DOTS, p, 1);
            s.x0 += b->steps * STEP, s.x1 += b->steps * STEP;
            s.w0 += b->steps * STEP, s.w1 += b->steps * STEP;
        } else {
            scale_dots(p, 32, 32);
        }
        if (b->centre) centre_dots(b, i, 32 * j, g, dot);
        if (b->centre && two) centre_dots(b, i, 32 * j, g + 1, dot + DOTS);
        p->acc = b->acc + at;
        p->dot = dot;
        p->keep = b->first && g == 0 ? 0 : 0xFFFF;
        p->a0 = _mm512_loadu_ps(scale), p->a1 = _mm512_loadu_ps(scale + 16);
        p->b0 = two ? _mm512_loadu_ps(scale + N) : _mm512_setzero_ps();
        p->b1 = two ? _mm512_loadu_ps(scale + N + 16) : _mm512_setzero_ps();
    }
}

CQ_INLINE void blocks(const cq_qprefill_block *b, const size_t steps, const int codes) {
    _Alignas(64) int32_t dots[4 * DOTS] = {0};
    _Alignas(64) float none[DOTS];
    const __m512 zero = _mm512_setzero_ps();
    pending p = {zero, zero, zero, zero, none, dots, 0};
    size_t turn = 1;
    for (size_t i = 0; i < b->m; i++)
        for (size_t j = 0; j < b->n; j++) one_block(b, steps, codes, i, j, dots, &turn, &p);
    for (size_t q = 0; q < 64; q += 32) scale_dots(&p, q, 32);
}

/* A chunk that does not end its group: dots to part. */
CQ_INLINE void partial(const cq_qprefill_block *b, const int codes) {
    const pending none = {.acc = NULL};
    for (size_t i = 0; i < b->m; i++) {
        for (size_t j = 0; j < b->n; j++) {
            const size_t strip = b->ldpanel;
            int32_t *part = b->part + (i * b->n + j) * 1024;
            sides s = {b->x + 2 * i * b->ldx, b->x + (2 * i + 1) * b->ldx, b->panel + 2 * j * strip,
                       b->panel + (2 * j + 1) * strip};
            start(b->begin ? NULL : part);
            for (size_t k = 1; k < b->steps; k++, s = next(s)) step(s, codes, part, 0, &none, 0, 0);
            step(s, codes, part, 1, &none, 0, 0);
        }
    }
}

CQ_INLINE void run(const cq_qprefill_block *b, const int codes) {
    configure(b->quads);
    if (!b->end)
        partial(b, codes);
    else if (b->steps == 1)
        blocks(b, 1, codes);
    else if (b->steps == 2)
        blocks(b, 2, codes);
    else
        blocks(b, 3, codes);
    _tile_release();
}

void cq_qprefill_block_avx512amx(const cq_qprefill_block *b) { run(b, 0); }

void cq_qprefill_tiles_avx512amx(const cq_qprefill_block *b) { run(b, 1); }

#include "core/isa_end.h"
#endif
