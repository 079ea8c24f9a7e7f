/* SPDX-License-Identifier: Apache-2.0
 * What this machine can do at most: arithmetic in registers, and memory traffic. Compiled by
 * probes.py with -march=native and loaded through ctypes; never part of the package.
 *
 *   double probe_<name>(int threads, double seconds, char *from, char *to, size_t bytes)
 *
 * runs on `threads` threads for about `seconds` and returns operations or bytes per second, all
 * threads together, or 0 where the CPU has no such instruction. Arithmetic counts a multiply and an
 * add as two. Copies count what is read and what is written. Every thread walks its own part of the
 * buffers and goes on where its last call stopped, so that short samples still see all of it. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDE 64
#elif defined(__AVX2__)
#define WIDE 32
#else
#define WIDE 16
#endif
typedef float vecf __attribute__((vector_size(WIDE)));
typedef int32_t veci __attribute__((vector_size(WIDE)));

enum { MOST_THREADS = 64, CHUNK = 1 << 20 };

typedef struct {
    char *from, *to;
    size_t bytes; /* this thread's part, a multiple of CHUNK */
    size_t *at;   /* where its last call stopped */
} part;

typedef double (*chunk_fn)(const part *p); /* does about a millisecond; returns what it did */

typedef struct {
    part part;
    chunk_fn chunk;
    double seconds, rate;
} job;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *run_job(void *arg) {
    job *j = arg;
    double done = 0, start = now(), end;
    do {
        done += j->chunk(&j->part);
        end = now();
    } while (end - start < j->seconds);
    j->rate = done / (end - start);
    return NULL;
}

static double run(chunk_fn chunk, int threads, double seconds, char *from, char *to, size_t bytes) {
    static size_t at[MOST_THREADS];
    pthread_t id[MOST_THREADS];
    job jobs[MOST_THREADS];
    double rate = 0;
    size_t share = bytes / (size_t)threads / CHUNK * CHUNK;
    for (int t = 0; t < threads; t++) {
        size_t first = share * (size_t)t;
        jobs[t] = (job){{from + first, to + first, share, at + t}, chunk, seconds, 0};
        at[t] = share ? at[t] % share : 0;
    }
    for (int t = 1; t < threads; t++) pthread_create(id + t, NULL, run_job, jobs + t);
    run_job(jobs);
    for (int t = 1; t < threads; t++) pthread_join(id[t], NULL);
    for (int t = 0; t < threads; t++) rate += jobs[t].rate;
    return rate;
}

#if defined(__x86_64__)
#define KEEP(v) __asm__ volatile("" : "+v"(v))
#else
#define KEEP(v) __asm__ volatile("" : "+w"(v))
#endif
/* Twelve chains hide a latency of four cycles at two instructions a cycle. */
#define TWELVE(F) F(a) F(b) F(c) F(d) F(e) F(f) F(g) F(h) F(i) F(j) F(k) F(l)
enum { CHAINS = 12, TURNS = 100000 };

static double chunk_fma_f32(const part *p) {
    (void)p;
    vecf x = {0}, y = {0};
    KEEP(x);
    KEEP(y);
#define DECLARE(v) vecf v = x;
#define STEP(v)                                                                                    \
    v += x * y;                                                                                    \
    KEEP(v);
    TWELVE(DECLARE)
    for (int n = 0; n < TURNS; n++) {
        TWELVE(STEP)
    }
#undef DECLARE
#undef STEP
    return 2.0 * CHAINS * TURNS * WIDE / 4;
}

#if defined(__AVX512VNNI__)
typedef __m512i int8_vec;
#define INT8_STEP(v)                                                                               \
    v = _mm512_dpbusd_epi32(v, x, y);                                                              \
    KEEP(v);
#elif defined(__AVX2__)
typedef __m256i int8_vec;
#define INT8_STEP(v)                                                                               \
    v = _mm256_add_epi32(v, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), y));                     \
    KEEP(v);
#endif

#if defined(__AVX2__)
static double chunk_vnni_int8(const part *p) {
    (void)p;
    int8_vec x = {0}, y = {0};
    KEEP(x);
    KEEP(y);
#define DECLARE(v) int8_vec v = x;
    TWELVE(DECLARE)
    for (int n = 0; n < TURNS; n++) {
        TWELVE(INT8_STEP)
    }
#undef DECLARE
    return 2.0 * CHAINS * TURNS * sizeof(int8_vec);
}
#endif

