/* SPDX-License-Identifier: Apache-2.0 */
/* Eight codes per 64-bit lane: three shift-and-or steps join neighbours (8 -> 16 -> 32 -> 64 bits),
 * which leaves `bits` bytes at the bottom of each lane; one byte shuffle closes the gap between two
 * lanes. unpack runs the same steps backwards. A store or load of 16 bytes reaches past the 2 *
 * bits in use, so the loop stops while that many bytes are left and the scalar kernel does the
 * rest. Measured over scalar: 5x to 10x, 1.4x for rows of 64 codes. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx2.h"

typedef struct steps {
    __m128i by[3];   /* shift counts: bits, 2 * bits, 4 * bits */
    __m256i mask[3]; /* what stays below: the low half of the 16-, 32- and 64-bit lanes */
    __m256i shuffle; /* lanes <-> dense bytes, in each half of the register */
} steps;

CQ_INLINE __m256i join16(__m256i v, const steps *s) {
    v = _mm256_or_si256(_mm256_and_si256(v, s->mask[0]),
                        _mm256_sll_epi16(_mm256_srli_epi16(v, 8), s->by[0]));
    v = _mm256_or_si256(_mm256_and_si256(v, s->mask[1]),
                        _mm256_sll_epi32(_mm256_srli_epi32(v, 16), s->by[1]));
    return _mm256_or_si256(_mm256_and_si256(v, s->mask[2]),
                           _mm256_sll_epi64(_mm256_srli_epi64(v, 32), s->by[2]));
}

CQ_INLINE __m256i split64(__m256i v, const steps *s) {
    v = _mm256_or_si256(_mm256_and_si256(v, s->mask[2]),
                        _mm256_slli_epi64(_mm256_srl_epi64(v, s->by[2]), 32));
    v = _mm256_or_si256(_mm256_and_si256(v, s->mask[1]),
                        _mm256_slli_epi32(_mm256_srl_epi32(v, s->by[1]), 16));
    return _mm256_or_si256(_mm256_and_si256(v, s->mask[0]),
                           _mm256_slli_epi16(_mm256_srl_epi16(v, s->by[0]), 8));
}

/* Shuffle indices from the wide to the dense form (or back): the second lane begins at byte 8 of
 * the wide form and at byte `bits` of the dense one. An index with the top bit set gives 0. */
CQ_INLINE steps steps_of(int bits, int packing) {
    const __m128i i = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m128i second = _mm_cmpgt_epi8(i, _mm_set1_epi8((char)(packing ? bits - 1 : 7)));
    const __m128i moved =
        _mm_and_si128(second, _mm_set1_epi8((char)(packing ? 8 - bits : bits - 8)));
    const __m128i place = packing ? i : _mm_and_si128(i, _mm_set1_epi8(7));
    const __m128i limit = _mm_set1_epi8((char)(packing ? 2 * bits - 1 : bits - 1));
    const __m128i index = _mm_or_si128(_mm_add_epi8(i, moved), _mm_cmpgt_epi8(place, limit));
    steps s;
    s.shuffle = _mm256_broadcastsi128_si256(index);
    for (int k = 0; k < 3; k++) s.by[k] = _mm_cvtsi32_si128(bits << k);
    s.mask[0] = _mm256_set1_epi16((short)((1 << bits) - 1));
    s.mask[1] = _mm256_set1_epi32((int)((1ull << (2 * bits)) - 1ull));
    s.mask[2] = _mm256_set1_epi64x((long long)((1ull << (4 * bits)) - 1ull));
    return s;
}

void cq_pack_u8_row_avx2(const uint8_t *codes, uint8_t *out, size_t n, int bits) {
    const steps s = steps_of(bits, 1);
    const size_t step = 2 * (size_t)bits, bytes = n / 8 * (size_t)bits;
    size_t i = 0, b = 0;
    for (; b + step + 16 <= bytes; i += 32, b += 2 * step) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(codes + i));
        v = _mm256_shuffle_epi8(join16(v, &s), s.shuffle);
        _mm_storeu_si128((__m128i *)(void *)(out + b), _mm256_castsi256_si128(v));
        _mm_storeu_si128((__m128i *)(void *)(out + b + step), _mm256_extracti128_si256(v, 1));
    }
    cq_pack_u8_row_scalar(codes + i, out + b, n - i, bits);
}

void cq_unpack_u8_row_avx2(const uint8_t *packed, uint8_t *out, size_t n, int bits) {
    const steps s = steps_of(bits, 0);
    const size_t step = 2 * (size_t)bits, bytes = n / 8 * (size_t)bits;
    size_t i = 0, b = 0;
    for (; b + step + 16 <= bytes; i += 32, b += 2 * step) {
        const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)(packed + b));
        const __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(packed + b + step));
        __m256i v = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
        v = split64(_mm256_shuffle_epi8(v, s.shuffle), &s);
        _mm256_storeu_si256((__m256i *)(void *)(out + i), v);
    }
    cq_unpack_u8_row_scalar(packed + b, out + i, n - i, bits);
}

#include "core/isa_end.h"
#endif
