/* SPDX-License-Identifier: Apache-2.0 */
/* First x is rounded to bytes, or cut into digits, and laid out in steps, 32 rows a task. Then the
 * output is cut into tasks of `rows` x `cols`: a task walks over K in chunks, unpacks a chunk of
 * its columns of the weight to a panel, and multiplies all its rows by it; results stay in blocks
 * in the slot until the last chunk. The cut depends on the shapes only. A slot of `work` per
 * thread. */
#include "core/half.h"
#include "core/parallel.h"
#include "qprefill_parts.h"

#include <string.h>

enum {
    MAX_ROWS = 512,
    TILE_ROWS = 256, /* where the tiles are multiplied as they lie */
    TILE_COLS = 32,
    TILE_STEPS = 64,
    MAX_COLS = 256,
    MIN_COLS = 64,
    MIN_ROWS = 32,
    ENOUGH_TASKS = 8
};
enum { CHUNK_STEPS = 8, SPLIT_STEPS = 16 }; /* steps of a chunk; of a group longer than a chunk */

/* Whether a strip's levels do not fit a byte: its panel is code - 128. */
static int off_centre(const cq_tiles *w, int bits) { return bits == 8 && w->asymmetric; }

static int any_bytes(const cq_tiles *w) {
    for (size_t i = 0; i < cq_strips(w->N); i++)
        if (cq_bits_of_strip(w, i) == 8) return 1;
    return 0;
}

static void plan_slot(cq_qprefill_plan *p) {
    const size_t block = p->rows * p->cols * sizeof(float);
    p->part = block;
    p->panel = p->part + (p->chunk_groups ? 0 : block);
    const size_t steps = p->chunk_groups ? p->chunk_groups * p->steps : p->chunk_steps;
    p->grids = p->panel;
    if (!p->tiles) p->grids += p->cols / CQ_STRIP * steps * CQ_QPREFILL_STEP;
    const size_t groups = p->chunk_groups ? p->chunk_groups : 1;
    p->line = p->grids + 3 * cq_up(groups * p->cols * sizeof(float), 64);
    p->slot = p->line + cq_up(p->groups / p->per * p->wide, 64) * (p->digits + sizeof(float));
}

/* Whether the weight is 8 bits with a scale per output: its tiles are multiplied as they lie, on
 * levels whose rows are x itself. */
static int as_tiles(const cq_ctx *cx, const cq_qlinear *a) {
    const cq_kernels *plain = cq_isa_table(CQ_ISA_scalar);
    const int can = cx->k->qprefill_tiles != plain->qprefill_tiles ||
                    cx->k->qprefill_row == plain->qprefill_row;
    return can && a->mode != CQ_QLINEAR_F32 && a->w.G == 1 && a->w.K > 2 * CQ_TILE &&
           !a->w.strip_bits && a->w.bits == 8;
}

