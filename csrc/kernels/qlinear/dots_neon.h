/* SPDX-License-Identifier: Apache-2.0 */
/* The dots of a level for cq_s8_strip and cq_f32_strip, out of its block_dots (whole halves of
 * tiles) and odd_dots (the rest). Include behind these two. */
#ifndef CQ_DOTS_NEON_H
#define CQ_DOTS_NEON_H

CQ_INLINE void whole_dots(const cq_qlinear_strip *t, const int8_t *x, size_t k0, size_t k1,
                          const size_t R, int32_t *dot) {
    const uint8_t *tiles = cq_tiles_of(t);
    switch (t->bits) {
    case 2: block_dots(tiles, 2, x, t->ldx, k0, k1, R, dot); return;
    case 3: block_dots(tiles, 3, x, t->ldx, k0, k1, R, dot); return;
    case 4: block_dots(tiles, 4, x, t->ldx, k0, k1, R, dot); return;
    case 5: block_dots(tiles, 5, x, t->ldx, k0, k1, R, dot); return;
    case 6: block_dots(tiles, 6, x, t->ldx, k0, k1, R, dot); return;
    case 7: block_dots(tiles, 7, x, t->ldx, k0, k1, R, dot); return;
    default: block_dots(tiles, 8, x, t->ldx, k0, k1, R, dot); return;
    }
}

static void dots(const cq_qlinear_strip *t, const int8_t *x, size_t k0, size_t k1, size_t R,
                 int32_t *dot) {
    if (!cq_whole_halves(t, k0, k1))
        odd_dots(t, x, k0, k1, R, dot);
    else if (R == 1)
        whole_dots(t, x, k0, k1, 1, dot);
    else if (R == 2)
        whole_dots(t, x, k0, k1, 2, dot);
    else
        whole_dots(t, x, k0, k1, 4, dot);
}

#endif
