/* SPDX-License-Identifier: Apache-2.0 */
/* Drivers: check values, split rows into fixed blocks, call the kernel table. Shapes and dtypes
 * were checked by the binding. Every driver returns CQ_OK or what it refused (see cq_refuse). */
#ifndef CQ_OPS_H
#define CQ_OPS_H

#include "core/dispatch.h"
#include "core/size.h"
#include "ops/gemm_plan.h"

/* x, out [R, C]; scale, lo, hi [R] (row) or [C] (col). */
cq_status cq_fakequant_row(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                           const float *hi, float *out, size_t R, size_t C);
cq_status cq_fakequant_col(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                           const float *hi, float *out, size_t R, size_t C);

/* The same on other grids (csrc/kernels/fakequant_grids): powers of two, lo and hi their exponents;
 * and by the reciprocal of the scale, as torch computes. */
cq_status cq_fakequant_log2_row(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                                const float *hi, float *out, size_t R, size_t C);
cq_status cq_fakequant_log2_col(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                                const float *hi, float *out, size_t R, size_t C);
cq_status cq_fakequant_compat_row(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                                  const float *hi, float *out, size_t R, size_t C);
cq_status cq_fakequant_compat_col(cq_ctx *cx, const float *x, const float *scale, const float *lo,
                                  const float *hi, float *out, size_t R, size_t C);

/* g, gx [R, C]; gscale [R] or [C] float64. `work` float64: of the column form [blocks, C], with
 * blocks = cq_fakequant_bwd_blocks(R, C); of the row form cq_fakequant_bwd_row_workspace(R, C)
 * values, none for rows of at most 65536 elements: longer ones are summed in chunks, in order. */
size_t cq_fakequant_bwd_row_workspace(size_t R, size_t C);
size_t cq_fakequant_bwd_blocks(size_t R, size_t C);
cq_status cq_fakequant_bwd_row(cq_ctx *cx, const float *x, const float *g, const float *scale,
                               const float *lo, const float *hi, float *gx, double *gscale,
                               double *work, size_t R, size_t C);
cq_status cq_fakequant_bwd_col(cq_ctx *cx, const float *x, const float *g, const float *scale,
                               const float *lo, const float *hi, float *gx, double *gscale,
                               double *work, size_t R, size_t C);

/* x [R, C]; results [R] (row) or [C] (col). No minimum or maximum of nothing: CQ_EMPTY. `weight`
 * [R] or NULL (ones); a row of weight 0 is not read, so it may hold NaN. */
cq_status cq_minmax_row(cq_ctx *cx, const float *x, float *mn, float *mx, size_t R, size_t C);
cq_status cq_minmax_col(cq_ctx *cx, const float *x, float *mn, float *mx, size_t R, size_t C);
cq_status cq_absmax_row(cq_ctx *cx, const float *x, float *out, size_t R, size_t C);
cq_status cq_absmax_col(cq_ctx *cx, const float *x, float *out, size_t R, size_t C);
cq_status cq_abssum_row(cq_ctx *cx, const float *x, double *out, size_t R, size_t C);
cq_status cq_abssum_col(cq_ctx *cx, const float *x, const double *weight, double *out, size_t R,
                        size_t C);

/* Grid of every row of x [R, C] from its range (core/grid.h): scale, zero [R]. The mse form tries
 * the ranges shrunk by 1 - i * max_shrink / n_grid, i = 0 .. n_grid - 1, and keeps the first with
 * the smallest squared error, err [R]. A row with NaN or too wide a range: CQ_BAD_SCALE. */
cq_status cq_qparams_row(cq_ctx *cx, const float *x, int bits, int mode, float *scale,
                         uint8_t *zero, size_t R, size_t C);
cq_status cq_qparams_mse_row(cq_ctx *cx, const float *x, int bits, int mode, int n_grid,
                             double max_shrink, float *scale, uint8_t *zero, double *err, size_t R,
                             size_t C);

