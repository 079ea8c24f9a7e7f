/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers that depend on a key and a position only: Philox 4x32-10.
 * Source: J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. */
#ifndef CQ_PHILOX_H
#define CQ_PHILOX_H

#include "cq.h"

enum {
    CQ_PHILOX_ROUNDS = 10,
    CQ_NOISE_GROUP = 64,   /* elements that sixteen successive counters give */
    CQ_NOISE_PIECES = 496, /* of the inverse normal: 16 for each of 31 octaves */
};
#define CQ_PHILOX_M0 0xD2511F53u
#define CQ_PHILOX_M1 0xCD9E8D57u
#define CQ_PHILOX_W0 0x9E3779B9u
#define CQ_PHILOX_W1 0xBB67AE85u

/* What noise depends on besides the element: the seed, the global index of the sample, the step,
 * and a stream, so that one step can draw twice. `table` [3, CQ_NOISE_PIECES]: values, slopes and
 * curvatures of the inverse normal (cmibq/noise.py); not read by uniform noise. */
typedef struct cq_noise {
    uint32_t seed[2], sample, step, stream;
    const float *table;
} cq_noise;

/* The ten rounds, in place. */
CQ_INLINE void cq_philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int r = 0; r < CQ_PHILOX_ROUNDS; r++, k0 += CQ_PHILOX_W0, k1 += CQ_PHILOX_W1) {
        const uint64_t a = (uint64_t)CQ_PHILOX_M0 * c[0], b = (uint64_t)CQ_PHILOX_M1 * c[2];
        c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
        c[1] = (uint32_t)b;
        c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[3] = (uint32_t)a;
    }
}

/* How a kernel makes whole groups: elements 64 g .. 64 g + 63. */
typedef void (*cq_noise_fn)(const cq_noise *s, uint32_t group, float *out);

/* Elements first .. first + n - 1 by groups, the first and the last of which may be parts. */
CQ_INLINE void cq_noise_run(const cq_noise *s, uint64_t first, size_t n, float *out,
                            cq_noise_fn group) {
    float part[CQ_NOISE_GROUP];
    for (size_t i = 0; i < n;) {
        const uint64_t at = first + i;
        const size_t skip = (size_t)(at % CQ_NOISE_GROUP);
        const size_t count = cq_min_size(CQ_NOISE_GROUP - skip, n - i);
        float *to = count == CQ_NOISE_GROUP ? out + i : part;
        group(s, (uint32_t)(at / CQ_NOISE_GROUP), to);
        if (to == part)
            for (size_t k = 0; k < count; k++) out[i + k] = part[skip + k];
        i += count;
    }
}

#endif
