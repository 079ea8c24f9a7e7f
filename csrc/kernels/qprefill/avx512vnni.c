/* SPDX-License-Identifier: Apache-2.0 */
/* vpdpbusd multiplies unsigned by signed bytes: x is stored plus 128, and shift takes off 128 times
 * the sum of the weights. 8 rows x 32 outputs in 16 registers, one load of x per row and four
 * inputs; the group's scales are applied while its dots are in registers. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512vnni.h"

#include "kernels/qprefill/dot_avx512vnni.h"
#include "kernels/qprefill/panel_avx512.h"

enum { STEP = 1024, ROWS = 8 };

void cq_qprefill_row_avx512vnni(const int8_t *x, size_t groups, size_t group, uint8_t *to) {
    cq_qprefill_row_bytes(x, groups, group, 0x80, to);
}

void cq_qprefill_panel_avx512vnni(const cq_qprefill_strip *s) { cq_qprefill_panel_all(s, 1); }

typedef struct eight { /* named, not an array: gcc 12 spills arrays */
    pair r0, r1, r2, r3, r4, r5, r6, r7;
} eight;

/* One group of eight rows of x. */
CQ_INLINE void dots(eight *e, const uint8_t *x, const int8_t *w0, const int8_t *w1, size_t steps,
                    size_t quads) {
    for (size_t s = 0; s < steps; s++, x += STEP, w0 += STEP, w1 += STEP) {
        for (size_t q = 0; q < quads; q++) {
            const __m512i lo = _mm512_load_si512((const void *)(w0 + 64 * q));
            const __m512i hi = _mm512_load_si512((const void *)(w1 + 64 * q));
            const uint8_t *at = x + 4 * q;
            dot(&e->r0, at, lo, hi);
            dot(&e->r1, at + 64, lo, hi);
            dot(&e->r2, at + 128, lo, hi);
            dot(&e->r3, at + 192, lo, hi);
            dot(&e->r4, at + 256, lo, hi);
            dot(&e->r5, at + 320, lo, hi);
            dot(&e->r6, at + 384, lo, hi);
            dot(&e->r7, at + 448, lo, hi);
        }
    }
}

typedef struct grids { /* of 32 outputs in one group */
    __m512 s0, s1;
    __m512i c0, c1; /* centre */
} grids;

CQ_INLINE void add_part(pair *p, const int32_t *part) {
    p->lo = _mm512_add_epi32(p->lo, _mm512_load_si512((const void *)part));
    p->hi = _mm512_add_epi32(p->hi, _mm512_load_si512((const void *)(part + 256)));
}

CQ_INLINE void store(pair p, int32_t *part) {
    _mm512_store_si512((void *)part, p.lo);
    _mm512_store_si512((void *)(part + 256), p.hi);
}

CQ_INLINE void add_centre(pair *p, const grids *g, int32_t xsum) {
    const __m512i sum = _mm512_set1_epi32(xsum);
    p->lo = _mm512_add_epi32(p->lo, _mm512_mullo_epi32(g->c0, sum));
    p->hi = _mm512_add_epi32(p->hi, _mm512_mullo_epi32(g->c1, sum));
}

CQ_INLINE void scale_add(pair p, const grids *g, __mmask16 keep, float *acc) {
    const __m512 lo = _mm512_maskz_load_ps(keep, acc), hi = _mm512_maskz_load_ps(keep, acc + 256);
    _mm512_store_ps(acc, _mm512_fmadd_ps(g->s0, _mm512_cvtepi32_ps(p.lo), lo));
    _mm512_store_ps(acc + 256, _mm512_fmadd_ps(g->s1, _mm512_cvtepi32_ps(p.hi), hi));
}

/* Rows r .. r + 7 of block (i, j). */
static void eight_rows(const cq_qprefill_block *b, size_t i, size_t j, size_t r) {
    const size_t strip = b->groups * b->steps * STEP, N = b->ld;
    const size_t at = (i * b->n + j) * 1024 + r / 16 * 512 + r % 16 * 16;
    const uint8_t *x = b->x + (2 * i + r / 16) * b->ldx + r % 16 * 64;
    const int8_t *w = b->panel + 2 * j * strip;
    for (size_t g = 0; g < b->groups; g++) {
        const int32_t *shift = b->shift + g * N + 32 * j;
        const pair c = {_mm512_loadu_si512((const void *)shift),
                        _mm512_loadu_si512((const void *)(shift + 16))};
        eight e = {c, c, c, c, c, c, c, c};
        dots(&e, x + g * b->steps * STEP, w + g * b->steps * STEP, w + strip + g * b->steps * STEP,
             b->steps, b->quads);
        if (!b->begin) {
            const int32_t *part = b->part + at;
            add_part(&e.r0, part + 0);
            add_part(&e.r1, part + 16);
            add_part(&e.r2, part + 32);
            add_part(&e.r3, part + 48);
            add_part(&e.r4, part + 64);
            add_part(&e.r5, part + 80);
            add_part(&e.r6, part + 96);
            add_part(&e.r7, part + 112);
        }
        if (!b->end) {
            int32_t *part = b->part + at;
            store(e.r0, part + 0);
            store(e.r1, part + 16);
            store(e.r2, part + 32);
            store(e.r3, part + 48);
            store(e.r4, part + 64);
            store(e.r5, part + 80);
            store(e.r6, part + 96);
            store(e.r7, part + 112);
            continue;
        }
        grids s = {_mm512_loadu_ps(b->scale + g * N + 32 * j),
                   _mm512_loadu_ps(b->scale + g * N + 32 * j + 16), c.lo, c.hi};
        if (b->centre) {
            const int32_t *centre = b->centre + g * N + 32 * j;
            const int32_t *xsum = b->xsum + (32 * i + r) * b->ldsum + g;
            s.c0 = _mm512_loadu_si512((const void *)centre);
            s.c1 = _mm512_loadu_si512((const void *)(centre + 16));
            add_centre(&e.r0, &s, xsum[0 * b->ldsum]);
            add_centre(&e.r1, &s, xsum[1 * b->ldsum]);
            add_centre(&e.r2, &s, xsum[2 * b->ldsum]);
            add_centre(&e.r3, &s, xsum[3 * b->ldsum]);
            add_centre(&e.r4, &s, xsum[4 * b->ldsum]);
            add_centre(&e.r5, &s, xsum[5 * b->ldsum]);
            add_centre(&e.r6, &s, xsum[6 * b->ldsum]);
            add_centre(&e.r7, &s, xsum[7 * b->ldsum]);
        }
        const __mmask16 keep = b->first && g == 0 ? 0 : 0xFFFF;
        float *acc = b->acc + at;
        scale_add(e.r0, &s, keep, acc + 0);
        scale_add(e.r1, &s, keep, acc + 16);
        scale_add(e.r2, &s, keep, acc + 32);
        scale_add(e.r3, &s, keep, acc + 48);
        scale_add(e.r4, &s, keep, acc + 64);
        scale_add(e.r5, &s, keep, acc + 80);
        scale_add(e.r6, &s, keep, acc + 96);
        scale_add(e.r7, &s, keep, acc + 112);
    }
}

void cq_qprefill_block_avx512vnni(const cq_qprefill_block *b) {
    for (size_t i = 0; i < b->m; i++)
        for (size_t j = 0; j < b->n; j++)
            for (size_t r = 0; r < 32; r += ROWS) eight_rows(b, i, j, r);
}

#include "core/isa_end.h"
#endif
