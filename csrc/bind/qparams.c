/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "core/grid.h"
#include "ops/ops.h"

/* A symmetric grid of one bit has no positive level: its scale would divide by zero. */
static int symmetric_needs_two(const cq_args *a) {
    if (!(a->i[2] & CQ_RANGE_SYMMETRIC) || a->i[1] >= 2) return 0;
    PyErr_Format(PyExc_ValueError, "%s: bits is 1, a symmetric range needs 2..8", a->op);
    return -1;
}

static const cq_arg qparams_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"bits", CQ_ARG_INT, NULL, 0, 1, 8},
    {"mode", CQ_ARG_INT, NULL, 0, 0, CQ_RANGE_MODES - 1},
    {"scale", NPY_FLOAT32, "R", CQ_OUT, 0, 0},
    {"zero", NPY_UINT8, "R", CQ_OUT, 0, 0},
};

PyObject *cq_py_qparams_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("qparams", qparams_row, &a) < 0) return NULL;
    if (symmetric_needs_two(&a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_qparams_row(&a.cx, a.ptr[0], (int)a.i[1], (int)a.i[2], a.ptr[3], a.ptr[4],
                            a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg qparams_mse_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"bits", CQ_ARG_INT, NULL, 0, 1, 8},
    {"mode", CQ_ARG_INT, NULL, 0, 0, CQ_RANGE_MODES - 1},
    {"n_grid", CQ_ARG_INT, NULL, 0, 1, 10000},
    {"max_shrink", CQ_ARG_DOUBLE, NULL, 0, 0, 0},
    {"scale", NPY_FLOAT32, "R", CQ_OUT, 0, 0},
    {"zero", NPY_UINT8, "R", CQ_OUT, 0, 0},
    {"err", NPY_FLOAT64, "R", CQ_OUT, 0, 0},
};

PyObject *cq_py_qparams_mse_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("qparams_mse", qparams_mse_row, &a) < 0) return NULL;
    if (symmetric_needs_two(&a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_qparams_mse_row(&a.cx, a.ptr[0], (int)a.i[1], (int)a.i[2], (int)a.i[3], a.d[4],
                                a.ptr[5], a.ptr[6], a.ptr[7], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}
