/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"

#include <stdio.h>
#include <string.h>

typedef struct span {
    const char *name;
    const char *begin, *end;
    int flags;
} span;

static const char *dtype_name(int type) {
    switch (type) {
    case NPY_FLOAT32: return "float32";
    case NPY_FLOAT64: return "float64";
    case NPY_UINT8: return "uint8";
    case NPY_INT8: return "int8";
    case NPY_INT32: return "int32";
    case NPY_UINT32: return "uint32";
    case NPY_INT64: return "int64";
    case NPY_UINT16: return "uint16";
    case NPY_FLOAT16: return "float16";
    default: return "?";
    }
}

static int refuse_strides(const char *op, const cq_arg *s, PyArrayObject *arr) {
    const npy_intp size = PyArray_ITEMSIZE(arr);
    int good = PyArray_ISALIGNED(arr);
    for (int d = 0; d < PyArray_NDIM(arr); d++) {
        const npy_intp stride = PyArray_STRIDE(arr, d);
        if (PyArray_DIM(arr, d) > 1 && (stride < 0 || stride % size)) good = 0;
    }
    if (good) return 0;
    PyErr_Format(PyExc_ValueError,
                 "%s: %s must be aligned, with strides that are whole elements and not negative; "
                 "pass numpy.ascontiguousarray(%s)",
                 op, s->name, s->name);
    return -1;
}

static int check_layout(const char *op, const cq_arg *s, PyArrayObject *arr) {
    if (PyArray_TYPE(arr) != s->type || PyArray_ISBYTESWAPPED(arr)) {
        PyErr_Format(PyExc_TypeError,
                     "%s: %s has dtype %S, expected native %s; convert it with "
                     "astype() first",
                     op, s->name, (PyObject *)PyArray_DESCR(arr), dtype_name(s->type));
        return -1;
    }
    if (PyArray_NDIM(arr) != (int)strlen(s->dims)) {
        PyErr_Format(PyExc_ValueError, "%s: %s has %d dimensions, expected %d; reshape it first",
                     op, s->name, PyArray_NDIM(arr), (int)strlen(s->dims));
        return -1;
    }
    if (s->flags & CQ_STRIDED) return refuse_strides(op, s, arr);
    if (!PyArray_IS_C_CONTIGUOUS(arr) || !PyArray_ISALIGNED(arr)) {
        PyErr_Format(PyExc_ValueError,
                     "%s: %s must be C-contiguous and aligned; pass "
                     "numpy.ascontiguousarray(%s)",
                     op, s->name, s->name);
        return -1;
    }
    if ((s->flags & CQ_OUT) && !PyArray_ISWRITEABLE(arr)) {
        PyErr_Format(PyExc_ValueError, "%s: %s is read-only; pass a writable array", op, s->name);
        return -1;
    }
    return 0;
}

static int bind_dims(const cq_arg *s, PyArrayObject *arr, cq_args *out, unsigned *seen) {
    for (int d = 0; s->dims[d]; d++) {
        const size_t got = (size_t)PyArray_DIM(arr, d);
        const unsigned bit = 1u << (s->dims[d] - 'A');
        size_t *want = &out->dim[(unsigned char)s->dims[d]];
        if ((*seen & bit) && *want != got) {
            PyErr_Format(PyExc_ValueError, "%s: %s: dimension %c is %zu, expected %zu", out->op,
                         s->name, s->dims[d], got, *want);
            return -1;
        }
        *seen |= bit;
        *want = got;
    }
    return 0;
}

/* Bytes from the first to the end of the last element. */
static npy_intp extent(PyArrayObject *arr) {
    npy_intp bytes = PyArray_ITEMSIZE(arr);
    for (int d = 0; d < PyArray_NDIM(arr); d++) {
        if (!PyArray_DIM(arr, d)) return 0;
        if (PyArray_DIM(arr, d) > 1) bytes += (PyArray_DIM(arr, d) - 1) * PyArray_STRIDE(arr, d);
    }
    return bytes;
}

static int bind_array(const cq_arg *s, PyObject *obj, cq_args *out, size_t at, unsigned *seen,
                      span *sp) {
    if (obj == Py_None && (s->flags & CQ_OPT)) {
        out->ptr[at] = NULL;
        *sp = (span){s->name, NULL, NULL, s->flags};
        return 0;
    }
    if (!PyArray_Check(obj)) {
        PyErr_Format(PyExc_TypeError, "%s: %s is %S, expected a numpy array of %s", out->op,
                     s->name, (PyObject *)Py_TYPE(obj), dtype_name(s->type));
        return -1;
    }
    PyArrayObject *arr = (PyArrayObject *)obj;
    if (check_layout(out->op, s, arr) < 0 || bind_dims(s, arr, out, seen) < 0) return -1;
    out->ptr[at] = PyArray_DATA(arr);
    out->strides[at] = PyArray_STRIDES(arr);
    *sp = (span){s->name, PyArray_BYTES(arr), PyArray_BYTES(arr) + extent(arr), s->flags};
    return 0;
}

