/* SPDX-License-Identifier: Apache-2.0 */
/* As for VNNI, but TDPBSSD takes signed bytes of x, so nothing is shifted. */
#include "core/dispatch.h"
#if CQ_X86
#include "core/isa_begin_avx512amx.h"

#include "kernels/qprefill/panel_avx512.h"

void cq_qprefill_row_avx512amx(const int8_t *x, size_t groups, size_t group, uint8_t *to) {
    cq_qprefill_row_bytes(x, groups, group, 0, to);
}

void cq_qprefill_panel_avx512amx(const cq_qprefill_strip *s) { cq_qprefill_panel_all(s, 0); }

#include "core/isa_end.h"
#endif
