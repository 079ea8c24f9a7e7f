/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "core/grid.h"
#include "ops/ops.h"

static const cq_arg losses[] = {
    {"x", NPY_FLOAT32, "TK", CQ_IN, 0, 0},
    {"w", NPY_FLOAT32, "NK", CQ_IN, 0, 0},
    {"token", NPY_FLOAT64, "T", CQ_IN, 0, 0},
    {"s", NPY_FLOAT32, "SK", CQ_IN, 0, 0},
    {"bits", CQ_ARG_INT, NULL, 0, 1, 8},
    {"group", CQ_ARG_INT, NULL, 0, PY_SSIZE_T_MIN, PY_SSIZE_T_MAX},
    {"mode", CQ_ARG_INT, NULL, 0, 0, CQ_RANGE_MODES - 1},
    {"act_bits", CQ_ARG_INT, NULL, 0, 0, 8},
    {"kind", CQ_ARG_INT, NULL, 0, 0, 1},
    {"bf16", CQ_ARG_INT, NULL, 0, 0, 1},
    {"first", NPY_INT64, "B", CQ_IN, 0, 0},
    {"loss", NPY_FLOAT64, "SB", CQ_OUT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_scaleloss(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("scaleloss", losses, &a) < 0) return NULL;
    const size_t K = a.dim['K'], group = a.i[5] > 0 ? (size_t)a.i[5] : (K ? K : 1);
    const cq_scaleloss_args what = {a.ptr[0],    a.ptr[1],    a.ptr[2],    a.ptr[3],
                                    a.ptr[10],   a.dim['T'],  a.dim['N'],  K,
                                    a.dim['S'],  a.dim['B'],  group,       (int)a.i[4],
                                    (int)a.i[6], (int)a.i[7], (int)a.i[8], (int)a.i[9]};
    if (cq_expect_size(&a, "K modulo group", K % group, 0, "groups divide a row") < 0 ||
        cq_expect_size(&a, "work", a.dim['W'], cq_scaleloss_workspace(&what),
                       "scaleloss_workspace(T, N, K, B, act_bits, bf16)") < 0)
        return NULL;
    if ((a.i[4] < 2 && (a.i[6] & CQ_RANGE_SYMMETRIC)) || a.i[7] == 1) {
        PyErr_SetString(PyExc_ValueError,
                        "scaleloss: a symmetric grid needs bits >= 2 (bits, act_bits)");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = cq_scaleloss(&a.cx, &what, a.ptr[11], a.ptr[12]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg workspace[] = {
    {"T", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX}, {"N", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"K", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX}, {"B", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"act_bits", CQ_ARG_INT, NULL, 0, 0, 8},       {"bf16", CQ_ARG_INT, NULL, 0, 0, 1},
};

PyObject *cq_py_scaleloss_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("scaleloss_workspace", workspace, &a) < 0) return NULL;
    const cq_scaleloss_args what = {.T = (size_t)a.i[0],
                                    .N = (size_t)a.i[1],
                                    .K = (size_t)a.i[2],
                                    .B = (size_t)a.i[3],
                                    .act_bits = (int)a.i[4],
                                    .bf16 = (int)a.i[5]};
    return PyLong_FromSize_t(cq_scaleloss_workspace(&what));
}
