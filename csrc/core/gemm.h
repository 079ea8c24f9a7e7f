/* SPDX-License-Identifier: Apache-2.0 */
/* What packers, tile kernels and drivers of matrix products agree on. An operand is cut into panels
 * of CQ_GEMM_MR rows of A or CQ_GEMM_NR columns of B; the element of lane r and input k of a panel
 * is panel[r * rs + k * cs]. A packed panel has rs = 1 and cs = MR or NR, on every ISA, so packers
 * and tiles of different levels mix. Sums run over blocks of CQ_GEMM_KC inputs: one chain of FMAs
 * per block, from +0, and the blocks are added in order. That fixes every bit of a result, whatever
 * the tile shapes, the ISA and the thread count. */
#ifndef CQ_GEMM_H
#define CQ_GEMM_H

#include "cq.h"

#define CQ_GEMM_MR ((size_t)12)
#define CQ_GEMM_NR ((size_t)32)
#define CQ_GEMM_KC ((size_t)256)

/* bfloat16 panels hold CQ_GEMM_WIDE lanes of both operands, in 1 KiB tiles as AMX wants them. For
 * every 32 inputs and every plane: two tiles of 16 lanes; of A [16 lanes][32 inputs], of B [16
 * pairs of inputs][16 lanes][2 inputs]. Inputs past the last are 0. Planes: a float is the sum of
 * its rounding to bfloat16, the rounding of what that leaves, and again. One block of inputs has
 * CQ_GEMM_KC_WIDE. Drivers see panels as 32-bit words. */
#define CQ_GEMM_WIDE ((size_t)32)
#define CQ_GEMM_KC_WIDE ((size_t)1024)

/* c [m, n] = or += A [m, kc] . B [kc, n], for any m and at most CQ_GEMM_NR columns. */
typedef struct cq_gemm_f32_tile {
    const float *a; /* element (i, k): a[i / MR * psa + i % MR * rsa + k * csa] */
    const float *b; /* element (k, j): b[k * ldb + j]; all CQ_GEMM_NR floats of a row are read */
    float *c;       /* [m, n], row stride ldc */
    size_t rsa, csa, psa, ldb, ldc, m, n, kc;
    const float *ahead; /* the panel of B that comes next, to fetch meanwhile, or NULL */
    int first;          /* write c; otherwise add to it */
    int planes;         /* bf16 only: 1 .. 3; rsa, csa and ldb are not used, psa counts words */
} cq_gemm_f32_tile;

/* The same for m <= CQ_GEMM_MR rows and n columns, m * n <= CQ_GEMM_FEW, of a B that stays where it
 * is: element (k, j) at b[k * rsb + j * csb], one of the strides 1; (i, k) of A at a[k * lda + i].
 */
#define CQ_GEMM_FEW ((size_t)4096)
typedef struct cq_gemm_f32_few {
    const float *a, *b;
    float *c;
    size_t lda, rsb, csb, ldc, m, n, kc;
    int first;
} cq_gemm_f32_few;

/* Lanes of one operand to one bfloat16 panel: element (r, k) at x[r * rs + k * cs]. */
typedef struct cq_gemm_bf16_source {
    const void *x; /* float32, or bfloat16 where `half` */
    size_t rs, cs, rows, kc;
    int planes, half, is_b;
} cq_gemm_bf16_source;

/* int8 panels hold CQ_GEMM_WIDE lanes of both operands, in 1 KiB tiles for VNNI and AMX. For every
 * 64 inputs two tiles of 16 lanes; of A [16 lanes][64 inputs], of B [16 fours of inputs][16
 * lanes][4 inputs]. Inputs and lanes past the last are 0. Tiles take a cq_gemm_f32_tile whose words
 * are int8 panels and int32 sums; these are exact for up to CQ_GEMM_S8_K inputs. */
#define CQ_GEMM_KC_S8 ((size_t)2048)
#define CQ_GEMM_S8_K ((size_t)131071)

/* int32 sums to int8, exactly: with p = (c + bias[j]) * multiplier[j] in int64, clamp(p /
 * 2^shift[j] rounded half to even, + zero, lo, hi). |c| < 2^31, so |p| < 2^63. */
typedef struct cq_gemm_requant {
    const int32_t *bias; /* [n], or NULL */
    const int32_t *multiplier;
    const int32_t *shift; /* 0 .. 62 */
    int zero, lo, hi;     /* -128 .. 127 */
} cq_gemm_requant;

/* What becomes of finished sums: c = activation(c * scale + bias) + residual, each step rounded. */
typedef struct cq_gemm_finish {
    float scale;
    int act;               /* a cq_act (core/qgemm.h) */
    const float *bias;     /* [n], or NULL */
    const float *residual; /* [m, n], row stride ldr, or NULL */
    size_t ldr;
} cq_gemm_finish;

#endif
