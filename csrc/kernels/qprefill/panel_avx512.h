/* SPDX-License-Identifier: Apache-2.0 */
/* Panels and rows for the VNNI and AMX kernels; included inside a section compiled for AVX-512 with
 * VNNI. A four of inputs of 16 outputs is one vector, out of the planes of its tile by loads,
 * shifts and ANDs; everything about the width is known to the compiler. */
#ifndef CQ_QPREFILL_PANEL_AVX512_H
#define CQ_QPREFILL_PANEL_AVX512_H

/* Vector q of a tile. */
CQ_INLINE __m512i cq_quad_codes(const uint8_t *tile, const size_t bits, const size_t q) {
    if (bits == 8) return _mm512_loadu_si512((const void *)(tile + 64 * q));
    __m512i all = _mm512_setzero_si512();
    int low = 0;
#pragma GCC unroll 3
    for (size_t w = 4; w; w /= 2) {
        if (!(bits & w)) continue;
        const __m512i plane = _mm512_loadu_si512((const void *)(tile + q * w / 8 * 64));
        const int down = (int)(w * q % 8);
        __m512i v = down > low ? _mm512_srli_epi16(plane, down - low)
                               : _mm512_slli_epi16(plane, low - down);
        v = _mm512_and_si512(v, _mm512_set1_epi8((char)(((1 << w) - 1) << low)));
        all = low ? _mm512_or_si512(all, v) : v;
        low += (int)w;
        tile += 2 * w * 64;
    }
    return all;
}

/* 16 bytes, each to the four bytes of its lane. */
CQ_INLINE __m512i cq_four_times(const uint8_t *zero) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)zero));
    return _mm512_mullo_epi32(wide, _mm512_set1_epi32(0x01010101));
}

/* Vector i of a tile, centred, to the panel; its weights are added to *sum. */
CQ_INLINE void cq_quad(const uint8_t *tile, const size_t bits, const size_t i, __m512i zero,
                       int8_t *to, __m512i *sum) {
    const __m512i v = _mm512_sub_epi8(cq_quad_codes(tile, bits, i), zero);
    _mm512_store_si512((void *)to, v);
    *sum = _mm512_dpbusd_epi32(*sum, _mm512_set1_epi8(1), v);
}

/* Vectors from input k on, `quads` of them. */
CQ_INLINE void cq_quads(const uint8_t *tiles, const size_t bits, size_t k, size_t quads,
                        __m512i zero, int8_t *to, __m512i *sum) {
    const uint8_t *tile = tiles + k / CQ_TILE * cq_tile_bytes((int)bits);
    for (size_t q = k % CQ_TILE / 4, stop; quads; q = 0, tile += cq_tile_bytes((int)bits)) {
        stop = cq_min_size(16, q + quads);
        quads -= stop - q;
        if (stop - q == 16) {
#pragma GCC unroll 16
            for (size_t i = 0; i < 16; i++, to += 64) cq_quad(tile, bits, i, zero, to, sum);
            continue;
        }
#pragma GCC unroll 16
        for (size_t i = 0; i < 16; i++) {
            if (i < q || i >= stop) continue;
            cq_quad(tile, bits, i, zero, to, sum);
            to += 64;
        }
    }
}

CQ_INLINE void cq_panel_bits(const cq_qprefill_strip *s, const size_t bits, const int shifted) {
    const size_t quads = cq_ceil_div(s->inputs, 4);
    for (size_t g = 0; g < s->groups; g++) {
        int8_t *to = s->panel + g * s->steps * CQ_QPREFILL_STEP;
        __m512i sum = _mm512_setzero_si512();
        const __m512i zero =
            s->zero ? cq_four_times(s->zero + 16 * g) : _mm512_set1_epi8((char)(1 << (bits - 1)));
        cq_quads(s->tiles, bits, s->k0 + g * s->group, quads, zero, to, &sum);
        for (size_t q = quads; q < 16 * s->steps; q++)
            _mm512_store_si512((void *)(to + 64 * q), _mm512_setzero_si512());
        if (shifted) /* x is stored plus 128 */
            _mm512_storeu_si512(
                (void *)(s->shift + g * s->ldshift),
                _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
    }
}

CQ_INLINE void cq_qprefill_panel_all(const cq_qprefill_strip *s, const int shifted) {
    switch (s->bits) {
    case 2: cq_panel_bits(s, 2, shifted); return;
    case 3: cq_panel_bits(s, 3, shifted); return;
    case 4: cq_panel_bits(s, 4, shifted); return;
    case 5: cq_panel_bits(s, 5, shifted); return;
    case 6: cq_panel_bits(s, 6, shifted); return;
    case 7: cq_panel_bits(s, 7, shifted); return;
    default: cq_panel_bits(s, 8, shifted); return;
    }
}

CQ_INLINE void cq_qprefill_row_bytes(const int8_t *x, size_t groups, size_t group, int flip,
                                     uint8_t *to) {
    const __m512i change = _mm512_set1_epi8((char)flip);
    for (size_t g = 0; g < groups; g++, x += group) {
        for (size_t k = 0; k < group; k += CQ_TILE, to += CQ_QPREFILL_STEP) {
            const size_t left = group - k;
            const __mmask64 mask = left < 64 ? (1ULL << left) - 1 : ~0ULL;
            const __m512i v = _mm512_maskz_loadu_epi8(mask, x + k);
            _mm512_store_si512((void *)to, _mm512_xor_si512(v, change));
        }
    }
}

#endif
