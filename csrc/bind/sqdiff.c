/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg forward[] = {
    {"a", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"b", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"sum", NPY_FLOAT64, "R", CQ_OUT, 0, 0},
    {"work", NPY_FLOAT64, "B", CQ_OUT, 0, 0},
};

PyObject *cq_py_sqdiff_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("sqdiff", forward, &a) < 0) return NULL;
    if (cq_expect_size(&a, "work", a.dim['B'], cq_sqdiff_workspace(a.dim['R'], a.dim['C']),
                       "sqdiff_workspace(R, C)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_sqdiff_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg backward[] = {
    {"a", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"b", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"factor", NPY_FLOAT64, "R", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
};

PyObject *cq_py_sqdiff_bwd_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("sqdiff_backward", backward, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status =
        cq_sqdiff_bwd_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg sizes[] = {
    {"rows", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"cols", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
};

PyObject *cq_py_sqdiff_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("sqdiff_workspace", sizes, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_sqdiff_workspace((size_t)a.i[0], (size_t)a.i[1]));
}