#if defined(__AVX512BF16__)
static double chunk_vdpbf16ps(const part *p) {
    (void)p;
    __m512bh x, y;
    memset(&x, 0, sizeof x), memset(&y, 0, sizeof y);
    KEEP(x);
    KEEP(y);
#define DECLARE(v) __m512 v = _mm512_setzero_ps();
#define STEP(v)                                                                                    \
    v = _mm512_dpbf16_ps(v, x, y);                                                                 \
    KEEP(v);
    TWELVE(DECLARE)
    for (int n = 0; n < TURNS; n++) {
        TWELVE(STEP)
    }
#undef DECLARE
#undef STEP
    return 2.0 * CHAINS * TURNS * 32;
}
#endif

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
static void configure_tiles(void) {
    struct {
        uint8_t palette, start, zero[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int t = 0; t < 8; t++) shape.bytes[t] = 64, shape.rows[t] = 16;
    __asm__ volatile("" : : "r"(&shape) : "memory"); /* gcc 12 drops all but 8 bytes of it */
    _tile_loadconfig(&shape);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

static double chunk_amx_int8(const part *p) {
    (void)p;
    configure_tiles();
    for (int n = 0; n < TURNS / 8; n++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return 4.0 * (TURNS / 8) * 2 * 16 * 16 * 64;
}

static double chunk_amx_bf16(const part *p) {
    (void)p;
    configure_tiles();
    for (int n = 0; n < TURNS / 8; n++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 4.0 * (TURNS / 8) * 2 * 16 * 16 * 32;
}
#endif

static char *next_chunk(const part *p, char *base) { return base + *p->at; }

static void advance(const part *p) { *p->at = *p->at + CHUNK < p->bytes ? *p->at + CHUNK : 0; }

/* Fetching ahead by hand reads a fifth faster than the hardware prefetchers alone. */
static void fetch(const void *at) { __builtin_prefetch((const char *)at + 768); }

static double chunk_read(const part *p) {
    const char *base = next_chunk(p, p->from), *half = base + CHUNK / 2;
    veci a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i < CHUNK / 2; i += 128) {
        const veci *x = (const veci *)(base + i), *y = (const veci *)(half + i);
        fetch(x), fetch((const char *)x + 64), fetch(y), fetch((const char *)y + 64);
        for (int k = 0; k < 128 / WIDE; k += 2) a ^= x[k], b ^= x[k + 1], c ^= y[k], d ^= y[k + 1];
        KEEP(a);
    }
    a ^= b ^ c ^ d;
    KEEP(a);
    advance(p);
    return CHUNK;
}

static double chunk_copy(const part *p) {
    const veci *x = (const veci *)next_chunk(p, p->from);
    veci *y = (veci *)next_chunk(p, p->to);
    for (size_t i = 0; i < CHUNK / WIDE; i++) {
        veci v = x[i];
        KEEP(v); /* else the compiler calls memcpy, which streams its stores when it likes */
        if (i * WIDE % 64 == 0) fetch(x + i);
        y[i] = v;
    }
    advance(p);
    return 2.0 * CHUNK;
}

static double chunk_nt_copy(const part *p) {
#if defined(__AVX512F__)
    const __m512i *x = (const __m512i *)next_chunk(p, p->from);
    __m512i *y = (__m512i *)next_chunk(p, p->to);
    for (size_t i = 0; i < CHUNK / 64; i++) {
        fetch(x + i);
        _mm512_stream_si512(y + i, _mm512_load_si512(x + i));
    }
    _mm_sfence();
#elif defined(__AVX2__)
    const __m256i *x = (const __m256i *)next_chunk(p, p->from);
    __m256i *y = (__m256i *)next_chunk(p, p->to);
    for (size_t i = 0; i < CHUNK / 32; i++) {
        if (i % 2 == 0) fetch(x + i);
        _mm256_stream_si256(y + i, _mm256_load_si256(x + i));
    }
    _mm_sfence();
#else
    memcpy(next_chunk(p, p->to), next_chunk(p, p->from), CHUNK);
#endif
    advance(p);
    return 2.0 * CHUNK;
}

/* Linux hands out the tile registers on request, once per process. */
static int amx_allowed(void) {
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return 0;
#endif
}

#define PROBE(name, allowed)                                                                       \
    double probe_##name(int threads, double seconds, char *from, char *to, size_t bytes) {         \
        if (threads < 1 || threads > MOST_THREADS || !(allowed)) return 0;                         \
        return run(chunk_##name, threads, seconds, from, to, bytes);                               \
    }
#define ABSENT(name)                                                                               \
    double probe_##name(int threads, double seconds, char *from, char *to, size_t bytes) {         \
        (void)threads, (void)seconds, (void)from, (void)to, (void)bytes, (void)amx_allowed;        \
        return 0;                                                                                  \
    }

PROBE(fma_f32, 1)
PROBE(read, bytes >= (size_t)threads * CHUNK)
PROBE(copy, bytes >= (size_t)threads * CHUNK)
PROBE(nt_copy, bytes >= (size_t)threads * CHUNK)
#if defined(__AVX2__)
PROBE(vnni_int8, 1)
#else
ABSENT(vnni_int8)
#endif
#if defined(__AVX512BF16__)
PROBE(vdpbf16ps, 1)
#else
ABSENT(vdpbf16ps)
#endif
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
PROBE(amx_int8, amx_allowed())
PROBE(amx_bf16, amx_allowed())
#else
ABSENT(amx_int8)
ABSENT(amx_bf16)
#endif