static cq_qprefill_plan make_plan(const cq_ctx *cx, const cq_qlinear *a) {
    const cq_tiles *w = &a->w;
    const size_t M = a->M;
    const int f32 = a->mode == CQ_QLINEAR_F32;
    cq_qprefill_plan p = {.wide = w->K / w->G, .digits = f32 ? CQ_DIGITS : 1};
    p.group = cq_block_inputs(w->K, w->G, f32);
    p.groups = cq_blocks(w->K, w->G, f32);
    p.per = p.groups / w->G;
    p.tiles = as_tiles(cx, a);
    p.row_tasks = cq_ceil_div(M, p.tiles ? TILE_ROWS : MAX_ROWS);
    p.rows = p.row_tasks ? cq_up(cq_ceil_div(M, p.row_tasks), CQ_QPREFILL_BLOCK) : 0;
    p.cols = p.tiles ? TILE_COLS : MAX_COLS;
    while (p.cols > MIN_COLS && p.row_tasks * cq_ceil_div(w->N, p.cols) < ENOUGH_TASKS) p.cols /= 2;
    p.col_tasks = cq_ceil_div(w->N, p.cols);
    p.steps = cq_ceil_div(p.group, CQ_TILE);
    p.total = p.groups * p.steps;
    p.chunk_steps = p.steps <= CHUNK_STEPS ? p.steps : p.tiles ? TILE_STEPS : SPLIT_STEPS;
    const size_t room = p.group <= CQ_TILE / 2 ? 2 * CHUNK_STEPS : CHUNK_STEPS;
    if (p.steps && p.steps <= CHUNK_STEPS) p.chunk_groups = room / p.steps;
    plan_slot(&p);
    const size_t M32 = p.row_tasks * p.rows;
    p.xscale = M32 * p.digits * p.total * CQ_TILE;
    p.xsum = p.xscale + cq_up(M32 * (f32 ? p.groups : 1) * sizeof(float), 64);
    const size_t sums = f32 ? 2 : any_bytes(w) ? 1 : 0;
    p.zeros = p.xsum + cq_up(M32 * p.groups * sums * sizeof(int32_t), 64);
    p.slots = p.zeros + (f32 ? cq_up(M32 / 16 * p.groups, 64) : 0);
    p.slot_count = (size_t)(cx->threads < CQ_QPREFILL_SLOTS ? cx->threads : CQ_QPREFILL_SLOTS);
    p.bytes = 64 + p.slots + p.slot_count * p.slot;
    return p;
}

/* Levels with fast strip kernels of qlinear but no block kernels of their own keep to the former.
 */
int cq_qprefill_fits(const cq_ctx *cx, const cq_qlinear *a) {
    const cq_kernels *plain = cq_isa_table(CQ_ISA_scalar);
    const int worth = cx->k->qprefill_block != plain->qprefill_block ||
                      cx->k->qlinear_s8_strip == plain->qlinear_s8_strip;
    return worth && a->M >= MIN_ROWS && a->w.K;
}

size_t cq_qprefill_workspace(const cq_ctx *cx, const cq_qlinear *a) {
    return make_plan(cx, a).bytes;
}

/* Where a task is. */
typedef struct task {
    const cq_qprefill_job *j;
    uint8_t *slot;
    size_t m0, n0, rows, strips; /* rows to compute, a multiple of 32; strips that exist */
    size_t g, step, steps;       /* chunk: first group, first step and steps of each group in it */
    size_t groups;
} task;

static void fill_grids(const task *t, size_t strip, const uint8_t *head, int bits, float *scale,
                       int32_t *centre) {
    const cq_tiles *w = &t->j->a->w;
    const uint16_t *halves = (const uint16_t *)(const void *)head;
    const uint8_t *zero = head + 2 * w->G * CQ_STRIP;
    const int middle = t->j->p.tiles ? 0 : 128;
    for (size_t i = 0; i < t->groups; i++) {
        const size_t at = i * t->j->p.cols + strip * CQ_STRIP,
                     from = (t->g + i) / t->j->p.per * CQ_STRIP;
        for (size_t n = 0; n < CQ_STRIP; n++) scale[at + n] = cq_half_to_float(halves[from + n]);
        for (size_t n = 0; n < CQ_STRIP && centre; n++)
            centre[at + n] = off_centre(w, bits) ? middle - zero[from + n] : middle - 128;
    }
}