/* x, codes, out [R, C]; scale, zero [R]. The token form makes its own scale [R] of every row,
 * max(max|x|, 1e-5) / 127; a row with NaN or infinity keeps that scale and gets codes 0. */
cq_status cq_codes_row(cq_ctx *cx, const float *x, const float *scale, const uint8_t *zero,
                       int bits, uint8_t *out, size_t R, size_t C);
cq_status cq_decode_row(cq_ctx *cx, const uint8_t *codes, const float *scale, const uint8_t *zero,
                        float *out, size_t R, size_t C);
cq_status cq_codes_token_s8(cq_ctx *cx, const float *x, int8_t *out, float *scale, size_t R,
                            size_t C);

/* Fake-quantise every row of x [R, C] to `bits` signed bits with scale max(max|x|, 1e-5) /
 * (2**(bits-1) - 1); a row with NaN or infinity becomes NaN. */
cq_status cq_fakequant_token(cq_ctx *cx, const float *x, int bits, float *out, size_t R, size_t C);

/* codes [R, C] below 2**bits, packed [R, cq_packed_bytes(C, bits)]. */
size_t cq_packed_bytes(size_t C, int bits);
cq_status cq_pack_row(cq_ctx *cx, const uint8_t *codes, int bits, uint8_t *out, size_t R, size_t C);
cq_status cq_unpack_row(cq_ctx *cx, const uint8_t *packed, int bits, uint8_t *out, size_t R,
                        size_t C);

/* Loss of every candidate scale s[i] of a linear layer on every block of tokens; block b is tokens
 * first[b] .. first[b + 1] - 1. See csrc/kernels/scaleloss/scalar.c. */
typedef struct cq_scaleloss_args {
    const float *x, *w;   /* [T, K], [N, K] */
    const double *token;  /* [T] */
    const float *s;       /* [S, K] */
    const int64_t *first; /* [B], ascending from 0 */
    size_t T, N, K, S, B;
    size_t group; /* divides K, at least 1 */
    int bits, mode, act_bits, kind, bf16;
} cq_scaleloss_args;

/* loss [S, B]; `work` holds cq_scaleloss_workspace bytes (reads the sizes, act_bits and bf16). */
size_t cq_scaleloss_workspace(const cq_scaleloss_args *a);
cq_status cq_scaleloss(cq_ctx *cx, const cq_scaleloss_args *a, double *loss, uint8_t *work);

/* What scales s [C] and rounding do to every row of a matrix x [R, C], by the same kernels: the
 * error of a weight, with `both` beside v: [err | v]; if `token`, which needs `both`, activations:
 * [hat | err]. Results are float32 or bfloat16, which takes cq_scaleerror_workspace floats. */
typedef struct cq_scaleerror_args {
    const float *x, *s;
    float *out;
    uint16_t *out16;
    float *work;
    size_t R, C, group; /* the group divides C, at least 1 */
    int bits, mode, token, both;
} cq_scaleerror_args;

size_t cq_scaleerror_workspace(size_t R, size_t C);
cq_status cq_scaleerror(cq_ctx *cx, const cq_scaleerror_args *a);

/* A packed weight [N, K]: codes [N, cq_packed_bytes(K, bits)], scale float16 [N, G], zero codes
 * [N, cq_packed_bytes(G, bits)] or NULL (symmetric: 2**(bits-1)). G divides K; K / G is a multiple
 * of 8 unless G is 1. */
typedef struct cq_packed {
    const uint8_t *codes, *zero;
    const uint16_t *scale;
    size_t N, K, G;
    int bits;
} cq_packed;

/* out [M, N] = x [M, K] . w^T + bias [N] (or NULL); the s8 form multiplies row m by xscale[m] and
 * takes groups of up to CQ_QGEMM_S8_GROUP inputs. `work`: cq_qgemm_workspace bytes, content free.
 */
