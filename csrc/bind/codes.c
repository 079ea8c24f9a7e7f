/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg codes_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},  {"scale", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"zero", NPY_UINT8, "R", CQ_IN, 0, 0},  {"bits", CQ_ARG_INT, NULL, 0, 1, 8},
    {"out", NPY_UINT8, "RC", CQ_OUT, 0, 0},
};

PyObject *cq_py_codes_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("codes", codes_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_codes_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], (int)a.i[3], a.ptr[4], a.dim['R'],
                          a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg decode_row[] = {
    {"codes", NPY_UINT8, "RC", CQ_IN, 0, 0},
    {"scale", NPY_FLOAT32, "R", CQ_IN, 0, 0},
    {"zero", NPY_UINT8, "R", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "RC", CQ_OUT, 0, 0},
};

PyObject *cq_py_decode_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("decode", decode_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_decode_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg codes_token_s8[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"out", NPY_INT8, "RC", CQ_OUT, 0, 0},
    {"scale", NPY_FLOAT32, "R", CQ_OUT, 0, 0},
};

PyObject *cq_py_codes_token_s8(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("codes_token", codes_token_s8, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_codes_token_s8(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg fakequant_token[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"bits", CQ_ARG_INT, NULL, 0, 2, 16},
    {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
};

PyObject *cq_py_fakequant_token(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("fakequant_token", fakequant_token, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_fakequant_token(&a.cx, a.ptr[0], (int)a.i[1], a.ptr[2], a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}
