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
    if (CQ_PARSE("project_bits", project_row, &a) < 0) return NULL;
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
    {"out", NPY_FLOAT32, "RC", CQ_OUT | CQ_INPLACE, 0, 0},
};

PyObject *cq_py_project_bwd_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("project_bits_backward", project_bwd_row, &a) < 0) return NULL;
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
    if (CQ_PARSE("round_bits", round_bits_row, &a) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_round_bits_row(&a.cx, a.ptr[0], (int)a.i[1], (int)a.i[2], a.i[3], a.ptr[4],
                               a.dim['R'], a.dim['C']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg allocate[] = {
    {"distortion", NPY_FLOAT32, "NM", CQ_IN, 0, 0}, {"cost", NPY_INT64, "M", CQ_OPT, 0, 0},
    {"weight", NPY_INT64, "N", CQ_OPT, 0, 0},       {"table", NPY_INT64, "NM", CQ_OPT, 0, 0},
    {"budget", CQ_ARG_INT, NULL, 0, 0, 1LL << 62},  {"choice", NPY_UINT8, "N", CQ_OUT, 0, 0},
    {"info", NPY_FLOAT64, "I", CQ_OUT, 0, 0},       {"spent", NPY_INT64, "S", CQ_OUT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_allocate(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("allocate", allocate, &a) < 0) return NULL;
    const size_t n = a.dim['N'], m = a.dim['M'];
    if (m < 1 || m > CQ_ALLOC_MAX_OPTIONS || n > UINT32_MAX / CQ_ALLOC_MAX_OPTIONS) {
        PyErr_Format(PyExc_ValueError,
                     "allocate: distortion is [%zu, %zu]; at most %d units and 1..%d options fit",
                     n, m, (int)(UINT32_MAX / CQ_ALLOC_MAX_OPTIONS), (int)CQ_ALLOC_MAX_OPTIONS);
        return NULL;
    }
    if (!a.ptr[1] == !a.ptr[3]) {
        PyErr_SetString(PyExc_ValueError, "allocate: pass either cost or table");
        return NULL;
    }
    if (cq_expect_size(&a, "info", a.dim['I'], 3, "three results") < 0 ||
        cq_expect_size(&a, "spent", a.dim['S'], 1, "one result") < 0 ||
        cq_expect_size(&a, "work", a.dim['W'], cq_allocate_workspace(n, m),
                       "allocate_workspace(units, options)") < 0)
        return NULL;
    const cq_alloc_costs costs = {a.ptr[3] ? a.ptr[3] : a.ptr[1], a.ptr[3] ? NULL : a.ptr[2], m,
                                  a.ptr[3] != NULL};
    Py_BEGIN_ALLOW_THREADS
    status =
        cq_allocate(&a.cx, a.ptr[0], &costs, a.i[4], a.ptr[5], a.ptr[6], a.ptr[7], a.ptr[8], n);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg allocate_workspace[] = {
    {"units", CQ_ARG_INT, NULL, 0, 0, UINT32_MAX / 16},
    {"options", CQ_ARG_INT, NULL, 0, 1, 16},
};

PyObject *cq_py_allocate_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("allocate_workspace", allocate_workspace, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_allocate_workspace((size_t)a.i[0], (size_t)a.i[1]));
}
