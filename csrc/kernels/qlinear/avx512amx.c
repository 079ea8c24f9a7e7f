/* SPDX-License-Identifier: Apache-2.0 */
/* The tiles of a block go to memory as they are multiplied, vector by vector: 16 of them are a tile
 * register of weights. 16 int8 rows of x are another, so one load of weights serves 16 rows: a
 * float32 row takes 4 of them. Blocks that do not end with a tile, and single rows of int8, are
 * left to vpdpbusd. tdpbsud: signed rows times unsigned codes, exact int32. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512amx.h"

#include "kernels/qlinear/sums_avx512.h"
#include "kernels/qlinear/tile_avx512.h"

#include <string.h>

/* Rows in two tile registers, and tiles of codes in memory at once. */
enum { ROWS = 32, TILES = 4, AHEAD = 2048 };

typedef struct config {
    uint8_t palette, start, zero[14];
    uint16_t colsb[16];
    uint8_t rows[16];
} config;

/* Registers 0, 1 and 5, 6 sums; 2, 3 rows of x (first and second 16); 4, 7 codes. */
static void configure(size_t R) {
    const uint8_t first = (uint8_t)cq_min_size(R, 16);
    const uint8_t second = (uint8_t)(R > 16 ? R - 16 : 1);
    config c = {.palette = 1};
    c.rows[0] = first, c.rows[1] = second, c.rows[2] = first, c.rows[3] = second, c.rows[4] = 16;
    c.rows[5] = first, c.rows[6] = second, c.rows[7] = 16;
    for (int i = 0; i < 8; i++) c.colsb[i] = 64;
    _tile_loadconfig(&c);
}

CQ_INLINE void expand(const uint8_t *tile, const int bits, uint8_t *to) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        __m512i v[8];
#pragma GCC unroll 8
        for (int i = 0; i < bits; i++)
            _mm_prefetch((const char *)tile + AHEAD + 64 * (size_t)(half * bits + i), _MM_HINT_T0);
        cq_half_tile(tile, bits, half, v);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++)
            _mm512_store_si512((void *)(to + 64 * (8 * (size_t)half + i)), v[i]);
    }
}

#define WIDTH(B)                                                                                   \
    case B:                                                                                        \
        for (size_t i = 0; i < n; i++) expand(tiles + i * cq_tile_bytes(B), B, to + 1024 * i);     \
        break;

static void expand_tiles(const uint8_t *tiles, int bits, size_t n, uint8_t *to) {
    switch (bits) {
        WIDTH(2)
        WIDTH(3)
        WIDTH(4)
        WIDTH(5)
        WIDTH(6)
        WIDTH(7)
    default:
        for (size_t i = 0; i < n; i++) expand(tiles + i * cq_tile_bytes(8), 8, to + 1024 * i);
    }
}

/* Rows m0 .. m0 + M - 1 of x, R int8 rows of them. */
typedef struct rows {
    const cq_qlinear_strip *t;
    const int8_t *x;
    size_t m0, M, R;
    int f32;
} rows;

/* Expand the chunk of inputs that starts at k: at most TILES tiles of one group. Returns its end.
 */
static size_t expand_chunk(const cq_qlinear_strip *t, size_t k, uint8_t *to) {
    const size_t group = t->K / t->G;
    const size_t end = cq_min_size(k + TILES * CQ_TILE, (k / group + 1) * group);
    const uint8_t *tiles = t->head + cq_strip_head(t->G, t->asymmetric);
    tiles += k / CQ_TILE * cq_tile_bytes(t->bits);
    expand_tiles(tiles, t->bits, cq_ceil_div(end - k, CQ_TILE), to);
    return end;
}

/* Registers C0 and C1 for the sums, X0 and X1 for x, B for the codes. */
#define MULTIPLY(C0, C1, X0, X1, B)                                                                \
    for (size_t k = k0; k < k1; k += CQ_TILE, x += CQ_TILE, codes += 1024) {                       \
        _tile_loadd(B, codes, 64);                                                                 \
        _tile_loadd(X0, x, ldx);                                                                   \
        _tile_dpbsud(C0, X0, B);                                                                   \
        if (r->R <= 16) continue;                                                                  \
        _tile_loadd(X1, x + 16 * ldx, ldx);                                                        \
        _tile_dpbsud(C1, X1, B);                                                                   \
    }

