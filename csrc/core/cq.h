/* SPDX-License-Identifier: Apache-2.0 */
/* Types every C file of cmibq sees. A matrix is C-contiguous [rows, cols]; quantisation parameters
 * belong to rows (one per row) or to columns (one per column). */
#ifndef CQ_H
#define CQ_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#define CQ_X86 1
#else
#define CQ_X86 0
#endif
#if defined(__aarch64__)
#define CQ_ARM64 1
#else
#define CQ_ARM64 0
#endif

#define CQ_INLINE static inline __attribute__((always_inline))

typedef enum cq_status {
#define STATUS(code, argument, rule) CQ_##code,
#include "status.def"
#undef STATUS
} cq_status;

/* One affine grid, already shifted by its zero point: x -> rint(clamp(x / scale, lo, hi)) * scale,
 * where lo = qmin - zero_point and hi = qmax - zero_point are integers held in floats. */
typedef struct cq_affine {
    float scale;
    float lo;
    float hi;
} cq_affine;

#define CQ_TRY(expr)                                                                               \
    do {                                                                                           \
        const cq_status cq_try_status = (expr);                                                    \
        if (cq_try_status != CQ_OK) return cq_try_status;                                          \
    } while (0)

CQ_INLINE size_t cq_min_size(size_t a, size_t b) { return a < b ? a : b; }
CQ_INLINE size_t cq_ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }

/* Sum of the eight lanes of a sum over i % 8, pairwise: the order that every ISA keeps. */
CQ_INLINE double cq_sum_lanes(const double *lane) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

#endif
