/* SPDX-License-Identifier: Apache-2.0 */
/* Checks tables and contexts, lists the columns of each context row that have something to say, and
 * runs the coder from row to row. One thread: a row needs the interval of the row before. */
#include "core/parallel.h"
#include "ops.h"

#include <string.h>

static cq_status check_tables(cq_ctx *cx, const cq_range_model *m) {
    if (m->first[0] != 0 || m->first[m->K] != m->E)
        return cq_refuse(cx, CQ_BAD_TABLE, m->first[0] ? 0 : m->K,
                         (double)m->first[m->first[0] ? 0 : m->K]);
    for (size_t k = 0; k < m->K; k++) {
        const uint32_t from = m->first[k], to = m->first[k + 1];
        if (to <= from || to - from > 256 || to > m->E)
            return cq_refuse(cx, CQ_BAD_TABLE, k, (double)from);
        for (uint32_t i = from; i < to; i++)
            if (i == from ? m->cdf[i] != 0 : m->cdf[i] <= m->cdf[i - 1])
                return cq_refuse(cx, CQ_BAD_CDF, i, (double)m->cdf[i]);
    }
    return CQ_OK;
}

/* `work`: for every row of contexts the number of its columns with two symbols or more, then they.
 */
static cq_range_column *list_of(const cq_range_model *m, uint32_t *work, size_t g) {
    return (cq_range_column *)(void *)work + g * (m->C + 1);
}

static cq_status list_columns(cq_ctx *cx, const cq_range_model *m, uint32_t *work) {
    for (size_t g = 0; g < m->G; g++) {
        cq_range_column *list = list_of(m, work, g);
        uint32_t n = 0;
        for (size_t c = 0; c < m->C; c++) {
            const int32_t k = m->context[g * m->C + c];
            if (k < 0 || (size_t)k >= m->K)
                return cq_refuse(cx, CQ_BAD_CONTEXT, g * m->C + c, (double)k);
            const uint32_t size = m->first[k + 1] - m->first[k];
            if (size > 1) list[++n] = (cq_range_column){(uint32_t)c, m->first[k], size};
        }
        list[0] = (cq_range_column){n, 0, 0};
    }
    for (size_t r = 0; r < m->R; r++)
        if (m->group[r] < 0 || (size_t)m->group[r] >= m->G)
            return cq_refuse(cx, CQ_BAD_GROUP, r, (double)m->group[r]);
    return CQ_OK;
}

static cq_status check_symbols(cq_ctx *cx, const cq_range_model *m, const uint8_t *symbols) {
    for (size_t r = 0; r < m->R; r++) {
        if (cq_stop(cx)) return CQ_INTERRUPTED;
        const int32_t *context = m->context + (size_t)m->group[r] * m->C;
        for (size_t c = 0; c < m->C; c++) {
            const uint32_t *f = m->first + context[c];
            if (symbols[r * m->C + c] >= f[1] - f[0])
                return cq_refuse(cx, CQ_BAD_SYMBOL, r * m->C + c, (double)symbols[r * m->C + c]);
        }
    }
    return CQ_OK;
}

size_t cq_rangecode_workspace(size_t G, size_t C) {
    return cq_mul(cq_mul(G, cq_add(C, 1)), sizeof(cq_range_column));
}

/* A symbol takes at most 16 bits and what rounding `unit` down costs, below 2**-15 bits. */
size_t cq_rangecode_bytes(size_t R, size_t C, size_t lanes) {
    const size_t n = cq_mul(R, cq_ceil_div(C, lanes));
    return cq_add(cq_add(cq_mul(n, 2), n >> 15), 32);
}

/* The shortest number in [low, low + range): its upper `return` bytes, the others are 0; 0 bytes
 * for 0 and for 2**64, which carries. */
