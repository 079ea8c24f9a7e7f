/* SPDX-License-Identifier: Apache-2.0 */
/* rangecode: a row of symbols into, or out of, one interval per lane.
 *
 *   unit = range >> 16        symbol s of a table: [unit * cdf[s], unit * cdf[s + 1])
 *                             the last one: up to `range` itself, so that nothing is wasted
 *   low += unit * cdf[s]      a carry goes into the bytes before
 *   range < 2**32             the upper 32 bits of `low` go out, highest byte first
 *
 * `columns` are those of the row that are coded, in order; the i-th goes to lane i % count, count
 * 1..CQ_RANGE_LANES. A table has the lower ends of its 2..256 symbols in 65536ths: 0 first, then
 * rising. Every symbol is below the size of its table, and there is room for what goes out. A
 * decoder reads any bytes: each value of `code` stands for a symbol. Integers only.
 * Exactness: EXACT.
 *
 * References: Martin, "Range encoding", 1979; carries as in Schindler's coder. */
#include "core/dispatch.h"

#include <string.h>

CQ_INLINE void put(cq_range_encoder *e, const uint16_t *cdf, uint32_t n, uint32_t s) {
    const uint64_t unit = e->range >> 16, from = unit * cdf[s];
    e->range = (s + 1 < n ? unit * cdf[s + 1] : e->range) - from;
    if (__builtin_add_overflow(e->low, from, &e->low))
        for (size_t i = e->at; i > 0 && ++e->out[i - 1] == 0;) i--;
    if (e->range >> 32) return;
    for (int i = 0; i < 4; i++) e->out[e->at++] = (uint8_t)(e->low >> (56 - 8 * i));
    e->low <<= 32;
    e->range <<= 32;
}

void cq_rangecode_encode_row_scalar(const uint8_t *symbols, const cq_range_column *columns,
                                    size_t n, const uint16_t *cdf, cq_range_encoder *lanes,
                                    size_t count) {
    for (size_t i = 0, lane = 0; i < n; i++) {
        const cq_range_column c = columns[i];
        put(lanes + lane, cdf + c.first, c.size, symbols[c.column]);
        lane = lane + 1 < count ? lane + 1 : 0;
    }
}

CQ_INLINE void refill(cq_range_decoder *d) {
    if (d->range >> 32) return;
    d->code = d->code << 32 | cq_range_load(d->in, d->size, d->at, 4);
    d->range <<= 32;
    d->at += 4;
}

CQ_INLINE uint8_t take(cq_range_decoder *d, const uint16_t *cdf, uint32_t n) {
    const uint64_t unit = d->range >> 16;
    uint32_t s = 0;
    for (uint32_t left = n; left > 1;) {
        const uint32_t half = left / 2;
        s += d->code >= unit * cdf[s + half] ? half : 0;
        left -= half;
    }
    const uint64_t from = unit * cdf[s], to = s + 1 < n ? unit * cdf[s + 1] : d->range;
    d->code -= from;
    d->range = to - from;
    refill(d);
    return (uint8_t)s;
}

CQ_INLINE void row(uint8_t *symbols, const cq_range_column *columns, size_t n, const uint16_t *cdf,
                   cq_range_decoder *lanes, const size_t count) {
    cq_range_decoder d[CQ_RANGE_LANES];
    memcpy(d, lanes, count * sizeof *d);
    size_t i = 0;
    for (; i + count <= n; i += count)
        for (size_t lane = 0; lane < count; lane++) {
            const cq_range_column c = columns[i + lane];
            symbols[c.column] = take(d + lane, cdf + c.first, c.size);
        }
    for (size_t lane = 0; i < n; i++, lane++)
        symbols[columns[i].column] = take(d + lane, cdf + columns[i].first, columns[i].size);
    memcpy(lanes, d, count * sizeof *d);
}

void cq_rangecode_decode_row_scalar(uint8_t *symbols, const cq_range_column *columns, size_t n,
                                    const uint16_t *cdf, cq_range_decoder *lanes, size_t count) {
    if (count == 1)
        row(symbols, columns, n, cdf, lanes, 1);
    else if (count == CQ_RANGE_LANES)
        row(symbols, columns, n, cdf, lanes, CQ_RANGE_LANES);
    else
        row(symbols, columns, n, cdf, lanes, count);
}
