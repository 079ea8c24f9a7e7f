/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"
#include "bind/methods.h"
#include "ops/ops.h"

/* B batch, L and S rows of xq and xk, D and C their widths, P that of keys and values before their
 * projections, E heads together, O output, H heads. k and v are [E, B * S] inside. */
static const cq_arg forward[] = {
    {"xq", NPY_FLOAT32, "BLD", CQ_IN, 0, 0},
    {"xk", NPY_FLOAT32, "BSC", CQ_IN, 0, 0},
    {"wp", NPY_FLOAT32, "PC", CQ_IN | CQ_OPT, 0, 0},
    {"bp", NPY_FLOAT32, "P", CQ_IN | CQ_OPT, 0, 0},
    {"wq", NPY_FLOAT32, "ED", CQ_IN, 0, 0},
    {"bq", NPY_FLOAT32, "E", CQ_IN | CQ_OPT, 0, 0},
    {"wk", NPY_FLOAT32, "EP", CQ_IN, 0, 0},
    {"bk", NPY_FLOAT32, "E", CQ_IN | CQ_OPT, 0, 0},
    {"wv", NPY_FLOAT32, "EP", CQ_IN, 0, 0},
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
    {"kv", NPY_FLOAT32, "BSP", CQ_OUT | CQ_OPT, 0, 0},
    {"q", NPY_FLOAT32, "BLE", CQ_OUT | CQ_OPT, 0, 0},
    {"k", NPY_FLOAT32, "BSE", CQ_OUT | CQ_OPT, 0, 0},
    {"v", NPY_FLOAT32, "BSE", CQ_OUT | CQ_OPT, 0, 0},
    {"ctx", NPY_FLOAT32, "BLE", CQ_OUT | CQ_OPT, 0, 0},
    {"y", NPY_FLOAT32, "BLO", CQ_OUT | CQ_OPT, 0, 0},
    {"lse", NPY_FLOAT32, "BHL", CQ_OUT, 0, 0},
    {"stat", NPY_FLOAT32, "BLT", CQ_OUT, 0, 0},
    {"entropy", NPY_FLOAT32, "BHL", CQ_OUT | CQ_OPT, 0, 0},
    {"weights", NPY_FLOAT32, "BLS", CQ_OUT | CQ_OPT, 0, 0},
    {"work", NPY_UINT8, "W", CQ_OUT, 0, 0},
};

/* Sizes and operands; `xq` is the place of xq among the arguments, the others follow it as above up
 * to `planes`. */
static cq_attention_args operands(const cq_args *a, size_t xq) {
    void *const *p = a->ptr + xq;
    const size_t width = p[2] ? a->dim['P'] : a->dim['C'];
    const cq_attention_args t = {.B = a->dim['B'],
                                 .Lq = a->dim['L'],
                                 .Lk = a->dim['S'],
                                 .Dq = a->dim['D'],
                                 .Dk = a->dim['C'],
                                 .P = width,
                                 .E = a->dim['E'],
                                 .Do = a->dim['O'],
                                 .H = (size_t)a->i[xq + 15],
                                 .xq = p[0],
                                 .xk = p[1],
                                 .wp = p[2],
                                 .bp = p[3],
                                 .wq = p[4],
                                 .bq = p[5],
                                 .wk = p[6],
                                 .bk = p[7],
                                 .wv = p[8],
                                 .bv = p[9],
                                 .wo = p[10],
                                 .bo = p[11],
                                 .gamma = p[12],
                                 .beta = p[13],
                                 .mask = p[14],
                                 .eps = (float)a->d[xq + 17],
                                 .residual = (int)a->i[xq + 16],
                                 .planes = (int)a->i[xq + 18]};
    return t;
}

/* What was saved: all that is needed, or nothing; `kv` is its place among the arguments. */
static int saved(const cq_args *a, const cq_attention_args *t, size_t kv, cq_attention_saved *s) {
    void *const *p = a->ptr + kv;
    *s = (cq_attention_saved){p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]};
    const int all = (s->kv || !t->wp) && s->q && s->k && s->v && s->ctx && (s->y || !t->gamma);
    if (all || !(s->kv || s->q || s->k || s->v || s->ctx || s->y)) return 0;
    PyErr_Format(PyExc_ValueError, "%s: kv, q, k, v, ctx and y come together", a->op);
    return -1;
}