static size_t shortest(uint64_t low, uint64_t range, uint64_t *value) {
    *value = 0;
    if (low == 0 || range > 0 - low) return 0;
    for (size_t bytes = 1; bytes < 8; bytes++) {
        const uint64_t below = UINT64_MAX >> (8 * bytes), v = (low + below) & ~below;
        *value = v;
        if (v >= low && v - low < range) return bytes;
    }
    *value = low;
    return 8;
}

static size_t finish(cq_range_encoder *e) {
    uint64_t value;
    const size_t bytes = shortest(e->low, e->range, &value);
    if (!bytes && e->low)
        for (size_t i = e->at; i > 0 && ++e->out[i - 1] == 0;) i--;
    for (size_t i = 0; i < bytes; i++) e->out[e->at++] = (uint8_t)(value >> (56 - 8 * i));
    while (e->at && !e->out[e->at - 1]) e->at--;
    return e->at;
}

cq_status cq_rangecode_encode(cq_ctx *cx, const cq_range_model *m, const uint8_t *symbols,
                              uint8_t *out, int64_t *sizes, size_t lanes, size_t room,
                              uint32_t *work) {
    cq_range_encoder e[CQ_RANGE_LANES];
    CQ_TRY(check_tables(cx, m));
    CQ_TRY(list_columns(cx, m, work));
    CQ_TRY(check_symbols(cx, m, symbols));
    for (size_t i = 0; i < lanes; i++) e[i] = (cq_range_encoder){0, UINT64_MAX, out + i * room, 0};
    for (size_t r = 0; r < m->R; r++) {
        if (cq_stop(cx)) return CQ_INTERRUPTED;
        const cq_range_column *list = list_of(m, work, (size_t)m->group[r]);
        cx->k->rangecode_encode_row(symbols + r * m->C, list + 1, list->column, m->cdf, e, lanes);
    }
    for (size_t i = 0; i < lanes; i++) sizes[i] = (int64_t)finish(e + i);
    return CQ_OK;
}

/* Whether these are the bytes that an encoder makes of what was read, and no others. */
static int is_whole(const cq_range_decoder *d) {
    if (d->size && !d->in[d->size - 1]) return 0;
    if (d->size > d->at || d->code >= d->range) return 0;
    if (cq_range_load(d->in, d->size, 0, 8) == UINT64_MAX) return 0; /* no interval holds it */
    const uint64_t value = cq_range_load(d->in, d->size, d->at - 8, 8);
    uint64_t best;
    shortest(value - d->code, d->range, &best);
    return value == best;
}

cq_status cq_rangecode_decode(cq_ctx *cx, const cq_range_model *m, const uint8_t *payload,
                              size_t size, const int64_t *sizes, uint8_t *symbols, uint8_t *whole,
                              size_t lanes, uint32_t *work) {
    cq_range_decoder d[CQ_RANGE_LANES];
    CQ_TRY(check_tables(cx, m));
    CQ_TRY(list_columns(cx, m, work));
    size_t at = 0;
    for (size_t i = 0; i < lanes; i++) {
        if (sizes[i] < 0 || (uint64_t)sizes[i] > size - at ||
            (i + 1 == lanes && at + (size_t)sizes[i] != size))
            return cq_refuse(cx, CQ_BAD_LANES, i, (double)sizes[i]);
        const size_t n = (size_t)sizes[i];
        d[i] = (cq_range_decoder){cq_range_load(payload + at, n, 0, 8), UINT64_MAX, payload + at, 8,
                                  n};
        at += n;
    }
    memset(symbols, 0, m->R * m->C);
    for (size_t r = 0; r < m->R; r++) {
        if (cq_stop(cx)) return CQ_INTERRUPTED;
        const cq_range_column *list = list_of(m, work, (size_t)m->group[r]);
        cx->k->rangecode_decode_row(symbols + r * m->C, list + 1, list->column, m->cdf, d, lanes);
    }
    for (size_t i = 0; i < lanes; i++) whole[i] = (uint8_t)is_whole(d + i);
    return CQ_OK;
}
