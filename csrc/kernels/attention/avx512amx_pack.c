/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a float32 panel as bfloat16 tiles; see avx512amx.c for the layout. Tiles whose
 * source runs the other way are filled as the other operand's tile and then transposed, pairs of
 * depth as one element. */
#include "attention.h"
#if CQ_X86
#include "core/isa_begin_avx512amx.h"
#include "kernels/scaleloss/transpose_avx512bf16.h"

enum { TILE = 512 }; /* elements of a tile */

/* The largest bfloat16 instead of the infinity that a larger float would round to; NaN stays. */
CQ_INLINE __m512 within(__m512 x) {
    const __m512 most = _mm512_castsi512_ps(_mm512_set1_epi32(0x7F7F0000));
    const __m512 least = _mm512_castsi512_ps(_mm512_set1_epi32((int)0xFF7F0000u));
    return _mm512_max_ps(least, _mm512_min_ps(most, x));
}

/* Parts of 32 floats, x first; what a part does not hold goes to the next. */
CQ_INLINE void split(__m512 x, __m512 y, __m512i *part, int planes) {
    for (int p = 0; p < planes; p++) {
        const int first_of_many = p == 0 && planes > 1;
        const __m512i h = (__m512i)(first_of_many ? _mm512_cvtne2ps_pbh(within(y), within(x))
                                                  : _mm512_cvtne2ps_pbh(y, x));
        part[p] = h;
        if (p + 1 == planes) return;
        const __m512i lo = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(h));
        const __m512i hi = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1));
        x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(lo, 16)));
        y = _mm512_sub_ps(y, _mm512_castsi512_ps(_mm512_slli_epi32(hi, 16)));
    }
}

CQ_INLINE __mmask16 first(size_t count) {
    return (__mmask16)(count >= 16 ? 0xFFFFu : (1u << count) - 1u);
}
CQ_INLINE size_t left(size_t n, size_t i) { return n > i ? n - i : 0; }

/* The source is contiguous along the depth: row r of `tile` = 32 deep of lane i + r. */
CQ_INLINE void along_depth(const cq_att_source *s, size_t i, size_t k, uint16_t *tile, int planes) {
    const __mmask16 m0 = first(left(s->depth, k)), m1 = first(left(s->depth, k + 16));
    for (size_t r = 0; r < 16; r++) {
        const int inside = i + r < s->lanes;
        const float *x = s->x + (inside ? (i + r) * s->lane_stride + k : 0);
        __m512i part[CQ_ATT_HIGHEST];
        split(_mm512_maskz_loadu_ps(inside ? m0 : 0, x),
              _mm512_maskz_loadu_ps(inside ? m1 : 0, x + 16), part, planes);
        for (int p = 0; p < planes; p++)
            _mm512_store_si512(tile + (size_t)p * 2 * TILE + r * 32, part[p]);
    }
}

/* The source is contiguous along the lanes: row r of `tile` = depth k + 2 r and k + 2 r + 1 of 16
 * lanes in pairs. */
CQ_INLINE void along_lanes(const cq_att_source *s, size_t i, size_t k, uint16_t *tile, int planes) {
    const __m512i pairs =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __mmask16 m = first(left(s->lanes, i));
    for (size_t r = 0; r < 16; r++) {
        const size_t at = k + 2 * r;
        const __mmask16 m0 = at < s->depth ? m : 0, m1 = at + 1 < s->depth ? m : 0;
        const float *x = s->x + (m0 ? i + at * s->depth_stride : 0);
        __m512i part[CQ_ATT_HIGHEST];
        split(_mm512_maskz_loadu_ps(m0, x), _mm512_maskz_loadu_ps(m1, m1 ? x + s->depth_stride : x),
              part, planes);
        for (int p = 0; p < planes; p++)
            _mm512_store_si512(tile + (size_t)p * 2 * TILE + r * 32,
                               _mm512_permutexvar_epi16(pairs, part[p]));
    }
}

static void transpose(uint16_t *tile) {
    __m512i r[16];
    for (size_t i = 0; i < 16; i++) r[i] = _mm512_load_si512(tile + 32 * i);
    cq_transpose_pairs(r, tile);
}

CQ_INLINE void pack(const cq_att_source *s, uint16_t *out, int planes) {
    const int deep = s->depth_stride == 1;
    for (size_t k = 0; k < s->depth; k += 32, out += (size_t)planes * 2 * TILE) {
        for (size_t i = 0; i < CQ_ATT_LANES; i += 16) {
            uint16_t *tile = out + i / 16 * TILE;
            if (deep)
                along_depth(s, i, k, tile, planes);
            else
                along_lanes(s, i, k, tile, planes);
            if (deep == !s->side) continue;
            for (int p = 0; p < planes; p++) transpose(tile + (size_t)p * 2 * TILE);
        }
    }
}

void cq_attention_pack_f32_avx512amx(const cq_att_source *s, void *panel) {
    switch (s->planes) {
    case CQ_ATT_BF16: pack(s, panel, 1); break;
    case CQ_ATT_HIGH: pack(s, panel, 2); break;
    default: pack(s, panel, 3);
    }
}

#include "core/isa_end.h"
#endif
