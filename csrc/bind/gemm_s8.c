/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg gemm_s8[] = {
    {"a", NPY_INT8, "MK", CQ_IN | CQ_STRIDED, 0, 0},
    {"b", NPY_INT8, "NK", CQ_IN | CQ_STRIDED, 0, 0},
    {"bias", NPY_INT32, "N", CQ_IN | CQ_OPT, 0, 0},
    {"multiplier", NPY_INT32, "N", CQ_IN | CQ_OPT, 0, 0},
    {"shift", NPY_INT32, "N", CQ_IN | CQ_OPT, 0, 0},
    {"zero", CQ_ARG_INT, NULL, 0, -128, 127},
    {"lo", CQ_ARG_INT, NULL, 0, -128, 127},
    {"hi", CQ_ARG_INT, NULL, 0, -128, 127},
    {"out", NPY_INT32, "MN", CQ_OUT | CQ_OPT, 0, 0},
    {"out", NPY_INT8, "MN", CQ_OUT | CQ_OPT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

/* The arrays go together: sums alone, or codes with multiplier and shift. */
static int check_arrays(const cq_args *a) {
    const int grid = a->ptr[3] && a->ptr[4], none = !a->ptr[3] && !a->ptr[4];
    if (a->ptr[8] ? none && !a->ptr[9] : grid && a->ptr[9]) return 0;
    PyErr_SetString(PyExc_ValueError,
                    "gemm_s8: give multiplier, shift and codes, or none of them and sums");
    return -1;
}

static int check_rows(const cq_args *a, size_t at, char rows, const char *name) {
    if (!a->dim[(unsigned char)rows] || a->dim['K'] < 2 || a->strides[at][1] == 1) return 0;
    PyErr_Format(PyExc_ValueError,
                 "gemm_s8: %s has stride %zd along its inputs, expected 1; pass "
                 "numpy.ascontiguousarray(%s)",
                 name, (Py_ssize_t)a->strides[at][1], name);
    return -1;
}

PyObject *cq_py_gemm_s8(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("gemm_s8", gemm_s8, &a) < 0) return NULL;
    if (check_arrays(&a) < 0 || check_rows(&a, 0, 'M', "a") < 0 || check_rows(&a, 1, 'N', "b") < 0)
        return NULL;
    const cq_gemm_s8_args g = {
        .a = a.ptr[0],
        .b = a.ptr[1],
        .M = a.dim['M'],
        .N = a.dim['N'],
        .K = a.dim['K'],
        .rsa = (size_t)a.strides[0][0],
        .rsb = (size_t)a.strides[1][0],
        .r = {a.ptr[2], a.ptr[3], a.ptr[4], (int)a.i[5], (int)a.i[6], (int)a.i[7]},
        .sums = a.ptr[8],
        .codes = a.ptr[9]};
    if (g.K <= CQ_GEMM_S8_K && a.dim['W'] < cq_gemm_s8_workspace(&a.cx, &g)) {
        cq_expect_size(&a, "work", a.dim['W'], cq_gemm_s8_workspace(&a.cx, &g),
                       "bytes = gemm_s8_workspace(M, N, K, requantise), at least");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = cq_gemm_s8(&a.cx, &g, a.ptr[10]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg workspace[] = {
    {"M", CQ_ARG_INT, NULL, 0, 0, 1LL << 40},
    {"N", CQ_ARG_INT, NULL, 0, 0, 1LL << 40},
    {"K", CQ_ARG_INT, NULL, 0, 0, 131071},
    {"requantise", CQ_ARG_INT, NULL, 0, 0, 1},
};

PyObject *cq_py_gemm_s8_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    int32_t some;
    if (CQ_PARSE("gemm_s8_workspace", workspace, &a) < 0) return NULL;
    const cq_gemm_s8_args g = {.M = (size_t)a.i[0],
                               .N = (size_t)a.i[1],
                               .K = (size_t)a.i[2],
                               .sums = a.i[3] ? NULL : &some};
    return PyLong_FromSize_t(cq_gemm_s8_workspace(&a.cx, &g));
}