/* What both directions refuse: 0, or -1 with an exception set. */
static int check_sizes(const cq_args *a, const cq_attention_args *t, size_t need) {
    if (!t->H || !t->E || !t->Dq || !t->Dk || !t->P || !t->Do) {
        PyErr_Format(PyExc_ValueError, "%s: widths must be at least 1", a->op);
        return -1;
    }
    if (cq_expect_size(a, "E modulo heads", t->E % t->H, 0, "heads divide the width") < 0 ||
        cq_expect_size(a, "lse: dimension H", a->dim['H'], t->H, "heads") < 0 ||
        cq_expect_size(a, "stat: dimension T", a->dim['T'], 2, "mean and 1 / deviation") < 0)
        return -1;
    if (!t->wp && cq_expect_size(a, "xk: dimension C", t->Dk, a->dim['P'],
                                 "the width that wk and wv take") < 0)
        return -1;
    if (t->residual && cq_expect_size(a, "xq: dimension D", t->Dq, t->Do,
                                      "the width of the output, which xq is added to") < 0)
        return -1;
    if (!t->gamma != !t->beta || (t->bp && !t->wp)) {
        PyErr_Format(PyExc_ValueError, "%s: %s", a->op,
                     t->bp && !t->wp ? "bp without wp" : "gamma and beta come together");
        return -1;
    }
    return cq_expect_size(a, "work", a->dim['W'], need, "attention_workspace(...)");
}

