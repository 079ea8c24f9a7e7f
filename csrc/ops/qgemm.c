/* SPDX-License-Identifier: Apache-2.0 */
/* The output is cut into tasks of 512 rows x 64 outputs. A task decodes its 64 rows of the weight,
 * 128 inputs at a time, into a panel in its slot of `work`, and multiplies all its rows of x by it:
 * there is never more of the weight decoded than one panel per slot. Slots, at most 16, are what
 * threads take, each a run of tasks that share rows of x as long as possible; their number depends
 * on the shapes only. */
#include "core/half.h"
#include "core/parallel.h"
#include "ops.h"

enum { MB = 512, MAX_SLOTS = 16 };

/* Memory of one slot; s8 uses the front of the panel. */
typedef struct slot {
    float panel[CQ_QGEMM_NB * CQ_QGEMM_KC];
    uint8_t codes[CQ_QGEMM_STRIP * CQ_QGEMM_KC];
} slot;

typedef struct job {
    cq_ctx *cx;
    const cq_kernels *k;
    const cq_packed *w;
    const void *x;
    const float *xscale, *bias;
    float *out;
    int32_t *xsum;  /* [M, G] */
    uint8_t *slots; /* of slot_bytes each: a slot, then the parts of s8 if a group needs panels */
    size_t M, nblocks, tasks, slot_count, slot_bytes;
} job;

typedef void (*task_fn)(const job *j, size_t m0, size_t n0, slot *s);

static job plan(size_t M, const cq_packed *w) {
    job j = {.w = w, .M = M, .nblocks = cq_ceil_div(w->N, CQ_QGEMM_NB)};
    j.tasks = cq_ceil_div(M, MB) * j.nblocks;
    /* One slot per million multiply-adds, a decoded code counting as 16. */
    const size_t worth = 1 + (M + 16) * w->N / 1024 * w->K / 1024;
    j.slot_count = cq_min_size(cq_min_size(j.tasks, worth), MAX_SLOTS);
    const int parts = w->K / w->G > CQ_QGEMM_KC;
    j.slot_bytes = sizeof(slot) + (parts ? MB * CQ_QGEMM_NB * sizeof(int32_t) : 0);
    return j;
}

static size_t xsum_bytes(size_t M, size_t G) { return (M * G * sizeof(int32_t) + 63) / 64 * 64; }

size_t cq_qgemm_workspace(size_t M, const cq_packed *w) {
    const job j = plan(M, w);
    return 64 + xsum_bytes(M, w->G) + j.slot_count * j.slot_bytes;
}

static job start(cq_ctx *cx, const void *x, const cq_packed *w, const float *bias, float *out,
                 uint8_t *work, size_t M) {
    job j = plan(M, w);
    work += (64 - (uintptr_t)work % 64) % 64;
    j.cx = cx;
    j.k = cx->k;
    j.x = x;
    j.bias = bias;
    j.out = out;
    j.xsum = (int32_t *)(void *)work;
    j.slots = work + xsum_bytes(M, w->G);
    return j;
}

static void run_slots(const job *j, size_t begin, size_t end, task_fn fn) {
    for (size_t i = begin; i < end; i++)
        for (size_t t = j->tasks * i / j->slot_count;
             t < j->tasks * (i + 1) / j->slot_count && !cq_stop(j->cx); t++)
            fn(j, t / j->nblocks * MB, t % j->nblocks * CQ_QGEMM_NB,
               (slot *)(void *)(j->slots + i * j->slot_bytes));
}

