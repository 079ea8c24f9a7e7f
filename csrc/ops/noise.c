/* SPDX-License-Identifier: Apache-2.0 */
#include "core/parallel.h"
#include "ops.h"

enum { CHUNK = 4096 }; /* elements of one call of the kernel; whole groups */

typedef struct job {
    void (*kernel)(const cq_noise *s, uint64_t first, size_t n, float *out);
    const cq_noise *all;
    uint64_t first;
    float *out;
    size_t C, chunks;
} job;

static void some_chunks(void *ctx, size_t begin, size_t end, size_t block) {
    const job *j = ctx;
    (void)block;
    for (size_t i = begin; i < end; i++) {
        const size_t r = i / j->chunks, at = i % j->chunks * CHUNK;
        cq_noise s = *j->all;
        s.sample += (uint32_t)r;
        j->kernel(&s, j->first + at, cq_min_size(CHUNK, j->C - at), j->out + r * j->C + at);
    }
}

cq_status cq_noise_fill(cq_ctx *cx, const cq_noise *s, int normal, uint64_t first, float *out,
                        size_t R, size_t C) {
    job j = {normal ? cx->k->noise_normal_f32 : cx->k->noise_uniform_f32,
             s,
             first,
             out,
             C,
             cq_ceil_div(C, CHUNK)};
    return cq_parallel_rows(cx, C ? R * j.chunks : 0, 4, some_chunks, &j);
}
