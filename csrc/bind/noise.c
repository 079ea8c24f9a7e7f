/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg fill[] = {
    {"seed", CQ_ARG_INT, NULL, 0, LLONG_MIN, LLONG_MAX},
    {"step", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX},
    {"sample", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX},
    {"stream", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX},
    {"first", CQ_ARG_INT, NULL, 0, 0, (1LL << 34) - 1},
    {"table", NPY_FLOAT32, "TP", CQ_IN | CQ_OPT, 0, 0},
    {"out", NPY_FLOAT32, "RC", CQ_OUT, 0, 0},
};

PyObject *cq_py_noise(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("noise", fill, &a) < 0) return NULL;
    if (a.ptr[5] && cq_expect_size(&a, "table", a.dim['T'] * a.dim['P'],
                                   (size_t)3 * CQ_NOISE_PIECES, "3 * 496 values") < 0)
        return NULL;
    const cq_noise s = {{(uint32_t)a.i[0], (uint32_t)((unsigned long long)a.i[0] >> 32)},
                        (uint32_t)a.i[2],
                        (uint32_t)a.i[1],
                        (uint32_t)a.i[3],
                        a.ptr[5]};
    Py_BEGIN_ALLOW_THREADS
    status = cq_noise_fill(&a.cx, &s, s.table != NULL, (uint64_t)a.i[4], a.ptr[6], a.dim['R'],
                           a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}