/* Scale and zero point of group g of `rows` rows from n0 on. */
static void grids(const cq_packed *w, size_t n0, size_t rows, size_t g, float *scale,
                  int32_t *zero) {
    const size_t Z = cq_packed_bytes(w->G, w->bits), bit = g * (size_t)w->bits, at = bit / 8;
    const size_t next = at + 1 < Z ? at + 1 : at; /* a code may span two bytes, the last not */
    for (size_t r = 0; r < rows; r++) scale[r] = cq_half_to_float(w->scale[(n0 + r) * w->G + g]);
    for (size_t r = 0; r < rows && !w->zero; r++) zero[r] = 1 << (w->bits - 1);
    for (size_t r = 0; r < rows && w->zero; r++) {
        const uint8_t *row = w->zero + (n0 + r) * Z;
        zero[r] = (row[at] | row[next] << 8) >> (bit % 8) & ((1 << w->bits) - 1);
    }
}

/* Unpack inputs k0 .. k0 + kc - 1 of a strip of rows; rows past the last get codes 0. */
static size_t unpack_strip(const job *j, size_t n0, size_t k0, size_t kc, uint8_t *codes) {
    const cq_packed *w = j->w;
    const size_t rows = n0 < w->N ? cq_min_size(w->N - n0, CQ_QGEMM_STRIP) : 0;
    const size_t B = cq_packed_bytes(w->K, w->bits);
    const uint8_t *from = w->codes + n0 * B + k0 / 8 * (size_t)w->bits;
    for (size_t r = 0; r < rows; r++)
        j->k->unpack_u8_row(from + r * B, codes + r * CQ_QGEMM_KC, kc, w->bits);
    for (size_t r = rows; r < CQ_QGEMM_STRIP; r++)
        for (size_t k = 0; k < kc; k++) codes[r * CQ_QGEMM_KC + k] = 0;
    return rows;
}

static void f32_panel(const job *j, size_t n0, size_t k0, size_t kc, slot *s) {
    const cq_packed *w = j->w;
    const size_t group = w->K / w->G;
    for (size_t strip = 0; strip < CQ_QGEMM_NB; strip += CQ_QGEMM_STRIP) {
        const size_t rows = unpack_strip(j, n0 + strip, k0, kc, s->codes);
        for (size_t k = 0, next; k < kc; k = next) {
            const size_t g = (k0 + k) / group;
            float scale[CQ_QGEMM_STRIP] = {0}, shift[CQ_QGEMM_STRIP];
            int32_t zero[CQ_QGEMM_STRIP] = {0};
            next = cq_min_size(kc, (g + 1) * group - k0);
            grids(w, n0 + strip, rows, g, scale, zero);
            for (size_t r = 0; r < CQ_QGEMM_STRIP; r++) shift[r] = -(float)zero[r] * scale[r];
            float *to = s->panel + k * CQ_QGEMM_NB + strip;
            j->k->qgemm_f32_panel(s->codes + k, next - k, scale, shift, to);
        }
    }
}

static void f32_task(const job *j, size_t m0, size_t n0, slot *s) {
    const size_t N = j->w->N, K = j->w->K;
    cq_qgemm_f32_tile t = {.panel = s->panel, .ldx = K, .ldo = N, .out = j->out + m0 * N + n0};
    t.m = cq_min_size(j->M - m0, MB);
    t.n = cq_min_size(N - n0, CQ_QGEMM_NB);
    size_t k0 = 0;
    do { /* once for K = 0 */
        t.kc = cq_min_size(K - k0, CQ_QGEMM_KC);
        t.x = (const float *)j->x + m0 * K + k0;
        t.first = k0 == 0;
        t.bias = j->bias && k0 + t.kc == K ? j->bias + n0 : NULL;
        f32_panel(j, n0, k0, t.kc, s);
        j->k->qgemm_f32_tile(&t);
        k0 += t.kc;
    } while (k0 < K && !cq_stop(j->cx));
}

/* The panel of inputs k0 .. k0 + kc - 1, all of group g, and the grids of its outputs. */
static void s8_panel(const job *j, size_t n0, size_t k0, size_t kc, size_t g, slot *s, float *scale,
                     int32_t *zero) {
    grids(j->w, n0, cq_min_size(j->w->N - n0, CQ_QGEMM_NB), g, scale, zero);
    for (size_t strip = 0; strip < CQ_QGEMM_NB; strip += CQ_QGEMM_STRIP) {
        unpack_strip(j, n0 + strip, k0, kc, s->codes);
        j->k->qgemm_s8_panel(s->codes, kc, strip, (uint8_t *)s->panel);
    }
}

