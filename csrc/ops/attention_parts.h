/* SPDX-License-Identifier: Apache-2.0 */
/* What the forward and the backward driver of attention share: products of whole matrices on packed
 * panels, scratch memory by slots, and the split of the workspace. */
#ifndef CQ_ATTENTION_PARTS_H
#define CQ_ATTENTION_PARTS_H

#include "core/parallel.h"
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
    char *shared, *slots, *rest; /* rest: what the driver lays out itself */
    size_t slot_bytes;
    atomic_ullong busy;
} cq_att_run;

size_t cq_att_shared_bytes(const cq_attention_args *a);
size_t cq_att_slot_bytes(const cq_attention_args *a, int backward);

/* Bytes of a slot that the driver of one direction needs for one head. */
size_t cq_att_fwd_slot(const cq_attention_args *a);
size_t cq_att_bwd_slot(const cq_attention_args *a);

/* Cap the threads of `cx` and split up `work`. */
void cq_att_begin(cq_att_run *run, cq_ctx *cx, const cq_attention_args *a, char *work,
                  int backward);
int cq_att_take(cq_att_run *run, char **slot);
void cq_att_give(cq_att_run *run, int slot);

/* C [M, N] (+)= A [M, K] B [K, N] + bias, then after(ctx, first row, end) for every finished block
 * of rows. C may be A where K and N are at most CQ_ATT_SPAN. */
#define CQ_ATT_SPAN ((size_t)1024)
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

CQ_INLINE char *cq_att_carve(char **at, size_t bytes) {
    char *p = *at;
    *at += cq_ceil_div(bytes, 64) * 64;
    return p;
}
CQ_INLINE size_t cq_att_panels(size_t lanes) { return cq_ceil_div(lanes, CQ_ATT_LANES); }

#endif
