/* SPDX-License-Identifier: Apache-2.0 */
/* The tile registers of the AMX kernels; included inside a section compiled for avx512amx. */
#ifndef CQ_QPREFILL_TILES_H
#define CQ_QPREFILL_TILES_H

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Tiles 0 .. 3 results, 4 and 5 rows of x, 6 and 7 outputs of the panel. */
CQ_INLINE void configure(size_t quads) {
    tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = (uint16_t)(t == 4 || t == 5 ? 4 * quads : 64);
        c.rows[t] = (uint8_t)(t < 6 ? 16 : quads);
    }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* gcc 12 thinks that 8 bytes of c are read */
    _tile_loadconfig(&c);
}

/* Product number i of a step, a constant; `codes` tells whether the bytes of x have no sign. The
 * instructions take numbers of tiles only as they are written. */
CQ_INLINE void product(const int i, const int codes) {
    switch (2 * i + codes) {
    case 0: _tile_dpbssd(0, 4, 6); return;
    case 1: _tile_dpbsud(0, 4, 6); return;
    case 2: _tile_dpbssd(1, 4, 7); return;
    case 3: _tile_dpbsud(1, 4, 7); return;
    case 4: _tile_dpbssd(2, 5, 6); return;
    case 5: _tile_dpbsud(2, 5, 6); return;
    case 6: _tile_dpbssd(3, 5, 7); return;
    default: _tile_dpbsud(3, 5, 7); return;
    }
}

#endif
