/* SPDX-License-Identifier: Apache-2.0 */
/* For each candidate, tasks of a slab of weight rows: quantise and pack the slab, multiply it with
 * all tokens and add up the loss per block of tokens, in a fixed order. Nothing of size T * N is
 * ever kept. Slots, at most 8, are what threads take; each owns the memory of one slab. */
#include "kernels/scaleloss/scaleloss.h"

#include "core/parallel.h"
#include "ops.h"

#include <math.h>

enum { MAX_SLOTS = 8, MIN_TASKS = 16 };

/* Tokens whose packed copies are kept at once (whole strips), and bytes of a slab (of a 2 MB L2).
 */
static const size_t BF16_TOKENS = 8192, BF16_ACT_TOKENS = 1024, F32_TOKENS = 8 * CQ_TILE_ROWS,
                    SLAB_BYTES = 1 << 20;

typedef struct plan {
    size_t copies;      /* operands of the error: 1, or 2 with activations */
    size_t width, size; /* inputs of a packed row, bytes of a packed value */
    size_t slab, slabs; /* weight rows of a task, tasks of a candidate */
    size_t tokens;      /* of a chunk */
    size_t lanes;       /* tokens of a strip */
    size_t slots;
    size_t strip_bytes;
    size_t partial_bytes, inverse_bytes, token_bytes, slab_bytes, scratch_bytes; /* of 64 */
} plan;

static size_t whole_lines(size_t bytes) { return cq_round_up(bytes, 64); }

static plan make_plan(const cq_scaleloss_args *a) {
    plan p = {.copies = a->act_bits ? 2 : 1, .size = a->bf16 ? 2 : 4};
    p.width = a->bf16 ? cq_ceil_div(a->K, CQ_BF16_K) * CQ_BF16_K : a->K;
    const size_t panels = cq_ceil_div(a->N, CQ_PANEL);
    const size_t panel_bytes = CQ_PANEL * p.width * p.size * p.copies;
    size_t most = panel_bytes ? SLAB_BYTES / panel_bytes : 1;
    most = cq_min_size(most, panels / MIN_TASKS);
    p.slab = CQ_PANEL * (most ? most : 1);
    p.slabs = cq_ceil_div(a->N, p.slab);
    const size_t most_bf16 = a->act_bits ? BF16_ACT_TOKENS : BF16_TOKENS;
    p.tokens = cq_min_size(a->T, a->bf16 ? most_bf16 : F32_TOKENS);
    p.lanes = a->bf16 ? CQ_BF16_M : CQ_GEMM_MR;
    p.slots = cq_min_size(p.slabs, MAX_SLOTS);
    p.partial_bytes = whole_lines(cq_mul(p.slabs, cq_mul(a->B, sizeof(double))));
    p.inverse_bytes = whole_lines(cq_mul(a->K, sizeof(float)));
    p.strip_bytes = p.lanes * p.width * p.size;
    p.token_bytes = whole_lines(p.copies * cq_ceil_div(p.tokens, p.lanes) * p.strip_bytes);
    if (a->act_bits) p.token_bytes += whole_lines(2 * p.tokens * a->K * sizeof(float));
    p.slab_bytes = whole_lines(p.slab * p.width * p.size * p.copies);
    const size_t errors = a->bf16 ? 0 : CQ_TILE_ROWS * CQ_PANEL * sizeof(float);
    p.scratch_bytes = errors + whole_lines(CQ_PANEL * a->K * sizeof(float) * p.copies);
    return p;
}

size_t cq_scaleloss_workspace(const cq_scaleloss_args *a) {
    const plan p = make_plan(a);
    /* Rows of x, w and s this wide cannot exist, unless there are none. */
    if (a->K > SIZE_MAX >> 20) return SIZE_MAX;
    const size_t rest = p.inverse_bytes + p.token_bytes;
    return cq_add(p.partial_bytes, 64 + rest + p.slots * (p.slab_bytes + p.scratch_bytes));
}

typedef struct job {
    cq_ctx *cx;
    const cq_kernels *k;
    const cq_scaleloss_args *a;
    plan p;
    const float *s;     /* of this candidate */
    float *inverse;     /* 1 / s */
    size_t t0, tokens;  /* of this chunk */
    double *partial;    /* [slabs, B] */
    uint8_t *packed[2]; /* the tokens of the chunk per operand; f32: [block of KC][strip] */
    float *hat, *dx;    /* act_bits: [tokens, K] */
    uint8_t *slots;
} job;

