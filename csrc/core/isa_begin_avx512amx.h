/* SPDX-License-Identifier: Apache-2.0 */
/* Everything up to isa_end.h is compiled for avx512amx; no include guard on purpose. */
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(                                                                                         \
    __attribute__((target(                                                                                            \
        "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx512bf16,amx-tile,amx-int8,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target(                                                                                \
    "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx512bf16,amx-tile,amx-int8,amx-bf16")
#endif
