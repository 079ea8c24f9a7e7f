/* SPDX-License-Identifier: Apache-2.0 */
/* bf16_tile and s8_tile: 2 x 2 tiles of 16 x 16 sums; an operand tile is loaded once for all
 * products that follow one another with it (three planes: 7 pairs of loads for 6 products). */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512amx.h"

static const struct {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

enum { TILE = 1024 };

CQ_INLINE void load_a(const uint8_t *a, size_t plane) {
    _tile_loadd(4, a + plane * 2 * TILE, 64);
    _tile_loadd(5, a + plane * 2 * TILE + TILE, 64);
}

CQ_INLINE void load_b(const uint8_t *b, size_t plane) {
    _tile_loadd(6, b + plane * 2 * TILE, 64);
    _tile_loadd(7, b + plane * 2 * TILE + TILE, 64);
}

CQ_INLINE void multiply(void) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* 32 inputs of bfloat16, or 64 int8 (0 planes); `planes` is a constant. */
CQ_INLINE void step(const int planes, const uint8_t *a, const uint8_t *b) {
    if (planes == 0) {
        load_a(a, 0), load_b(b, 0);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    } else if (planes == 1) {
        load_a(a, 0), load_b(b, 0), multiply();
    } else if (planes == 2) {
        load_a(a, 1), load_b(b, 0), multiply();
        load_a(a, 0), multiply();
        load_b(b, 1), multiply();
    } else {
        load_a(a, 0), load_b(b, 2), multiply();
        load_b(b, 1), multiply();
        load_a(a, 1), multiply();
        load_b(b, 0), multiply();
        load_a(a, 0), multiply();
        load_a(a, 2), multiply();
    }
}

CQ_INLINE void steps(const int planes, const uint8_t *a, const uint8_t *b, size_t kc) {
    const size_t inputs = planes ? 32 : 64, bytes = (size_t)(planes ? planes : 1) * 2 * TILE;
    for (size_t k = 0; k < kc; k += inputs, a += bytes, b += bytes) step(planes, a, b);
}

/* Sums of a whole 32 x 32 block begin in c or as 0, and end in c. */
CQ_INLINE void begin(const cq_gemm_f32_tile *t, const float *c) {
    const size_t ld = t->ldc * sizeof(float);
    if (t->first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        return;
    }
    _tile_loadd(0, c, ld);
    _tile_loadd(1, c + 16, ld);
    _tile_loadd(2, c + 16 * t->ldc, ld);
    _tile_loadd(3, c + 16 * t->ldc + 16, ld);
}

CQ_INLINE void end(float *c, size_t ldc) {
    _tile_stored(0, c, ldc * sizeof(float));
    _tile_stored(1, c + 16, ldc * sizeof(float));
    _tile_stored(2, c + 16 * ldc, ldc * sizeof(float));
    _tile_stored(3, c + 16 * ldc + 16, ldc * sizeof(float));
}

/* An edge of c goes through memory of its own. */
static void copy_block(const float *from, size_t ldf, float *to, size_t ldt, size_t m, size_t n) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j += 16) {
            const __mmask16 k = (__mmask16)(n - j >= 16 ? 0xFFFFu : (1u << (n - j)) - 1u);
            _mm512_mask_storeu_ps(to + i * ldt + j, k,
                                  _mm512_maskz_loadu_ps(k, from + i * ldf + j));
        }
}

static void blocks(const cq_gemm_f32_tile *t, int planes) {
    _Alignas(64) float edge[32 * 32];
    _tile_loadconfig(&shapes);
    for (size_t i = 0; i < t->m; i += CQ_GEMM_WIDE) {
        const uint8_t *a = (const uint8_t *)(t->a + i / CQ_GEMM_WIDE * t->psa);
        const uint8_t *b = (const uint8_t *)t->b;
        const size_t m = cq_min_size(t->m - i, CQ_GEMM_WIDE);
        float *home = t->c + i * t->ldc;
        cq_gemm_f32_tile u = *t;
        const int whole = m == CQ_GEMM_WIDE && t->n == CQ_GEMM_WIDE;
        if (!whole) {
            u.ldc = 32;
            if (!t->first) copy_block(home, t->ldc, edge, 32, m, t->n);
        }
        float *c = whole ? home : edge;
        for (size_t r = 0; r < m; r++) { /* of the next block: tile loads would wait for memory */
            __builtin_prefetch(home + (CQ_GEMM_WIDE + r) * t->ldc);
            __builtin_prefetch(home + (CQ_GEMM_WIDE + r) * t->ldc + 16);
        }
        begin(&u, c);
        if (planes == 0)
            steps(0, a, b, t->kc);
        else if (planes == 1)
            steps(1, a, b, t->kc);
        else if (planes == 2)
            steps(2, a, b, t->kc);
        else
            steps(3, a, b, t->kc);
        end(c, u.ldc);
        if (!whole) copy_block(edge, 32, home, t->ldc, m, t->n);
    }
    _tile_release();
}

void cq_gemm_bf16_tile_avx512amx(const cq_gemm_f32_tile *t) { blocks(t, t->planes); }

void cq_gemm_s8_tile_avx512amx(const cq_gemm_f32_tile *t) { blocks(t, 0); }

#include "core/isa_end.h"
#endif
