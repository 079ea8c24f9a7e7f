/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of x as the block kernels want them: rounded to bytes, or cut into digits, in steps. */
#include "core/half.h"
#include "qprefill_parts.h"

#include <string.h>

/* Row m of x as float32; bfloat16 is widened to `to`. */
static const float *floats_of(const cq_qprefill_job *j, size_t m, float *to) {
    const size_t K = j->a->w.K;
    if (!j->a->e.bf16) return (const float *)j->a->x + m * K;
    const uint16_t *from = (const uint16_t *)j->a->x + m * K;
    for (size_t k = 0; k < K; k++) to[k] = cq_bits_float((uint32_t)from[k] << 16);
    return to;
}

/* Row m of x as bytes: given, or made as cq_codes_token_s8 makes them. */
static const int8_t *line_of(const cq_qprefill_job *j, size_t m, int8_t *line) {
    const size_t K = j->a->w.K;
    if (j->a->mode == CQ_QLINEAR_CODES) return (const int8_t *)j->a->x + m * K;
    const float *x = floats_of(j, m, (float *)(void *)(line + cq_up(K, 64)));
    float *xscale = (float *)(void *)(j->work + j->p.xscale) + m, most;
    j->k->absmax_f32_row(x, K, &most);
    *xscale = cq_token_scale(most);
    j->k->codes_f32_s8_row(x, line, K, *xscale);
    return line;
}

static int all_zero(const int8_t *x, size_t n) {
    uint64_t some = 0;
    for (; n >= sizeof some; x += sizeof some, n -= sizeof some) {
        memcpy(&some, x, sizeof some);
        if (some) return 0;
    }
    while (n && !x[n - 1]) n--;
    return n == 0;
}

/* Lower zeros[g] to the number of low digits that are 0 in all of group g of this row. */
static void count_zeros(const cq_qprefill_plan *p, const int8_t *line, size_t ld, uint8_t *zeros) {
    for (size_t g = 0; g < p->groups; g++) {
        const size_t k = g / p->per * p->wide + g % p->per * p->group;
        const size_t n = cq_min_size(p->group, p->wide - g % p->per * p->group);
        uint8_t i = 0;
        while (i < zeros[g] && all_zero(line + i * ld + k, n)) i++;
        zeros[g] = i;
    }
}

/* The digits of row m, 16 rows a digit. */
static void lay_digits(const cq_qprefill_job *j, size_t m, int8_t *line) {
    const cq_qprefill_plan *p = &j->p;
    const size_t K = j->a->w.K, ld = cq_up(K, 64), r = m % 16, at = m / 16 * p->groups;
    uint8_t *to = j->work + m / 16 * CQ_DIGITS * p->total * CQ_QPREFILL_STEP + r * CQ_TILE;
    uint8_t *zeros = j->work + p->zeros + at;
    const cq_qlinear_digits d = {.x = line,
                                 .sum = (int32_t *)(void *)(j->work + p->xsum) + 32 * at + 2 * r,
                                 .step = (float *)(void *)(j->work + p->xscale) + 16 * at + r,
                                 .ldx = ld,
                                 .stride = 16,
                                 .K = K,
                                 .G = j->a->w.G};
    j->k->qlinear_f32_digits(floats_of(j, m, (float *)(void *)(line + CQ_DIGITS * ld)), &d);
    if (r == 0) memset(zeros, CQ_DIGITS - 1, p->groups);
    count_zeros(p, line, ld, zeros);
    for (size_t i = 0; i < CQ_DIGITS; i++, line += ld, to += p->total * CQ_QPREFILL_STEP) {
        uint8_t *step = to; /* of a group of the weight */
        if (p->group == p->wide) j->k->qprefill_row(line, p->groups, p->group, to);
        for (size_t k = 0; k < K && p->group < p->wide; k += p->wide) {
            const size_t whole = p->wide / p->group, rest = p->wide % p->group;
            j->k->qprefill_row(line + k, whole, p->group, step);
            step += whole * p->steps * CQ_QPREFILL_STEP;
            if (rest) { /* its missing steps are any bytes times 0 */
                j->k->qprefill_row(line + k + whole * p->group, 1, rest, step);
                step += p->steps * CQ_QPREFILL_STEP;
            }
        }
    }
}

static void lay_bytes(const cq_qprefill_job *j, size_t m, int8_t *line) {
    const cq_qprefill_plan *p = &j->p;
    const int8_t *x = line_of(j, m, line);
    uint8_t *to = j->work + m / 16 * p->total * CQ_QPREFILL_STEP + m % 16 * CQ_TILE;
    j->k->qprefill_row(x, p->groups, p->group, to);
    int32_t *sum = (int32_t *)(void *)(j->work + p->xsum) + m * p->groups;
    for (size_t g = 0; g < p->groups && p->xsum < p->zeros; g++)
        j->k->qgemm_s8_sum(x + g * p->group, p->group, sum + g);
}

/* A row that only fills the last block: any digits do, but no subnormal numbers. */
static void lay_nothing(const cq_qprefill_job *j, size_t m) {
    const size_t groups = j->p.groups;
    float *step = (float *)(void *)(j->work + j->p.xscale) + m / 16 * groups * 16 + m % 16;
    for (size_t g = 0; g < groups; g++) step[16 * g] = 0.0f;
    if (m % 16 == 0) memset(j->work + j->p.zeros + m / 16 * groups, CQ_DIGITS - 1, groups);
}

void cq_qprefill_lay_out(void *ctx, size_t begin, size_t end, size_t block) {
    cq_qprefill_job *j = ctx;
    const cq_qprefill_plan *p = &j->p;
    (void)block;
    const size_t slot = cq_qprefill_take(j);
    int8_t *line = (int8_t *)(j->work + p->slots + slot * p->slot + p->line);
    for (size_t m = begin * CQ_QPREFILL_BLOCK; m < end * CQ_QPREFILL_BLOCK; m++) {
        if (p->digits == 1 && m < j->a->M)
            lay_bytes(j, m, line);
        else if (m < j->a->M)
            lay_digits(j, m, line);
        else if (p->digits > 1)
            lay_nothing(j, m);
    }
    cq_qprefill_free(j, slot);
}
