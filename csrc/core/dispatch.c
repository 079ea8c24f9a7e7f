/* SPDX-License-Identifier: Apache-2.0 */
/* The declaration of syscall(). */
#define _DEFAULT_SOURCE
#include "dispatch.h"

#if CQ_X86
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
static int cq_has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int cq_has_avx512(void) {
    return cq_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}
static int cq_has_avx512vnni(void) {
    return cq_has_avx512() && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512vbmi");
}
static int cq_has_avx512bf16(void) {
    return cq_has_avx512vnni() && __builtin_cpu_supports("avx512bf16");
}
/* Linux lends the tile registers to a process that asks; it refuses where it does not know them. */
static int cq_has_avx512amx(void) {
#if defined(__linux__)
    const long request_permission = 0x1023, tile_data = 18;
    return cq_has_avx512bf16() && __builtin_cpu_supports("amx-tile") &&
           __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return 0;
#endif
}
#endif
#if CQ_ARM64
#include <sys/auxv.h>
static int cq_has_neondot(void) { return (getauxval(AT_HWCAP) >> 20) & 1; }
#endif

/* CQ_PICK(flag, own, fallback): `own` where the kernel list has a 1. */
#define CQ_PICK_1(own, fallback) own
#define CQ_PICK_0(own, fallback) fallback
#define CQ_PICK(flag, own, fallback) CQ_PICK_##flag(own, fallback)

static const cq_kernels cq_table_scalar = {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    .name = cq_##name##_scalar,
#include "kernels.def"
#undef KERNEL
};

#if CQ_X86
static const cq_kernels cq_table_avx2 = {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    .name = CQ_PICK(avx2, cq_##name##_avx2, cq_##name##_scalar),
#include "kernels.def"
#undef KERNEL
};
static const cq_kernels cq_table_avx512 = {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    .name =                                                                                        \
        CQ_PICK(avx512, cq_##name##_avx512, CQ_PICK(avx2, cq_##name##_avx2, cq_##name##_scalar)),
#include "kernels.def"
#undef KERNEL
};
static const cq_kernels cq_table_avx512vnni = {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    .name = CQ_PICK(                                                                               \
        avx512vnni, cq_##name##_avx512vnni,                                                        \
        CQ_PICK(avx512, cq_##name##_avx512, CQ_PICK(avx2, cq_##name##_avx2, cq_##name##_scalar))),
#include "kernels.def"
#undef KERNEL
};
static const cq_kernels cq_table_avx512bf16 = {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    .name = CQ_PICK(avx512bf16, cq_##name##_avx512bf16,                                            \
                    CQ_PICK(avx512vnni, cq_##name##_avx512vnni,                                    \
                            CQ_PICK(avx512, cq_##name##_avx512,                                    \
                                    CQ_PICK(avx2, cq_##name##_avx2, cq_##name##_scalar)))),
#include "kernels.def"
#undef KERNEL
};
static const cq_kernels cq_table_avx512amx = {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    .name =                                                                                        \
        CQ_PICK(avx512amx, cq_##name##_avx512amx,                                                  \
                CQ_PICK(avx512bf16, cq_##name##_avx512bf16,                                        \
                        CQ_PICK(avx512vnni, cq_##name##_avx512vnni,                                \
                                CQ_PICK(avx512, cq_##name##_avx512,                                \
                                        CQ_PICK(avx2, cq_##name##_avx2, cq_##name##_scalar))))),
#include "kernels.def"
#undef KERNEL
};
#endif

#if CQ_ARM64
static const cq_kernels cq_table_neon = {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    .name = CQ_PICK(neon, cq_##name##_neon, cq_##name##_scalar),
#include "kernels.def"
#undef KERNEL
};
static const cq_kernels cq_table_neondot = {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    .name = CQ_PICK(neondot, cq_##name##_neondot,                                                  \
                    CQ_PICK(neon, cq_##name##_neon, cq_##name##_scalar)),
#include "kernels.def"
#undef KERNEL
};
#endif

const cq_kernel_info cq_kernel_list[] = {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    {#name, #exactness},
#include "kernels.def"
#undef KERNEL
};
const size_t cq_kernel_count = sizeof cq_kernel_list / sizeof cq_kernel_list[0];

static const char *const isa_names[] = {
#define ISA(name, guard, test) #name,
#include "isa.def"
#undef ISA
};

const char *cq_isa_name(cq_isa isa) { return isa_names[isa]; }

const cq_kernels *cq_isa_table(cq_isa isa) {
    switch (isa) {
#if CQ_X86
    case CQ_ISA_avx2: return &cq_table_avx2;
    case CQ_ISA_avx512: return &cq_table_avx512;
    case CQ_ISA_avx512vnni: return &cq_table_avx512vnni;
    case CQ_ISA_avx512bf16: return &cq_table_avx512bf16;
    case CQ_ISA_avx512amx: return &cq_table_avx512amx;
#endif
#if CQ_ARM64
    case CQ_ISA_neon: return &cq_table_neon;
    case CQ_ISA_neondot: return &cq_table_neondot;
#endif
    default: return &cq_table_scalar;
    }
}

#define CQ_GUARDED_1(test) (test)
#define CQ_GUARDED_0(test) 0
#define CQ_GUARDED_(guard, test) CQ_GUARDED_##guard(test)
#define CQ_GUARDED(guard, test) CQ_GUARDED_(guard, test)

int cq_isa_supported(cq_isa isa) {
    switch (isa) {
#define ISA(name, guard, test)                                                                     \
    case CQ_ISA_##name: return CQ_GUARDED(guard, test);
#include "isa.def"
#undef ISA
    default: return 0;
    }
}

cq_isa cq_isa_best(void) {
    int best = 0;
    for (int isa = 0; isa < CQ_ISA_COUNT; isa++)
        if (cq_isa_supported((cq_isa)isa)) best = isa;
    return (cq_isa)best;
}
