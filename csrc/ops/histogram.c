/* SPDX-License-Identifier: Apache-2.0 */
/* One histogram of a tensor: blocks count into tables of their own, which are then added. Rows:
 * each block of rows has one table, which it clears for every row. */
#include "core/histogram.h"
#include "core/parallel.h"
#include "core/size.h"
#include "ops.h"

#include <math.h>
#include <string.h>

typedef struct job {
    cq_ctx *cx;
    const cq_kernels *k;
    const float *x;
    const int64_t *ranks;
    float *out, *top;
    uint32_t *work, *counts;
    double scale;
    int64_t first;
    size_t n, C, size, each, K; /* each: words of work per block */
} job;

static job job_of(cq_ctx *cx, const float *x, uint32_t *work, size_t C) {
    return (job){.cx = cx, .k = cx->k, .x = x, .work = work, .C = C};
}

/* PIECE: elements between two looks at cq_stop. */
enum { MOST_BLOCKS = 64, PIECE = 1 << 20 };

/* Elements or rows per block: at most MOST_BLOCKS blocks, whatever the thread count. */
static size_t grain_of(size_t n, size_t least) {
    const size_t grain = cq_ceil_div(n, MOST_BLOCKS);
    return grain > least ? grain : least;
}

static void count_block(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    uint32_t *bins = j->work + block * 4 * j->size;
    memset(bins, 0, 4 * j->size * sizeof *bins);
    for (size_t i = begin; i < end && !cq_stop(j->cx); i += PIECE)
        j->k->histogram_f32(j->x + i, cq_min_size(PIECE, end - i), (float)j->scale, j->first,
                            j->size, bins);
}

size_t cq_histogram_workspace(size_t n, size_t size) {
    return cq_mul(cq_ceil_div(n, grain_of(n, 65536)), cq_mul(size, 4 * sizeof(uint32_t)));
}

/* Every element has a bin. */
static cq_status check_bins(cq_ctx *cx, const float *x, float scale, int64_t first, size_t n,
                            size_t size) {
    for (size_t i = 0; i < n; i += PIECE) {
        float end[2];
        cx->k->minmax_f32_row(x + i, cq_min_size(PIECE, n - i), end, end + 1);
        for (size_t e = 0; e < 2; e++) {
            const double at = floor((double)end[e] * (double)scale) - (double)first;
            if (!(at >= 0.0 && at < (double)size))
                return cq_refuse(cx, CQ_OUT_OF_BINS, e, (double)end[e]);
        }
        if (cq_stop(cx)) return CQ_INTERRUPTED;
    }
    return CQ_OK;
}

cq_status cq_histogram(cq_ctx *cx, const float *x, int exponent, int64_t first, int64_t *counts,
                       uint32_t *work, size_t n, size_t size) {
    const float scale = ldexpf(1.0f, -exponent);
    CQ_TRY(check_bins(cx, x, scale, first, n, size));
    job j = {.cx = cx,
             .k = cx->k,
             .x = x,
             .work = work,
             .scale = (double)scale,
             .first = first,
             .size = size};
    CQ_TRY(cq_parallel_rows(cx, n, grain_of(n, 65536), count_block, &j));
    const size_t tables = 4 * cq_ceil_div(n, grain_of(n, 65536));
    for (size_t t = 0; t < tables; t++)
        for (size_t b = 0; b < size; b++) counts[b] += (int64_t)work[t * size + b];
    return CQ_OK;
}

/* The key of rank r among n keys; any where the call is to end. */
static uint32_t select_key(cq_ctx *cx, uint32_t *v, size_t n, size_t r) {
    size_t a = 0, b = n, seen = 0;
    while (b - a > 1) {
        const uint32_t p = v[a], q = v[a + (b - a) / 2], s = v[b - 1];
        const uint32_t low = p < q ? p : q, high = p < q ? q : p;
        const uint32_t pivot = s < low ? low : (s > high ? high : s);
        size_t below = a, above = b;
        for (size_t k = a; k < above;) { /* smaller | equal | unseen | greater */
            const uint32_t key = v[k];
            if (++seen % PIECE == 0 && cq_stop(cx)) return 0;
            if (key < pivot) {
                v[k++] = v[below];
                v[below++] = key;
            } else if (key > pivot) {
                v[k] = v[--above];
                v[above] = key;
            } else {
                k++;
            }
        }
        if (r < below)
            b = below;
        else if (r >= above)
            a = above;
        else
            return pivot;
    }
    return v[a];
}

static void count_digits(const job *j, const float *x, uint32_t *bins) {
    for (size_t i = 0; i < j->C && !cq_stop(j->cx); i += PIECE)
        j->k->histogram_digits_f32(x + i, cq_min_size(PIECE, j->C - i), bins);
}

/* The keys with a digit; returns how many. */
static size_t gather_keys(const job *j, const float *x, size_t digit, uint32_t *keys) {
    size_t count = 0, more = 0;
    for (size_t i = 0; i < j->C && !cq_stop(j->cx); i += PIECE, count += more)
        j->k->histogram_gather_f32(x + i, cq_min_size(PIECE, j->C - i), (uint32_t)digit,
                                   keys + count, &more);
    return count;
}

static void ranks_row(const job *j, const float *x, float *out, uint32_t *work) {
    uint32_t *bins = work, *keys = work + 4 * CQ_DIGIT_BINS;
    memset(bins, 0, 4 * CQ_DIGIT_BINS * sizeof *bins);
    count_digits(j, x, bins);
    size_t have = SIZE_MAX, count = 0; /* the digit whose keys are gathered */
    for (size_t q = 0; q < j->K && !cq_stop(j->cx); q++) {
        size_t left = (size_t)j->ranks[q], digit = 0;
        for (; digit < CQ_DIGIT_BINS; digit++) {
            size_t in = 0;
            for (size_t t = 0; t < 4; t++) in += bins[t * CQ_DIGIT_BINS + digit];
            if (left < in) break;
            left -= in;
        }
        if (digit != have) count = gather_keys(j, x, digit, keys);
        have = digit;
        if (left >= count) return; /* interrupted: something is missing */
        out[q] = cq_key_float(select_key(j->cx, keys, count, left));
    }
}