size_t cq_qgemm_workspace(const cq_ctx *cx, size_t M, const cq_packed *w);
cq_status cq_qgemm_f32(cq_ctx *cx, const float *x, const cq_packed *w, const float *bias,
                       float *out, uint8_t *work, size_t M);
cq_status cq_qgemm_s8(cq_ctx *cx, const int8_t *x, const float *xscale, const cq_packed *w,
                      const float *bias, float *out, uint8_t *work, size_t M);

/* The canonical form of a weight whose strips have the widths of a cq_tiles: rows of codes and of
 * zero points (NULL if symmetric) one after the other, scale [N, G]; the bytes of each, and of the
 * tiles (core/qgemm.h). repack refuses scales that are not finite and > 0; unrepack inverts it. */
typedef struct cq_canonical {
    const uint8_t *codes, *zero;
    const uint16_t *scale;
} cq_canonical;
typedef struct cq_canonical_out {
    uint8_t *codes, *zero;
    uint16_t *scale;
} cq_canonical_out;
typedef struct cq_canonical_sizes {
    size_t codes, zeros, tiles;
} cq_canonical_sizes;

cq_canonical_sizes cq_qtile_sizes(const cq_tiles *t);
cq_status cq_qgemm_repack(cq_ctx *cx, const cq_canonical *from, const cq_tiles *t, uint8_t *data);
cq_status cq_qgemm_unrepack(cq_ctx *cx, const cq_tiles *t, const cq_canonical_out *to);
/* c [batch, M, N] = activation(a [batch, M, K] . b [batch, K, N] * scale + bias [N]) + residual
 * [batch, M, N]; bias and residual may be NULL. Element (i, k) of a at a[i * rsa + k * csa],
 * (k, j) of b at b[k * rsb + j * csb]; product i is i / inner * batch_outer + i % inner *
 * batch_inner elements away. c is contiguous. With `half`, a and b are bfloat16, and the result is
 * rounded to bfloat16 where c is NULL: to c16. */
typedef struct cq_gemm_args {
    const void *a, *b; /* float32, or bfloat16 where `half` */
    float *c;
    uint16_t *c16; /* instead of c, with `half` */
    size_t batch, inner, M, N, K;
    size_t rsa, csa, rsb, csb;
    size_t batch_outer_a, batch_inner_a, batch_outer_b, batch_inner_b;
    const float *bias, *residual;
    const uint16_t *residual16; /* bfloat16, instead of residual */
    float scale;
    int act;
    int half;
    int planes; /* 0: float32; 1 .. 3: bfloat16 planes (core/gemm.h), or what is no less exact */
} cq_gemm_args;

/* Bytes of `work` (sizes, csa and planes are read). */
size_t cq_gemm_workspace(const cq_ctx *cx, const cq_gemm_args *g);
cq_status cq_gemm(cq_ctx *cx, const cq_gemm_args *g, void *work);

/* a [M, K] . b [N, K]^T of int8, rows rsa and rsb apart, summed exactly: to int32 `sums` [M, N],
 * plus r.bias or NULL; or, where `sums` is NULL, requantised to int8 `codes` [M, N]. K is at most
 * CQ_GEMM_S8_K. */
typedef struct cq_gemm_s8_args {
    const int8_t *a, *b;
    size_t M, N, K, rsa, rsb;
    cq_gemm_requant r;
    int32_t *sums;
    int8_t *codes;
} cq_gemm_s8_args;

/* Bytes of `work` (sizes and `sums` being set are read). */
size_t cq_gemm_s8_workspace(const cq_ctx *cx, const cq_gemm_s8_args *g);
cq_status cq_gemm_s8(cq_ctx *cx, const cq_gemm_s8_args *g, void *work);

