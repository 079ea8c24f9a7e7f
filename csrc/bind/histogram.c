/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

#define MOST_BINS (1 << 20)

static const cq_arg histogram[] = {
    {"x", NPY_FLOAT32, "N", CQ_IN, 0, 0},
    {"exponent", CQ_ARG_INT, NULL, 0, -120, 128},
    {"first", CQ_ARG_INT, NULL, 0, -(1LL << 40), 1LL << 40},
    {"counts", NPY_INT64, "B", CQ_OUT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_histogram(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("histogram", histogram, &a) < 0) return NULL;
    const size_t n = a.dim['N'], bins = a.dim['B'];
    if (cq_expect_size(&a, "work", a.dim['W'], cq_histogram_workspace(n, bins),
                       "histogram_workspace(elements, bins)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_histogram(&a.cx, a.ptr[0], (int)a.i[1], a.i[2], a.ptr[3], a.ptr[4], n, bins);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg histogram_workspace[] = {
    {"elements", CQ_ARG_INT, NULL, 0, 0, 1LL << 48},
    {"bins", CQ_ARG_INT, NULL, 0, 0, MOST_BINS},
};

PyObject *cq_py_histogram_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("histogram_workspace", histogram_workspace, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_histogram_workspace((size_t)a.i[0], (size_t)a.i[1]));
}

static const cq_arg ranks_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"ranks", NPY_INT64, "K", CQ_IN, 0, 0},
    {"out", NPY_FLOAT32, "RK", CQ_OUT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_ranks_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("percentile", ranks_row, &a) < 0) return NULL;
    const size_t R = a.dim['R'], C = a.dim['C'];
    if (cq_expect_size(&a, "work", a.dim['W'], cq_ranks_workspace(R, C),
                       "ranks_workspace(rows, cols)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_ranks_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], R, C, a.dim['K']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg two_sizes[] = {
    {"rows", CQ_ARG_INT, NULL, 0, 0, 1LL << 48},
    {"cols", CQ_ARG_INT, NULL, 0, 0, 1LL << 48},
};

PyObject *cq_py_ranks_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("ranks_workspace", two_sizes, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_ranks_workspace((size_t)a.i[0], (size_t)a.i[1]));
}

static const cq_arg magnitudes_row[] = {
    {"x", NPY_FLOAT32, "RC", CQ_IN, 0, 0},
    {"counts", NPY_UINT32, "RB", CQ_OUT, 0, 0},
    {"top", NPY_FLOAT32, "R", CQ_OUT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_magnitudes_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("klclip", magnitudes_row, &a) < 0) return NULL;
    const size_t R = a.dim['R'], bins = a.dim['B'];
    if (bins < 1 || bins > MOST_BINS || a.dim['C'] >= UINT32_MAX) {
        PyErr_Format(PyExc_ValueError,
                     "klclip: size is %zu bins, x has %zu columns; "
                     "allowed are 1..%d and fewer than 2**32",
                     bins, a.dim['C'], MOST_BINS);
        return NULL;
    }
    if (cq_expect_size(&a, "work", a.dim['W'], cq_magnitudes_workspace(R, bins),
                       "magnitudes_workspace(rows, bins)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_magnitudes_row(&a.cx, a.ptr[0], a.ptr[1], a.ptr[2], a.ptr[3], R, a.dim['C'], bins);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

PyObject *cq_py_magnitudes_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("magnitudes_workspace", two_sizes, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_magnitudes_workspace((size_t)a.i[0], (size_t)a.i[1]));
}

static const cq_arg klclip_row[] = {
    {"counts", NPY_UINT32, "RB", CQ_IN, 0, 0}, {"levels", CQ_ARG_INT, NULL, 0, 1, MOST_BINS},
    {"best", NPY_UINT32, "R", CQ_OUT, 0, 0},   {"least", NPY_FLOAT64, "R", CQ_OUT, 0, 0},
    {"work", NPY_FLOAT64, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_klclip_row(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("klclip", klclip_row, &a) < 0) return NULL;
    const size_t R = a.dim['R'], bins = a.dim['B'];
    if (cq_expect_size(&a, "work", a.dim['W'] * sizeof(double), cq_klclip_workspace(R, bins),
                       "bytes: klclip_workspace(rows, bins)") < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_klclip_row(&a.cx, a.ptr[0], (size_t)a.i[1], a.ptr[2], a.ptr[3], a.ptr[4], R, bins);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

PyObject *cq_py_klclip_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("klclip_workspace", two_sizes, &a) < 0) return NULL;
    return PyLong_FromSize_t(cq_klclip_workspace((size_t)a.i[0], (size_t)a.i[1]));
}
