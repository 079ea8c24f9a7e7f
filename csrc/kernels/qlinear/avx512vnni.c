/* SPDX-License-Identifier: Apache-2.0 */
/* A half tile (32 inputs) of codes becomes eight vectors in registers, each multiplied into the
 * sums of up to 8 rows by vpdpbusd with four inputs of the row broadcast from memory. More rows
 * take the codes out of the tiles again, 8 rows at a time: they are in the L1 cache by then (16
 * rows at once make gcc 12 spill, which halves the speed). */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512vnni.h"

#include "kernels/qlinear/row_avx512vnni.h"

#include <string.h>

enum { MOST_ROWS = 8 };

/* Add a half tile to the sums of R rows, C chains each. */
CQ_INLINE void add_half(const uint8_t *tile, const int bits, const int half, const int8_t *x,
                        size_t ldx, const size_t R, const size_t C, __m512i *acc) {
    __m512i v[8];
    cq_ask(tile + 64 * (size_t)(half * bits), bits);
    cq_half_tile(tile, bits, half, v);
#pragma GCC unroll 8
    for (size_t q = 0; q < 8; q++) {
#pragma GCC unroll 8
        for (size_t r = 0; r < R; r++)
            acc[r * C + q % C] =
                dpbusd(acc[r * C + q % C], v[q], x + r * ldx + 32 * (size_t)half + 4 * q);
    }
}

/* Sums of R rows over inputs k0 .. k1 - 1: both multiples of 32, or k1 the end of the row. */
CQ_INLINE void block_dots(const uint8_t *tiles, const int bits, const int8_t *x, size_t ldx,
                          size_t k0, size_t k1, const size_t R, int32_t *dot) {
    const size_t C = R == 1 || R == 2 ? 4 : R == 4 ? 2 : 1;
    __m512i acc[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < R * C; i++) acc[i] = _mm512_setzero_si512();
    const uint8_t *tile = tiles + k0 / CQ_TILE * cq_tile_bytes(bits);
    size_t k = k0 / CQ_TILE * CQ_TILE;
    if (k < k0) {
        add_half(tile, bits, 1, x + k, ldx, R, C, acc);
        k += CQ_TILE, tile += cq_tile_bytes(bits);
    }
    for (; k + 32 < k1; k += CQ_TILE, tile += cq_tile_bytes(bits)) {
        add_half(tile, bits, 0, x + k, ldx, R, C, acc);
        add_half(tile, bits, 1, x + k, ldx, R, C, acc);
    }
    if (k < k1) add_half(tile, bits, 0, x + k, ldx, R, C, acc);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) {
        __m512i sum = acc[r * C];
#pragma GCC unroll 4
        for (size_t c = 1; c < C; c++) sum = _mm512_add_epi32(sum, acc[r * C + c]);
        _mm512_store_si512((void *)(dot + r * CQ_STRIP), sum);
    }
}

CQ_INLINE void dots_of(const uint8_t *tiles, const int bits, const int8_t *x, size_t ldx, size_t k0,
                       size_t k1, const size_t R, int32_t *dot) {
    switch (bits) {
    case 2: block_dots(tiles, 2, x, ldx, k0, k1, R, dot); return;
    case 3: block_dots(tiles, 3, x, ldx, k0, k1, R, dot); return;
    case 4: block_dots(tiles, 4, x, ldx, k0, k1, R, dot); return;
    case 5: block_dots(tiles, 5, x, ldx, k0, k1, R, dot); return;
    case 6: block_dots(tiles, 6, x, ldx, k0, k1, R, dot); return;
    case 7: block_dots(tiles, 7, x, ldx, k0, k1, R, dot); return;
    default: block_dots(tiles, 8, x, ldx, k0, k1, R, dot); return;
    }
}

static void aligned_dots(const uint8_t *tiles, int bits, const int8_t *x, size_t ldx, size_t k0,
                         size_t k1, size_t R, int32_t *dot) {
    switch (R) {
    case 1: dots_of(tiles, bits, x, ldx, k0, k1, 1, dot); return;
    case 2: dots_of(tiles, bits, x, ldx, k0, k1, 2, dot); return;
    case 4: dots_of(tiles, bits, x, ldx, k0, k1, 4, dot); return;
    default: dots_of(tiles, bits, x, ldx, k0, k1, 8, dot); return;
    }
}

CQ_INLINE void half_tile(const uint8_t *tile, const int bits, int half, __m512i v[8]) {
    if (half)
        cq_half_tile(tile, bits, 1, v);
    else
        cq_half_tile(tile, bits, 0, v);
}

static void half_tile_any(const uint8_t *tile, int bits, int half, __m512i v[8]) {
    switch (bits) {
    case 2: half_tile(tile, 2, half, v); return;
    case 3: half_tile(tile, 3, half, v); return;
    case 4: half_tile(tile, 4, half, v); return;
    case 5: half_tile(tile, 5, half, v); return;
    case 6: half_tile(tile, 6, half, v); return;
    case 7: half_tile(tile, 7, half, v); return;
    default: half_tile(tile, 8, half, v); return;
    }
}

