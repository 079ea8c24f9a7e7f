/* SPDX-License-Identifier: Apache-2.0 */
/* One histogram of a tensor: blocks count into tables of their own, which are then added. Rows:
 * each block of rows has one table, which it clears for every row. */
#include "core/histogram.h"
#include "core/parallel.h"
#include "ops.h"

#include <math.h>
#include <string.h>

typedef struct job {
    const cq_kernels *k;
    const float *x;
    const int64_t *ranks;
    float *out, *top;
    uint32_t *work, *counts;
    double scale;
    int64_t first;
    size_t n, C, size, each, K; /* each: words of work per block */
} job;

enum { MOST_BLOCKS = 64 };

/* Elements or rows per block: at most MOST_BLOCKS blocks, whatever the thread count. */
static size_t grain_of(size_t n, size_t least) {
    const size_t grain = cq_ceil_div(n, MOST_BLOCKS);
    return grain > least ? grain : least;
}

static void count_block(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    uint32_t *bins = j->work + block * 4 * j->size;
    memset(bins, 0, 4 * j->size * sizeof *bins);
    j->k->histogram_f32(j->x + begin, end - begin, (float)j->scale, j->first, j->size, bins);
}

size_t cq_histogram_workspace(size_t n, size_t size) {
    return cq_ceil_div(n, grain_of(n, 65536)) * 4 * size * sizeof(uint32_t);
}

cq_status cq_histogram(cq_ctx *cx, const float *x, int exponent, int64_t first, int64_t *counts,
                       uint32_t *work, size_t n, size_t size) {
    const float scale = ldexpf(1.0f, -exponent);
    float mn = 0.0f, mx = 0.0f;
    if (n) cx->k->minmax_f32_row(x, n, &mn, &mx);
    for (int e = 0; e < 2 && n; e++) {
        const double at = floor((double)(e ? mx : mn) * (double)scale) - (double)first;
        if (!(at >= 0.0 && at < (double)size))
            return cq_refuse(cx, CQ_OUT_OF_BINS, (size_t)e, (double)(e ? mx : mn));
    }
    job j = {
        .k = cx->k, .x = x, .work = work, .scale = (double)scale, .first = first, .size = size};
    CQ_TRY(cq_parallel_rows(cx, n, grain_of(n, 65536), count_block, &j));
    const size_t tables = 4 * cq_ceil_div(n, grain_of(n, 65536));
    for (size_t t = 0; t < tables; t++)
        for (size_t b = 0; b < size; b++) counts[b] += (int64_t)work[t * size + b];
    return CQ_OK;
}