/* Unpack the chunk of the task's strips; strips past the last become zeros. */
static void fill_panel(const task *t, cq_qprefill_block *b, float *scale, int32_t *shift,
                       int32_t *centre, uint8_t *most) {
    const cq_qprefill_plan *p = &t->j->p;
    const cq_tiles *w = &t->j->a->w;
    const size_t bytes = t->groups * t->steps * CQ_QPREFILL_STEP;
    const size_t done = t->step * CQ_TILE; /* inputs of the group before the chunk */
    const uint8_t *from = w->data + cq_strip_offset(w, t->n0 / CQ_STRIP);
    int8_t *panel = (int8_t *)(t->slot + p->panel);
    b->ldpanel = bytes;
    if (t->strips < 2 * b->n) {
        most[t->strips] = 1;
        memset(panel + t->strips * bytes, 0, bytes);
        for (size_t i = 0; i < t->groups; i++) {
            const size_t at = i * p->cols + t->strips * CQ_STRIP;
            memset(scale + at, 0, CQ_STRIP * sizeof *scale);
            memset(shift + at, 0, CQ_STRIP * sizeof *shift);
            if (centre) memset(centre + at, 0, CQ_STRIP * sizeof *centre);
        }
    }
    for (size_t i = 0; i < t->strips; i++) {
        const int bits = cq_bits_of_strip(w, t->n0 / CQ_STRIP + i);
        cq_qprefill_strip s = {.bits = bits, .panel = panel + i * bytes};
        s.tiles = from + cq_strip_head(w->G, w->asymmetric);
        s.shift = shift + i * CQ_STRIP, s.ldshift = p->cols;
        s.group = p->group, s.steps = t->steps;
        s.groups = p->per > 1 ? 1 : t->groups;
        for (size_t g = t->g; g < t->g + t->groups; g += s.groups) {
            const size_t before = g % p->per * p->group + done;
            s.zero = from + (2 * w->G + g / p->per) * CQ_STRIP;
            if (!w->asymmetric || off_centre(w, bits)) s.zero = NULL;
            s.k0 = g / p->per * p->wide + before;
            s.inputs =
                cq_min_size(cq_min_size(p->group - done, t->steps * CQ_TILE), p->wide - before);
            t->j->k->qprefill_panel(&s);
            s.panel += s.groups * t->steps * CQ_QPREFILL_STEP;
            s.shift += s.groups * p->cols;
        }
        fill_grids(t, i, from, bits, scale, centre);
        most[i] = s.zero ? (uint8_t)((1 << bits) - 1) : (uint8_t)(1 << (bits - 1));
        from += cq_strip_bytes(w->K, w->G, bits, w->asymmetric);
    }
    b->panel = panel, b->scale = scale, b->shift = shift, b->centre = centre;
}

/* The same where the tiles take the place of the panel; a last strip alone is multiplied twice. */
static void find_tiles(const task *t, cq_qprefill_block *b, float *scale, int32_t *centre) {
    const cq_tiles *w = &t->j->a->w;
    const size_t bytes = cq_strip_bytes(w->K, w->G, w->bits, w->asymmetric);
    const uint8_t *from = w->data + t->n0 / CQ_STRIP * bytes;
    b->panel = (const int8_t *)from + cq_strip_head(w->G, w->asymmetric);
    b->panel += t->step * CQ_QPREFILL_STEP;
    b->ldpanel = t->strips < 2 ? 0 : bytes;
    for (size_t i = 0; i < 2; i++) fill_grids(t, i, from + i * b->ldpanel, w->bits, scale, centre);
    b->scale = scale, b->centre = centre;
}

static void multiply_chunk(const task *t) {
    const cq_qprefill_plan *p = &t->j->p;
    const size_t grid = cq_up(t->groups * p->cols * sizeof(float), 64);
    uint8_t *grids = t->slot + p->grids;
    cq_qprefill_block b = {.m = t->rows / CQ_QPREFILL_BLOCK, .n = cq_ceil_div(t->strips, 2)};
    b.ld = p->cols;
    b.groups = t->groups, b.steps = t->steps;
    b.quads = p->steps == 1 ? cq_ceil_div(p->group, 4) : 16;
    b.acc = (float *)(void *)t->slot;
    b.part = (int32_t *)(void *)(t->slot + p->part);
    b.ldx = p->total * CQ_QPREFILL_STEP;
    b.x = t->j->work + t->m0 / 16 * p->digits * b.ldx;
    b.x += (t->g * p->steps + t->step) * CQ_QPREFILL_STEP;
    b.xsum = (const int32_t *)(const void *)(t->j->work + p->xsum);
    b.xstep = (const float *)(const void *)(t->j->work + p->xscale);
    b.zeros = t->j->work + p->zeros + t->m0 / 16 * p->groups + t->g;
    b.ldsum = p->groups;
    if (p->digits > 1) {
        b.xsum += 2 * (t->m0 * p->groups + 16 * t->g);
        b.xstep += t->m0 * p->groups + 16 * t->g;
    } else {
        b.xsum += t->m0 * p->groups + t->g;
    }
    b.first = t->g == 0;
    b.begin = t->step == 0;
    b.end = t->step + t->steps == p->steps;
    int32_t *centre = t->j->centred ? (int32_t *)(void *)(grids + 2 * grid) : NULL;
    float *scale = (float *)(void *)grids;
    uint8_t most[MAX_COLS / 16];
    b.most = most;
    if (p->tiles)
        find_tiles(t, &b, scale, centre);
    else
        fill_panel(t, &b, scale, (int32_t *)(void *)(grids + grid), centre, most);
    if (!b.end) b.centre = NULL;
    if (p->tiles)
        t->j->k->qprefill_tiles(&b);
    else if (p->digits > 1)
        t->j->k->qprefill_digits(&b);
    else
        t->j->k->qprefill_block(&b);
}

