/* SPDX-License-Identifier: Apache-2.0 */
/* A run of latents with means and log variances, and what it gives. */
#ifndef CQ_GAUSSIAN_H
#define CQ_GAUSSIAN_H

#include "cq.h"

typedef struct cq_gaussian_run {
    const float *mu, *logvar, *noise; /* [n] */
    float *z;                         /* forward: [n] */
    double *kl;                       /* forward: [8], lane i % 8 is added to */
    const float *gz;                  /* backward: [n]; may be gmu */
    float gkl;                        /* backward: of the sum kl */
    float *gmu, *glogvar;             /* backward: [n] */
    size_t n;
} cq_gaussian_run;

#endif
