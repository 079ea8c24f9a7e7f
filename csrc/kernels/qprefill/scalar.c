/* SPDX-License-Identifier: Apache-2.0 */
/* qprefill: many rows of 8-bit activations times a weight in tiles, chunk by chunk of K
 * (core/qprefill.h has the layouts).
 *
 *   row      put one row of x, `groups` groups of `group` inputs, into its bytes of the steps
 *   panel    panel[..][q][n][i] = code - zero of output n, input 4 q + i; shift is the level's own
 *   block    dot = (begin ? 0 : part) + sum x * panel + (end ? centre * xsum : 0)        int32
 *            end:  acc = fma(scale, (float)dot, first ? 0 : acc), groups in order;  else part = dot
 *   tiles    as block, with `code` in place of `code - zero`: tiles of 8 bits where they lie
 *   digits   as block for float32: D of each digit as dot above, with xsum of two digits at a time
 *            f = fma((float)(D3 * 256 + D2), 65536, (float)(D1 * 256 + D0))
 *            acc = fma(scale * xstep, f, first ? 0 : acc);  digits below `zeros` need not be read
 *
 * `row`, `panel`, `block` and `digits` of a level come as a set: a level may store x + 128 and what
 * undoes it in shift. 8 bits with zero points would not fit a byte: there the panel is code - 128
 * and centre is 128 - zero. No aliasing. Exactness: EXACT; FMA where written and nowhere else. The
 * integers are exact for groups of up to 65793 inputs. */
#include "core/dispatch.h"

#include <math.h>
#include <string.h>

static const size_t STEP = CQ_QPREFILL_STEP, QUAD = 64;

void cq_qprefill_row_scalar(const int8_t *x, size_t groups, size_t group, uint8_t *to) {
    for (size_t g = 0; g < groups; g++, x += group) {
        for (size_t k = 0; k < group; k += CQ_TILE, to += STEP) {
            const size_t count = cq_min_size(group - k, CQ_TILE);
            memset(to, 0, CQ_TILE);
            memcpy(to, x + k, count);
        }
    }
}

/* Codes of inputs 4 q .. 4 q + 3 of 16 outputs. */
static void quad_codes(const cq_qprefill_strip *s, size_t q, uint8_t *v) {
    const uint8_t *plane = s->tiles + q / 16 * cq_tile_bytes(s->bits);
    memset(v, 0, QUAD);
    q %= 16;
    if (s->bits == 8) memcpy(v, plane + q * QUAD, QUAD);
    int low = 0;
    for (size_t w = 4; w && s->bits < 8; w /= 2) {
        if (!((size_t)s->bits & w)) continue;
        const uint8_t *p = plane + q * w / 8 * QUAD;
        for (size_t b = 0; b < QUAD; b++)
            v[b] |= (uint8_t)((p[b] >> (w * q % 8) & ((1 << w) - 1)) << low);
        low += (int)w;
        plane += 2 * w * QUAD;
    }
}

void cq_qprefill_panel_scalar(const cq_qprefill_strip *s) {
    const size_t quads = cq_ceil_div(s->inputs, 4);
    for (size_t g = 0; g < s->groups; g++) {
        int8_t *to = s->panel + g * s->steps * STEP;
        for (size_t q = 0; q < 16 * s->steps; q++, to += QUAD) {
            uint8_t v[64];
            memset(to, 0, QUAD);
            if (q >= quads) continue;
            quad_codes(s, (s->k0 + g * s->group) / 4 + q, v);
            for (size_t b = 0; b < QUAD; b++)
                to[b] = (int8_t)(v[b] - (s->zero ? s->zero[16 * g + b / 4] : 1 << (s->bits - 1)));
        }
    }
}

