/* SPDX-License-Identifier: Apache-2.0 */
/* alloc, rounding to integers: floor(b), and one step more (or less) for those who wish it most, so
 * that sum out = total; of equal wishes the lowest index first. b finite; 0 <= lo <= out <= hi <=
 * 255 and lo * n <= total <= hi * n.
 *
 *   floor        out = floor(min(hi, max(lo, b))), and *sum their sum
 *   round_count  the key of a channel grows with its wish for a step: the bits of its fraction (up)
 *                or of one less its fraction (down), and 1; 0 where `now` is at that end. Adds to
 *                bins[key >> shift mod CQ_ALLOC_BINS] those with key >> shift / CQ_ALLOC_BINS =
 *                prefix, and what is not looked at to the 16 bins that come after
 *   round_give   a step for the first `room` channels with keys least .. most, least > 0; *count:
 *                how many got one, or with room 0 how many there are
 *
 * The keys that get a step are found ten bits at a time by the driver. Exactness: EXACT. */
#include "core/dispatch.h"
#include "kernels/alloc/round.h"

void cq_alloc_floor_f32_scalar(const float *b, size_t n, int lo, int hi, uint8_t *out,
                               int64_t *sum) {
    *sum = cq_floor_any(b, n, lo, hi, out);
}

void cq_alloc_round_count_f32_scalar(const cq_alloc_round *r, const float *b, const uint8_t *now,
                                     size_t n, size_t *bins) {
    cq_round_count_any(r, b, now, n, bins);
}

void cq_alloc_round_give_f32_scalar(const cq_alloc_round *r, const float *b, size_t n, size_t room,
                                    uint8_t *out, size_t *count) {
    *count = cq_round_give_any(r, b, n, room, out);
}