/* Blocks whose ends are only multiples of 8: half a tile to memory, then vector by vector. */
static void odd_dots(const cq_qlinear_strip *t, const uint8_t *tiles, const int8_t *x, size_t k0,
                     size_t k1, size_t R, int32_t *dot) {
    _Alignas(64) uint8_t codes[8 * 64];
    for (size_t i = 0; i < R * CQ_STRIP; i++) dot[i] = 0;
    for (size_t k = k0, next; k < k1; k = next) {
        const uint8_t *tile = tiles + k / CQ_TILE * cq_tile_bytes(t->bits);
        const int half = (int)(k / 32 % 2);
        __m512i v[8];
        half_tile_any(tile, t->bits, half, v);
        for (size_t i = 0; i < 8; i++) _mm512_store_si512((void *)(codes + 64 * i), v[i]);
        next = cq_min_size(k1, (k / 32 + 1) * 32);
        for (size_t r = 0; r < R; r++) {
            __m512i acc = _mm512_load_si512((const void *)(dot + r * CQ_STRIP));
            for (size_t q = k / 4; q < cq_ceil_div(next, 4); q++) {
                const __m512i c = _mm512_load_si512((const void *)(codes + q % 8 * 64));
                acc = dpbusd(acc, c, x + r * t->ldx + 4 * q);
            }
            _mm512_store_si512((void *)(dot + r * CQ_STRIP), acc);
        }
    }
}

/* Sums of R rows of x, 1, 2, 4 or 8, over one block. */
static void dots(const cq_qlinear_strip *t, const int8_t *x, size_t k0, size_t k1, size_t R,
                 int32_t *dot) {
    const uint8_t *tiles = t->head + cq_strip_head(t->G, t->asymmetric);
    if (k0 % 32 || (k1 % 32 && k1 < t->K))
        odd_dots(t, tiles, x, k0, k1, R, dot);
    else
        aligned_dots(tiles, t->bits, x, t->ldx, k0, k1, R, dot);
}

CQ_INLINE size_t rows_at_once(size_t left) {
    const size_t most = left < MOST_ROWS ? left : MOST_ROWS;
    return (size_t)1 << (31 - __builtin_clz((unsigned)most));
}

static void one_row_any(const cq_qlinear_strip *t) {
    switch (t->bits) {
    case 2: one_row(t, 2); return;
    case 3: one_row(t, 3); return;
    case 4: one_row(t, 4); return;
    case 5: one_row(t, 5); return;
    case 6: one_row(t, 6); return;
    case 7: one_row(t, 7); return;
    default: one_row(t, 8); return;
    }
}

void cq_qlinear_s8_strip_avx512vnni(const cq_qlinear_strip *t) {
    _Alignas(64) int32_t dot[MOST_ROWS * 16];
    const size_t group = t->K / t->G;
    if (t->M == 1 && (t->G == 1 || group % CQ_TILE == 0)) {
        one_row_any(t);
        return;
    }
    memset(t->out, 0, t->M * CQ_STRIP * sizeof(float));
    for (size_t g = 0; g < t->G; g++) {
        const grid a = grid_of(t, t->head, g);
        for (size_t m = 0, R; m < t->M; m += R) {
            R = rows_at_once(t->M - m);
            dots(t, t->x + m * t->ldx, g * group, (g + 1) * group, R, dot);
            for (size_t r = 0; r < R; r++)
                plus_group(&a, dot + r * CQ_STRIP, zeros_of(&a, t->xsum[g * t->stride + m + r]),
                           t->out + (m + r) * CQ_STRIP);
        }
    }
}

void cq_qlinear_f32_strip_avx512vnni(const cq_qlinear_strip *t) {
    _Alignas(64) int32_t dot[MOST_ROWS * 16];
    const size_t group = t->K / t->G, block = cq_block_inputs(t->K, t->G, 1);
    memset(t->out, 0, t->M * CQ_STRIP * sizeof(float));
    size_t b = 0, end;
    for (size_t k0 = 0; k0 < t->K; k0 = end, b++) {
        end = cq_min_size(k0 + block, (k0 / group + 1) * group);
        const grid a = grid_of(t, t->head, k0 / group);
        for (size_t m = 0, R; m < t->M; m += R / CQ_DIGITS) {
            R = rows_at_once((t->M - m) * CQ_DIGITS);
            dots(t, t->x + m * CQ_DIGITS * t->ldx, k0, end, R, dot);
            for (size_t r = 0; r < R / CQ_DIGITS; r++) {
                const size_t at = b * t->stride + m + r;
                plus_block(&a, dot + 64 * r, t->xsum + 2 * at, t->xstep[at],
                           t->out + (m + r) * CQ_STRIP);
            }
        }
    }
}

#include "core/isa_end.h"
#endif
