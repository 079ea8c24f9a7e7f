/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

static int check_groups(const cq_args *a, size_t K, size_t G, size_t longest) {
    const size_t group = G ? K / G : 0; /* 0 when there are more groups than inputs */
    const int equal = group && K % G == 0 && group % 8 == 0;
    if ((G == 1 || equal) && group <= longest) return 0;
    if (longest == SIZE_MAX) longest = K;
    PyErr_Format(PyExc_ValueError,
                 "%s: scale has %zu groups for rows of %zu inputs; the groups of a row are equal, "
                 "multiples of 8 (or there is one) and at most %zu long",
                 a->op, G, K, longest);
    return -1;
}

/* The sizes that follow from M, N, K, G and bits: 0, or -1 with an exception set. */
static int check_sizes(const cq_args *a, const cq_packed *w, size_t longest) {
    if (check_groups(a, w->K, w->G, longest) < 0) return -1;
    if (cq_expect_size(a, "packed: dimension B", a->dim['B'], cq_packed_bytes(w->K, w->bits),
                       "ceil(K * bits / 8)") < 0)
        return -1;
    if (w->zero && cq_expect_size(a, "zero: dimension Z", a->dim['Z'],
                                  cq_packed_bytes(w->G, w->bits), "ceil(G * bits / 8)") < 0)
        return -1;
    return cq_expect_size(a, "work", a->dim['W'], cq_qgemm_workspace(&a->cx, a->dim['M'], w),
                          "bytes = qgemm_workspace(M, N, K, G, bits)");
}

static const cq_arg qgemm_f32[] = {
    {"x", NPY_FLOAT32, "MK", CQ_IN, 0, 0},
    {"packed", NPY_UINT8, "NB", CQ_IN, 0, 0},
    {"bits", CQ_ARG_INT, NULL, 0, 2, 8},
    {"scale", NPY_UINT16, "NG", CQ_IN, 0, 0},
    {"zero", NPY_UINT8, "NZ", CQ_IN | CQ_OPT, 0, 0},
    {"bias", NPY_FLOAT32, "N", CQ_IN | CQ_OPT, 0, 0},
    {"out", NPY_FLOAT32, "MN", CQ_OUT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_qgemm_f32(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("qgemm", qgemm_f32, &a) < 0) return NULL;
    const cq_packed w = {a.ptr[1],   a.ptr[4],   a.ptr[3],   a.dim['N'],
                         a.dim['K'], a.dim['G'], (int)a.i[2]};
    if (check_sizes(&a, &w, SIZE_MAX) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_qgemm_f32(&a.cx, a.ptr[0], &w, a.ptr[5], a.ptr[6], a.ptr[7], a.dim['M']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg qgemm_s8[] = {
    {"x", NPY_INT8, "MK", CQ_IN, 0, 0},
    {"xscale", NPY_FLOAT32, "M", CQ_IN, 0, 0},
    {"packed", NPY_UINT8, "NB", CQ_IN, 0, 0},
    {"bits", CQ_ARG_INT, NULL, 0, 2, 8},
    {"scale", NPY_UINT16, "NG", CQ_IN, 0, 0},
    {"zero", NPY_UINT8, "NZ", CQ_IN | CQ_OPT, 0, 0},
    {"bias", NPY_FLOAT32, "N", CQ_IN | CQ_OPT, 0, 0},
    {"out", NPY_FLOAT32, "MN", CQ_OUT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_qgemm_s8(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("qgemm_s8", qgemm_s8, &a) < 0) return NULL;
    const cq_packed w = {a.ptr[2],   a.ptr[5],   a.ptr[4],   a.dim['N'],
                         a.dim['K'], a.dim['G'], (int)a.i[3]};
    if (check_sizes(&a, &w, CQ_QGEMM_S8_GROUP) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_qgemm_s8(&a.cx, a.ptr[0], a.ptr[1], &w, a.ptr[6], a.ptr[7], a.ptr[8], a.dim['M']);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg workspace[] = {
    {"M", CQ_ARG_INT, NULL, 0, 0, 1LL << 40}, {"N", CQ_ARG_INT, NULL, 0, 0, 1LL << 40},
    {"K", CQ_ARG_INT, NULL, 0, 0, 1LL << 40}, {"G", CQ_ARG_INT, NULL, 0, 1, 1LL << 20},
    {"bits", CQ_ARG_INT, NULL, 0, 2, 8},
};

PyObject *cq_py_qgemm_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("qgemm_workspace", workspace, &a) < 0) return NULL;
    if (check_groups(&a, (size_t)a.i[2], (size_t)a.i[3], SIZE_MAX) < 0) return NULL;
    const cq_packed w = {NULL,           NULL,           NULL,       (size_t)a.i[1],
                         (size_t)a.i[2], (size_t)a.i[3], (int)a.i[4]};
    return PyLong_FromSize_t(cq_qgemm_workspace(&a.cx, (size_t)a.i[0], &w));
}
