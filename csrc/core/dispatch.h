/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel tables, one per ISA level, generated from kernels.def and isa.def. */
#ifndef CQ_DISPATCH_H
#define CQ_DISPATCH_H

#include "alloc.h"
#include "attend.h"
#include "attention.h"
#include "channel.h"
#include "cq.h"
#include "fakequant.h"
#include "gaussian.h"
#include "gemm.h"
#include "philox.h"
#include "qgemm.h"
#include "qprefill.h"
#include "rangecode.h"

#include <pthread.h>
#include <stdatomic.h>

#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    void cq_##name##_scalar args;                                                                  \
    void cq_##name##_avx2 args;                                                                    \
    void cq_##name##_avx512 args;                                                                  \
    void cq_##name##_avx512vnni args;                                                              \
    void cq_##name##_avx512bf16 args;                                                              \
    void cq_##name##_avx512amx args;                                                               \
    void cq_##name##_neon args;                                                                    \
    void cq_##name##_neondot args;
#include "kernels.def"
#undef KERNEL

typedef struct cq_kernels {
#define KERNEL(name, exactness, avx2, avx512, avx512vnni, avx512bf16, avx512amx, neon, neondot,    \
               args)                                                                               \
    void(*name) args;
#include "kernels.def"
#undef KERNEL
} cq_kernels;

typedef enum cq_isa {
#define ISA(name, guard, test) CQ_ISA_##name,
#include "isa.def"
#undef ISA
    CQ_ISA_COUNT
} cq_isa;

typedef struct cq_kernel_info {
    const char *name;
    const char *exactness;
} cq_kernel_info;

extern const cq_kernel_info cq_kernel_list[];
extern const size_t cq_kernel_count;

/* Name of a level, the richest level this CPU runs, whether it runs one, and the table of a level.
 */
const char *cq_isa_name(cq_isa isa);
cq_isa cq_isa_best(void);
int cq_isa_supported(cq_isa isa);
const cq_kernels *cq_isa_table(cq_isa isa);

/* What a driver needs besides its operands: the table, the thread count, and where to put the first
 * offending value when it refuses an argument. The rest lets a long call be interrupted, see
 * cq_stop in parallel.h: `poll` (NULL: never) says whether to stop, and is called by `caller`. */
typedef struct cq_ctx {
    const cq_kernels *k;
    int threads;
    size_t bad_index;
    double bad_value;
    int (*poll)(struct cq_ctx *cx);
    pthread_t caller;
    long long next_poll; /* milliseconds, 0 before the first look at the clock */
    atomic_int stopped;
} cq_ctx;

/* Record the first offending value and return `status`. */
CQ_INLINE cq_status cq_refuse(cq_ctx *cx, cq_status status, size_t index, double value) {
    cx->bad_index = index;
    cx->bad_value = value;
    return status;
}

#endif
