/* SPDX-License-Identifier: Apache-2.0 */
/* Everything up to isa_end.h is compiled for avx2; no include guard on purpose. */
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
