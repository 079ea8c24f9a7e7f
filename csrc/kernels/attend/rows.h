/* SPDX-License-Identifier: Apache-2.0 */
/* The two kernels over vectors of an ISA, which the including file describes: `vec` of LANES
 * floats, none(), some(p, left, bf16) (0 past `left`), spread(x), madd(a, b, c), totals(v, count,
 * out, stride), put(p, left, v). Four query heads are taken at a time, so that a value of the cache
 * is read once for them, with WIDE vectors of values each; a head alone takes eight, so that enough
 * sums are under way. */

enum { AHEAD = 2048 }; /* bytes; the hardware alone leaves a third of the bandwidth unused */

CQ_INLINE const void *entry(const cq_attend_head *h, size_t j, size_t d, const int bf16) {
    return (const char *)h->cache + (j * h->D + d) * (bf16 ? 2 : 4);
}

CQ_INLINE void score_step(const cq_attend_head *h, const float *q, size_t j, size_t d,
                          const size_t left, const size_t count, const int bf16, vec *sum) {
    const vec key = some(entry(h, j, d, bf16), left, bf16);
#pragma GCC unroll 4
    for (size_t r = 0; r < count; r++)
        sum[r] = madd(some(q + r * h->ldr + d, left, 0), key, sum[r]);
}

CQ_INLINE void scores(const cq_attend_head *h, size_t i, const size_t count, const int bf16) {
    const float *q = h->rows + i * h->ldr;
    float *out = h->out + i * h->ldo;
    for (size_t j = 0; j < h->n; j++) {
        size_t d = 0;
        vec sum[4];
#pragma GCC unroll 4
        for (size_t r = 0; r < count; r++) sum[r] = none();
        for (; d + LANES <= h->D; d += LANES) {
            __builtin_prefetch((const char *)entry(h, j, d, bf16) + AHEAD);
            score_step(h, q, j, d, LANES, count, bf16, sum);
        }
        if (d < h->D) score_step(h, q, j, d, h->D - d, count, bf16, sum);
        totals(sum, count, out + j, h->ldo);
    }
}

/* `count` heads, `wide` vectors from d on; `left` in the last of them. */
CQ_INLINE void values(const cq_attend_head *h, size_t i, size_t d, const size_t left,
                      const size_t count, const size_t wide, const int bf16) {
    vec sum[16];
#pragma GCC unroll 16
    for (size_t s = 0; s < count * wide; s++) sum[s] = none();
    for (size_t j = 0; j < h->n; j++) {
        __builtin_prefetch((const char *)entry(h, j, d, bf16) + AHEAD);
        __builtin_prefetch((const char *)entry(h, j, d, bf16) + AHEAD + 64);
        vec rate[4];
#pragma GCC unroll 4
        for (size_t r = 0; r < count; r++) rate[r] = spread(h->rows[(i + r) * h->ldr + j]);
#pragma GCC unroll 8
        for (size_t v = 0; v < wide; v++) {
            const size_t here = v + 1 < wide ? (size_t)LANES : left;
            const vec value = some(entry(h, j, d + v * LANES, bf16), here, bf16);
#pragma GCC unroll 4
            for (size_t r = 0; r < count; r++)
                sum[r * wide + v] = madd(rate[r], value, sum[r * wide + v]);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < count; r++) {
        const vec rate = spread(h->rate ? h->rate[i + r] : 1.0f);
        float *out = h->out + (i + r) * h->ldo + d;
#pragma GCC unroll 8
        for (size_t v = 0; v < wide; v++)
            put(out + v * LANES, v + 1 < wide ? (size_t)LANES : left,
                madd(rate, sum[r * wide + v], none()));
    }
}

CQ_INLINE void all_scores(const cq_attend_head *h, const int bf16) {
    size_t i = 0;
    for (; i + 4 <= h->m; i += 4) scores(h, i, 4, bf16);
    for (; i < h->m; i++) scores(h, i, 1, bf16);
}

/* All of D for `count` heads, as few visits of the cache as registers allow. */
CQ_INLINE void across(const cq_attend_head *h, size_t i, const size_t count, const size_t wide,
                      const int bf16) {
    size_t d = 0;
    for (; d + wide * LANES <= h->D; d += wide * LANES) values(h, i, d, LANES, count, wide, bf16);
    for (; d + LANES <= h->D; d += LANES) values(h, i, d, LANES, count, 1, bf16);
    if (d < h->D) values(h, i, d, h->D - d, count, 1, bf16);
}

CQ_INLINE void all_values(const cq_attend_head *h, const int bf16) {
    size_t i = 0;
    for (; i + 4 <= h->m; i += 4) across(h, i, 4, WIDE, bf16);
    for (; i < h->m; i++) across(h, i, 1, 8, bf16);
}

CQ_INLINE void attend_scores(const cq_attend_head *h) {
    if (h->bf16)
        all_scores(h, 1);
    else
        all_scores(h, 0);
}

CQ_INLINE void attend_values(const cq_attend_head *h) {
    if (h->bf16)
        all_values(h, 1);
    else
        all_values(h, 0);
}
