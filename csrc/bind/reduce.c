/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg minmax_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"out[0]", NPY_FLOAT32, "R", CQ_OUT, 0, 0},
    {"out[1]", NPY_FLOAT32, "R", CQ_OUT, 0, 0},
};

PyObject *cq_py_minmax_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("minmax", minmax_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_minmax_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg minmax_col[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"out[0]", NPY_FLOAT32, "C", CQ_OUT, 0, 0},
    {"out[1]", NPY_FLOAT32, "C", CQ_OUT, 0, 0},
};

PyObject *cq_py_minmax_col(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("minmax", minmax_col, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_minmax_col(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg absmax_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "R", CQ_OUT, 0, 0},
};

PyObject *cq_py_absmax_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("absmax", absmax_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_absmax_row(&a.cx, a.ptr[0], a.ptr[1], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg absmax_col[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "C", CQ_OUT, 0, 0},
};

PyObject *cq_py_absmax_col(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("absmax", absmax_col, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_absmax_col(&a.cx, a.ptr[0], a.ptr[1], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg abssum_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"out", NPY_FLOAT64, "R", CQ_OUT, 0, 0},
};

PyObject *cq_py_abssum_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("abssum", abssum_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_abssum_row(&a.cx, a.ptr[0], a.ptr[1], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg abssum_col[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"weight", NPY_FLOAT64, "R", CQ_OPT, 0, 0},
    {"out", NPY_FLOAT64, "C", CQ_OUT, 0, 0},
};

PyObject *cq_py_abssum_col(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("abssum", abssum_col, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_abssum_col(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}
