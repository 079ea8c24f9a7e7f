/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/qtile.h"
#include "bind/methods.h"
#include "ops/ops.h"

int cq_check_tiles(const cq_args *a, const cq_tiles *t, size_t strips, size_t longest) {
    const size_t group = t->G ? t->K / t->G : 0; /* 0 when there are more groups than inputs */
    const int equal = group && t->K % t->G == 0 && group % 8 == 0;
    if (!(t->G == 1 || equal) || group > longest) {
        PyErr_Format(PyExc_ValueError,
                     "%s: %zu groups for rows of %zu inputs; the groups of a row are equal, "
                     "multiples of 8 (or there is one) and at most %zu long",
                     a->op, t->G, t->K, cq_min_size(longest, t->K));
        return -1;
    }
    if (!t->strip_bits) return 0;
    if (cq_expect_size(a, "strip_bits", strips, cq_strips(t->N), "ceil(N / 16)") < 0) return -1;
    for (size_t i = 0; i < strips; i++) {
        if (t->strip_bits[i] >= 2 && t->strip_bits[i] <= 8) continue;
        PyErr_Format(PyExc_ValueError, "%s: strip_bits[%zu] is %d, allowed are 2..8", a->op, i,
                     (int)t->strip_bits[i]);
        return -1;
    }
    return 0;
}

static int check_sizes(const cq_args *a, const cq_tiles *t) {
    if (cq_check_tiles(a, t, a->dim['S'], SIZE_MAX) < 0) return -1;
    const cq_canonical_sizes size = cq_qtile_sizes(t);
    if (cq_expect_size(a, "packed", a->dim['P'], size.codes, "rows of ceil(K * bits / 8)") < 0)
        return -1;
    if (t->asymmetric &&
        cq_expect_size(a, "zero", a->dim['Q'], size.zeros, "rows of ceil(G * bits / 8)") < 0)
        return -1;
    return cq_expect_size(a, "tiles", a->dim['T'], size.tiles, "bytes = qgemm_tiles_bytes(...)");
}

static const cq_arg repack[] = {
    {"packed", NPY_UINT8, "P", CQ_IN, 0, 0},
    {"scale", NPY_UINT16, "NG", CQ_IN, 0, 0},
    {"zero", NPY_UINT8, "Q", CQ_IN | CQ_OPT, 0, 0},
    {"K", CQ_ARG_INT, NULL, 0, 0, CQ_MOST_INPUTS},
    {"bits", CQ_ARG_INT, NULL, 0, 2, 8},
    {"strip_bits", NPY_UINT8, "S", CQ_IN | CQ_OPT, 0, 0},
    {"tiles", NPY_UINT8, "T", CQ_OUT, 0, 0},
};

PyObject *cq_py_qgemm_repack(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("repack", repack, &a) < 0) return NULL;
    const cq_tiles t = {a.ptr[6],   a.ptr[5],    a.dim['N'],      (size_t)a.i[3],
                        a.dim['G'], (int)a.i[4], a.ptr[2] != NULL};
    if (check_sizes(&a, &t) < 0) return NULL;
    const cq_canonical from = {a.ptr[0], a.ptr[2], a.ptr[1]};
    Py_BEGIN_ALLOW_THREADS
    status = cq_qgemm_repack(&a.cx, &from, &t, a.ptr[6]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg unrepack[] = {
    {"tiles", NPY_UINT8, "T", CQ_IN, 0, 0},
    {"K", CQ_ARG_INT, NULL, 0, 0, CQ_MOST_INPUTS},
    {"bits", CQ_ARG_INT, NULL, 0, 2, 8},
    {"strip_bits", NPY_UINT8, "S", CQ_IN | CQ_OPT, 0, 0},
    {"packed", NPY_UINT8, "P", CQ_OUT, 0, 0},
    {"scale", NPY_UINT16, "NG", CQ_OUT, 0, 0},
    {"zero", NPY_UINT8, "Q", CQ_OUT | CQ_OPT, 0, 0},
};

PyObject *cq_py_qgemm_unrepack(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("unrepack", unrepack, &a) < 0) return NULL;
    const cq_tiles t = {a.ptr[0],   a.ptr[3],    a.dim['N'],      (size_t)a.i[1],
                        a.dim['G'], (int)a.i[2], a.ptr[6] != NULL};
    if (check_sizes(&a, &t) < 0) return NULL;
    const cq_canonical_out to = {a.ptr[4], a.ptr[6], a.ptr[5]};
    Py_BEGIN_ALLOW_THREADS
    status = cq_qgemm_unrepack(&a.cx, &t, &to);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg tiles_bytes[] = {
    {"N", CQ_ARG_INT, NULL, 0, 0, 1LL << 31},  {"K", CQ_ARG_INT, NULL, 0, 0, CQ_MOST_INPUTS},
    {"G", CQ_ARG_INT, NULL, 0, 1, 1LL << 28},  {"bits", CQ_ARG_INT, NULL, 0, 2, 8},
    {"asymmetric", CQ_ARG_INT, NULL, 0, 0, 1}, {"strip_bits", NPY_UINT8, "S", CQ_IN | CQ_OPT, 0, 0},
};

PyObject *cq_py_qgemm_tiles_bytes(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("qgemm_tiles_bytes", tiles_bytes, &a) < 0) return NULL;
    const cq_tiles t = {NULL,           a.ptr[5],    (size_t)a.i[0], (size_t)a.i[1],
                        (size_t)a.i[2], (int)a.i[3], (int)a.i[4]};
    if (cq_check_tiles(&a, &t, a.dim['S'], SIZE_MAX) < 0) return NULL;
    return PyLong_FromSize_t(cq_qtile_sizes(&t).tiles);
}
