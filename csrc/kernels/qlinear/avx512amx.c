/* SPDX-License-Identifier: Apache-2.0 */
/* Codes go to memory a chunk (one or two tiles of one group) at a time, from where tile registers
 * take them; 8-bit codes lie ready. int8 rows of x, up to 16 a register, are the other operand: a
 * product holds the tile unit one cycle per row. A float32 row is CQ_DIGITS of them. Two strips
 * share the rows that are loaded: rows of 4096 inputs do not stay in the L1 cache. Groups that do
 * not end with a tile, and one or two rows of int8, are left to vpdpbusd. tdpbsud: signed rows
 * times unsigned codes, exact int32. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512amx.h"

#include "kernels/qlinear/chunks_avx512amx.h"
#include "kernels/qlinear/sums_avx512.h"

#include <string.h>

/* Add block b, of group g, whose sums are dot[s]. */
CQ_INLINE void finish_block(const rows *r, const size_t strips, size_t b, size_t g,
                            int32_t dot[2][ROWS * 16]) {
    const cq_qlinear_strip *t = r->t;
    const size_t at = b * t->stride + r->m0, M = r->M;
    const int32_t *xsum = t->xsum + at * (r->f32 ? 2 : 1);
    const float *xstep = t->xstep + at;
    float *acc[2];
    grid a[2];
    for (size_t s = 0; s < strips; s++) {
        a[s] = grid_of(t, t->head + s * t->apart, g);
        acc[s] = t->out + (s * t->M + r->m0) * CQ_STRIP;
    }
    if (r->f32) {
        for (size_t m = 0; m < M; m++)
            for (size_t s = 0; s < strips; s++)
                plus_block(a + s, dot[s] + 64 * m, xsum + 2 * m, xstep[m], acc[s] + 16 * m);
        return;
    }
    const int even = !t->asymmetric;
    for (size_t m = 0; m < M; m++) {
        const __m512i sum = _mm512_set1_epi32(xsum[m]), zeros = _mm512_sllv_epi32(sum, a[0].shift);
        for (size_t s = 0; s < strips; s++)
            plus_group(a + s, dot[s] + 16 * m, even ? zeros : _mm512_mullo_epi32(a[s].zero, sum),
                       acc[s] + 16 * m);
    }
}

/* Where a walk is: block b of group g; chunks left of the block and of the group. */
typedef struct walk {
    size_t b, g, left, of_group, before;
} walk;

CQ_INLINE void next_block(const rows *r, walk *w) {
    w->before = w->g;
    w->b++;
    w->of_group -= cq_min_size(r->per_block, w->of_group);
    if (!w->of_group) w->of_group = r->per_group, w->g++;
    w->left = cq_min_size(r->per_block, w->of_group);
}

/* What was just stored is slow to load: codes are stored a chunk before they are multiplied, and
 * the sums of a block are taken up a block later. */
CQ_INLINE void run(const rows *r, const size_t strips, const int bits) {
    _Alignas(64) uint8_t codes[2][2][2 * 1024];
    _Alignas(64) int32_t dot[2][2][ROWS * 16];
    const uint8_t *next[2];
    const int8_t *x = r->x;
    walk w = {.left = r->per_block, .of_group = r->per_group};
    for (size_t s = 0; s < strips; s++) {
        next[s] = expand_chunk(r, 0, s, bits, codes[s][0]);
        take(r->R, s, NULL);
    }
    for (size_t i = 1; i <= r->chunks; i++, x += r->chunk * CQ_TILE) {
        const size_t odd = w.b % 2;
        const int ends = --w.left == 0;
        load_rows(r, x);
#pragma GCC unroll 2
        for (size_t s = 0; s < strips; s++) {
            const uint8_t *now = next[s];
            if (i < r->chunks) next[s] = expand_chunk(r, i, s, bits, codes[s][i % 2]);
            multiply(r, x, now, s);
            if (ends) take(r->R, s, dot[odd][s]);
        }
        if (!ends) continue;
        if (w.b) finish_block(r, strips, w.b - 1, w.before, dot[1 - odd]);
        next_block(r, &w);
    }
    finish_block(r, strips, w.b - 1, w.before, dot[(w.b - 1) % 2]);
}

CQ_INLINE void run_width(const rows *r, const size_t strips) {
    switch (r->t->bits) {
    case 2: run(r, strips, 2); return;
    case 3: run(r, strips, 3); return;
    case 4: run(r, strips, 4); return;
    case 5: run(r, strips, 5); return;
    case 6: run(r, strips, 6); return;
    case 7: run(r, strips, 7); return;
    default: run(r, strips, 8); return;
    }
}

/* Rows m0 .. m0 + M - 1. */
static void run_rows(const cq_qlinear_strip *t, size_t strips, size_t m0, size_t M, int f32) {
    const size_t digits = f32 ? CQ_DIGITS : 1, tiles = cq_ceil_div(t->K / t->G, CQ_TILE);
    rows r = {.t = t, .strips = strips, .m0 = m0, .M = M, .R = M * digits, .f32 = f32};
    r.tiles = t->head + cq_strip_head(t->G, t->asymmetric);
    r.x = t->x + m0 * digits * t->ldx;
    r.chunk = tiles % 2 ? 1 : 2;
    r.per_group = tiles / r.chunk;
    r.per_block = f32 ? cq_min_size(r.per_group, CQ_BLOCK / CQ_TILE / r.chunk) : r.per_group;
    r.chunks = t->G * r.per_group;
    for (size_t s = 0; s < strips; s++)
        memset(t->out + (s * t->M + m0) * CQ_STRIP, 0, M * CQ_STRIP * sizeof(float));
    configure(r.R);
    if (strips == 1)
        run_width(&r, 1);
    else
        run_width(&r, 2);
    _tile_release();
}

/* Whether all groups start and end with tiles. */
static int whole_tiles(const cq_qlinear_strip *t) {
    return t->G == 1 || t->K / t->G % CQ_TILE == 0;
}

void cq_qlinear_s8_strip_avx512amx(const cq_qlinear_strip *t) {
    if (t->M < 3 || t->M > ROWS || !whole_tiles(t))
        cq_qlinear_s8_strip_avx512vnni(t);
    else
        run_rows(t, 1, 0, t->M, 0);
}

void cq_qlinear_f32_strip_avx512amx(const cq_qlinear_strip *t) {
    const size_t most = ROWS / CQ_DIGITS;
    if (!whole_tiles(t)) {
        cq_qlinear_f32_strip_avx512vnni(t);
        return;
    }
    for (size_t m = 0; m < t->M; m += most) run_rows(t, 1, m, cq_min_size(t->M - m, most), 1);
}

void cq_qlinear_s8_pair_avx512amx(const cq_qlinear_strip *t) {
    if (t->M < 3 || t->M > ROWS || !whole_tiles(t))
        cq_each_strip(t, cq_qlinear_s8_strip_avx512vnni);
    else
        run_rows(t, 2, 0, t->M, 0);
}

void cq_qlinear_f32_pair_avx512amx(const cq_qlinear_strip *t) {
    const size_t most = ROWS / CQ_DIGITS;
    if (!whole_tiles(t)) {
        cq_each_strip(t, cq_qlinear_f32_strip_avx512vnni);
        return;
    }
    for (size_t m = 0; m < t->M; m += most) run_rows(t, 2, m, cq_min_size(t->M - m, most), 1);
}

#include "core/isa_end.h"
#endif