/* The key of rank r among n keys. */
static uint32_t select_key(uint32_t *v, size_t n, size_t r) {
    size_t a = 0, b = n;
    while (b - a > 1) {
        const uint32_t p = v[a], q = v[a + (b - a) / 2], s = v[b - 1];
        const uint32_t low = p < q ? p : q, high = p < q ? q : p;
        const uint32_t pivot = s < low ? low : (s > high ? high : s);
        size_t below = a, above = b;
        for (size_t k = a; k < above;) { /* smaller | equal | unseen | greater */
            const uint32_t key = v[k];
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

static void ranks_row(const job *j, const float *x, float *out, uint32_t *work) {
    uint32_t *bins = work, *keys = work + 4 * CQ_DIGIT_BINS;
    memset(bins, 0, 4 * CQ_DIGIT_BINS * sizeof *bins);
    j->k->histogram_digits_f32(x, j->C, bins);
    size_t have = SIZE_MAX, count = 0; /* the digit whose keys are gathered */
    for (size_t q = 0; q < j->K; q++) {
        size_t left = (size_t)j->ranks[q], digit = 0;
        for (;; digit++) {
            size_t in = 0;
            for (size_t t = 0; t < 4; t++) in += bins[t * CQ_DIGIT_BINS + digit];
            if (left < in) break;
            left -= in;
        }
        if (digit != have) j->k->histogram_gather_f32(x, j->C, (uint32_t)digit, keys, &count);
        have = digit;
        out[q] = cq_key_float(select_key(keys, count, left));
    }
}

static void ranks_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    for (size_t r = begin; r < end; r++)
        ranks_row(j, j->x + r * j->C, j->out + r * j->K, j->work + block * j->each);
}

size_t cq_ranks_workspace(size_t R, size_t C) {
    return cq_ceil_div(R, grain_of(R, 1)) * (4 * CQ_DIGIT_BINS + C) * sizeof(uint32_t);
}

static cq_status check_finite(cq_ctx *cx, const float *x, size_t R, size_t C) {
    for (size_t r = 0; r < R && C; r++) {
        float mn, mx;
        cx->k->minmax_f32_row(x + r * C, C, &mn, &mx);
        if (!isfinite(mn) || !isfinite(mx))
            return cq_refuse(cx, CQ_NOT_FINITE_ROW, r, (double)(isfinite(mn) ? mx : mn));
        if (r % 64 == 0 && cq_stop(cx)) return CQ_INTERRUPTED;
    }
    return CQ_OK;
}

cq_status cq_ranks_row(cq_ctx *cx, const float *x, const int64_t *ranks, float *out, uint32_t *work,
                       size_t R, size_t C, size_t K) {
    if (R && K && !C) return cq_refuse(cx, CQ_EMPTY, 1, 0.0);
    for (size_t q = 0; q < K; q++)
        if (ranks[q] < 0 || (size_t)ranks[q] >= C)
            return cq_refuse(cx, CQ_BAD_RANK, q, (double)ranks[q]);
    CQ_TRY(check_finite(cx, x, R, C));
    job j = {.k = cx->k,
             .x = x,
             .ranks = ranks,
             .out = out,
             .work = work,
             .C = C,
             .K = K,
             .each = 4 * CQ_DIGIT_BINS + C};
    return cq_parallel_rows(cx, R, grain_of(R, 1), ranks_rows, &j);
}

static void magnitude_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    uint32_t *bins = j->work + block * 4 * j->size;
    for (size_t r = begin; r < end; r++) {
        const float *x = j->x + r * j->C;
        float top;
        j->k->absmax_f32_row(x, j->C, &top);
        j->top[r] = top;
        memset(bins, 0, 4 * j->size * sizeof *bins);
        float scale = (float)((double)j->size / (double)top);
        if (isfinite(scale))
            j->k->histogram_magnitude_f32(x, j->C, scale, j->size, bins);
        else /* all zero, or too small to tell apart: the last bin, which no clip touches */
            bins[j->size - 1] = (uint32_t)j->C;
        for (size_t b = 0; b < j->size; b++)
            j->counts[r * j->size + b] =
                bins[b] + bins[j->size + b] + bins[2 * j->size + b] + bins[3 * j->size + b];
    }
}

size_t cq_magnitudes_workspace(size_t R, size_t size) {
    return cq_ceil_div(R, grain_of(R, 1)) * 4 * size * sizeof(uint32_t);
}

cq_status cq_magnitudes_row(cq_ctx *cx, const float *x, uint32_t *counts, float *top,
                            uint32_t *work, size_t R, size_t C, size_t size) {
    CQ_TRY(check_finite(cx, x, R, C));
    job j = {.k = cx->k, .x = x, .top = top, .counts = counts, .work = work, .C = C, .size = size};
    return cq_parallel_rows(cx, R, grain_of(R, 1), magnitude_rows, &j);
}

typedef struct kl_job {
    const cq_kernels *k;
    const uint32_t *counts;
    double *sums, *least;
    uint32_t *best;
    size_t size, levels;
} kl_job;

static void kl_rows(void *ctx, size_t begin, size_t end, size_t block) {
    const kl_job *j = ctx;
    for (size_t r = begin; r < end; r++)
        j->k->histogram_klclip(j->counts + r * j->size, j->size, j->levels,
                               j->sums + block * 3 * (j->size + 1), j->best + r, j->least + r);
}

size_t cq_klclip_workspace(size_t R, size_t size) {
    return cq_ceil_div(R, grain_of(R, 1)) * 3 * (size + 1) * sizeof(double);
}

cq_status cq_klclip_row(cq_ctx *cx, const uint32_t *counts, size_t levels, uint32_t *best,
                        double *least, double *work, size_t R, size_t size) {
    if (levels > size) return cq_refuse(cx, CQ_BAD_LEVELS, 0, (double)levels);
    kl_job j = {cx->k, counts, work, least, best, size, levels};
    return cq_parallel_rows(cx, R, grain_of(R, 1), kl_rows, &j);
}
