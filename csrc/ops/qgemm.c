/* SPDX-License-Identifier: Apache-2.0 */
/* Products with a weight in its canonical form: it is put into tiles in `work` first, so that the
 * bits are those of the packed layer. For a weight that is used once; a layer keeps its tiles. */
#include "ops.h"

static cq_qlinear layer(const cq_packed *w, size_t M, cq_qlinear_mode mode) {
    cq_qlinear a = {.M = M, .mode = mode};
    a.w = (cq_tiles){NULL, NULL, w->N, w->K, w->G, w->bits, w->zero != NULL};
    a.e.ldo = w->N;
    return a;
}

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

size_t cq_qgemm_workspace(const cq_ctx *cx, size_t M, const cq_packed *w) {
    cq_qlinear f32 = layer(w, M, CQ_QLINEAR_F32), s8 = layer(w, M, CQ_QLINEAR_CODES);
    f32.w.asymmetric = 1; /* the binding asks before it knows */
    const size_t most = max_size(cq_qlinear_workspace(cx, &f32), cq_qlinear_workspace(cx, &s8));
    return cq_add(most, cq_add(cq_qtile_sizes(&f32.w).tiles, 64));
}

static cq_status run(cq_ctx *cx, cq_qlinear *a, const cq_packed *w, uint8_t *work) {
    const cq_canonical from = {w->codes, w->zero, w->scale};
    uint8_t *tiles = work + (64 - (uintptr_t)work % 64) % 64;
    CQ_TRY(cq_qgemm_repack(cx, &from, &a->w, tiles));
    a->w.data = tiles;
    return cq_qlinear_run(cx, a, tiles + cq_qtile_sizes(&a->w).tiles);
}

cq_status cq_qgemm_f32(cq_ctx *cx, const float *x, const cq_packed *w, const float *bias,
                       float *out, uint8_t *work, size_t M) {
    cq_qlinear a = layer(w, M, CQ_QLINEAR_F32);
    a.x = x;
    a.e.bias = bias;
    a.e.out = out;
    return run(cx, &a, w, work);
}

cq_status cq_qgemm_s8(cq_ctx *cx, const int8_t *x, const float *xscale, const cq_packed *w,
                      const float *bias, float *out, uint8_t *work, size_t M) {
    cq_qlinear a = layer(w, M, CQ_QLINEAR_CODES);
    a.x = x;
    a.e.xscale = xscale;
    a.e.bias = bias;
    a.e.out = out;
    return run(cx, &a, w, work);
}