PyObject *cq_py_attention(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    cq_args a;
    cq_status status;
    cq_attention_saved s;
    if (CQ_PARSE("attention", forward, &a) < 0) return NULL;
    const cq_attention_args t = operands(&a, 0);
    if (saved(&a, &t, 20, &s) < 0) return NULL;
    if (check_sizes(&a, &t, cq_attention_workspace(&t, s.q != NULL, a.cx.threads)) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_attention(&a.cx, &t, &s, a.ptr[19], a.ptr[28], a.ptr[29], a.ptr[30]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg backward[] = {
    {"g", NPY_FLOAT32, "BLO", CQ_IN, 0, 0},
    {"xq", NPY_FLOAT32, "BLD", CQ_IN, 0, 0},
    {"xk", NPY_FLOAT32, "BSC", CQ_IN, 0, 0},
    {"wp", NPY_FLOAT32, "PC", CQ_IN | CQ_OPT, 0, 0},
    {"bp", NPY_FLOAT32, "P", CQ_IN | CQ_OPT, 0, 0},
    {"wq", NPY_FLOAT32, "ED", CQ_IN, 0, 0},
    {"bq", NPY_FLOAT32, "E", CQ_IN | CQ_OPT, 0, 0},
    {"wk", NPY_FLOAT32, "EP", CQ_IN, 0, 0},
    {"bk", NPY_FLOAT32, "E", CQ_IN | CQ_OPT, 0, 0},
    {"wv", NPY_FLOAT32, "EP", CQ_IN, 0, 0},
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
    {"kv", NPY_FLOAT32, "BSP", CQ_IN | CQ_OPT, 0, 0},
    {"q", NPY_FLOAT32, "BLE", CQ_IN | CQ_OPT, 0, 0},
    {"k", NPY_FLOAT32, "BSE", CQ_IN | CQ_OPT, 0, 0},
    {"v", NPY_FLOAT32, "BSE", CQ_IN | CQ_OPT, 0, 0},
    {"ctx", NPY_FLOAT32, "BLE", CQ_IN | CQ_OPT, 0, 0},
    {"y", NPY_FLOAT32, "BLO", CQ_IN | CQ_OPT, 0, 0},
    {"lse", NPY_FLOAT32, "BHL", CQ_IN, 0, 0},
    {"stat", NPY_FLOAT32, "BLT", CQ_IN, 0, 0},
    {"dxq", NPY_FLOAT32, "BLD", CQ_OUT | CQ_OPT, 0, 0},
    {"dxk", NPY_FLOAT32, "BSC", CQ_OUT | CQ_OPT, 0, 0},
    {"dwp", NPY_FLOAT32, "PC", CQ_OUT | CQ_OPT, 0, 0},
    {"dbp", NPY_FLOAT32, "P", CQ_OUT | CQ_OPT, 0, 0},
    {"dwq", NPY_FLOAT32, "ED", CQ_OUT | CQ_OPT, 0, 0},
    {"dbq", NPY_FLOAT32, "E", CQ_OUT | CQ_OPT, 0, 0},
    {"dwk", NPY_FLOAT32, "EP", CQ_OUT | CQ_OPT, 0, 0},
    {"dbk", NPY_FLOAT32, "E", CQ_OUT | CQ_OPT, 0, 0},
    {"dwv", NPY_FLOAT32, "EP", CQ_OUT | CQ_OPT, 0, 0},
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
    cq_attention_saved s;
    if (CQ_PARSE("attention_backward", backward, &a) < 0) return NULL;
    const cq_attention_args t = operands(&a, 1);
    if (saved(&a, &t, 20, &s) < 0) return NULL;
    void *const *p = a.ptr + 28;
    const cq_attention_grads d = {p[0], p[1], p[2], p[3],  p[4],  p[5],  p[6],
                                  p[7], p[8], p[9], p[10], p[11], p[12], p[13]};
    const int keep = (d.xq ? 1 : 0) + (d.xk ? 2 : 0);
    if (check_sizes(&a, &t, cq_attention_bwd_workspace(&t, s.q != NULL, keep, a.cx.threads)) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cq_attention_bwd(&a.cx, &t, &s, a.ptr[0], &d, a.ptr[42]);
    Py_END_ALLOW_THREADS
    return cq_done(&a, status);
}

static const cq_arg workspace[] = {
    {"B", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"Lq", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"Lk", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"Dq", CQ_ARG_INT, NULL, 0, 1, PY_SSIZE_T_MAX},
    {"Dk", CQ_ARG_INT, NULL, 0, 1, PY_SSIZE_T_MAX},
    {"P", CQ_ARG_INT, NULL, 0, 0, PY_SSIZE_T_MAX},
    {"E", CQ_ARG_INT, NULL, 0, 1, PY_SSIZE_T_MAX},
    {"Do", CQ_ARG_INT, NULL, 0, 1, PY_SSIZE_T_MAX},
    {"heads", CQ_ARG_INT, NULL, 0, 1, INT_MAX},
    {"residual", CQ_ARG_INT, NULL, 0, 0, 1},
    {"planes", CQ_ARG_INT, NULL, 0, CQ_ATT_BF16, CQ_ATT_HIGHEST},
    {"saved", CQ_ARG_INT, NULL, 0, 0, 1},
    {"backward", CQ_ARG_INT, NULL, 0, -1, 3},
};

/* P: 0 = no first projection. backward: -1 = forward, else 1 where dxq is wanted plus 2 for dxk. */
PyObject *cq_py_attention_workspace(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    static const float some = 0.0f; /* wp is only looked at, not read */
    cq_args a;
    if (CQ_PARSE("attention_workspace", workspace, &a) < 0) return NULL;
    const cq_attention_args t = {.B = (size_t)a.i[0],
                                 .Lq = (size_t)a.i[1],
                                 .Lk = (size_t)a.i[2],
                                 .Dq = (size_t)a.i[3],
                                 .Dk = (size_t)a.i[4],
                                 .P = (size_t)(a.i[5] ? a.i[5] : a.i[4]),
                                 .wp = a.i[5] ? &some : NULL,
                                 .E = (size_t)a.i[6],
                                 .Do = (size_t)a.i[7],
                                 .H = (size_t)a.i[8],
                                 .residual = (int)a.i[9],
                                 .planes = (int)a.i[10]};
    const int held = (int)a.i[11], keep = (int)a.i[12];
    return PyLong_FromSize_t(keep < 0 ? cq_attention_workspace(&t, held, a.cx.threads)
                                      : cq_attention_bwd_workspace(&t, held, keep, a.cx.threads));
}
