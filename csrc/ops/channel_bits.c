/* SPDX-License-Identifier: Apache-2.0 */
#include "core/parallel.h"
#include "ops.h"

#include <float.h>
#include <string.h>

enum {
    ROWS = CQ_CHANNEL_ROWS,
    COLS = CQ_CHANNEL_COLS,
    TABLE = CQ_CHANNEL_TABLE,
    SIDE = CQ_CHANNEL_SIDE
};

static int bad_width(float bits) { return !(bits >= 0.0f) | !(bits <= (float)CQ_CHANNEL_BITS); }

static int bad_ends(float low, float high) {
    return !(low >= -FLT_MAX) | !(high <= FLT_MAX) | !(low <= high) | !(high - low <= FLT_MAX);
}

static cq_status check(cq_ctx *cx, const cq_channel_args *a) {
    for (size_t c = 0; c < a->C; c++)
        if (bad_ends(a->low[c], a->high[c]))
            return cq_refuse(cx, CQ_BAD_ENDS, c, (double)(a->high[c] - a->low[c]));
    int bad = 0; /* first without branches: there may be as many widths as elements */
    for (size_t i = 0; i < a->G * a->C; i++) bad |= bad_width(a->bits[i]);
    for (size_t i = 0; bad && i < a->G * a->C; i++)
        if (bad_width(a->bits[i])) return cq_refuse(cx, CQ_BAD_WIDTH, i, (double)a->bits[i]);
    return CQ_OK;
}

typedef struct job {
    const cq_kernels *k;
    const cq_channel_args *a;
    float *y, *rate;
    const float *gy, *grate;
    const cq_channel_grads *g;
} job;

/* Rows that share a row of bits. */
static size_t group_rows(const cq_channel_args *a) { return a->G && a->R > a->G ? a->R / a->G : 1; }

/* The tile of rows r .. r + rows - 1 and of columns from c on; noise is written to `noise`. */
static cq_channel_tile tile(const job *j, size_t r, size_t rows, size_t c, float *noise) {
    const cq_channel_args *a = j->a;
    const size_t cols = cq_min_size(COLS, a->C - c), group = r / group_rows(a);
    for (size_t i = r; a->noise && i < r + rows; i++) {
        cq_noise s = *a->noise;
        s.sample += (uint32_t)(i / a->T);
        j->k->noise_uniform_f32(&s, (uint64_t)(i % a->T) * a->C + c, cols, noise + (i - r) * COLS);
    }
    return (cq_channel_tile){.x = a->x + r * a->C + c,
                             .low = a->low + c,
                             .high = a->high + c,
                             .bits = a->bits + group * a->C + c,
                             .tables = a->tables ? a->tables + c * TABLE : NULL,
                             .noise = a->noise ? noise : NULL,
                             .rows = rows,
                             .cols = cols,
                             .ld = a->C};
}

/* The noise of the latents of row r, columns c .. c + cols - 1: the same forward and backward. */
static void row_noise(const job *j, size_t r, size_t c, size_t cols, float *noise) {
    const cq_channel_args *a = j->a;
    cq_noise s = *a->latent;
    s.sample += (uint32_t)(r / a->T);
    j->k->noise_normal_f32(&s, (uint64_t)(r % a->T) * a->C + c, cols, noise);
}

/* Draws the latents of a tile into z [rows, C], and adds up the divergence of every row. */
static void draw(const job *j, size_t r, size_t rows, size_t c, float *z, double *kl) {
    const cq_channel_args *a = j->a;
    const size_t cols = cq_min_size(COLS, a->C - c);
    float noise[COLS];
    for (size_t i = 0; i < rows; i++) {
        const size_t at = (r + i) * a->C + c;
        row_noise(j, r + i, c, cols, noise);
        j->k->gaussian_f32(&(cq_gaussian_run){.mu = a->x + at,
                                              .logvar = a->logvar + at,
                                              .noise = noise,
                                              .z = z + i * a->C,
                                              .kl = kl + 8 * i,
                                              .n = cols});
    }
}

/* From the gradient of what was drawn, in gmu, to those of its mean and log variance. */
static void undraw(const job *j, size_t r, size_t rows, size_t c) {
    const cq_channel_args *a = j->a;
    const size_t cols = cq_min_size(COLS, a->C - c);
    float noise[COLS];
    for (size_t i = 0; i < rows; i++) {
        const size_t at = (r + i) * a->C + c;
        row_noise(j, r + i, c, cols, noise);
        j->k->gaussian_bwd_f32(&(cq_gaussian_run){.mu = a->x + at,
                                                  .logvar = a->logvar + at,
                                                  .noise = noise,
                                                  .gz = j->g->gx + at,
                                                  .gkl = j->grate[r + i],
                                                  .gmu = j->g->gx + at,
                                                  .glogvar = j->g->glogvar + at,
                                                  .n = cols});
    }
}

