/* SPDX-License-Identifier: Apache-2.0 */
/* The whole tile, 12 rows x 32 columns of packed panels, as instructions: gcc 12 makes a loop of
 * other instructions between the same FMAs, and on Xeons the clock sinks with what a loop does
 * besides (measured 2.85 GHz against 3.05). One input a turn; two prefetches a turn bring the next
 * panel of A to L1 and a part of the next panel of B to L2. Included between isa_begin and end. */
#ifndef CQ_GEMM_TWELVE_AVX512_H
#define CQ_GEMM_TWELVE_AVX512_H

#define CQ_ZERO(r) "vpxord %%zmm" #r ",%%zmm" #r ",%%zmm" #r "\n\t"
#define CQ_ROW(at, x, lo, hi)                                                                      \
    "vbroadcastss " #at "(%[a]),%%zmm" #x "\n\t"                                                   \
    "vfmadd231ps %%zmm24,%%zmm" #x ",%%zmm" #lo "\n\t"                                             \
    "vfmadd231ps %%zmm25,%%zmm" #x ",%%zmm" #hi "\n\t"
#define CQ_ADD(lo, hi)                                                                             \
    "vmovups (%[c]),%%zmm24%{%%k1%}%{z%}\n\t"                                                      \
    "vmovups 64(%[c]),%%zmm25%{%%k2%}%{z%}\n\t"                                                    \
    "vaddps %%zmm" #lo ",%%zmm24,%%zmm" #lo "\n\t"                                                 \
    "vaddps %%zmm" #hi ",%%zmm25,%%zmm" #hi "\n\t"
#define CQ_PUT(lo, hi)                                                                             \
    "vmovups %%zmm" #lo ",(%[c])%{%%k1%}\n\t"                                                      \
    "vmovups %%zmm" #hi ",64(%[c])%{%%k2%}\n\t"                                                    \
    "add %[ldc],%[c]\n\t"
#define CQ_SUM(lo, hi) CQ_ADD(lo, hi) CQ_PUT(lo, hi)
#define CQ_EACH(F)                                                                                 \
    F(0, 1)                                                                                        \
    F(2, 3)                                                                                        \
    F(4, 5) F(6, 7) F(8, 9) F(10, 11) F(12, 13) F(14, 15) F(16, 17) F(18, 19) F(20, 21) F(22, 23)
#define CQ_ZERO2(lo, hi) CQ_ZERO(lo) CQ_ZERO(hi)

#define CQ_FAR_B "prefetcht1 (%[ahead])\n\tadd %[step],%[ahead]\n\t"
#define CQ_FAR_A "prefetcht0 (%[a],%[psa])\n\t"
#define CQ_TWELVE(FAR_B, FAR_A)                                                                    \
    __asm__ volatile(                                                                              \
        "kmovw %[lo],%%k1\n\t"                                                                     \
        "kmovw %[hi],%%k2\n\t" CQ_EACH(                                                            \
            CQ_ZERO2) ".p2align 6\n"                                                               \
                      "1:\n\t"                                                                     \
                      "vmovups (%[b]),%%zmm24\n\t"                                                 \
                      "vmovups 64(%[b]),%%zmm25\n\t" FAR_B CQ_ROW(0, 26, 0, 1) CQ_ROW(4, 27, 2, 3) \
                          CQ_ROW(8, 28, 4, 5) CQ_ROW(12, 29, 6, 7) CQ_ROW(16, 30, 8, 9)            \
                              CQ_ROW(20, 31, 10, 11) FAR_A CQ_ROW(24, 26, 12, 13)                  \
                                  CQ_ROW(28, 27, 14, 15) CQ_ROW(32, 28, 16, 17)                    \
                                      CQ_ROW(36, 29, 18, 19) CQ_ROW(40, 30, 20, 21)                \
                                          CQ_ROW(44, 31, 22,                                       \
                                                 23) "add $48,%[a]\n\t"                            \
                                                     "add $128,%[b]\n\t"                           \
                                                     "dec %[k]\n\t"                                \
                                                     "jne 1b\n\t"                                  \
                                                     "test %[first],%[first]\n\t"                  \
                                                     "jne 2f\n\t" CQ_EACH(                         \
                                                         CQ_SUM) "jmp 3f\n"                        \
                                                                 "2:\n\t" CQ_EACH(CQ_PUT) "3:\n\t" \
        : [a] "+r"(a), [b] "+r"(b), [k] "+r"(k), [ahead] "+r"(ahead), [c] "+r"(c)                  \
        : [ldc] "r"(t->ldc * sizeof(float)), [psa] "r"(t->psa * sizeof(float)), [step] "r"(step),  \
          [lo] "r"(lo), [hi] "r"(hi), [first] "r"(t->first)                                        \
        : "memory", "cc", "k1", "k2", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6",      \
          "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16",   \
          "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25",         \
          "zmm26", "zmm27", "zmm28", "zmm29", "zmm30", "zmm31")

/* t->kc > 0. `ahead`, or NULL where panels come from L2, moves by `step` bytes an input. */
CQ_INLINE void twelve(const cq_gemm_f32_tile *t, const float *a, float *c, const char *ahead,
                      size_t step) {
    const float *b = t->b;
    size_t k = t->kc;
    const uint32_t lo = cq_tail_mask(t->n), hi = cq_tail_mask(t->n > 16 ? t->n - 16 : 0);
    if (ahead)
        CQ_TWELVE(CQ_FAR_B, CQ_FAR_A);
    else
        CQ_TWELVE("", "");
}

#undef CQ_FAR_A
#undef CQ_FAR_B
#undef CQ_TWELVE
#undef CQ_ZERO
#undef CQ_ZERO2
#undef CQ_ROW
#undef CQ_ADD
#undef CQ_PUT
#undef CQ_SUM
#undef CQ_EACH
#endif