static void ranks_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    for (size_t r = begin; r < end && !cq_stop(j->cx); r++)
        ranks_row(j, j->x + r * j->C, j->out + r * j->K, j->work + block * j->each);
}

size_t cq_ranks_workspace(size_t R, size_t C) {
    const size_t each = cq_mul(cq_add(C, 4 * CQ_DIGIT_BINS), sizeof(uint32_t));
    return cq_mul(cq_ceil_div(R, grain_of(R, 1)), each);
}

static cq_status check_finite(cq_ctx *cx, const float *x, size_t R, size_t C) {
    for (size_t r = 0; r < R && C; r++)
        for (size_t i = 0; i < C; i += PIECE) {
            float mn, mx;
            cx->k->minmax_f32_row(x + r * C + i, cq_min_size(PIECE, C - i), &mn, &mx);
            if (!isfinite(mn) || !isfinite(mx))
                return cq_refuse(cx, CQ_NOT_FINITE_ROW, r, (double)(isfinite(mn) ? mx : mn));
            if ((r % 64 == 0 || C > 4096) && cq_stop(cx)) return CQ_INTERRUPTED;
        }
    return CQ_OK;
}

cq_status cq_ranks_row(cq_ctx *cx, const float *x, const int64_t *ranks, float *out, uint32_t *work,
                       size_t R, size_t C, size_t K) {
    if (R && K && !C) return cq_refuse(cx, CQ_EMPTY, 1, 0.0);
    for (size_t q = 0; q < K; q++)
        if (ranks[q] < 0 || (size_t)ranks[q] >= C)
            return cq_refuse(cx, CQ_BAD_RANK, q, (double)ranks[q]);
    if (!K) return CQ_OK; /* however many rows */
    CQ_TRY(check_finite(cx, x, R, C));
    job j = job_of(cx, x, work, C);
    j.ranks = ranks, j.out = out, j.K = K;
    j.each = 4 * CQ_DIGIT_BINS + C;
    return cq_parallel_rows(cx, R, grain_of(R, 1), ranks_rows, &j);
}

/* Largest magnitude of a row, and its histogram. */
static void magnitudes(const job *j, const float *x, float *top, uint32_t *bins) {
    *top = 0.0f;
    for (size_t i = 0; i < j->C && !cq_stop(j->cx); i += PIECE) {
        float most;
        j->k->absmax_f32_row(x + i, cq_min_size(PIECE, j->C - i), &most);
        *top = most > *top ? most : *top;
    }
    memset(bins, 0, 4 * j->size * sizeof *bins);
    const float scale = (float)((double)j->size / (double)*top);
    if (!isfinite(scale)) { /* all zero, or too small to tell apart: the last bin, never clipped */
        bins[j->size - 1] = (uint32_t)j->C;
        return;
    }
    for (size_t i = 0; i < j->C && !cq_stop(j->cx); i += PIECE)
        j->k->histogram_magnitude_f32(x + i, cq_min_size(PIECE, j->C - i), scale, j->size, bins);
}

static void magnitude_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    uint32_t *bins = j->work + block * 4 * j->size;
    for (size_t r = begin; r < end && !cq_stop(j->cx); r++) {
        magnitudes(j, j->x + r * j->C, j->top + r, bins);
        for (size_t b = 0; b < j->size; b++)
            j->counts[r * j->size + b] =
                bins[b] + bins[j->size + b] + bins[2 * j->size + b] + bins[3 * j->size + b];
    }
}

size_t cq_magnitudes_workspace(size_t R, size_t size) {
    return cq_mul(cq_ceil_div(R, grain_of(R, 1)), cq_mul(size, 4 * sizeof(uint32_t)));
}

cq_status cq_magnitudes_row(cq_ctx *cx, const float *x, uint32_t *counts, float *top,
                            uint32_t *work, size_t R, size_t C, size_t size) {
    CQ_TRY(check_finite(cx, x, R, C));
    job j = job_of(cx, x, work, C);
    j.top = top, j.counts = counts, j.size = size;
    return cq_parallel_rows(cx, R, grain_of(R, 1), magnitude_rows, &j);
}

typedef struct kl_job {
    cq_ctx *cx;
    const cq_kernels *k;
    const uint32_t *counts;
    double *sums, *least;
    uint32_t *best;
    size_t size, levels;
} kl_job;

static void kl_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const kl_job *j = ctx;
    for (size_t r = begin; r < end && !cq_stop(j->cx); r++)
        j->k->histogram_klclip(j->counts + r * j->size, j->size, j->levels,
                               j->sums + block * 3 * (j->size + 1), j->best + r, j->least + r);
}

size_t cq_klclip_workspace(size_t R, size_t size) {
    const size_t each = cq_mul(cq_add(size, 1), 3 * sizeof(double));
    return cq_mul(cq_ceil_div(R, grain_of(R, 1)), each);
}

cq_status cq_klclip_row(cq_ctx *cx, const uint32_t *counts, size_t levels, uint32_t *best,
                        double *least, double *work, size_t R, size_t size) {
    if (levels > size) return cq_refuse(cx, CQ_BAD_LEVELS, 0, (double)levels);
    kl_job j = {cx, cx->k, counts, work, least, best, size, levels};
    return cq_parallel_rows(cx, R, grain_of(R, 1), kl_rows, &j);
}