/* Finish 16 rows x 16 outputs at a time. */
static void store_rows(const task *t) {
    const cq_qlinear *a = t->j->a;
    const size_t blocks = cq_ceil_div(t->strips, 2), rows = cq_min_size(a->M - t->m0, t->rows);
    for (size_t r = 0; r < rows; r += 16) {
        const float *acc = (const float *)(const void *)t->slot + r / 32 * blocks * 1024;
        for (size_t s = 0; s < t->strips; s++) {
            const size_t n = t->n0 + s * CQ_STRIP;
            const cq_epilogue_at at = {t->m0 + r, cq_min_size(rows - r, 16), n,
                                       cq_min_size(a->w.N - n, CQ_STRIP)};
            t->j->k->qlinear_finish(acc + s / 2 * 1024 + r % 32 / 16 * 512 + s % 2 * 256, &at,
                                    &t->j->e);
        }
    }
}

static void multiply(void *ctx, size_t begin, size_t end, size_t block) {
    cq_qprefill_job *j = ctx;
    const cq_qprefill_plan *p = &j->p;
    (void)block;
    const size_t slot = cq_qprefill_take(j);
    for (size_t i = begin; i < end; i++) {
        task t = {.j = j, .slot = j->work + p->slots + slot * p->slot};
        t.m0 = i / p->col_tasks * p->rows, t.n0 = i % p->col_tasks * p->cols;
        t.rows = cq_up(cq_min_size(j->a->M - t.m0, p->rows), CQ_QPREFILL_BLOCK);
        t.strips = cq_strips(cq_min_size(j->a->w.N - t.n0, p->cols));
        while (t.g < p->groups && !cq_stop(j->cx)) {
            t.groups = p->chunk_groups ? cq_min_size(p->chunk_groups, p->groups - t.g) : 1;
            t.steps = p->chunk_groups ? p->steps : cq_min_size(p->chunk_steps, p->steps - t.step);
            multiply_chunk(&t);
            t.step += t.steps;
            if (t.step < p->steps) continue;
            t.step = 0;
            t.g += t.groups;
        }
        store_rows(&t);
    }
    cq_qprefill_free(j, slot);
}

cq_status cq_qprefill_run(cq_ctx *cx, const cq_qlinear *a, uint8_t *work) {
    cq_qprefill_job j = {.cx = cx, .k = cx->k, .a = a, .e = a->e, .p = make_plan(cx, a)};
    j.centred = j.p.tiles || (a->w.asymmetric && any_bytes(&a->w));
    j.work = work + (64 - (uintptr_t)work % 64) % 64;
    if (a->mode == CQ_QLINEAR_DYNAMIC) j.e.xscale = (const float *)(void *)(j.work + j.p.xscale);
    const size_t blocks = j.p.row_tasks * j.p.rows / CQ_QPREFILL_BLOCK;
    CQ_TRY(cq_parallel_rows(cx, blocks, 1, cq_qprefill_lay_out, &j));
    return cq_parallel_rows(cx, j.p.row_tasks * j.p.col_tasks, 1, multiply, &j);
}