/* Blocks take turns with two sets of sums, so that the products of one need not wait for those of
 * the other. */
static void multiply(const rows *r, size_t k0, size_t k1, const uint8_t *codes, int odd) {
    const size_t ldx = r->t->ldx;
    const int8_t *x = r->x + k0;
    if (odd) {
        MULTIPLY(5, 6, 2, 3, 7)
    } else {
        MULTIPLY(0, 1, 2, 3, 4)
    }
}

static void clear(int odd) {
    if (odd) {
        _tile_zero(5);
        _tile_zero(6);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
}

static void store(size_t R, int odd, int32_t *dot) {
    if (odd) {
        _tile_stored(5, dot, 64);
        if (R > 16) _tile_stored(6, dot + 256, 64);
    } else {
        _tile_stored(0, dot, 64);
        if (R > 16) _tile_stored(1, dot + 256, 64);
    }
}

/* Add block b, of the group of input k, whose sums are `dot`. */
static void finish_block(const rows *r, size_t b, size_t k, const int32_t *dot) {
    const grid a = grid_of(r->t, k / (r->t->K / r->t->G));
    for (size_t m = 0; m < r->M; m++) {
        if (r->f32)
            add_block(r->t, b, r->m0 + m, a, dot + 64 * m);
        else
            add_group(r->t, b, r->m0 + m, a, dot + 16 * m);
    }
}

/* What was just stored is slow to load into a tile register and back: the codes of a chunk are
 * expanded before the chunk ahead of it is multiplied, and a block is finished after the next. */
static void run(const rows *r) {
    _Alignas(64) uint8_t codes[2][TILES * 1024];
    _Alignas(64) int32_t dot[ROWS * 16];
    const cq_qlinear_strip *t = r->t;
    const size_t group = t->K / t->G;
    size_t b = 0, i = 0, before = 0, end = expand_chunk(t, 0, codes[0]);
    configure(r->R);
    for (size_t k = 0, next; k < t->K; k = end, end = next, i++) {
        next = end < t->K ? expand_chunk(t, end, codes[(i + 1) % 2]) : end;
        if (r->f32 || k % group == 0) clear(b % 2);
        multiply(r, k, end, codes[i % 2], b % 2);
        if (!r->f32 && end % group) continue;
        if (b) {
            store(r->R, (b - 1) % 2, dot);
            finish_block(r, b - 1, before, dot);
        }
        before = k;
        b++;
    }
    store(r->R, (b - 1) % 2, dot);
    finish_block(r, b - 1, before, dot);
    _tile_release();
}

/* Whether all blocks start and end with tiles. */
static int whole_tiles(const cq_qlinear_strip *t) {
    return t->G == 1 || t->K / t->G % CQ_TILE == 0;
}

void cq_qlinear_s8_strip_avx512amx(const cq_qlinear_strip *t) {
    if (t->M < 3 || t->M > ROWS || !whole_tiles(t)) {
        cq_qlinear_s8_strip_avx512vnni(t);
        return;
    }
    memset(t->out, 0, t->M * CQ_STRIP * sizeof(float));
    run(&(rows){.t = t, .x = t->x, .M = t->M, .R = t->M});
}

void cq_qlinear_f32_strip_avx512amx(const cq_qlinear_strip *t) {
    const size_t most = ROWS / CQ_DIGITS;
    if (t->M < 2 || !whole_tiles(t)) {
        cq_qlinear_f32_strip_avx512vnni(t);
        return;
    }
    memset(t->out, 0, t->M * CQ_STRIP * sizeof(float));
    for (size_t m = 0; m < t->M; m += most) {
        const size_t M = cq_min_size(t->M - m, most);
        const int8_t *x = t->x + m * CQ_DIGITS * t->ldx;
        run(&(rows){.t = t, .x = x, .m0 = m, .M = M, .R = M * CQ_DIGITS, .f32 = 1});
    }
}

#include "core/isa_end.h"
#endif
