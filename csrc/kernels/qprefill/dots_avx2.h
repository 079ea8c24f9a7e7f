/* SPDX-License-Identifier: Apache-2.0 */
/* Four rows of x times a strip; included inside a section compiled for AVX2. vpmaddubsw multiplies
 * unsigned by signed bytes and adds pairs into int16 lanes, saturating: x is stored plus 128, and
 * as many of its results as surely fit are added before vpmaddwd widens them. Two products with the
 * largest magnitude of the strip (64) fit at least once; wider strips are cut into halves and odd
 * bits, which do. */
#ifndef CQ_QPREFILL_DOTS_AVX2_H
#define CQ_QPREFILL_DOTS_AVX2_H

typedef struct pairs { /* 16 outputs of one row in int16; named, not an array: gcc 12 spills arrays
                        */
    __m256i lo, hi;
} pairs;

CQ_INLINE __m256i load_quad(const void *at) { return _mm256_load_si256(at); }

CQ_INLINE __m256i four_inputs(const uint8_t *x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

CQ_INLINE pairs times(const uint8_t *x, __m256i lo, __m256i hi) {
    const __m256i v = four_inputs(x);
    return (pairs){_mm256_maddubs_epi16(v, lo), _mm256_maddubs_epi16(v, hi)};
}

/* Not the intrinsics: gcc 12 makes all products first and spills them. */
CQ_INLINE __m256i add_product(__m256i sum, __m256i x, __m256i w) {
    __m256i t;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(t) : "x"(x), "x"(w));
    return sum;
}

CQ_INLINE void add_times(pairs *p, const uint8_t *x, __m256i lo, __m256i hi) {
    const __m256i v = four_inputs(x);
    p->lo = add_product(p->lo, v, lo);
    p->hi = add_product(p->hi, v, hi);
}

CQ_INLINE void flush(pairs p, __m256i by, int32_t *sum) {
    const __m256i lo = _mm256_madd_epi16(p.lo, by), hi = _mm256_madd_epi16(p.hi, by);
    _mm256_store_si256((void *)sum, _mm256_add_epi32(load_quad(sum), lo));
    _mm256_store_si256((void *)(sum + 8), _mm256_add_epi32(load_quad(sum + 8), hi));
}

/* Quads w, w + 64 .. before `end`, whose sums fit int16. */
CQ_INLINE void add_quads(const uint8_t *x, size_t ldx, const int8_t *w, const int8_t *end,
                         int32_t *sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i lo = load_quad(w), hi = load_quad(w + 32);
    pairs a = times(x, lo, hi), b = times(x + ldx, lo, hi);
    pairs c = times(x + 2 * ldx, lo, hi), d = times(x + 3 * ldx, lo, hi);
    while ((w += 64) < end) {
        x += 4;
        lo = load_quad(w), hi = load_quad(w + 32);
        add_times(&a, x, lo, hi);
        add_times(&b, x + ldx, lo, hi);
        add_times(&c, x + 2 * ldx, lo, hi);
        add_times(&d, x + 3 * ldx, lo, hi);
    }
    flush(a, ones, sum);
    flush(b, ones, sum + 16);
    flush(c, ones, sum + 32);
    flush(d, ones, sum + 48);
}

/* w = 2 * half + odd */
CQ_INLINE __m256i odd_bit(__m256i w) { return _mm256_and_si256(w, _mm256_set1_epi8(1)); }
CQ_INLINE __m256i half_of(__m256i w) {
    const __m256i up = _mm256_xor_si256(w, _mm256_set1_epi8(-128)); /* w + 128 */
    const __m256i half = _mm256_and_si256(_mm256_srli_epi16(up, 1), _mm256_set1_epi8(127));
    return _mm256_sub_epi8(half, _mm256_set1_epi8(64));
}

static void add_wide_quad(const uint8_t *x, size_t ldx, const int8_t *w, int32_t *sum) {
    const __m256i lo = load_quad(w), hi = load_quad(w + 32);
    const __m256i half_lo = half_of(lo), half_hi = half_of(hi);
    const __m256i odd_lo = odd_bit(lo), odd_hi = odd_bit(hi);
    for (size_t r = 0; r < 4; r++) {
        flush(times(x + r * ldx, half_lo, half_hi), _mm256_set1_epi16(2), sum + 16 * r);
        flush(times(x + r * ldx, odd_lo, odd_hi), _mm256_set1_epi16(1), sum + 16 * r);
    }
}

/* sum [4][16]: shift [16] plus the products of a group with rows x, x + ldrow .. */
static void dots(const uint8_t *x, size_t ldrow, const int8_t *w, size_t steps, size_t quads,
                 size_t most, const int32_t *shift, int32_t *sum) {
    for (size_t r = 0; r < 4; r++) __builtin_memcpy(sum + 16 * r, shift, 64);
    const size_t fit = most > 64 ? 0 : cq_min_size(16, 32767 / 510 / most);
    for (size_t s = 0; s < steps; s++, x += 1024, w += 1024) {
        for (size_t q = 0; q < quads && !fit; q++) add_wide_quad(x + 4 * q, ldrow, w + 64 * q, sum);
        for (size_t q = 0; q < quads && fit; q += fit)
            add_quads(x + 4 * q, ldrow, w + 64 * q, w + 64 * cq_min_size(q + fit, quads), sum);
    }
}

#endif
