/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

/* The model, the first arguments of both calls. */
#define MODEL                                                                                      \
    {"cdf", NPY_UINT16, "E", CQ_IN, 0, 0}, {"first", NPY_UINT32, "F", CQ_IN, 0, 0},                \
        {"context", NPY_INT32, "GC", CQ_IN, 0, 0}, {"group", NPY_INT32, "R", CQ_IN, 0, 0}

/* 0, or -1 with an exception set. */
static int model_of(const cq_args *a, cq_range_model *m) {
    if (a->dim['F'] < 1 || a->dim['E'] > UINT32_MAX || a->dim['C'] > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%s: first has %zu entries; a model needs at least 1", a->op,
                     a->dim['F']);
        return -1;
    }
    if (a->dim['L'] < 1 || a->dim['L'] > CQ_RANGE_LANES) {
        PyErr_Format(PyExc_ValueError, "%s: sizes has %zu lanes; allowed are 1..%d", a->op,
                     a->dim['L'], CQ_RANGE_LANES);
        return -1;
    }
    *m = (cq_range_model){a->ptr[0],       a->ptr[1],   a->ptr[2],   a->ptr[3],  a->dim['E'],
                          a->dim['F'] - 1, a->dim['G'], a->dim['C'], a->dim['R']};
    return cq_expect_size(a, "work", cq_mul(a->dim['W'], 4), cq_rangecode_workspace(m->G, m->C),
                          "bytes: rangecode_workspace(rows of context, columns)");
}

static const cq_arg encode[] = {
    MODEL,
    {"symbols", NPY_UINT8, "RC", CQ_IN, 0, 0},
    {"out", NPY_UINT8, "LB", CQ_OUT, 0, 0},
    {"sizes", NPY_INT64, "L", CQ_OUT, 0, 0},
    {"work", NPY_UINT32, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_rangecode_encode(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_range_model m;
    cq_status status;
    if (CQ_PARSE("rangecode_encode", encode, &a) < 0 || model_of(&a, &m) < 0) return NULL;
    const size_t lanes = a.dim['L'], room = a.dim['B'];
    if (cq_expect_size(&a, "out: dimension B", room, cq_rangecode_bytes(m.R, m.C, lanes),
                       "rangecode_bytes(rows, columns, lanes)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_rangecode_encode(&a.cx, &m, a.ptr[4], a.ptr[5], a.ptr[6], lanes, room, a.ptr[7]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg decode[] = {
    MODEL,
    {"payload", NPY_UINT8, "B", CQ_IN, 0, 0},
    {"sizes", NPY_INT64, "L", CQ_IN, 0, 0},
    {"symbols", NPY_UINT8, "RC", CQ_OUT, 0, 0},
    {"whole", NPY_UINT8, "L", CQ_OUT, 0, 0},
    {"work", NPY_UINT32, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_rangecode_decode(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_range_model m;
    cq_status status;
    if (CQ_PARSE("rangecode_decode", decode, &a) < 0 || model_of(&a, &m) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_rangecode_decode(&a.cx, &m, a.ptr[4], a.dim['B'], a.ptr[5], a.ptr[6], a.ptr[7],
                                 a.dim['L'], a.ptr[8]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg workspace[] = {
    {"groups", CQ_ARG_INT, NULL, 0, 0, 1LL << 48},
    {"cols", CQ_ARG_INT, NULL, 0, 0, 1LL << 48},
};

PyObject *cq_py_rangecode_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("rangecode_workspace", workspace, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_rangecode_workspace((size_t)a.i[0], (size_t)a.i[1]));
}

static const cq_arg room[] = {
    {"rows", CQ_ARG_INT, NULL, 0, 0, 1LL << 48},
    {"cols", CQ_ARG_INT, NULL, 0, 0, 1LL << 48},
    {"lanes", CQ_ARG_INT, NULL, 0, 1, CQ_RANGE_LANES},
};

PyObject *cq_py_rangecode_bytes(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("rangecode_bytes", room, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_rangecode_bytes((size_t)a.i[0], (size_t)a.i[1], (size_t)a.i[2]));
}