/* A conversion failed. A wrong type is named in terms of the argument; what else the object's own
 * code raised (an interrupt, say) stays. Arrays are named by their type: their text may be long,
 * and NumPy crashes where memory ends while it makes it. Always -1. */
static int refuse_number(const cq_arg *s, PyObject *obj, const char *op, const char *expected) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) return -1;
    PyErr_Clear();
    PyObject *told = PyArray_Check(obj) ? (PyObject *)Py_TYPE(obj) : obj;
    PyErr_Format(PyExc_TypeError, "%s: %s is %R, expected %s", op, s->name, told, expected);
    return -1;
}

static int bind_int(const cq_arg *s, PyObject *obj, cq_args *out, size_t at) {
    const long long value = PyLong_AsLongLong(obj);
    if (value == -1 && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_OverflowError)) {
        char expected[80];
        snprintf(expected, sizeof expected, "an integer in %lld..%lld", s->min, s->max);
        return refuse_number(s, obj, out->op, expected);
    }
    if (PyErr_Occurred() || value < s->min || value > s->max) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: %s is %S, allowed are %lld..%lld", out->op, s->name,
                     obj, s->min, s->max);
        return -1;
    }
    out->i[at] = value;
    return 0;
}

static int bind_double(const cq_arg *s, PyObject *obj, cq_args *out, size_t at) {
    out->d[at] = PyFloat_AsDouble(obj);
    if (out->d[at] == -1.0 && PyErr_Occurred()) return refuse_number(s, obj, out->op, "a number");
    return 0;
}

static int check_overlap(const char *op, const span *sp, size_t n) {
    for (size_t o = 0; o < n; o++) {
        if (!(sp[o].flags & CQ_OUT)) continue;
        for (size_t k = 0; k < n; k++) {
            if (k == o || sp[k].begin == sp[k].end || sp[o].begin == sp[o].end) continue;
            const int same = sp[k].begin == sp[o].begin && sp[k].end == sp[o].end;
            if (same && (sp[o].flags & CQ_INPLACE) && !(sp[k].flags & CQ_OUT)) continue;
            if (sp[k].begin < sp[o].end && sp[o].begin < sp[k].end) {
                PyErr_Format(PyExc_ValueError,
                             "%s: %s overlaps %s in memory; pass a separate array", op, sp[o].name,
                             sp[k].name);
                return -1;
            }
        }
    }
    return 0;
}

int cq_parse(PyObject *self, const char *op, PyObject *const *args, Py_ssize_t nargs,
             const cq_arg *sig, size_t nsig, cq_args *out) {
    const cq_kernels_object *kernels = (const cq_kernels_object *)(const void *)self;
    if ((size_t)nargs != nsig) {
        PyErr_Format(PyExc_TypeError, "%s takes %zu arguments, got %zd", op, nsig, nargs);
        return -1;
    }
    memset(out, 0, sizeof *out);
    out->op = op;
    out->cx.k = kernels->table;
    out->cx.threads = kernels->threads;
    out->cx.poll = cq_poll_signals;
    out->cx.caller = pthread_self();
    span spans[CQ_MAX_ARGS] = {{0}};
    unsigned seen = 0;
    /* Numbers first: converting one can run Python code, which could free an array's memory. */
    for (size_t i = 0; i < nsig; i++) {
        if (sig[i].type == CQ_ARG_INT && bind_int(&sig[i], args[i], out, i) < 0) return -1;
        if (sig[i].type == CQ_ARG_DOUBLE && bind_double(&sig[i], args[i], out, i) < 0) return -1;
    }
    for (size_t i = 0; i < nsig; i++)
        if (sig[i].dims && bind_array(&sig[i], args[i], out, i, &seen, &spans[i]) < 0) return -1;
    return check_overlap(op, spans, nsig);
}

int cq_expect_size(const cq_args *a, const char *name, size_t got, size_t expected,
                   const char *formula) {
    if (got == expected) return 0;
    PyErr_Format(PyExc_ValueError, "%s: %s has %zu, expected %zu (%s)", a->op, name, got, expected,
                 formula);
    return -1;
}

PyObject *cq_done(const cq_args *a, cq_status status) {
    static const char *const argument[] = {
#define STATUS(code, argument, rule) argument,
#include "core/status.def"
#undef STATUS
    };
    static const char *const rule[] = {
#define STATUS(code, argument, rule) rule,
#include "core/status.def"
#undef STATUS
    };
    if (status == CQ_OK) Py_RETURN_NONE;
    if (status == CQ_INTERRUPTED) return NULL; /* cq_poll_signals left the exception */
    char value[32];
    snprintf(value, sizeof value, "%g", a->cx.bad_value);
    PyErr_Format(PyExc_ValueError, "%s: %s[%zu] is %s; %s", a->op, argument[status],
                 a->cx.bad_index, value, rule[status]);
    return NULL;
}
