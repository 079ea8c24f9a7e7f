/* SPDX-License-Identifier: Apache-2.0 */
/* The canonical form of a packed weight (docs/formats.md) to and from strips of tiles. */
#include "core/half.h"
#include "core/parallel.h"
#include "ops.h"

#include <string.h>

/* The canonical rows of a strip, and where the strip is in the tiles. */
typedef struct strip {
    size_t rows, codes, zeros, scale, tiles; /* rows of it; offsets */
    int bits;
} strip;

typedef struct job {
    const cq_kernels *k;
    const cq_tiles *t;
    cq_canonical from;   /* repack */
    cq_canonical_out to; /* unrepack */
    uint8_t *data;
} job;

/* Strips may differ in width, so a strip's place is a sum over those before it; a job walks its
 * block of strips with `next`. */
static strip first(const cq_tiles *t, size_t index) {
    strip s = {0};
    const size_t equal = t->strip_bits ? 0 : index; /* strips of one width: no need to add up */
    s.codes = equal * CQ_STRIP * cq_packed_bytes(t->K, t->bits);
    s.zeros = equal * CQ_STRIP * cq_packed_bytes(t->G, t->bits);
    s.tiles = equal * cq_strip_bytes(t->K, t->G, t->bits, t->asymmetric);
    for (size_t i = equal; i < index; i++) {
        const int bits = cq_bits_of_strip(t, i);
        s.codes += CQ_STRIP * cq_packed_bytes(t->K, bits);
        s.zeros += CQ_STRIP * cq_packed_bytes(t->G, bits);
        s.tiles += cq_strip_bytes(t->K, t->G, bits, t->asymmetric);
    }
    s.scale = index * CQ_STRIP * t->G;
    s.rows = cq_min_size(t->N - index * CQ_STRIP, CQ_STRIP);
    s.bits = cq_bits_of_strip(t, index);
    return s;
}

cq_canonical_sizes cq_qtile_sizes(const cq_tiles *t) {
    cq_canonical_sizes sum = {0, 0, 0};
    if (!t->strip_bits) { /* asked for by every call of a layer */
        sum.codes = cq_mul(t->N, cq_packed_bytes(t->K, t->bits));
        sum.zeros = cq_mul(t->N, cq_packed_bytes(t->G, t->bits));
        const size_t bytes = cq_strip_bytes(t->K, t->G, t->bits, t->asymmetric);
        sum.tiles = cq_mul(cq_strips(t->N), bytes);
        return sum;
    }
    for (size_t i = 0; i < cq_strips(t->N); i++) {
        const int bits = cq_bits_of_strip(t, i);
        const size_t rows = cq_min_size(t->N - i * CQ_STRIP, CQ_STRIP);
        sum.codes = cq_add(sum.codes, rows * cq_packed_bytes(t->K, bits));
        sum.zeros += rows * cq_packed_bytes(t->G, bits);
        sum.tiles = cq_add(sum.tiles, cq_strip_bytes(t->K, t->G, bits, t->asymmetric));
    }
    return sum;
}

static void repack_head(const job *j, strip s, uint8_t *head) {
    const size_t G = j->t->G, Z = cq_packed_bytes(G, s.bits);
    uint16_t *scale = (uint16_t *)(void *)head;
    uint8_t *zero = head + 2 * G * CQ_STRIP;
    memset(head, 0, cq_strip_head(G, j->t->asymmetric));
    for (size_t n = 0; n < s.rows; n++)
        for (size_t g = 0; g < G; g++) scale[g * CQ_STRIP + n] = j->from.scale[s.scale + n * G + g];
    for (size_t n = 0; n < s.rows && j->t->asymmetric; n++)
        for (size_t g = 0; g < G; g += 8) { /* eight codes fill `bits` bytes */
            uint8_t some[8];
            const size_t count = cq_min_size(G - g, 8);
            j->k->unpack_u8_row(j->from.zero + s.zeros + n * Z + g / 8 * (size_t)s.bits, some,
                                count, s.bits);
            for (size_t i = 0; i < count; i++) zero[(g + i) * CQ_STRIP + n] = some[i];
        }
}