/* One dot of a group: row r of the block at x, output n of the block at w. */
static int32_t dot_of(const cq_qprefill_block *b, const uint8_t *x, const int8_t *w, size_t r,
                      size_t n, int codes) {
    const int8_t *row = (const int8_t *)x + r / 16 * b->ldx + r % 16 * QUAD;
    const int8_t *col = w + n / 16 * b->ldpanel + n % 16 * 4;
    int32_t dot = 0;
    for (size_t s = 0; s < b->steps; s++) {
        for (size_t k = 0; k < 4 * b->quads; k++) {
            const int8_t v = col[s * STEP + k / 4 * QUAD + k % 4];
            dot += row[s * STEP + k] * (codes ? (uint8_t)v : v);
        }
    }
    return dot;
}

static void one_block(const cq_qprefill_block *b, size_t i, size_t j, size_t g, int codes) {
    const size_t N = b->ld;
    const uint8_t *x = b->x + 2 * i * b->ldx + g * b->steps * STEP;
    const int8_t *w = b->panel + 2 * j * b->ldpanel + g * b->steps * STEP;
    for (size_t r = 0; r < CQ_QPREFILL_BLOCK; r++) {
        for (size_t c = 0; c < CQ_QPREFILL_BLOCK; c++) {
            const size_t n = g * N + j * CQ_QPREFILL_BLOCK + c;
            const size_t at = (i * b->n + j) * 1024 + r / 16 * 512 + c / 16 * 256 + r % 16 * 16;
            int32_t dot = dot_of(b, x, w, r, c, codes);
            if (!b->begin) dot += b->part[at + c % 16];
            if (!b->end) {
                b->part[at + c % 16] = dot;
                continue;
            }
            if (b->centre)
                dot += b->centre[n] * b->xsum[(i * CQ_QPREFILL_BLOCK + r) * b->ldsum + g];
            float *acc = b->acc + at + c % 16;
            *acc = fmaf(b->scale[n], (float)dot, b->first && g == 0 ? 0.0f : *acc);
        }
    }
}

void cq_qprefill_block_scalar(const cq_qprefill_block *b) {
    for (size_t i = 0; i < b->m; i++)
        for (size_t j = 0; j < b->n; j++)
            for (size_t g = 0; g < b->groups; g++) one_block(b, i, j, g, 0);
}

void cq_qprefill_tiles_scalar(const cq_qprefill_block *b) {
    for (size_t i = 0; i < b->m; i++)
        for (size_t j = 0; j < b->n; j++)
            for (size_t g = 0; g < b->groups; g++) one_block(b, i, j, g, 1);
}

/* Rows of x i of its 16 with strip j of the panel, group g. */
static void one_cell(const cq_qprefill_block *b, size_t i, size_t j, size_t g) {
    const size_t at = i * b->ldsum + g, n0 = g * b->ld + j * CQ_STRIP;
    const uint8_t *x = b->x + CQ_DIGITS * i * b->ldx + g * b->steps * STEP;
    const int8_t *w = b->panel + j * b->ldpanel + g * b->steps * STEP;
    float *acc = b->acc + (i / 2 * b->n + j / 2) * 1024 + i % 2 * 512 + j % 2 * 256;
    for (size_t r = 0; r < 16; r++) {
        const int32_t *sum = b->xsum + (at * 16 + r) * 2;
        for (size_t n = 0; n < CQ_STRIP; n++) {
            const float step = b->scale[n0 + n] * b->xstep[at * 16 + r];
            int32_t d[CQ_DIGITS];
            for (size_t c = 0; c < CQ_DIGITS; c++) d[c] = dot_of(b, x + c * b->ldx, w, r, n, 0);
            const int32_t centre = b->centre ? b->centre[n0 + n] : 0;
            const int32_t high = d[3] * 256 + d[2] + (centre ? centre * sum[0] : 0);
            const int32_t low = d[1] * 256 + d[0] + (centre ? centre * sum[1] : 0);
            float *to = acc + r * 16 + n;
            *to = fmaf(step, fmaf((float)high, 65536.0f, (float)low),
                       b->first && g == 0 ? 0.0f : *to);
        }
    }
}

void cq_qprefill_digits_scalar(const cq_qprefill_block *b) {
    for (size_t i = 0; i < 2 * b->m; i++)
        for (size_t j = 0; j < 2 * b->n; j++)
            for (size_t g = 0; g < b->groups; g++) one_cell(b, i, j, g);
}
