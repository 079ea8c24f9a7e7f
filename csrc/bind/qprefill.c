/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/qtile.h"

#include "bind/methods.h"
#include "ops/ops.h"

static int check_sizes(const cq_args *a, const cq_tiles *t) {
    if (cq_check_tiles(a, t, a->dim['S'], CQ_QGEMM_S8_GROUP) < 0) return -1;
    if (cq_expect_size(a, "tiles", a->dim['T'], cq_qtile_sizes(t).tiles,
                       "bytes = qgemm_tiles_bytes(...)") < 0)
        return -1;
    return cq_expect_size(a, "work", a->dim['W'], cq_qprefill_workspace(&a->cx, a->dim['M'], t),
                          "bytes = qprefill_workspace(M, N, K, G, bits, asymmetric, strip_bits)");
}

/* x in floats, or codes with xscale: the other is None. */
static const cq_arg qprefill_s8[] = {
    {"x", NPY_FLOAT32, "MK", CQ_IN | CQ_OPT, 0, 0},
    {"codes", NPY_INT8, "MK", CQ_IN | CQ_OPT, 0, 0},
    {"xscale", NPY_FLOAT32, "M", CQ_IN | CQ_OPT, 0, 0},
    {"tiles", NPY_UINT8, "T", CQ_IN, 0, 0},
    {"G", CQ_ARG_INT, NULL, 0, 1, 1LL << 28},
    {"bits", CQ_ARG_INT, NULL, 0, 2, 8},
    {"asymmetric", CQ_ARG_INT, NULL, 0, 0, 1},
    {"strip_bits", NPY_UINT8, "S", CQ_IN | CQ_OPT, 0, 0},
    {"bias", NPY_FLOAT32, "N", CQ_IN | CQ_OPT, 0, 0},
    {"out", NPY_FLOAT32, "MN", CQ_OUT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_qprefill_s8(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("qprefill_s8", qprefill_s8, &a) < 0) return NULL;
    if (!a.ptr[0] == !a.ptr[1] || !a.ptr[1] != !a.ptr[2]) {
        PyErr_SetString(PyExc_ValueError,
                        "qprefill_s8: give either x, or codes and xscale, and None for the others");
        return NULL;
    }
    const cq_tiles w = {a.ptr[3],       a.ptr[7],    a.dim['N'], a.dim['K'],
                        (size_t)a.i[4], (int)a.i[5], (int)a.i[6]};
    if (check_sizes(&a, &w) < 0) return NULL;
    const cq_qprefill q = {a.ptr[0], a.ptr[1], a.ptr[2], &w, a.ptr[8], a.ptr[9], a.dim['M']};
    Py_BEGIN_ALLOW_THREADS
    status = cq_qprefill_s8(&a.cx, &q, a.ptr[10]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg workspace[] = {
    {"M", CQ_ARG_INT, NULL, 0, 0, 1LL << 31},
    {"N", CQ_ARG_INT, NULL, 0, 0, 1LL << 31},
    {"K", CQ_ARG_INT, NULL, 0, 0, CQ_MOST_INPUTS},
    {"G", CQ_ARG_INT, NULL, 0, 1, 1LL << 28},
    {"bits", CQ_ARG_INT, NULL, 0, 2, 8},
    {"asymmetric", CQ_ARG_INT, NULL, 0, 0, 1},
    {"strip_bits", NPY_UINT8, "S", CQ_IN | CQ_OPT, 0, 0},
};

PyObject *cq_py_qprefill_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("qprefill_workspace", workspace, &a) < 0) return NULL;
    const cq_tiles t = {NULL,           a.ptr[6],    (size_t)a.i[1], (size_t)a.i[2],
                        (size_t)a.i[3], (int)a.i[4], (int)a.i[5]};
    if (cq_check_tiles(&a, &t, a.dim['S'], CQ_QGEMM_S8_GROUP) < 0) return NULL;
    return PyLong_FromSize_t(cq_qprefill_workspace(&a.cx, (size_t)a.i[0], &t));
}