static void repack_strips(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t K = j->t->K;
    (void)block;
    for (size_t i = begin; i < end; i++) {
        const strip s = first(j->t, i);
        const size_t B = cq_packed_bytes(K, s.bits);
        uint8_t *to = j->data + s.tiles, codes[16 * 64];
        repack_head(j, s, to);
        to += cq_strip_head(j->t->G, j->t->asymmetric);
        for (size_t k = 0; k < K; k += CQ_TILE, to += cq_tile_bytes(s.bits)) {
            const size_t count = cq_min_size(K - k, CQ_TILE);
            const uint8_t *from = j->from.codes + s.codes + k / 8 * (size_t)s.bits;
            if (s.rows < CQ_STRIP || count < CQ_TILE) memset(codes, 0, sizeof codes);
            for (size_t n = 0; n < s.rows; n++)
                j->k->unpack_u8_row(from + n * B, codes + n * CQ_TILE, count, s.bits);
            j->k->qtile_pack_u8(codes, s.bits, to);
        }
    }
}

static void unrepack_head(const job *j, strip s, const uint8_t *head) {
    const size_t G = j->t->G, Z = cq_packed_bytes(G, s.bits);
    const uint16_t *scale = (const uint16_t *)(const void *)head;
    const uint8_t *zero = head + 2 * G * CQ_STRIP;
    for (size_t n = 0; n < s.rows; n++)
        for (size_t g = 0; g < G; g++) j->to.scale[s.scale + n * G + g] = scale[g * CQ_STRIP + n];
    for (size_t n = 0; n < s.rows && j->t->asymmetric; n++)
        for (size_t g = 0; g < G; g += 8) {
            uint8_t some[8];
            const size_t count = cq_min_size(G - g, 8);
            for (size_t i = 0; i < count; i++) some[i] = zero[(g + i) * CQ_STRIP + n];
            j->k->pack_u8_row(some, j->to.zero + s.zeros + n * Z + g / 8 * (size_t)s.bits, count,
                              s.bits);
        }
}

static void unrepack_strips(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t K = j->t->K;
    (void)block;
    for (size_t i = begin; i < end; i++) {
        const strip s = first(j->t, i);
        const size_t B = cq_packed_bytes(K, s.bits);
        const uint8_t *from = j->t->data + s.tiles;
        uint8_t codes[16 * 64];
        unrepack_head(j, s, from);
        from += cq_strip_head(j->t->G, j->t->asymmetric);
        for (size_t k = 0; k < K; k += CQ_TILE, from += cq_tile_bytes(s.bits)) {
            uint8_t *to = j->to.codes + s.codes + k / 8 * (size_t)s.bits;
            j->k->qtile_unpack_u8(from, s.bits, codes);
            for (size_t n = 0; n < s.rows; n++)
                j->k->pack_u8_row(codes + n * CQ_TILE, to + n * B, cq_min_size(K - k, CQ_TILE),
                                  s.bits);
        }
    }
}

static cq_status check_scales(cq_ctx *cx, const uint16_t *scale, size_t n) {
    const uint16_t last = 0x7BFF; /* positive finite halves are 1 .. last */
    unsigned bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (uint16_t)(scale[i] - 1u) >= last;
    if (!bad) return CQ_OK;
    size_t i = 0;
    while ((uint16_t)(scale[i] - 1u) < last) i++;
    return cq_refuse(cx, CQ_BAD_SCALE, i, (double)cq_half_to_float(scale[i]));
}

cq_status cq_qgemm_repack(cq_ctx *cx, const cq_canonical *from, const cq_tiles *t, uint8_t *data) {
    CQ_TRY(check_scales(cx, from->scale, t->N * t->G));
    job j = {.k = cx->k, .t = t, .from = *from, .data = data};
    return cq_parallel_rows(cx, cq_strips(t->N), cq_grain(t->K), repack_strips, &j);
}

cq_status cq_qgemm_unrepack(cq_ctx *cx, const cq_tiles *t, const cq_canonical_out *to) {
    job j = {.k = cx->k, .t = t, .to = *to};
    return cq_parallel_rows(cx, cq_strips(t->N), cq_grain(t->K), unrepack_strips, &j);
}