/* Where the floats of inputs k0 .. of a strip of packed tokens begin. */
static float *f32_strip(const job *j, size_t operand, size_t strip, size_t k0) {
    const size_t strips = cq_ceil_div(j->tokens, CQ_GEMM_MR);
    const size_t kc = cq_min_size(j->a->K - k0, CQ_GEMM_KC);
    return (float *)(void *)j->packed[operand] + (k0 * strips + strip * kc) * CQ_GEMM_MR;
}

static void pack_strip(const job *j, size_t operand, size_t strip, const float *rows, size_t m) {
    const size_t K = j->a->K;
    if (j->a->bf16) {
        uint8_t *to = j->packed[operand] + strip * j->p.strip_bytes;
        j->k->scaleloss_tokens_bf16(rows, K, m, K, (uint16_t *)(void *)to);
        return;
    }
    for (size_t k = 0; k < K; k += CQ_GEMM_KC)
        j->k->gemm_f32_pack(rows + k, K, 1, m, cq_min_size(K - k, CQ_GEMM_KC), CQ_GEMM_MR,
                            f32_strip(j, operand, strip, k));
}

static void pack_tokens(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t K = j->a->K;
    (void)block;
    for (size_t strip = begin; strip < end; strip++) {
        const size_t t = strip * j->p.lanes, m = cq_min_size(j->p.lanes, j->tokens - t);
        const float *x = j->a->x + (j->t0 + t) * K;
        if (!j->dx) {
            pack_strip(j, 0, strip, x, m);
            continue;
        }
        for (size_t r = 0; r < m; r++)
            j->k->scaleloss_token_f32(x + r * K, j->s, K, j->a->act_bits, j->hat + (t + r) * K,
                                      j->dx + (t + r) * K);
        pack_strip(j, 0, strip, j->hat + t * K, m);
        pack_strip(j, 1, strip, j->dx + t * K, m);
    }
}

/* Quantise rows n .. n + m - 1 of the weight into one bfloat16 panel per operand, whole groups at
 * once: groups are made of whole tiles. */
static void pack_groups(const job *j, size_t n, size_t m, uint8_t *const to[2]) {
    const cq_scaleloss_args *a = j->a;
    const size_t K = a->K;
    uint16_t *const err = (uint16_t *)(void *)to[0], *const scaled = (uint16_t *)(void *)to[1];
    for (size_t half = 0; half < 2; half++) {
        const size_t first = half * CQ_BF16_M;
        const size_t left = m > first ? cq_min_size(m - first, CQ_BF16_M) : 0;
        const float *w = a->w + (n + (left ? first : 0)) * K;
        for (size_t g = 0; g < K; g += a->group) {
            const size_t at = g * CQ_PANEL + half * CQ_BF16_TILE;
            j->k->scaleloss_weight_bf16(w + g, K, left, j->s + g, j->inverse + g, a->group, a->bits,
                                        a->mode, err + at, a->act_bits ? scaled + at : NULL);
        }
    }
}

/* The same for any group and precision, by way of `scratch`. */
static void pack_panel(const job *j, size_t n, size_t m, float *scratch, uint8_t *const to[2]) {
    const cq_scaleloss_args *a = j->a;
    const size_t K = a->K;
    float *const rows[2] = {scratch, a->act_bits ? scratch + CQ_PANEL * K : NULL};
    for (size_t r = 0; r < m; r++)
        for (size_t g = 0; g < K; g += a->group) {
            const size_t at = r * K + g;
            j->k->scaleloss_weight_f32(a->w + n * K + at, j->s + g, a->group, a->bits, a->mode,
                                       rows[0] + at, a->act_bits ? rows[1] + at : NULL);
        }
    for (size_t i = 0; i < (a->act_bits ? 2u : 1u); i++) {
        for (size_t k = 0; !a->bf16 && k < K; k += CQ_GEMM_KC)
            j->k->gemm_f32_pack(rows[i] + k, K, 1, m, cq_min_size(K - k, CQ_GEMM_KC), CQ_GEMM_NR,
                                (float *)(void *)to[i] + k * CQ_GEMM_NR);
        for (size_t half = 0; a->bf16 && half < 2; half++) {
            const size_t first = half * CQ_BF16_M;
            const size_t left = m > first ? cq_min_size(m - first, CQ_BF16_M) : 0;
            j->k->scaleloss_panel_bf16(rows[i] + (left ? first : 0) * K, left, K, half,
                                       (uint16_t *)(void *)to[i]);
        }
    }
}

