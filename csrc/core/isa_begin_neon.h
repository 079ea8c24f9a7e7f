/* SPDX-License-Identifier: Apache-2.0 */
/* Everything up to isa_end.h may use NEON, which every aarch64 has; no include guard on purpose. */
#include <arm_neon.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("neon"))), apply_to = function)
#else
#pragma GCC push_options
#endif
