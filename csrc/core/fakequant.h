/* SPDX-License-Identifier: Apache-2.0 */
/* What the driver and the kernels of fakequant agree on: a block of rows with their grids. */
#ifndef CQ_FAKEQUANT_H
#define CQ_FAKEQUANT_H

#include "cq.h"

/* Outputs of at least this size are written past the caches (non-temporal stores): no line is read
 * before it is written, which lifts a copy from 16 to 26 GB/s per core. Two L2 caches of today's
 * cores: below, the next reader finds the output in the cache. */
#define CQ_STREAM_BYTES ((size_t)4 << 20)

/* Elements of a row whose share of gscale is one sum; longer rows are cut here. */
#define CQ_FAKEQUANT_CHUNK ((size_t)65536)

typedef struct cq_fakequant_block {
    const float *x;               /* [rows, cols] */
    const float *g;               /* backward: [rows, cols], gradient of the output */
    float *out;                   /* [rows, cols]: the output, or the gradient of x */
    double *gscale;               /* backward: row: [rows], written; col: [cols], added to */
    const float *scale, *lo, *hi; /* row: [rows]; col: [cols] */
    size_t rows, cols;
    int stream; /* write past the caches; then cols >= 16 */
} cq_fakequant_block;

/* Where x / scale may be computed from the reciprocal (see fakequant/avx512.c): no step under- or
 * overflows, and lo * scale divided by scale is within 1/8 of lo. */
#define CQ_FAKEQUANT_LEAST 0x1p-60f
#define CQ_FAKEQUANT_MOST 0x1p60f
#define CQ_FAKEQUANT_BOUND 0x1p20f
CQ_INLINE int cq_fakequant_fast(float scale, float lo, float hi) {
    return scale >= CQ_FAKEQUANT_LEAST && scale <= CQ_FAKEQUANT_MOST && lo >= -CQ_FAKEQUANT_BOUND &&
           hi <= CQ_FAKEQUANT_BOUND;
}

/* Prefetch for a stream of reads at `at`: `ahead` floats ahead to L2, an eighth of it ahead to L1.
 * One prefetch to L1 alone has to look far ahead with the core's few L1 misses, which the streaming
 * stores want too: 0.84..0.91 of a streaming copy, with both 0.98..1.0 (4096 x 4096). */
CQ_INLINE void cq_fakequant_fetch(const float *at, size_t ahead) {
    __builtin_prefetch(at + ahead, 0, 2);
    __builtin_prefetch(at + ahead / 8, 0, 3);
}

/* Measured best for one stream (8 KiB), and for two at once. */
enum { CQ_FAKEQUANT_AHEAD = 2048, CQ_FAKEQUANT_AHEAD_TWO = 1024 };

/* The same for parameters of the next rows, of which a line lasts for long: no other prefetcher
 * knows the stream. */
CQ_INLINE void cq_fakequant_params(const float *at) {
    __builtin_prefetch(at + 64, 0, 3);
    __builtin_prefetch(at + 80, 0, 3);
}

/* Whether a driver asks for `stream`: rows so short that most of a line is head and tail do not. */
CQ_INLINE int cq_fakequant_streams(const float *in, const float *out, size_t R, size_t C) {
    return in != out && (C % 16 ? C >= 256 : C > 0) && R * C * sizeof *out >= CQ_STREAM_BYTES;
}

#endif
