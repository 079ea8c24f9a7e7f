/* SPDX-License-Identifier: Apache-2.0 */
/* usage: parity [step] [expected best level]. Exit status 0: every level gives what scalar gives,
 * every row of kernels.def is called by some case (looked at with step 1: it is the same list on
 * every machine), and the best level of this CPU is the expected one. A step above 1 takes every so
 * many widths, of small shapes only: for emulators. */
#include "parity.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *take(run *t, size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!memory || t->memories == sizeof t->memory / sizeof *t->memory) {
        fprintf(stderr, "parity: out of memory\n");
        exit(2);
    }
    memset(memory, 0x5A, bytes);
    t->memory[t->memories++] = memory;
    return memory;
}

uint64_t draw(run *t) { /* xorshift64* */
    t->random ^= t->random >> 12;
    t->random ^= t->random << 25;
    t->random ^= t->random >> 27;
    return t->random * 0x2545F4914F6CDD1Du >> 11;
}

float *finite(run *t, size_t n) {
    static const float special[] = {0.0f, -0.0f, 1e-42f, 0.25f, -0.75f, 1.5f};
    float *x = take(t, n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        const uint64_t r = draw(t);
        x[i] = r % 8 == 0 ? special[r / 8 % 6] : (float)((double)r * 0x1p-50 - 4.0);
    }
    return x;
}

float *nasty(run *t, size_t n) {
    static const float special[] = {INFINITY, -INFINITY, NAN, 1e38f};
    float *x = finite(t, n);
    for (size_t i = 0; i < n; i++) {
        const uint64_t r = draw(t);
        if (r % 16 == 0) x[i] = special[r / 16 % 4];
    }
    return x;
}

uint8_t *bytes_below(run *t, size_t n, int bits) {
    uint8_t *v = take(t, n);
    for (size_t i = 0; i < n; i++) v[i] = (uint8_t)(draw(t) & ((1u << bits) - 1));
    return v;
}

void grids(run *t, size_t n, float **scale, float **lo, float **hi) {
    static const float scales[] = {0.5f, 0.1f, 3.7e-3f, 1e-30f, 1e30f};
    *scale = take(t, n * sizeof **scale);
    *lo = take(t, n * sizeof **lo);
    *hi = take(t, n * sizeof **hi);
    for (size_t i = 0; i < n; i++) {
        const uint64_t top = (2u << draw(t) % 8) - 1, zero = draw(t) % (top + 1);
        (*scale)[i] = scales[draw(t) % 5];
        (*lo)[i] = -(float)zero;
        (*hi)[i] = (float)(top - zero);
    }
}

void report_f64(run *t, const double *v, size_t n) {
    if (t->results + n > t->room) {
        t->room = 2 * (t->results + n);
        double *grown = realloc(t->result, t->room * sizeof *grown);
        if (!grown) exit(2);
        t->result = grown;
    }
    for (size_t i = 0; i < n; i++) t->result[t->results++] = isnan(v[i]) ? (double)NAN : v[i];
}

void report_f32(run *t, const float *v, size_t n) {
    for (size_t i = 0; i < n; i++) report_f64(t, &(double){(double)v[i]}, 1);
}

void report_u8(run *t, const uint8_t *v, size_t n) {
    for (size_t i = 0; i < n; i++) report_f64(t, &(double){v[i]}, 1);
}

void report_s8(run *t, const int8_t *v, size_t n) {
    for (size_t i = 0; i < n; i++) report_f64(t, &(double){v[i]}, 1);
}

void report_status(run *t, cq_status status) { report_f64(t, &(double){(double)status}, 1); }

static const parity_case *all_cases(size_t i) {
    if (i < elementwise_count) return &elementwise_cases[i];
    i -= elementwise_count;
    if (i < matrix_count) return &matrix_cases[i];
    i -= matrix_count;
    if (i < product_count) return &product_cases[i];
    i -= product_count;
    return i < linear_count ? &linear_cases[i] : NULL;
}

