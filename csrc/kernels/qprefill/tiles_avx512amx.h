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

#endif
