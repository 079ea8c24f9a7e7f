/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg project_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},    {"weight", NPY_FLOAT32, "C", CQ_OPT, 0, 0},
    {"lo", CQ_ARG_DOUBLE, NULL, 0, 0, 0},     {"hi", CQ_ARG_DOUBLE, NULL, 0, 0, 0},
    {"target", CQ_ARG_DOUBLE, NULL, 0, 0, 0}, {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
};

PyObject *cq_py_project_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("project_row", project_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_project_row(&a.cx, a.ptr[0], a.ptr[1], a.d[2], a.d[3], a.d[4], a.ptr[5], a.dim['R'],
                            a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg project_bwd_row[] = {
    {"g", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"b", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"weight", NPY_FLOAT32, "C", CQ_OPT, 0, 0},
    {"lo", CQ_ARG_DOUBLE, NULL, 0, 0, 0},
    {"hi", CQ_ARG_DOUBLE, NULL, 0, 0, 0},
    {"gx", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
};

PyObject *cq_py_project_bwd_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("project_bwd_row", project_bwd_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_project_bwd_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.d[3], a.d[4], a.ptr[5],
                                a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg round_bits_row[] = {
    {"b", NPY_FLOAT32, "RC", CQ_IN, 0, 0},  {"lo", CQ_ARG_INT, NULL, 0, 0, 255},
    {"hi", CQ_ARG_INT, NULL, 0, 0, 255},    {"total", CQ_ARG_INT, NULL, 0, 0, 1LL << 48},
    {"out", NPY_UINT8, "RC", CQ_OUT, 0, 0},
};

PyObject *cq_py_round_bits_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("round_bits_row", round_bits_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_round_bits_row(&a.cx, a.ptr[0], (int)a.i[1], (int)a.i[2], a.i[3], a.ptr[4],
                               a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}