static run call(const parity_case *c, const cq_kernels *k, int threads, size_t R, size_t C) {
    cq_ctx cx = {.k = k, .threads = threads};
    run t = {.cx = &cx, .R = R, .C = C, .random = 0x9E3779B97F4A7C15u + R * 1000003 + C};
    c->call(&t);
    t.cx = NULL;
    return t;
}

static void drop(run *t) {
    for (size_t i = 0; i < t->memories; i++) free(t->memory[i]);
    free(t->result);
}

static int same(double a, double b, double tolerance) {
    uint64_t bits[2];
    memcpy(bits, &a, sizeof a);
    memcpy(bits + 1, &b, sizeof b);
    if (bits[0] == bits[1]) return 1;
    return tolerance > 0.0 && fabs(a - b) <= tolerance * (1.0 + fabs(a));
}

/* How many levels differ from scalar on one thread. */
static int compare(const parity_case *c, int threads, size_t R, size_t C) {
    int bad = 0;
    run want = call(c, cq_isa_table(CQ_ISA_scalar), 1, R, C);
    for (int isa = 0; isa < CQ_ISA_COUNT; isa++) {
        if (!cq_isa_supported((cq_isa)isa)) continue;
        run got = call(c, cq_isa_table((cq_isa)isa), threads, R, C);
        size_t i = 0, n = cq_min_size(want.results, got.results);
        while (i < n && same(want.result[i], got.result[i], want.tolerance)) i++;
        if (i < n)
            fprintf(stderr, "%s [%zu, %zu] %s, %d threads: result %zu is %a, scalar gives %a\n",
                    c->name, R, C, cq_isa_name((cq_isa)isa), threads, i, got.result[i],
                    want.result[i]);
        bad += i < n || want.results != got.results;
        drop(&got);
    }
    drop(&want);
    return bad;
}

/* Which rows of kernels.def does no case call? Each in turn is replaced by a trap. */
static jmp_buf trapped;
static void trap(void) { longjmp(trapped, 1); }

static int called(const cq_kernels *k) {
    for (volatile size_t i = 0; all_cases(i); i++) {
        if (setjmp(trapped)) return 1; /* what the case held is lost; it is little */
        run whole = call(all_cases(i), k, 1, 4, 128), odd = call(all_cases(i), k, 1, 33, 97);
        run row = call(all_cases(i), k, 1, 1, 130);
        drop(&whole);
        drop(&odd);
        drop(&row);
    }
    return 0;
}

static int uncalled(void) {
    int missing = 0;
    cq_kernels k;
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    k = *cq_isa_table(CQ_ISA_scalar);                                                              \
    k.name = (void(*) args)trap;                                                                   \
    if (!called(&k)) missing++, fprintf(stderr, "no case calls the kernel %s\n", #name);
#include "core/kernels.def"
#undef KERNEL
    return missing;
}

int main(int argc, char **argv) {
    static const size_t sizes[] = {0,  1,  3,  7,  8,  9,  15,  16,  17,  31,
                                   32, 33, 63, 64, 65, 97, 128, 130, 192, 1024};
    static const size_t rows[] = {0, 1, 3, 4, 17, 65};
    const unsigned long given = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    const size_t step = given > 0 ? given : 1;
    const char *best = cq_isa_name(cq_isa_best());
    int bad = step == 1 ? uncalled() : 0;
    if (argc > 2 && strcmp(argv[2], best) != 0)
        bad++, fprintf(stderr, "the best level is %s, expected %s\n", best, argv[2]);
    size_t count = 0;
    for (; all_cases(count); count++)
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            for (size_t s = r % step; s < sizeof sizes / sizeof *sizes; s += step)
                if (step == 1 || rows[r] * sizes[s] < 4096)
                    bad += compare(all_cases(count), 1 + (int)(s % 3), rows[r], sizes[s]);
    printf("parity: %zu cases, levels up to %s: %s\n", count, best, bad ? "DIFFERENT" : "equal");
    return bad != 0;
}