/* Add to row[] the errors of tokens t .. t + m - 1 on one panel of n outputs, in float32. */
static void multiply_f32(const job *j, const float *const b[2], size_t t, size_t m, size_t n,
                         float *errors, double *row) {
    const size_t K = j->a->K;
    cq_gemm_f32_tile tile = {.c = errors, .rsa = 1, .csa = CQ_GEMM_MR, .ldb = CQ_GEMM_NR};
    tile.ldc = CQ_PANEL, tile.m = m, tile.n = n, tile.first = 1;
    for (size_t i = 0; (n < CQ_PANEL || !K) && i < m * CQ_PANEL; i++) errors[i] = 0.0f;
    for (size_t operand = 0; operand < j->p.copies; operand++)
        for (size_t k = 0; k < K; k += CQ_GEMM_KC) {
            tile.kc = cq_min_size(K - k, CQ_GEMM_KC);
            tile.psa = CQ_GEMM_MR * tile.kc;
            tile.a = f32_strip(j, operand, t / CQ_GEMM_MR, k);
            tile.b = b[operand] + k * CQ_GEMM_NR;
            j->k->gemm_f32_tile(&tile);
            tile.first = 0;
        }
    j->k->scaleloss_power_f32(errors, m, j->a->kind, row);
}

static void multiply_bf16(const job *j, const uint16_t *const b[2], size_t t, size_t m,
                          double *row) {
    const uint16_t *x[2];
    for (size_t i = 0; i < 2; i++)
        x[i] = (const uint16_t *)(const void *)j->packed[i] + t * j->p.width;
    const int two = j->a->act_bits != 0;
    j->k->scaleloss_tile_bf16(x[0], b[0], two ? x[1] : NULL, two ? b[1] : NULL, m, j->p.width,
                              j->a->kind, row);
}

/* Row sums of tokens t .. t + m - 1 of the chunk over the panels of a slab of `rows` outputs. */
static void multiply(const job *j, size_t rows, size_t t, size_t m, const uint8_t *slab,
                     float *errors, double *row) {
    const size_t bytes = CQ_PANEL * j->p.width * j->p.size;
    for (size_t r = 0; r < m; r++) row[r] = 0.0;
    for (size_t n = 0; n < rows; n += CQ_PANEL, slab += j->p.copies * bytes) {
        if (j->a->bf16) {
            const uint16_t *const b[2] = {(const void *)slab, (const void *)(slab + bytes)};
            multiply_bf16(j, b, t, m, row);
        } else {
            const float *const b[2] = {(const void *)slab, (const void *)(slab + bytes)};
            multiply_f32(j, b, t, m, cq_min_size(CQ_PANEL, rows - n), errors, row);
        }
    }
}

static void run_slab(const job *j, size_t slab, uint8_t *memory) {
    const cq_scaleloss_args *a = j->a;
    const size_t n = slab * j->p.slab, rows = cq_min_size(j->p.slab, a->N - n);
    const size_t panels = cq_ceil_div(rows, CQ_PANEL);
    const size_t bytes = CQ_PANEL * j->p.width * j->p.size;
    const size_t step = a->bf16 ? 2 * CQ_BF16_M : CQ_TILE_ROWS;
    float *scratch = (float *)(void *)(memory + j->p.slab_bytes);
    float *errors = scratch + (a->bf16 ? 0 : CQ_PANEL * a->K * j->p.copies);
    double *partial = j->partial + slab * a->B;
    for (size_t i = 0; i < panels; i++) {
        uint8_t *const at = memory + i * j->p.copies * bytes;
        uint8_t *const to[2] = {at, at + bytes};
        const size_t first = n + i * CQ_PANEL, m = cq_min_size(CQ_PANEL, rows - i * CQ_PANEL);
        if (a->bf16 && a->group % CQ_BF16_K == 0)
            pack_groups(j, first, m, to);
        else
            pack_panel(j, first, m, scratch, to);
    }
    size_t b = 0;
    for (size_t t = 0; t < j->tokens && !cq_stop(j->cx); t += step) {
        double row[CQ_TILE_ROWS];
        const size_t m = cq_min_size(step, j->tokens - t);
        multiply(j, rows, t, m, memory, errors, row);
        for (size_t r = 0; r < m; r++) {
            const size_t token = j->t0 + t + r;
            while (b + 1 < a->B && (size_t)a->first[b + 1] <= token) b++;
            partial[b] += a->token[token] * row[r];
        }
    }
}