static void s8_task(const job *j, size_t m0, size_t n0, slot *s) {
    const cq_packed *w = j->w;
    const size_t N = w->N, K = w->K, group = K / w->G;
    float scale[CQ_QGEMM_NB] = {0};
    int32_t zero[CQ_QGEMM_NB] = {0};
    cq_qgemm_s8_tile t = {.panel = (uint8_t *)s->panel, .scale = scale, .zero = zero};
    t.part = (int32_t *)(void *)(s + 1);
    t.out = j->out + m0 * N + n0;
    t.ldx = K, t.ldo = N, t.ldsum = w->G;
    t.m = cq_min_size(j->M - m0, MB);
    t.n = cq_min_size(N - n0, CQ_QGEMM_NB);
    size_t k0 = 0;
    do { /* once for K = 0 */
        const size_t g = group ? k0 / group : 0, end = (g + 1) * group;
        t.kc = cq_min_size(end - k0, CQ_QGEMM_KC);
        t.begin = k0 == g * group;
        t.end = k0 + t.kc == end;
        t.first = g == 0;
        t.xscale = end == K ? j->xscale + m0 : NULL;
        t.bias = end == K && j->bias ? j->bias + n0 : NULL;
        t.x = (const int8_t *)j->x + m0 * K + k0;
        t.xsum = j->xsum + m0 * w->G + g;
        if (K) s8_panel(j, n0, k0, t.kc, g, s, scale, zero);
        j->k->qgemm_s8_tile(&t);
        k0 += t.kc;
    } while (k0 < K && !cq_stop(j->cx));
}

static void f32_slots(void *ctx, size_t begin, size_t end, size_t block) {
    (void)block;
    run_slots(ctx, begin, end, f32_task);
}

static void s8_slots(void *ctx, size_t begin, size_t end, size_t block) {
    (void)block;
    run_slots(ctx, begin, end, s8_task);
}

static void s8_sums(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const size_t group = j->w->K / j->w->G;
    (void)block;
    for (size_t i = begin * j->w->G; i < end * j->w->G; i++)
        j->k->qgemm_s8_sum((const int8_t *)j->x + i * group, group, j->xsum + i);
}

static cq_status check_scales(cq_ctx *cx, const cq_packed *w) {
    const uint16_t last = 0x7BFF; /* positive finite halves are 1 .. last */
    unsigned bad = 0;
    for (size_t i = 0; i < w->N * w->G; i++) bad |= (uint16_t)(w->scale[i] - 1u) >= last;
    if (!bad) return CQ_OK;
    size_t i = 0;
    while ((uint16_t)(w->scale[i] - 1u) < last) i++;
    return cq_refuse(cx, CQ_BAD_SCALE, i, (double)cq_half_to_float(w->scale[i]));
}

cq_status cq_qgemm_f32(cq_ctx *cx, const float *x, const cq_packed *w, const float *bias,
                       float *out, uint8_t *work, size_t M) {
    CQ_TRY(check_scales(cx, w));
    job j = start(cx, x, w, bias, out, work, M);
    return cq_parallel_rows(cx, j.slot_count, 1, f32_slots, &j);
}

cq_status cq_qgemm_s8(cq_ctx *cx, const int8_t *x, const float *xscale, const cq_packed *w,
                      const float *bias, float *out, uint8_t *work, size_t M) {
    CQ_TRY(check_scales(cx, w));
    job j = start(cx, x, w, bias, out, work, M);
    j.xscale = xscale;
    CQ_TRY(cq_parallel_rows(cx, M, cq_grain(w->K), s8_sums, &j));
    return cq_parallel_rows(cx, j.slot_count, 1, s8_slots, &j);
}