/* Rows of a tile that starts at row r: no more than a tile takes, up to `end` and of one group. */
static size_t tile_rows(const cq_channel_args *a, size_t r, size_t end, size_t most) {
    const size_t height = group_rows(a), left = height - r % height;
    return cq_min_size(most, cq_min_size(left, end - r));
}

static void forward(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    float noise[ROWS * COLS];
    (void)block;
    for (size_t r = begin, rows; r < end; r += rows) {
        double rate[ROWS * 8] = {0};
        rows = tile_rows(j->a, r, end, ROWS);
        for (size_t c = 0; c < j->a->C; c += COLS) {
            cq_channel_tile t = tile(j, r, rows, c, noise);
            t.y = j->y + r * j->a->C + c;
            t.rate = rate;
            if (j->a->logvar) {
                draw(j, r, rows, c, t.y, rate);
                t.x = t.y;
            }
            j->k->channel_bits_f32(&t);
        }
        for (size_t i = 0; i < rows; i++) j->rate[r + i] = (float)cq_sum_lanes(rate + 8 * i);
    }
}

cq_status cq_channel_bits(cq_ctx *cx, const cq_channel_args *a, float *y, float *rate) {
    job j = {.k = cx->k, .a = a, .y = y, .rate = rate};
    CQ_TRY(check(cx, a));
    return cq_parallel_rows(cx, a->R, cq_grain(a->C), forward, &j);
}

/* One strip of columns, all rows: every column sum and table belongs to one strip. */
static void backward(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    const cq_channel_args *a = j->a;
    const size_t c = begin * COLS, cols = cq_min_size(COLS, a->C - c);
    const size_t height = group_rows(a);
    double gbits[COLS] = {0}, *glow = j->g->glow + c, *ghigh = j->g->ghigh + c;
    float noise[ROWS * COLS];
    (void)end;
    (void)block;
    memset(glow, 0, cols * sizeof *glow);
    memset(ghigh, 0, cols * sizeof *ghigh);
    double *sums = a->tables ? j->g->work + c * TABLE : NULL;
    if (sums) memset(sums, 0, (size_t)COLS * TABLE * sizeof *sums);
    for (size_t r = 0, rows; r < a->R; r += rows) {
        rows = tile_rows(a, r, a->R, a->noise || a->logvar ? ROWS : CQ_CHANNEL_TALL);
        cq_channel_tile t = tile(j, r, rows, c, noise);
        t.gy = j->gy + r * a->C + c;
        t.grate = j->grate + r;
        t.gx = j->g->gx + r * a->C + c;
        t.gbits = gbits;
        t.glow = glow;
        t.ghigh = ghigh;
        t.gtables = sums;
        if (a->logvar) {
            double kl[ROWS * 8] = {0};
            draw(j, r, rows, c, t.gx, kl);
            t.x = t.gx;
        }
        j->k->channel_bits_bwd_f32(&t);
        if (a->logvar) undraw(j, r, rows, c);
        if ((r + rows) % height) continue;
        float *to = j->g->gbits + r / height * a->C + c;
        for (size_t i = 0; i < cols; i++) to[i] = (float)gbits[i];
        memset(gbits, 0, sizeof gbits);
    }
    for (size_t i = 0; sums && i < cols; i++)
        for (size_t e = 0; e < TABLE; e++)
            j->g->gtables[(c + i) * TABLE + e] =
                (float)sums[(i / SIDE * TABLE + e) * SIDE + i % SIDE];
}

size_t cq_channel_workspace(size_t C) { return cq_mul(cq_round_up(C, COLS), TABLE); }

cq_status cq_channel_bits_bwd(cq_ctx *cx, const cq_channel_args *a, const float *gy,
                              const float *grate, const cq_channel_grads *g) {
    job j = {.k = cx->k, .a = a, .gy = gy, .grate = grate, .g = g};
    CQ_TRY(check(cx, a));
    if (!a->R) memset(g->gbits, 0, a->G * a->C * sizeof *g->gbits);
    return cq_parallel_rows(cx, cq_ceil_div(a->C, COLS), 1, backward, &j);
}
