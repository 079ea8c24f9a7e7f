/* SPDX-License-Identifier: Apache-2.0 */
/* float32 products on bfloat16 tiles (Henry, Tang, Heinecke, "Leveraging the bfloat16 artificial
 * intelligence datatype for higher-precision computations", 2019): x = x0 + x1 + x2 with three
 * bfloat16 parts that hold all 24 bits, and of the nine products of parts the six that matter,
 * added in float32. What is left out is below 2^-25 of |a| |b|. One part gives a plain bfloat16
 * product, two give three products (2^-16). At 2.5 TFLOP/s of bfloat16 six products run at 1.7
 * times the speed of float32 FMA on the same core. A panel holds, per 32 of depth, `planes` x 2
 * tiles of 1 KiB: of A [16 lanes][32 deep], of B [16 pairs of depth][16 lanes][2]. */
#include "attention.h"
#if CQ_X86
#include "core/isa_begin_avx512amx.h"

enum { TILE = 512 }; /* elements of a tile */

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_config;

static void load_config(void) {
    tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.bytes[i] = 64;
        c.rows[i] = 16;
    }
    __asm__ volatile("" : : "r"(&c) : "memory"); /* gcc 12 thinks that 8 bytes of c are read */
    _tile_loadconfig(&c);
}

CQ_INLINE __mmask16 first(size_t count) {
    return (__mmask16)(count >= 16 ? 0xFFFFu : (1u << count) - 1u);
}
CQ_INLINE size_t left(size_t n, size_t i) { return n > i ? n - i : 0; }

CQ_INLINE void load_a(const uint16_t *a, size_t part) {
    _tile_loadd(4, a + part * 2 * TILE, 64);
    _tile_loadd(5, a + part * 2 * TILE + TILE, 64);
}
CQ_INLINE void load_b(const uint16_t *b, size_t part) {
    _tile_loadd(6, b + part * 2 * TILE, 64);
    _tile_loadd(7, b + part * 2 * TILE + TILE, 64);
}
CQ_INLINE void multiply(void) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* What comes next, on its way to L2 while the tiles are busy: `step` bytes of a panel each time (0:
 * nothing), and one line of the rows of c that `finish` is going to write. */
typedef struct next {
    const char *panel, *row;
    size_t step, ldc, lines;
} next;

CQ_INLINE void fetch(next *n) {
    if (!n->step) return;
    _mm_prefetch(n->panel, _MM_HINT_T1);
    _mm_prefetch(n->panel + 64, _MM_HINT_T1);
    if (n->step > 128) {
        _mm_prefetch(n->panel + 128, _MM_HINT_T1);
        _mm_prefetch(n->panel + 192, _MM_HINT_T1);
    }
    n->panel += n->step;
    _mm_prefetch(n->row, _MM_HINT_T1);
    _mm_prefetch(n->row + 64, _MM_HINT_T1);
    n->lines -= n->lines > 0;
    n->row += n->lines ? n->ldc : 0;
}

/* Six products with seven pairs of loads: every step changes the part of one operand only. */
CQ_INLINE void six(const uint16_t *a, const uint16_t *b, next *n) {
    load_a(a, 0), load_b(b, 2), multiply(), fetch(n);
    load_b(b, 1), multiply(), fetch(n);
    load_a(a, 1), multiply(), fetch(n);
    load_b(b, 0), multiply(), fetch(n);
    load_a(a, 2), multiply(), fetch(n);
    load_a(a, 0), multiply(), fetch(n);
}

/* sum[32][32] = a b. Panels of `n` are fetched 2 x planes times per 32 of depth. */
CQ_INLINE void product(const uint16_t *a, const uint16_t *b, size_t depth, int planes, float *sum,
                       next n) {
    const size_t part = (size_t)planes * 2 * TILE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t k = 0; k < depth; k += 32, a += part, b += part) {
        if (planes == CQ_ATT_HIGHEST) {
            six(a, b, &n);
            continue;
        }
        load_a(a, 0);
        if (planes == CQ_ATT_HIGH) load_b(b, 1), multiply(), fetch(&n);
        load_b(b, 0), multiply(), fetch(&n);
        fetch(&n);
        if (planes == CQ_ATT_HIGH) load_a(a, 1), multiply(), fetch(&n);
    }
    _tile_stored(0, sum, 128);
    _tile_stored(1, sum + 16, 128);
    _tile_stored(2, sum + 512, 128);
    _tile_stored(3, sum + 528, 128);
}

static void finish(const cq_att_block *t, size_t i, size_t j, const float *sum) {
    const __mmask16 m0 = first(t->n - j), m1 = first(left(t->n, j + 16));
    const __m512 zero = _mm512_setzero_ps();
    const __m512 bias0 = t->bias ? _mm512_maskz_loadu_ps(m0, t->bias + j) : zero;
    const __m512 bias1 = t->bias ? _mm512_maskz_loadu_ps(m1, t->bias + j + 16) : zero;
    for (size_t r = 0; r < cq_min_size(CQ_ATT_LANES, t->m - i); r++) {
        float *c = t->c + (i + r) * t->ldc + j;
        const __m512 row = _mm512_set1_ps(t->row ? t->row[i + r] : 1.0f);
        const __m512 c0 = t->add ? _mm512_maskz_loadu_ps(m0, c) : zero;
        const __m512 c1 = t->add ? _mm512_maskz_loadu_ps(m1, c + 16) : zero;
        const __m512 s0 = _mm512_load_ps(sum + r * 32), s1 = _mm512_load_ps(sum + r * 32 + 16);
        _mm512_mask_storeu_ps(c, m0, _mm512_add_ps(_mm512_fmadd_ps(row, s0, c0), bias0));
        _mm512_mask_storeu_ps(c + 16, m1, _mm512_add_ps(_mm512_fmadd_ps(row, s1, c1), bias1));
    }
}

CQ_INLINE void blocks(const cq_att_block *t, int planes) {
    float sum[CQ_ATT_LANES * CQ_ATT_LANES] __attribute__((aligned(64)));
    const size_t shares = t->m > 4 * CQ_ATT_LANES ? 8 : 4, step = 1024 / shares;
    const size_t share = cq_ceil_div(t->depth, 32) * (size_t)planes * 2 * step;
    for (size_t j = 0; j < t->n; j += CQ_ATT_LANES) {
        const uint16_t *b = cq_att_at(t->b, j, t->b_stride);
        for (size_t i = 0; i < t->m; i += CQ_ATT_LANES) {
            const uint16_t *a = cq_att_at(t->a, i, t->a_stride);
            const size_t part = i / CQ_ATT_LANES, rows = cq_min_size(CQ_ATT_LANES, t->m - i);
            next n = {.ldc = t->ldc * sizeof(float), .lines = rows};
            if (t->ahead && part < shares) {
                n.panel = (const char *)t->ahead + part * share;
                n.row = (const char *)(t->c + i * t->ldc + j);
                n.step = step;
            }
            product(a, b, t->depth, planes, sum, n);
            finish(t, i, j, sum);
        }
    }
}

void cq_attention_block_f32_avx512amx(const cq_att_block *t) {
    load_config();
    switch (t->planes) {
    case CQ_ATT_BF16: blocks(t, 1); break;
    case CQ_ATT_HIGH: blocks(t, 2); break;
    default: blocks(t, 3);
    }
    _tile_release();
}

#include "core/isa_end.h"
#endif
