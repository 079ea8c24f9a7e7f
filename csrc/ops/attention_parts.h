/* SPDX-License-Identifier: Apache-2.0 */
/* What the forward and the backward driver of attention share: products of whole matrices on packed
 * panels, scratch memory by slots, the split of the workspace, and the forward pass of a few batch
 * elements, which the backward pass repeats where nothing was saved. */
#ifndef CQ_ATTENTION_PARTS_H
#define CQ_ATTENTION_PARTS_H

#include "core/parallel.h"
#include "core/size.h"
#include "ops.h"

#include <stdatomic.h>

/* Element (r, c) is x[r * ld + c], transposed x[c * ld + r]. */
typedef struct cq_att_matrix {
    const float *x;
    size_t ld;
    int transposed;
} cq_att_matrix;

/* One call: its context (at most CQ_ATT_SLOTS threads), one shared area for packed operands, and
 * one slot of scratch per thread, taken by the block that runs (results do not depend on which). */
#define CQ_ATT_SLOTS 64
typedef struct cq_att_run {
    cq_ctx *cx;
    const cq_attention_args *a;
    char *shared, *slots;
    size_t slot_bytes;
    atomic_ullong busy;
} cq_att_run;

/* Batch elements worked off at a time: all where everything is saved, else about 1024 rows. */
size_t cq_att_elements(const cq_attention_args *a, int saved);

/* The arguments of `count` batch elements from `first` on. */
cq_attention_args cq_att_part(const cq_attention_args *a, size_t first, size_t count);

/* Bytes that cq_att_begin takes from the workspace; at SIZE_MAX where they pass it. */
size_t cq_att_begin_bytes(const cq_attention_args *a, int threads, int saved, int backward);
/* Cap the threads of `cx`, split up `*work` and move it past what was taken. */
void cq_att_begin(cq_att_run *run, cq_ctx *cx, const cq_attention_args *a, char **work, int saved,
                  int backward);
int cq_att_take(cq_att_run *run, char **slot);
void cq_att_give(cq_att_run *run, int slot);

/* Bytes of a slot that the driver of one direction needs for one head. */
size_t cq_att_fwd_slot(const cq_attention_args *a);
size_t cq_att_bwd_slot(const cq_attention_args *a);

/* C [M, N] (+)= A [M, K] B [K, N] + bias, then after(ctx, first row, end) for every finished block
 * of rows. */
typedef struct cq_att_product {
    cq_att_matrix A, B;
    size_t M, N, K;
    float *c;
    size_t ldc;
    const float *bias;
    int add;
    void (*before)(void *ctx, size_t begin, size_t end);
    void (*after)(void *ctx, size_t begin, size_t end);
    void *ctx;
} cq_att_product;
cq_status cq_att_multiply(cq_att_run *run, const cq_att_product *p);

/* Panels of `count` lanes of a matrix whose lane i is at x + i * lane_stride. */
void cq_att_pack(const cq_att_run *run, const float *x, size_t lane_stride, size_t depth_stride,
                 size_t count, size_t depth, int side, void *panels);

/* Matrices of a few batch elements, B of them together: kv [B * Lk, P], q and ctx [B * Lq, E], k
 * and v *transposed* [E, B * Lk], y [B * Lq, Do], lse [B, H, Lq]. */
typedef struct cq_att_state {
    const float *kv;
    float *q, *k, *v, *ctx, *y, *lse, *stat;
    float *out, *entropy, *weights; /* or NULL */
} cq_att_state;

/* Fill a state; q may be ctx, y NULL: not wanted. `kv` is where the first projection goes, if there
 * is one. */
cq_status cq_att_forward(cq_att_run *run, const cq_attention_args *a, cq_att_state *s, float *kv);

/* Gradients of one linear layer y = x w^T + b, where wanted; dx is added to where `add`, dw and db
 * where `more`. dy is [rows, n], `turned` [n, rows]. */
typedef struct cq_att_linear {
    const float *dy, *x, *w;
    size_t rows, n, k;
    float *dw, *db, *dx;
    int add, turned, more;
} cq_att_linear;
cq_status cq_att_linear_bwd(cq_att_run *run, const cq_att_linear *l);

CQ_INLINE char *cq_att_carve(char **at, size_t bytes) {
    char *p = *at;
    *at += cq_ceil_div(bytes, 64) * 64;
    return p;
}
CQ_INLINE float *cq_att_floats(char **at, size_t count) {
    return (float *)(void *)cq_att_carve(at, count * sizeof(float));
}
/* What the two above take, with care for sizes that pass SIZE_MAX. */
CQ_INLINE size_t cq_att_bytes(size_t rows, size_t columns) {
    return cq_round_up(cq_mul(cq_mul(rows, columns), sizeof(float)), 64);
}
CQ_INLINE size_t cq_att_panels(size_t lanes) { return cq_ceil_div(lanes, CQ_ATT_LANES); }
CQ_INLINE float *cq_att_from(float *x, size_t offset) { return x ? x + offset : NULL; }

#endif
