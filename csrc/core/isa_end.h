/* SPDX-License-Identifier: Apache-2.0 */
/* Closes the section opened by isa_begin_<isa>.h. */
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
