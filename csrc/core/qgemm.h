/* SPDX-License-Identifier: Apache-2.0 */
/* What the driver and the kernels of qgemm agree on. A panel holds CQ_QGEMM_NB output rows of the
 * weight over at most CQ_QGEMM_KC inputs, input by input, so that a vector of lanes is a vector of
 * outputs and every output is one chain of sums over the inputs. */
#ifndef CQ_QGEMM_H
#define CQ_QGEMM_H

#include "cq.h"

/* Outputs and inputs of a panel (the sums of blocks of KC inputs are added in order), and the
 * outputs that a panel kernel fills in one call. */
#define CQ_QGEMM_NB ((size_t)64)
#define CQ_QGEMM_KC ((size_t)128)
#define CQ_QGEMM_STRIP ((size_t)16)
/* Longest group whose s8 dot products fit in int32. */
#define CQ_QGEMM_S8_GROUP 65793

/* One block of rows of x times one float panel. */
typedef struct cq_qgemm_f32_tile {
    const float *x;     /* [m, kc], row stride ldx */
    const float *panel; /* [kc, CQ_QGEMM_NB], 64-byte aligned */
    const float *bias;  /* [n], or NULL: not the last block, or no bias */
    float *out;         /* [m, n], row stride ldo */
    size_t ldx, ldo, m, n, kc;
    int first; /* write out; otherwise add to it */
} cq_qgemm_f32_tile;

/* One block of rows of x times one panel of codes, all of one group of the weight. The bytes of the
 * panel are laid out as the ISA likes: its panel and its tile kernel come as a pair. */
typedef struct cq_qgemm_s8_tile {
    const int8_t *x;      /* [m, kc], row stride ldx */
    const uint8_t *panel; /* 2 * kc * CQ_QGEMM_NB bytes (kc rounded up to 4), 64-byte aligned */
    const int32_t *xsum;  /* [m], stride ldsum: sums of the rows of x over the whole group */
    const int32_t *zero;  /* [CQ_QGEMM_NB] */
    const float *scale;   /* [CQ_QGEMM_NB] */
    const float *xscale;  /* [m], or NULL: not the last group */
    const float *bias;    /* [n], or NULL */
    int32_t *part;        /* [m, CQ_QGEMM_NB]: dot products of a group between its panels */
    float *out;           /* [m, n], row stride ldo */
    size_t ldx, ldsum, ldo, m, n, kc;
    int begin, end; /* of the group: otherwise start from part, otherwise leave it there */
    int first;      /* group: write out; otherwise add to it */
} cq_qgemm_s8_tile;

#endif
