/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels of csrc/kernels/rangecode and their driver share. */
#ifndef CQ_RANGECODE_H
#define CQ_RANGECODE_H

#include "cq.h"

/* Lanes that one stream may have; symbols of a row go to them in turn. */
#define CQ_RANGE_LANES 4

/* A column that is coded: where its table starts, and how many symbols (2..256) it has. */
typedef struct cq_range_column {
    uint32_t column, first, size;
} cq_range_column;

/* The interval [low, low + range) of 64 bits that is left; `out` has what went out before. */
typedef struct cq_range_encoder {
    uint64_t low, range;
    uint8_t *out;
    size_t at;
} cq_range_encoder;

/* `code` is what was read less the encoder's `low`; `at` counts bytes read, of `size`, after which
 * all bytes are 0. */
typedef struct cq_range_decoder {
    uint64_t code, range;
    const uint8_t *in;
    size_t at, size;
} cq_range_decoder;

CQ_INLINE uint64_t cq_range_load(const uint8_t *in, size_t size, size_t at, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = at; i < at + bytes; i++) value = value << 8 | (i < size ? in[i] : 0);
    return value;
}

#endif
