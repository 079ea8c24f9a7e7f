/* SPDX-License-Identifier: Apache-2.0 */
/* The loops of alloc_floor, alloc_round_count and alloc_round_give, compiled once per ISA: the
 * compiler vectorises them. Bins are counted one after the other, in blocks whose places in the
 * table were found before. */
#ifndef CQ_ALLOC_ROUND_H
#define CQ_ALLOC_ROUND_H

#include "core/alloc.h"

/* b is finite and 0 <= lo <= hi <= 255, so the cut of the conversion is the floor. */
CQ_INLINE float cq_round_clamp(float b, float lo, float hi) {
    const float c = b > lo ? b : lo;
    return c < hi ? c : hi;
}

/* The wish of a channel, greater than 0 and below 2**30; 0 where it cannot have a step. What is
 * clamped to hi has no fraction. */
CQ_INLINE uint32_t cq_round_key(float b, int now, float lo, float hi, int ilo, int ihi,
                                const int up) {
    const float c = cq_round_clamp(b, lo, hi);
    const uint32_t fraction = cq_float_bits(c - (float)(int)c);
    const uint32_t key = up ? fraction + 1u : 0x3F800001u - fraction;
    return key & (0u - (uint32_t)(up ? now < ihi : now > ilo)); /* no branch: it stays a vector */
}

CQ_INLINE int64_t cq_floor_any(const float *restrict b, size_t n, int lo, int hi,
                               uint8_t *restrict out) {
    const float l = (float)lo, h = (float)hi;
    int64_t all = 0;
    for (size_t i = 0; i < n;) {
        const size_t end = n - i > 4096 ? i + 4096 : n;
        uint32_t sum = 0;
        for (; i < end; i++) {
            const int c = (int)cq_round_clamp(b[i], l, h);
            out[i] = (uint8_t)c;
            sum += (uint32_t)c;
        }
        all += sum;
    }
    return all;
}

/* Where channels of a block are counted: those that do not count, in the bins past the last. */
CQ_INLINE void cq_round_places(const cq_alloc_round *r, const float *restrict b,
                               const uint8_t *restrict now, const size_t n, const int up,
                               uint32_t *restrict at) {
    const int ilo = r->lo, ihi = r->hi, shift = r->shift;
    const float lo = (float)ilo, hi = (float)ihi;
    const uint32_t prefix = r->prefix;
    for (size_t l = 0; l < n; l++) {
        const uint32_t key = cq_round_key(b[l], now[l], lo, hi, ilo, ihi, up), bin = key >> shift;
        const int in = (key != 0) & (bin / CQ_ALLOC_BINS == prefix);
        at[l] = in ? bin % CQ_ALLOC_BINS : CQ_ALLOC_BINS + (uint32_t)(l % 16);
    }
}

CQ_INLINE void cq_round_count_to(const cq_alloc_round *r, const float *b, const uint8_t *now,
                                 size_t n, const int up, size_t *bins) {
    enum { BLOCK = 64 };
    uint32_t at[BLOCK];
    for (; n >= BLOCK; n -= BLOCK, b += BLOCK, now += BLOCK) {
        cq_round_places(r, b, now, BLOCK, up, at);
        for (size_t l = 0; l < BLOCK; l++) bins[at[l]]++;
    }
    cq_round_places(r, b, now, n, up, at);
    for (size_t l = 0; l < n; l++) bins[at[l]]++;
}

CQ_INLINE void cq_round_count_any(const cq_alloc_round *r, const float *b, const uint8_t *now,
                                  size_t n, size_t *bins) {
    if (r->up)
        cq_round_count_to(r, b, now, n, 1, bins);
    else
        cq_round_count_to(r, b, now, n, 0, bins);
}

/* All of them, or none: what is counted is the same. */
CQ_INLINE size_t cq_round_give_all(const cq_alloc_round *r, const float *restrict b, size_t n,
                                   const int up, const int give, uint8_t *restrict out) {
    const int ilo = r->lo, ihi = r->hi;
    const float lo = (float)ilo, hi = (float)ihi;
    const uint32_t least = r->least, width = r->most - r->least;
    size_t count = 0;
    for (size_t i = 0; i < n;) {
        const size_t end = n - i > 4096 ? i + 4096 : n;
        uint32_t some = 0;
        for (; i < end; i++) {
            const uint32_t key = cq_round_key(b[i], out[i], lo, hi, ilo, ihi, up);
            const uint32_t hit = key - least <= width;
            some += hit;
            if (give) out[i] = (uint8_t)(up ? out[i] + hit : out[i] - hit);
        }
        count += some;
    }
    return count;
}

CQ_INLINE size_t cq_round_give_some(const cq_alloc_round *r, const float *b, size_t n, const int up,
                                    size_t room, uint8_t *out) {
    const float lo = (float)r->lo, hi = (float)r->hi;
    size_t count = 0;
    for (size_t i = 0; i < n && count < room; i++) {
        const uint32_t key = cq_round_key(b[i], out[i], lo, hi, r->lo, r->hi, up);
        if (key < r->least || key > r->most) continue;
        out[i] = (uint8_t)(up ? out[i] + 1 : out[i] - 1);
        count++;
    }
    return count;
}

CQ_INLINE size_t cq_round_give_to(const cq_alloc_round *r, const float *b, size_t n, const int up,
                                  size_t room, uint8_t *out) {
    if (room == 0) return cq_round_give_all(r, b, n, up, 0, out);
    if (room >= n) return cq_round_give_all(r, b, n, up, 1, out);
    return cq_round_give_some(r, b, n, up, room, out);
}

CQ_INLINE size_t cq_round_give_any(const cq_alloc_round *r, const float *b, size_t n, size_t room,
                                   uint8_t *out) {
    return r->up ? cq_round_give_to(r, b, n, 1, room, out)
                 : cq_round_give_to(r, b, n, 0, room, out);
}

#endif