/* out [M, N] = epilogue(x [M, K] . w^T). x: float32, or bfloat16 where e.bf16; CODES: int8, with
 * e.xscale. DYNAMIC makes int8 codes of every row first, as cq_codes_token_s8 does. Groups of int8
 * have at most CQ_QGEMM_S8_GROUP inputs. `work`: cq_qlinear_workspace bytes, content free. */
typedef enum cq_qlinear_mode {
    CQ_QLINEAR_F32,
    CQ_QLINEAR_DYNAMIC,
    CQ_QLINEAR_CODES
} cq_qlinear_mode;

typedef struct cq_qlinear {
    const void *x;
    size_t M;
    cq_tiles w;
    cq_epilogue e;
    cq_qlinear_mode mode;
} cq_qlinear;

/* max(largest magnitude, 1e-5) / 127: the scale of a row of int8 codes. */
CQ_INLINE float cq_token_scale(float most) { return (most < 1e-5f ? 1e-5f : most) / 127.0f; }

size_t cq_qlinear_workspace(const cq_ctx *cx, const cq_qlinear *a);
cq_status cq_qlinear_run(cq_ctx *cx, const cq_qlinear *a, uint8_t *work);

/* The same for many rows: cq_qlinear_run calls it. */
int cq_qprefill_fits(const cq_ctx *cx, const cq_qlinear *a);
size_t cq_qprefill_workspace(const cq_ctx *cx, const cq_qlinear *a);
cq_status cq_qprefill_run(cq_ctx *cx, const cq_qlinear *a, uint8_t *work);

/* Real bits of a given mean (kernels/alloc): x, out, g, b, gx [R, C]; weight [C] or NULL. */
cq_status cq_project_row(cq_ctx *cx, const float *x, const float *weight, double lo, double hi,
                         double target, float *out, size_t R, size_t C);
cq_status cq_project_bwd_row(cq_ctx *cx, const float *g, const float *b, const float *weight,
                             double lo, double hi, float *gx, size_t R, size_t C);
cq_status cq_round_bits_row(cq_ctx *cx, const float *b, int lo, int hi, int64_t total, uint8_t *out,
                            size_t R, size_t C);

/* x, out [R, C], weight [C]: root mean square norm of rows, float32 or all bfloat16. */
cq_status cq_rmsnorm(cq_ctx *cx, const void *x, const void *weight, double eps, int bf16, void *out,
                     size_t R, size_t C);

/* One new token: its H query heads and G key heads of width D are rotated by cos, sin [D], keys and
 * values [G, room, D] (float32 or bfloat16) take it at position `at`, and out [H, D] is the
 * attention over positions 0 .. at, scores times `scale`. Query heads i * H / G + .. belong to key
 * head i. `work`: cq_attend_workspace bytes. */
typedef struct cq_attend_args {
    const float *qkv; /* [H + 2 G, D] */
    const float *cos, *sin;
    void *keys, *values;
    float *out;
    float scale;
    size_t H, G, D, room, at; /* G divides H, D is even, all but `at` at least 1 */
    int bf16;
} cq_attend_args;

size_t cq_attend_workspace(const cq_attend_args *a);
cq_status cq_attend(cq_ctx *cx, const cq_attend_args *a, char *work);

/* A fusion block: kv = wp ? xk wp^T + bp : xk, q = xq wq^T + bq, k = kv wk^T + bk, v = kv wv^T +
 * bv, heads of width E / H, ctx = softmax(q k^T / sqrt(E / H)) v, y = (residual ? xq : 0) + ctx
 * wo^T + bo, out = layer norm of y. */
typedef struct cq_attention_args {
    size_t B, Lq, Lk, Dq, Dk, P, E, Do, H; /* H divides E; all but B, Lq, Lk at least 1 */
    const float *xq, *xk;                  /* [B, Lq, Dq], [B, Lk, Dk] */
    const float *wp, *bp;                  /* [P, Dk], [P] or NULL; without wp P = Dk */
    const float *wq, *bq;                  /* [E, Dq], [E] or NULL */
    const float *wk, *bk, *wv, *bv;        /* [E, P], [E] or NULL */
    const float *wo, *bo;                  /* [Do, E], [Do] or NULL */
    const float *gamma, *beta;             /* [Do], or both NULL: no layer norm */
    const uint8_t *mask;                   /* [B, Lk], 1 = the key is left out; or NULL */
    float eps;
    int residual, planes; /* planes: core/attention.h */
} cq_attention_args;

