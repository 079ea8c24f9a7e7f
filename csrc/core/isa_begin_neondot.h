/* SPDX-License-Identifier: Apache-2.0 */
/* Everything up to isa_end.h is compiled for NEON with sdot; no include guard on purpose. */
#include <arm_neon.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
