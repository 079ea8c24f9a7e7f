/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg forward_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"scale", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"lo", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"hi", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
};

PyObject *cq_py_fakequant_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("fakequant", forward_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_fakequant_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.ptr[4], a.dim['R'],
                              a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg forward_col[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"scale", NPY_FLOAT32, "C", CQ_IN, 0, 0},
    {"lo", NPY_FLOAT32, "C", CQ_IN, 0, 0},
    {"hi", NPY_FLOAT32, "C", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
};

PyObject *cq_py_fakequant_col(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("fakequant", forward_col, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_fakequant_col(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.ptr[4], a.dim['R'],
                              a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg backward_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"g", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"scale", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"lo", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"hi", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
    {"gscale", NPY_FLOAT64, "R", CQ_OUT, 0, 0},
    {"work", NPY_FLOAT64, "B", CQ_OUT, 0, 0},
};

PyObject *cq_py_fakequant_bwd_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("fakequant_backward", backward_row, &a) < 0) return NULL;
    if (cq_expect_size(&a, "work", a.dim['B'],
                       cq_fakequant_bwd_row_workspace(a.dim['R'], a.dim['C']),
                       "fakequant_bwd_row_workspace(R, C)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_fakequant_bwd_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.ptr[4], a.ptr[5],
                                  a.ptr[6], a.ptr[7], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg backward_col[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"g", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"scale", NPY_FLOAT32, "C", CQ_IN, 0, 0},
    {"lo", NPY_FLOAT32, "C", CQ_IN, 0, 0},
    {"hi", NPY_FLOAT32, "C", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
    {"gscale", NPY_FLOAT64, "C", CQ_OUT, 0, 0},
    {"work", NPY_FLOAT64, "BC", CQ_OUT, 0, 0},
};

PyObject *cq_py_fakequant_bwd_col(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("fakequant_backward", backward_col, &a) < 0) return NULL;
    if (cq_expect_size(&a, "work", a.dim['B'], cq_fakequant_bwd_blocks(a.dim['R'], a.dim['C']),
                       "rows = fakequant_bwd_blocks(R, C)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_fakequant_bwd_col(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.ptr[4], a.ptr[5],
                                  a.ptr[6], a.ptr[7], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg blocks[] = {
    {"rows", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"cols", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
};

PyObject *cq_py_fakequant_bwd_blocks(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("fakequant_bwd_blocks", blocks, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_fakequant_bwd_blocks((size_t)a.i[0], (size_t)a.i[1]));
}

PyObject *cq_py_fakequant_bwd_row_workspace(PyObject *self, PyObject *const *args,
                                            Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("fakequant_bwd_row_workspace", blocks, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_fakequant_bwd_row_workspace((size_t)a.i[0], (size_t)a.i[1]));
}
