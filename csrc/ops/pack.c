/* SPDX-License-Identifier: Apache-2.0 */
#include "core/parallel.h"
#include "ops.h"

typedef struct job {
    const cq_kernels *k;
    const uint8_t *in;
    uint8_t *out;
    int bits;
    size_t C, B;
} job;

static void pack_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->pack_u8_row(j->in + r * j->C, j->out + r * j->B, j->C, j->bits);
}

static void unpack_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->unpack_u8_row(j->in + r * j->B, j->out + r * j->C, j->C, j->bits);
}

/* Too large a code would spill into its neighbours; one OR over all codes finds out. */
static cq_status check_codes(cq_ctx *cx, const uint8_t *codes, size_t n, int bits) {
    const size_t piece = (size_t)1 << 24;
    uint8_t all = 0;
    for (size_t from = 0; from < n; from += piece) {
        if (cq_stop(cx)) return CQ_INTERRUPTED;
        const size_t end = from + cq_min_size(piece, n - from);
        for (size_t i = from; i < end; i++) all |= codes[i];
    }
    if (!(all >> bits)) return CQ_OK;
    size_t i = 0;
    while (!(codes[i] >> bits)) i++;
    return cq_refuse(cx, CQ_BAD_CODE, i, (double)codes[i]);
}

size_t cq_packed_bytes(size_t C, int bits) {
    return C / 8 * (size_t)bits + (C % 8 * (size_t)bits + 7) / 8;
}

cq_status cq_pack_row(cq_ctx *cx, const uint8_t *codes, int bits, uint8_t *out, size_t R,
                      size_t C) {
    if (!C) return CQ_OK; /* however many rows */
    CQ_TRY(check_codes(cx, codes, R * C, bits));
    job j = {cx->k, codes, out, bits, C, cq_packed_bytes(C, bits)};
    return cq_parallel_rows(cx, R, cq_grain(C), pack_rows, &j);
}

cq_status cq_unpack_row(cq_ctx *cx, const uint8_t *packed, int bits, uint8_t *out, size_t R,
                        size_t C) {
    if (!C) return CQ_OK;
    job j = {cx->k, packed, out, bits, C, cq_packed_bytes(C, bits)};
    return cq_parallel_rows(cx, R, cq_grain(C), unpack_rows, &j);
}
