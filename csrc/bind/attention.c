/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

/* B batch, L and S rows of xq and xk, D and C their widths, E heads together, O output, H heads,
 * K columns of k and v held at a time. */
static const cq_arg forward[] = {
    {"xq", NPY_FLOAT32, "BLD", CQ_IN, 0, 0},
    {"xk", NPY_FLOAT32, "BSC", CQ_IN, 0, 0},
    {"wq", NPY_FLOAT32, "ED", CQ_IN, 0, 0},
    {"bq", NPY_FLOAT32, "E", CQ_IN | CQ_OPT, 0, 0},
    {"wk", NPY_FLOAT32, "EC", CQ_IN, 0, 0},
    {"bk", NPY_FLOAT32, "E", CQ_IN | CQ_OPT, 0, 0},
    {"wv", NPY_FLOAT32, "EC", CQ_IN, 0, 0},
    {"bv", NPY_FLOAT32, "E", CQ_IN | CQ_OPT, 0, 0},
    {"wo", NPY_FLOAT32, "OE", CQ_IN, 0, 0},
    {"bo", NPY_FLOAT32, "O", CQ_IN | CQ_OPT, 0, 0},
    {"gamma", NPY_FLOAT32, "O", CQ_IN | CQ_OPT, 0, 0},
    {"beta", NPY_FLOAT32, "O", CQ_IN | CQ_OPT, 0, 0},
    {"mask", NPY_UINT8, "BS", CQ_IN | CQ_OPT, 0, 0},
    {"heads", CQ_ARG_INT, NULL, 0, 1, INT_MAX},
    {"residual", CQ_ARG_INT, NULL, 0, 0, 1},
    {"eps", CQ_ARG_DOUBLE, NULL, 0, 0, 0},
    {"planes", CQ_ARG_INT, NULL, 0, CQ_ATT_BF16, CQ_ATT_HIGHEST},
    {"out", NPY_FLOAT32, "BLO", CQ_OUT, 0, 0},
    {"q", NPY_FLOAT32, "BLE", CQ_OUT | CQ_OPT, 0, 0},
    {"k", NPY_FLOAT32, "BSK", CQ_OUT, 0, 0},
    {"v", NPY_FLOAT32, "BSK", CQ_OUT, 0, 0},
    {"ctx", NPY_FLOAT32, "BLE", CQ_OUT | CQ_OPT, 0, 0},
    {"y", NPY_FLOAT32, "BLO", CQ_OUT | CQ_OPT, 0, 0},
    {"lse", NPY_FLOAT32, "BHL", CQ_OUT, 0, 0},
    {"stat", NPY_FLOAT32, "BLT", CQ_OUT, 0, 0},
    {"entropy", NPY_FLOAT32, "BHL", CQ_OUT | CQ_OPT, 0, 0},
    {"weights", NPY_FLOAT32, "BLS", CQ_OUT | CQ_OPT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

/* What both directions refuse: 0, or -1 with an exception set. */
static int check_sizes(const cq_args *a, const cq_attention_args *t, size_t need) {
    if (!t->H || !t->E || !t->Dq || !t->Dk || !t->Do) {
        PyErr_Format(PyExc_ValueError, "%s: widths must be at least 1", a->op);
        return -1;
    }
    if (cq_expect_size(a, "E modulo heads", t->E % t->H, 0, "heads divide the width") < 0 ||
        cq_expect_size(a, "lse: dimension H", a->dim['H'], t->H, "heads") < 0 ||
        cq_expect_size(a, "stat: dimension T", a->dim['T'], 2, "mean and 1 / deviation") < 0)
        return -1;
    if (t->residual && cq_expect_size(a, "xq: dimension D", t->Dq, t->Do,
                                      "the width of the output, which xq is added to") < 0)
        return -1;
    return cq_expect_size(a, "work", a->dim['W'], need, "attention_workspace(...)");
}

PyObject *cq_py_attention(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("attention", forward, &a) < 0) return NULL;
    const cq_attention_args t = {
        a.dim['B'], a.dim['L'],      a.dim['S'], a.dim['D'],     a.dim['C'],   a.dim['E'],
        a.dim['O'], (size_t)a.i[13], a.ptr[0],   a.ptr[1],       a.ptr[2],     a.ptr[3],
        a.ptr[4],   a.ptr[5],        a.ptr[6],   a.ptr[7],       a.ptr[8],     a.ptr[9],
        a.ptr[10],  a.ptr[11],       a.ptr[12],  (float)a.d[15], (int)a.i[14], (int)a.i[16]};
    const cq_attention_saved s = {a.ptr[18], a.ptr[19],  a.ptr[20], a.ptr[21],
                                  a.ptr[22], a.dim['K'], a.ptr[23], a.ptr[24]};
    if (check_sizes(&a, &t, cq_attention_workspace(&t, a.cx.threads)) < 0) return NULL;
    const size_t head = t.E / t.H;
    if (!s.KV || s.KV % head || t.E % s.KV) {
        PyErr_Format(PyExc_ValueError,
                     "attention: k has %zu columns; they must be whole heads (%zu wide) and divide "
                     "%zu",
                     s.KV, head, t.E);
        return NULL;
    }
    if (!s.q && !cq_attention_in_place(&t)) {
        PyErr_SetString(PyExc_ValueError, "attention: q is None, which needs E = O <= 1024");
        return NULL;
    }
    if (!t.gamma != !t.beta) {
        PyErr_SetString(PyExc_ValueError, "attention: gamma and beta come together");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = cq_attention(&a.cx, &t, &s, a.ptr[17], a.ptr[25], a.ptr[26], a.ptr[27]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg backward[] = {
    {"g", NPY_FLOAT32, "BLO", CQ_IN, 0, 0},
    {"xq", NPY_FLOAT32, "BLD", CQ_IN, 0, 0},
    {"xk", NPY_FLOAT32, "BSC", CQ_IN, 0, 0},
    {"wq", NPY_FLOAT32, "ED", CQ_IN, 0, 0},
    {"wk", NPY_FLOAT32, "EC", CQ_IN, 0, 0},
    {"wv", NPY_FLOAT32, "EC", CQ_IN, 0, 0},
    {"wo", NPY_FLOAT32, "OE", CQ_IN, 0, 0},
    {"gamma", NPY_FLOAT32, "O", CQ_IN | CQ_OPT, 0, 0},
    {"mask", NPY_UINT8, "BS", CQ_IN | CQ_OPT, 0, 0},
    {"q", NPY_FLOAT32, "BLE", CQ_IN, 0, 0},
    {"k", NPY_FLOAT32, "BSE", CQ_IN, 0, 0},
    {"v", NPY_FLOAT32, "BSE", CQ_IN, 0, 0},
    {"ctx", NPY_FLOAT32, "BLE", CQ_IN, 0, 0},
    {"y", NPY_FLOAT32, "BLO", CQ_IN | CQ_OPT, 0, 0},
    {"lse", NPY_FLOAT32, "BHL", CQ_IN, 0, 0},
    {"stat", NPY_FLOAT32, "BLT", CQ_IN, 0, 0},
    {"heads", CQ_ARG_INT, NULL, 0, 1, INT_MAX},
    {"residual", CQ_ARG_INT, NULL, 0, 0, 1},
    {"planes", CQ_ARG_INT, NULL, 0, CQ_ATT_BF16, CQ_ATT_HIGHEST},
    {"dxq", NPY_FLOAT32, "BLD", CQ_OUT | CQ_OPT, 0, 0},
    {"dxk", NPY_FLOAT32, "BSC", CQ_OUT | CQ_OPT, 0, 0},
    {"dwq", NPY_FLOAT32, "ED", CQ_OUT | CQ_OPT, 0, 0},
    {"dbq", NPY_FLOAT32, "E", CQ_OUT | CQ_OPT, 0, 0},
    {"dwk", NPY_FLOAT32, "EC", CQ_OUT | CQ_OPT, 0, 0},
    {"dbk", NPY_FLOAT32, "E", CQ_OUT | CQ_OPT, 0, 0},
    {"dwv", NPY_FLOAT32, "EC", CQ_OUT | CQ_OPT, 0, 0},
    {"dbv", NPY_FLOAT32, "E", CQ_OUT | CQ_OPT, 0, 0},
    {"dwo", NPY_FLOAT32, "OE", CQ_OUT | CQ_OPT, 0, 0},
    {"dbo", NPY_FLOAT32, "O", CQ_OUT | CQ_OPT, 0, 0},
    {"dgamma", NPY_FLOAT32, "O", CQ_OUT | CQ_OPT, 0, 0},
    {"dbeta", NPY_FLOAT32, "O", CQ_OUT | CQ_OPT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

PyObject *cq_py_attention_bwd(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    if (CQ_PARSE("attention_bwd", backward, &a) < 0) return NULL;
    const cq_attention_args t = {.B = a.dim['B'],
                                 .Lq = a.dim['L'],
                                 .Lk = a.dim['S'],
                                 .Dq = a.dim['D'],
                                 .Dk = a.dim['C'],
                                 .E = a.dim['E'],
                                 .Do = a.dim['O'],
                                 .H = (size_t)a.i[16],
                                 .xq = a.ptr[1],
                                 .xk = a.ptr[2],
                                 .wq = a.ptr[3],
                                 .wk = a.ptr[4],
                                 .wv = a.ptr[5],
                                 .wo = a.ptr[6],
                                 .gamma = a.ptr[7],
                                 .mask = a.ptr[8],
                                 .residual = (int)a.i[17],
                                 .planes = (int)a.i[18]};
    const cq_attention_saved s = {a.ptr[9],  a.ptr[10], a.ptr[11], a.ptr[12],
                                  a.ptr[13], t.E,       a.ptr[14], a.ptr[15]};
    const cq_attention_grads d = {a.ptr[19], a.ptr[20], a.ptr[21], a.ptr[22], a.ptr[23], a.ptr[24],
                                  a.ptr[25], a.ptr[26], a.ptr[27], a.ptr[28], a.ptr[29], a.ptr[30]};
    if (check_sizes(&a, &t, cq_attention_bwd_workspace(&t, d.xq != NULL, a.cx.threads)) < 0)
        return NULL;
    if (t.gamma && !s.y) {
        PyErr_SetString(PyExc_ValueError, "attention_bwd: y is None, but there is a layer norm");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = cq_attention_bwd(&a.cx, &t, &s, a.ptr[0], &d, a.ptr[31]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg workspace[] = {
    {"B", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"Lq", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"Lk", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"Dq", CQ_ARG_INT, NULL, 0, 1, PY_SSIZE_T_MAX},
    {"Dk", CQ_ARG_INT, NULL, 0, 1, PY_SSIZE_T_MAX},
    {"E", CQ_ARG_INT, NULL, 0, 1, PY_SSIZE_T_MAX},
    {"Do", CQ_ARG_INT, NULL, 0, 1, PY_SSIZE_T_MAX},
    {"heads", CQ_ARG_INT, NULL, 0, 1, INT_MAX},
    {"residual", CQ_ARG_INT, NULL, 0, 0, 1},
    {"planes", CQ_ARG_INT, NULL, 0, CQ_ATT_BF16, CQ_ATT_HIGHEST},
    {"backward", CQ_ARG_INT, NULL, 0, 0, 2},
};

/* backward: 0 = forward, 1 = backward without dxq, 2 = backward with it. */
PyObject *cq_py_attention_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    if (CQ_PARSE("attention_workspace", workspace, &a) < 0) return NULL;
    const cq_attention_args t = {.B = (size_t)a.i[0],
                                 .Lq = (size_t)a.i[1],
                                 .Lk = (size_t)a.i[2],
                                 .Dq = (size_t)a.i[3],
                                 .Dk = (size_t)a.i[4],
                                 .E = (size_t)a.i[5],
                                 .Do = (size_t)a.i[6],
                                 .H = (size_t)a.i[7],
                                 .residual = (int)a.i[8],
                                 .planes = (int)a.i[9]};
    return PyLong_FromSize_t(a.i[10] == 0
                                 ? cq_attention_workspace(&t, a.cx.threads)
                                 : cq_attention_bwd_workspace(&t, a.i[10] == 2, a.cx.threads));
}
