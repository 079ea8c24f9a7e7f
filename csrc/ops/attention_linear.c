/* SPDX-License-Identifier: Apache-2.0 */
/* Gradients of the linear layers of attention. */
#include "attention_parts.h"

enum { COLUMNS = 256, SUM_ROWS = 32 };

typedef struct sums {
    const float *x;
    size_t rows, cols;
    float *out;
    int add;
} sums;

static void column_sums(void *ctx, size_t begin, size_t end, size_t block) {
    const sums *s = ctx;
    double acc[COLUMNS] = {0};
    (void)block;
    for (size_t r = 0; r < s->rows; r += SUM_ROWS) {
        float part[COLUMNS] = {0};
        for (size_t q = r; q < cq_min_size(s->rows, r + SUM_ROWS); q++) {
            const float *x = s->x + q * s->cols + begin;
            for (size_t c = 0; c < end - begin; c++) part[c] += x[c];
        }
        for (size_t c = 0; c < end - begin; c++) acc[c] += (double)part[c];
    }
    for (size_t c = begin; c < end; c++)
        s->out[c] = (s->add ? s->out[c] : 0.0f) + (float)acc[c - begin];
}

/* The same for x transposed: sums of rows. */
static void row_sums(void *ctx, size_t begin, size_t end, size_t block) {
    const sums *s = ctx;
    (void)block;
    for (size_t c = begin; c < end; c++) {
        double lane[8] = {0};
        for (size_t r = 0; r < s->rows; r++) lane[r % 8] += (double)s->x[c * s->rows + r];
        s->out[c] = (s->add ? s->out[c] : 0.0f) + (float)cq_sum_lanes(lane);
    }
}

cq_status cq_att_linear_bwd(cq_att_run *run, const cq_att_linear *l) {
    const size_t ld = l->turned ? l->rows : l->n;
    if (l->db) {
        sums s = {l->dy, l->rows, l->n, l->db, l->more};
        CQ_TRY(cq_parallel_rows(run->cx, l->n, COLUMNS, l->turned ? row_sums : column_sums, &s));
    }
    if (l->dw) {
        const cq_att_product p = {.A = {l->dy, ld, !l->turned},
                                  .B = {l->x, l->k, 0},
                                  .M = l->n,
                                  .N = l->k,
                                  .K = l->rows,
                                  .c = l->dw,
                                  .ldc = l->k,
                                  .add = l->more};
        CQ_TRY(cq_att_multiply(run, &p));
    }
    if (!l->dx) return CQ_OK;
    const cq_att_product p = {.A = {l->dy, ld, l->turned},
                              .B = {l->w, l->k, 0},
                              .M = l->rows,
                              .N = l->k,
                              .K = l->n,
                              .c = l->dx,
                              .ldc = l->k,
                              .add = l->add};
    return cq_att_multiply(run, &p);
}
