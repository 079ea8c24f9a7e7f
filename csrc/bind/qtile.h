/* SPDX-License-Identifier: Apache-2.0 */
/* What the wrappers of packed linears share. */
#ifndef CQ_BIND_QTILE_H
#define CQ_BIND_QTILE_H

#include "bind/args.h"

/* Longest row of a packed weight; no size of one that fits in memory overflows then. */
#define CQ_MOST_INPUTS (1LL << 31)

/* Check the groups (at most `longest` inputs) and the widths of the strips: 0, or -1 with an
 * exception set. */
int cq_check_tiles(const cq_args *a, const cq_tiles *t, size_t strips, size_t longest);

#endif
