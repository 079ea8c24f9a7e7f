/* SPDX-License-Identifier: Apache-2.0 */
/* Chunks of codes and rows of x in tile registers. Include between isa_begin and isa_end. */
#ifndef CQ_CHUNKS_AVX512AMX_H
#define CQ_CHUNKS_AVX512AMX_H

#include "kernels/qlinear/tile_avx512.h"

/* int8 rows at once. */
enum { ROWS = 32 };

typedef struct config {
    uint8_t palette, start, zero[14];
    uint16_t colsb[16];
    uint8_t rows[16];
} config;

/* gcc 12 does not know that tile instructions read memory. */
CQ_INLINE void stored(const void *p) { __asm__ volatile("" : : "r"(p) : "memory"); }

/* Registers 0, 1 and 2, 3 sums of the strips; 4, 5 rows of x; 6, 7 codes. */
static void configure(size_t R) {
    const uint8_t first = (uint8_t)cq_min_size(R, 16), second = (uint8_t)(R > 16 ? R - 16 : R);
    config c = {.palette = 1};
    for (int i = 0; i < 8; i++) c.colsb[i] = 64, c.rows[i] = i % 2 ? second : first;
    c.rows[6] = c.rows[7] = 16;
    stored(&c);
    _tile_loadconfig(&c);
}

/* Rows m0 .. m0 + M - 1 of x, R int8 rows of them, times `strips` strips; tiles in a chunk, chunks
 * in all, in a group and in a block of it (the last block of a group may have fewer). */
typedef struct rows {
    const cq_qlinear_strip *t;
    const uint8_t *tiles;
    const int8_t *x;
    size_t strips, m0, M, R, chunk, chunks, per_group, per_block;
    int f32;
} rows;

/* A tile of codes, where it lies or in `to`. */
CQ_INLINE const uint8_t *expand(const uint8_t *tile, const int bits, uint8_t *to) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        cq_ask(tile + 64 * (size_t)(half * bits), bits);
        if (bits == 8) continue;
        __m512i v[8];
        cq_half_tile(tile, bits, half, v);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++)
            _mm512_store_si512((void *)(to + 64 * (8 * (size_t)half + i)), v[i]);
    }
    return bits == 8 ? tile : to;
}

/* Chunk i of strip s. */
CQ_INLINE const uint8_t *expand_chunk(const rows *r, size_t i, const size_t s, const int bits,
                                      uint8_t *to) {
    const size_t size = cq_tile_bytes(bits);
    const uint8_t *tile = r->tiles + s * r->t->apart + i * r->chunk * size;
    const uint8_t *codes = expand(tile, bits, to);
    if (r->chunk == 2) expand(tile + size, bits, to + 1024);
    return codes;
}

/* Tile c += tile x . tile w, all constants; the instructions take numbers only as they are written.
 */
CQ_INLINE void product(const size_t c, const size_t x, const size_t w) {
    switch (100 * c + 10 * x + w) {
    case 46: _tile_dpbsud(0, 4, 6); return;
    case 47: _tile_dpbsud(0, 4, 7); return;
    case 57: _tile_dpbsud(0, 5, 7); return;
    case 156: _tile_dpbsud(1, 5, 6); return;
    case 157: _tile_dpbsud(1, 5, 7); return;
    case 246: _tile_dpbsud(2, 4, 6); return;
    case 247: _tile_dpbsud(2, 4, 7); return;
    case 257: _tile_dpbsud(2, 5, 7); return;
    case 356: _tile_dpbsud(3, 5, 6); return;
    default: _tile_dpbsud(3, 5, 7); return;
    }
}

/* A chunk times up to 16 rows, which are in registers (sums in tile 2 s), or up to 32 (in 2 s and
 * 2 s + 1). */
CQ_INLINE void multiply(const rows *r, const int8_t *x, const uint8_t *codes, const size_t s) {
    const size_t ldx = r->t->ldx;
    stored(codes);
    _tile_loadd(6, codes, 64);
    if (r->R > 16) {
        _tile_loadd(4, x, ldx);
        _tile_loadd(5, x + 16 * ldx, ldx);
        product(2 * s + 1, 5, 6);
    }
    product(2 * s, 4, 6);
    if (r->chunk == 1) return;
    _tile_loadd(7, codes + 1024, 64);
    if (r->R > 16) {
        _tile_loadd(4, x + CQ_TILE, ldx);
        product(2 * s, 4, 7);
        _tile_loadd(5, x + CQ_TILE + 16 * ldx, ldx);
        product(2 * s + 1, 5, 7);
    } else {
        product(2 * s, 5, 7);
    }
}

CQ_INLINE void load_rows(const rows *r, const int8_t *x) {
    const size_t ldx = r->t->ldx;
    if (r->R > 16) return;
    _tile_loadd(4, x, ldx);
    if (r->chunk == 2) _tile_loadd(5, x + CQ_TILE, ldx);
}

/* Sums to memory, or just to 0. */
CQ_INLINE void take(size_t R, const size_t s, int32_t *dot) {
    if (s) {
        if (dot) _tile_stored(2, dot, 64);
        if (dot && R > 16) _tile_stored(3, dot + 256, 64);
        _tile_zero(2);
        if (R > 16) _tile_zero(3);
    } else {
        if (dot) _tile_stored(0, dot, 64);
        if (dot && R > 16) _tile_stored(1, dot + 256, 64);
        _tile_zero(0);
        if (R > 16) _tile_zero(1);
    }
}

#endif
