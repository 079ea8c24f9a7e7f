/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg by_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"scale", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"lo", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"hi", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
};

static const cq_arg by_col[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"scale", NPY_FLOAT32, "C", CQ_IN, 0, 0},
    {"lo", NPY_FLOAT32, "C", CQ_IN, 0, 0},
    {"hi", NPY_FLOAT32, "C", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
};

PyObject *cq_py_fakequant_log2_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("fakequant_log2", by_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_fakequant_log2_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.ptr[4],
                                   a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

PyObject *cq_py_fakequant_log2_col(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("fakequant_log2", by_col, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_fakequant_log2_col(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.ptr[4],
                                   a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

PyObject *cq_py_fakequant_compat_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("fakequant_torch_compat", by_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_fakequant_compat_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.ptr[4],
                                     a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

PyObject *cq_py_fakequant_compat_col(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("fakequant_torch_compat", by_col, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_fakequant_compat_col(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.ptr[4],
                                     a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}
