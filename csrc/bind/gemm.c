/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static const cq_arg gemm[] = {
    {"a", NPY_FLOAT32, "OIMK", CQ_IN | CQ_STRIDED, 0, 0},
    {"b", NPY_FLOAT32, "OIKN", CQ_IN | CQ_STRIDED, 0, 0},
    {"planes", CQ_ARG_INT, NULL, 0, 0, 3},
    {"scale", CQ_ARG_DOUBLE, NULL, 0, 0, 0},
    {"bias", NPY_FLOAT32, "N", CQ_IN | CQ_OPT, 0, 0},
    {"act", CQ_ARG_INT, NULL, 0, CQ_ACT_NONE, CQ_ACT_SILU},
    {"residual", NPY_FLOAT32, "OIMN", CQ_IN | CQ_OPT, 0, 0},
    {"out", NPY_FLOAT32, "OIMN", CQ_OUT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

static size_t stride(const cq_args *a, size_t at, int dim) {
    return (size_t)a->strides[at][dim] / sizeof(float);
}

PyObject *cq_py_gemm(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("gemm", gemm, &a) < 0) return NULL;
    const cq_gemm_args g = {.a = a.ptr[0],
                            .b = a.ptr[1],
                            .planes = (int)a.i[2],
                            .scale = (float)a.d[3],
                            .bias = a.ptr[4],
                            .act = (int)a.i[5],
                            .residual = a.ptr[6],
                            .c = a.ptr[7],
                            .batch = a.dim['O'] * a.dim['I'],
                            .inner = a.dim['I'],
                            .M = a.dim['M'],
                            .N = a.dim['N'],
                            .K = a.dim['K'],
                            .rsa = stride(&a, 0, 2),
                            .csa = stride(&a, 0, 3),
                            .rsb = stride(&a, 1, 2),
                            .csb = stride(&a, 1, 3),
                            .batch_outer_a = stride(&a, 0, 0),
                            .batch_inner_a = stride(&a, 0, 1),
                            .batch_outer_b = stride(&a, 1, 0),
                            .batch_inner_b = stride(&a, 1, 1)};
    if (a.dim['W'] < cq_gemm_workspace(&a.cx, &g)) {
        cq_expect_size(&a, "work", a.dim['W'], cq_gemm_workspace(&a.cx, &g),
                       "bytes = gemm_workspace(batch, M, N, K, planes), at least");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = cq_gemm(&a.cx, &g, a.ptr[8]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg workspace[] = {
    {"batch", CQ_ARG_INT, NULL, 0, 0, 1LL << 40}, {"M", CQ_ARG_INT, NULL, 0, 0, 1LL << 40},
    {"N", CQ_ARG_INT, NULL, 0, 0, 1LL << 40},     {"K", CQ_ARG_INT, NULL, 0, 0, 1LL << 40},
    {"planes", CQ_ARG_INT, NULL, 0, 0, 3},
};

PyObject *cq_py_gemm_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("gemm_workspace", workspace, &a) < 0) return NULL;
    const cq_gemm_args g = {.batch = (size_t)a.i[0],
                            .M = (size_t)a.i[1],
                            .N = (size_t)a.i[2],
                            .K = (size_t)a.i[3],
                            .planes = (int)a.i[4]};
    return PyLong_FromSize_t(cq_gemm_workspace(&a.cx, &g));
}
