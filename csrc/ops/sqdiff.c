/* SPDX-License-Identifier: Apache-2.0 */
#include "core/parallel.h"
#include "ops.h"

enum { CHUNK = 16384 }; /* elements whose squares are one sum; longer rows are cut */

typedef struct job {
    const cq_kernels *k;
    const float *a, *b;
    const double *factor;
    float *out;
    double *partial;
    size_t C, chunks;
} job;

static void some_chunks(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t i = begin; i < end; i++) {
        const size_t r = i / j->chunks, first = i % j->chunks * CHUNK, at = r * j->C + first;
        const size_t n = cq_min_size(CHUNK, j->C - first);
        if (j->out)
            j->k->sqdiff_bwd_f32(j->a + at, j->b + at, n, (float)j->factor[r], j->out + at);
        else
            j->k->sqdiff_f32(j->a + at, j->b + at, n, j->partial + i);
    }
}

static cq_status run(cq_ctx *cx, job *j, size_t R) {
    j->k = cx->k;
    j->chunks = cq_ceil_div(j->C, CHUNK);
    return cq_parallel_rows(cx, R * j->chunks, cq_grain(cq_min_size(CHUNK, j->C)), some_chunks, j);
}

size_t cq_sqdiff_workspace(size_t R, size_t C) { return cq_mul(R, cq_ceil_div(C, CHUNK)); }

cq_status cq_sqdiff_row(cq_ctx *cx, const float *a, const float *b, double *sum, double *work,
                        size_t R, size_t C) {
    job j = {.a = a, .b = b, .partial = work, .C = C};
    CQ_TRY(run(cx, &j, R));
    for (size_t r = 0; r < R; r++) {
        sum[r] = 0.0;
        for (size_t k = 0; k < j.chunks; k++) sum[r] += work[r * j.chunks + k];
    }
    return CQ_OK;
}

cq_status cq_sqdiff_bwd_row(cq_ctx *cx, const float *a, const float *b, const double *factor,
                            float *out, size_t R, size_t C) {
    job j = {.a = a, .b = b, .factor = factor, .out = out, .C = C};
    return run(cx, &j, R);
}