/* What the forward pass leaves behind: all of it, or (q NULL) nothing; the backward pass then
 * repeats the forward pass. k and v are [E, B * Lk]. kv without wp and y without layer norm are not
 * used. */
typedef struct cq_attention_saved {
    float *kv, *q, *k, *v, *ctx, *y; /* [B, Lk, P], [B, Lq, E], .., [B, Lq, E], [B, Lq, Do] */
    float *lse;  /* [B, H, Lq]: logarithm of the sum of exp(scores); -inf: all keys left out */
    float *stat; /* [B, Lq, 2]: mean and 1 / deviation of y */
} cq_attention_saved;

/* entropy [B, H, Lq] in nats, weights [B, Lq, Lk] averaged over heads; NULL = not wanted. Sizes of
 * workspaces end at SIZE_MAX. */
size_t cq_attention_workspace(const cq_attention_args *a, int saved, int threads);
cq_status cq_attention(cq_ctx *cx, const cq_attention_args *a, const cq_attention_saved *s,
                       float *out, float *entropy, float *weights, char *work);

/* Gradients; NULL = not wanted. */
typedef struct cq_attention_grads {
    float *xq, *xk, *wp, *bp, *wq, *bq, *wk, *bk, *wv, *bv, *wo, *bo, *gamma, *beta;
} cq_attention_grads;
/* keep: whether dxq and dxk are wanted (they hold other things on the way), 1 and 2 added up. */
size_t cq_attention_bwd_workspace(const cq_attention_args *a, int saved, int keep, int threads);
cq_status cq_attention_bwd(cq_ctx *cx, const cq_attention_args *a, const cq_attention_saved *s,
                           const float *g, const cq_attention_grads *d, char *work);

/* The choice [n] of one option per unit of least total distortion d [n, m] within the budget; at
 * most 16 options, n * m below 2**32. info [3]: total distortion, how far it can be from the
 * optimum (0: proven), slope of the relaxation at the budget. spent [1]. */
size_t cq_allocate_workspace(size_t n, size_t m);
cq_status cq_allocate(cq_ctx *cx, const float *d, const cq_alloc_costs *costs, int64_t budget,
                      uint8_t *choice, double *info, int64_t *spent, uint8_t *work, size_t n);

/* Histograms (kernels/histogram); workspaces in bytes. counts [size] += places floor(x /
 * 2**exponent)
 * - first of x [n]. out [R, K]: elements of rank ranks [K] of every row. counts [R, size]: of
 * |x| / top * size, top [R] the largest magnitude. best, least [R]: see klclip. */
size_t cq_histogram_workspace(size_t n, size_t size);
cq_status cq_histogram(cq_ctx *cx, const float *x, int exponent, int64_t first, int64_t *counts,
                       uint32_t *work, size_t n, size_t size);
size_t cq_ranks_workspace(size_t R, size_t C);
cq_status cq_ranks_row(cq_ctx *cx, const float *x, const int64_t *ranks, float *out, uint32_t *work,
                       size_t R, size_t C, size_t K);
size_t cq_magnitudes_workspace(size_t R, size_t size);
cq_status cq_magnitudes_row(cq_ctx *cx, const float *x, uint32_t *counts, float *top,
                            uint32_t *work, size_t R, size_t C, size_t size);
size_t cq_klclip_workspace(size_t R, size_t size);
cq_status cq_klclip_row(cq_ctx *cx, const uint32_t *counts, size_t levels, uint32_t *best,
                        double *least, double *work, size_t R, size_t size);