static void run_slots(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t i = begin; i < end; i++)
        for (size_t slab = i; slab < j->p.slabs; slab += j->p.slots)
            run_slab(j, slab, j->slots + i * (j->p.slab_bytes + j->p.scratch_bytes));
}

static cq_status pack_chunk(cq_ctx *cx, job *j) {
    const size_t strips = cq_ceil_div(j->tokens, j->p.lanes);
    return cq_parallel_rows(cx, strips, cq_grain(j->p.lanes * j->a->K), pack_tokens, j);
}

/* Add the loss of one candidate on the tokens of the chunk. */
static cq_status candidate(cq_ctx *cx, job *j, double *loss) {
    const cq_scaleloss_args *a = j->a;
    if (a->act_bits) CQ_TRY(pack_chunk(cx, j));
    for (size_t i = 0; i < j->p.slabs * a->B; i++) j->partial[i] = 0.0;
    CQ_TRY(cq_parallel_rows(cx, j->p.slots, 1, run_slots, j));
    for (size_t slab = 0; slab < j->p.slabs; slab++)
        for (size_t b = 0; b < a->B; b++) loss[b] += j->partial[slab * a->B + b];
    return CQ_OK;
}

static cq_status check(cq_ctx *cx, const cq_scaleloss_args *a) {
    for (size_t i = 0; i < a->S * a->K; i++)
        if (!(a->s[i] > 0.0f) || isinf(a->s[i]))
            return cq_refuse(cx, CQ_BAD_SCALE, i, (double)a->s[i]);
    for (size_t b = 0; b < a->B; b++) {
        const int64_t least = b ? a->first[b - 1] : 0;
        if (a->first[b] < least || (!b && a->first[b]) || (size_t)a->first[b] > a->T)
            return cq_refuse(cx, CQ_BAD_BLOCKS, b, (double)a->first[b]);
    }
    return CQ_OK;
}

cq_status cq_scaleloss(cq_ctx *cx, const cq_scaleloss_args *a, double *loss, uint8_t *work) {
    CQ_TRY(check(cx, a));
    job j = {.cx = cx, .k = cx->k, .a = a, .p = make_plan(a)};
    work += (64 - (uintptr_t)work % 64) % 64;
    j.partial = (double *)(void *)work;
    j.inverse = (float *)(void *)(work + j.p.partial_bytes);
    uint8_t *tokens = work + j.p.partial_bytes + j.p.inverse_bytes;
    const size_t strips = cq_ceil_div(j.p.tokens, j.p.lanes);
    j.slots = tokens + j.p.token_bytes;
    j.packed[0] = tokens;
    j.packed[1] = tokens + strips * j.p.strip_bytes;
    j.hat = (float *)(void *)(tokens + whole_lines(j.p.copies * strips * j.p.strip_bytes));
    j.dx = a->act_bits ? j.hat + j.p.tokens * a->K : NULL;
    for (size_t i = 0; i < a->S * a->B; i++) loss[i] = 0.0;
    for (j.t0 = 0; j.t0 < a->T; j.t0 += j.p.tokens) {
        j.tokens = cq_min_size(j.p.tokens, a->T - j.t0);
        if (!a->act_bits) CQ_TRY(pack_chunk(cx, &j));
        for (size_t i = 0; i < a->S; i++) {
            j.s = a->s + i * a->K;
            for (size_t k = 0; k < a->K; k++) j.inverse[k] = 1.0f / j.s[k];
            CQ_TRY(candidate(cx, &j, loss + i * a->B));
        }
    }
    return CQ_OK;
}
