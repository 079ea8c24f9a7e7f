/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg pack_row[] = {
    {"codes", NPY_UINT8, "RC", CQ_IN, 0, 0},
    {"bits", CQ_ARG_INT, NULL, 0, 1, 8},
    {"out", NPY_UINT8, "RB", CQ_OUT, 0, 0},
};

PyObject *cq_py_pack_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("pack", pack_row, &a) < 0) return NULL;
    if (cq_expect_size(&a, "out: dimension B", a.dim['B'], cq_packed_bytes(a.dim['C'], (int)a.i[1]),
                       "ceil(C * bits / 8)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_pack_row(&a.cx, a.ptr[0], (int)a.i[1], a.ptr[2], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg unpack_row[] = {
    {"packed", NPY_UINT8, "RB", CQ_IN, 0, 0},
    {"bits", CQ_ARG_INT, NULL, 0, 1, 8},
    {"out", NPY_UINT8, "RC", CQ_OUT, 0, 0},
};

PyObject *cq_py_unpack_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("unpack", unpack_row, &a) < 0) return NULL;
    if (cq_expect_size(&a, "packed: dimension B", a.dim['B'],
                       cq_packed_bytes(a.dim['C'], (int)a.i[1]), "ceil(C * bits / 8)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_unpack_row(&a.cx, a.ptr[0], (int)a.i[1], a.ptr[2], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}
