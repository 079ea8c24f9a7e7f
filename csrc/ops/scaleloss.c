/* SPDX-License-Identifier: Apache-2.0 */
/* For each candidate: quantise and pack a slab of weight rows, then multiply it with all tokens and
 * add up the loss, one partial sum per tile in a fixed order. Nothing of size T * N is ever kept.
 */
#include "kernels/scaleloss/scaleloss.h"

#include "core/parallel.h"
#include "ops.h"

#include <math.h>

typedef struct sizes {
    size_t slab_rows, panels, slab_tokens, chunks; /* weight rows, panels; tokens, tiles of them */
} sizes;

static sizes plan(size_t T, size_t N, int act) {
    sizes z;
    z.slab_rows = cq_min_size(CQ_SLAB_ROWS, cq_ceil_div(N, CQ_PANEL) * CQ_PANEL);
    z.panels = z.slab_rows / CQ_PANEL;
    z.slab_tokens = act ? cq_min_size(CQ_SLAB_TOKENS, T) : T;
    z.chunks = cq_ceil_div(z.slab_tokens, CQ_TILE_ROWS);
    return z;
}

size_t cq_scaleloss_workspace(size_t T, size_t N, size_t K, int act_bits) {
    const sizes z = plan(T, N, act_bits != 0);
    const size_t copies = act_bits ? 4 : 2;
    const size_t floats = copies * z.slab_rows * K + (act_bits ? 2 * z.slab_tokens * K : 0);
    return z.panels * z.chunks + cq_ceil_div(floats, 2);
}

typedef struct job {
    const cq_kernels *k;
    const float *x, *w, *s;
    const double *token;
    size_t K, group, rows, tokens, chunks; /* rows and tokens of this slab */
    int bits, mode, act_bits, kind;
    float *scratch[2], *packed[2]; /* error and, with activations, scaled weights */
    float *hat, *dx;
    double *partial;
} job;

static void quantise_panel(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t panel = begin; panel < end; panel++) {
        const size_t first = panel * CQ_PANEL, m = cq_min_size(CQ_PANEL, j->rows - first);
        for (size_t r = first; r < first + m; r++)
            for (size_t g = 0; g < j->K; g += j->group) {
                const size_t at = r * j->K + g;
                j->k->scaleloss_weight_f32(j->w + at, j->s + g, j->group, j->bits, j->mode,
                                           j->scratch[0] + at,
                                           j->act_bits ? j->scratch[1] + at : NULL);
            }
        for (int p = 0; p < (j->act_bits ? 2 : 1); p++)
            j->k->scaleloss_pack_f32(j->scratch[p] + first * j->K, m, j->K,
                                     j->packed[p] + first * j->K);
    }
}

static void quantise_tokens(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t t = begin; t < end; t++)
        j->k->scaleloss_token_f32(j->x + t * j->K, j->s, j->K, j->act_bits, j->hat + t * j->K,
                                  j->dx + t * j->K);
}

static void multiply(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t task = begin; task < end; task++) {
        const size_t panel = task / j->chunks, t = task % j->chunks * CQ_TILE_ROWS;
        const size_t m = cq_min_size(CQ_TILE_ROWS, j->tokens - t), at = panel * CQ_PANEL * j->K;
        const float *x0 = (j->act_bits ? j->hat : j->x) + t * j->K;
        const float *x1 = j->act_bits ? j->dx + t * j->K : NULL;
        j->k->scaleloss_tile_f32(x0, j->packed[0] + at, x1, j->act_bits ? j->packed[1] + at : NULL,
                                 m, j->K, j->token + t, j->kind, j->partial + task);
    }
}

/* Loss of one candidate over all slabs. */
static double candidate(const cq_ctx *cx, job *j, const cq_scaleloss_args *a, sizes z) {
    double loss = 0.0;
    for (size_t t = 0; t < a->T; t += z.slab_tokens) {
        j->x = a->x + t * a->K;
        j->token = a->token + t;
        j->tokens = cq_min_size(z.slab_tokens, a->T - t);
        j->chunks = cq_ceil_div(j->tokens, CQ_TILE_ROWS);
        if (j->act_bits)
            cq_parallel_rows(j->tokens, cq_grain(a->K), cx->threads, quantise_tokens, j);
        for (size_t n = 0; n < a->N; n += z.slab_rows) {
            j->w = a->w + n * a->K;
            j->rows = cq_min_size(z.slab_rows, a->N - n);
            const size_t panels = cq_ceil_div(j->rows, CQ_PANEL);
            cq_parallel_rows(panels, 1, cx->threads, quantise_panel, j);
            cq_parallel_rows(panels * j->chunks, 1, cx->threads, multiply, j);
            for (size_t i = 0; i < panels * j->chunks; i++) loss += j->partial[i];
        }
    }
    return loss;
}

cq_status cq_scaleloss(cq_ctx *cx, const cq_scaleloss_args *a, double *loss, double *work) {
    for (size_t i = 0; i < a->S * a->K; i++)
        if (!(a->s[i] > 0.0f) || isinf(a->s[i]))
            return cq_refuse(cx, CQ_BAD_SCALE, i, (double)a->s[i]);
    const sizes z = plan(a->T, a->N, a->act_bits != 0);
    const size_t slab = z.slab_rows * a->K;
    float *floats = (float *)(void *)(work + z.panels * z.chunks);
    job j = {.k = cx->k, .K = a->K, .group = a->group, .bits = a->bits, .mode = a->mode};
    j.act_bits = a->act_bits;
    j.kind = a->kind;
    j.partial = work;
    for (int p = 0; p < (a->act_bits ? 2 : 1); p++) {
        j.scratch[p] = floats + (size_t)p * 2 * slab;
        j.packed[p] = j.scratch[p] + slab;
    }
    j.hat = floats + 4 * slab;
    j.dx = j.hat + z.slab_tokens * a->K;
    for (size_t i = 0; i < a->S; i++) {
        j.s = a->s + i * a->K;
        loss[i] = candidate(cx, &j, a, z);
    }
    return CQ_OK;
}
