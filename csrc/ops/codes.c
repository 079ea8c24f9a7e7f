/* SPDX-License-Identifier: Apache-2.0 */
#include "core/parallel.h"
#include "ops.h"

#include <math.h>

/* Refuse a scale that is not finite and > 0, and a zero point that is no code. */
static cq_status check_grid(cq_ctx *cx, const float *scale, const uint8_t *zero, size_t n,
                            int bits) {
    for (size_t i = 0; i < n; i++) {
        if (!(scale[i] > 0.0f) || isinf(scale[i]))
            return cq_refuse(cx, CQ_BAD_SCALE, i, (double)scale[i]);
        if (zero[i] >> bits) return cq_refuse(cx, CQ_BAD_ZERO, i, (double)zero[i]);
    }
    return CQ_OK;
}

typedef struct job {
    const cq_kernels *k;
    const void *in;
    void *out;
    const float *scale;
    const uint8_t *zero;
    float *token_scale;
    int bits;
    size_t C;
    int stream;
} job;

static cq_affine grid_of(const job *j, size_t r) {
    const float zero = (float)j->zero[r];
    return (cq_affine){j->scale[r], -zero, (float)((1 << j->bits) - 1) - zero};
}

/* The grid of a token: signed, `bits` wide, reaching its largest magnitude. */
static float token_scale(const job *j, const float *x) {
    float high;
    j->k->absmax_f32_row(x, j->C, &high);
    high = high < 1e-5f ? 1e-5f : high;
    return high / (float)((1 << (j->bits - 1)) - 1);
}

static void encode(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->codes_f32_row((const float *)j->in + r * j->C, (uint8_t *)j->out + r * j->C, j->C,
                            grid_of(j, r));
}

static void decode(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++)
        j->k->decode_f32_row((const uint8_t *)j->in + r * j->C, (float *)j->out + r * j->C, j->C,
                             grid_of(j, r));
}

static void encode_tokens(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t r = begin; r < end; r++) {
        const float *x = (const float *)j->in + r * j->C;
        j->token_scale[r] = token_scale(j, x);
        j->k->codes_f32_s8_row(x, (int8_t *)j->out + r * j->C, j->C, j->token_scale[r]);
    }
}

static void fake_tokens(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const float lo = -(float)(1 << (j->bits - 1)), hi = -lo - 1.0f;
    (void)block;
    for (size_t r = begin; r < end; r++) {
        const float *x = (const float *)j->in + r * j->C;
        const float scale = token_scale(j, x);
        const cq_fakequant_block b = {.x = x,
                                      .out = (float *)j->out + r * j->C,
                                      .scale = &scale,
                                      .lo = &lo,
                                      .hi = &hi,
                                      .rows = 1,
                                      .cols = j->C,
                                      .stream = j->stream};
        j->k->fakequant_f32_row(&b);
    }
}

cq_status cq_codes_row(cq_ctx *cx, const float *x, const float *scale, const uint8_t *zero,
                       int bits, uint8_t *out, size_t R, size_t C) {
    CQ_TRY(check_grid(cx, scale, zero, R, bits));
    job j = {cx->k, x, out, scale, zero, NULL, bits, C, 0};
    return cq_parallel_rows(cx, R, cq_grain(C), encode, &j);
}

cq_status cq_decode_row(cq_ctx *cx, const uint8_t *codes, const float *scale, const uint8_t *zero,
                        float *out, size_t R, size_t C) {
    CQ_TRY(check_grid(cx, scale, zero, R, 8));
    job j = {cx->k, codes, out, scale, zero, NULL, 8, C, 0};
    return cq_parallel_rows(cx, R, cq_grain(C), decode, &j);
}

cq_status cq_codes_token_s8(cq_ctx *cx, const float *x, int8_t *out, float *scale, size_t R,
                            size_t C) {
    job j = {cx->k, x, out, NULL, NULL, scale, 8, C, 0};
    return cq_parallel_rows(cx, R, cq_grain(C), encode_tokens, &j);
}

cq_status cq_fakequant_token(cq_ctx *cx, const float *x, int bits, float *out, size_t R, size_t C) {
    if (!C) return CQ_OK; /* however many rows */
    const int stream = cq_fakequant_streams(x, out, R, C);
    job j = {cx->k, x, out, NULL, NULL, NULL, bits, C, stream};
    return cq_parallel_rows(cx, R, cq_grain(C), fake_tokens, &j);
}