/* out [R, C]: noise of elements first .. first + C - 1 of samples s->sample .. s->sample + R - 1,
 * which stay below 2**32; first + C <= 2**34. normal: with s->table; otherwise uniform. */
cq_status cq_noise_fill(cq_ctx *cx, const cq_noise *s, int normal, uint64_t first, float *out,
                        size_t R, size_t C);

/* Columns rounded to widths of their own (csrc/kernels/channel_bits). x [R, C], low, high [C], bits
 * [G, C], tables [C, CQ_CHANNEL_TABLE] or NULL; G divides R. `noise` rounds at random unless NULL:
 * rows are then samples of T rows each, from sample noise->sample on. With logvar [R, C]
 * (csrc/kernels/gaussian) x are means, and what is rounded is drawn around them by the normal noise
 * `latent`, whose samples are those rows too. */
typedef struct cq_channel_args {
    const float *x, *low, *high, *bits, *tables, *logvar;
    const cq_noise *noise, *latent;
    size_t R, C, G, T;
} cq_channel_args;

/* Gradients; gtables and work are not touched without tables. */
typedef struct cq_channel_grads {
    float *gx, *gbits;    /* [R, C], [G, C] */
    double *glow, *ghigh; /* [C] */
    float *gtables;       /* [C, CQ_CHANNEL_TABLE] */
    double *work;         /* cq_channel_workspace(C) values, with tables */
    float *glogvar;       /* [R, C], with logvar */
} cq_channel_grads;

/* y [R, C], rate [R], which with logvar is the divergence in nats (and grate its gradient); gy
 * [R, C], grate [R]. Tables and logvar exclude each other. */
cq_status cq_channel_bits(cq_ctx *cx, const cq_channel_args *a, float *y, float *rate);
size_t cq_channel_workspace(size_t C);
cq_status cq_channel_bits_bwd(cq_ctx *cx, const cq_channel_args *a, const float *gy,
                              const float *grate, const cq_channel_grads *g);

/* Range coding (kernels/rangecode). Table k is cdf[first[k] .. first[k + 1]); element (r, c) has
 * the table context[group[r]][c], of which those with one entry are not coded. first [K + 1], cdf
 * [E], context [G, C], group [R]. */
typedef struct cq_range_model {
    const uint16_t *cdf;
    const uint32_t *first;
    const int32_t *context, *group;
    size_t E, K, G, C, R;
} cq_range_model;

/* symbols [R, C], the columns of a row dealt to the lanes in turn; out [lanes, room], of which
 * sizes [lanes] bytes are used. work [cq_rangecode_workspace]. payload: the lanes one after the
 * other; whole [lanes]: 1 where these are bytes that encode writes, 0 where others. */
size_t cq_rangecode_workspace(size_t G, size_t C);
size_t cq_rangecode_bytes(size_t R, size_t C, size_t lanes);
cq_status cq_rangecode_encode(cq_ctx *cx, const cq_range_model *m, const uint8_t *symbols,
                              uint8_t *out, int64_t *sizes, size_t lanes, size_t room,
                              uint32_t *work);
cq_status cq_rangecode_decode(cq_ctx *cx, const cq_range_model *m, const uint8_t *payload,
                              size_t size, const int64_t *sizes, uint8_t *symbols, uint8_t *whole,
                              size_t lanes, uint32_t *work);

/* Sum of squared differences of every row of a and b [R, C], and out = (a - b) factor [R]. `work`:
 * cq_sqdiff_workspace values. */
size_t cq_sqdiff_workspace(size_t R, size_t C);
cq_status cq_sqdiff_row(cq_ctx *cx, const float *a, const float *b, double *sum, double *work,
                        size_t R, size_t C);
cq_status cq_sqdiff_bwd_row(cq_ctx *cx, const float *a, const float *b, const double *factor,
                            float *out, size_t R, size_t C);

#endif
