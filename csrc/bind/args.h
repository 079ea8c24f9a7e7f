/* SPDX-License-Identifier: Apache-2.0 */
/* The one argument checker. A wrapper states its arguments as a static table; cq_parse checks kind,
 * dtype, contiguity, alignment, writability and overlap, and binds dimension letters. */
#ifndef CQ_ARGS_H
#define CQ_ARGS_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_23_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL cq_numpy_api
#ifndef CQ_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "core/dispatch.h"

enum {
    CQ_IN = 0,      /* read only */
    CQ_OUT = 1,     /* written; must not overlap any other array */
    CQ_OPT = 2,     /* None allowed: the pointer is NULL then */
    CQ_INPLACE = 4, /* an output that may be exactly one of the inputs */
    CQ_STRIDED = 8, /* an input with any strides >= 0; their strides, in bytes, are in cq_args */
};

enum { CQ_ARG_INT = -1, CQ_ARG_DOUBLE = -2 };
#define CQ_MAX_ARGS 48

/* An array: dtype number, one letter per dimension (a letter has one size in a whole call), flags.
 * An integer: CQ_ARG_INT with the allowed range min..max. A double: CQ_ARG_DOUBLE. */
typedef struct cq_arg { /* NOLINT(clang-analyzer-optin.performance.Padding): reads as a table */
    const char *name;
    int type;
    const char *dims;
    int flags;
    long long min, max;
} cq_arg;

typedef struct cq_args {
    const char *op; /* the public function, for messages */
    cq_ctx cx;
    void *ptr[CQ_MAX_ARGS];               /* data pointer of array arguments, NULL for None */
    const npy_intp *strides[CQ_MAX_ARGS]; /* in bytes, of CQ_STRIDED arguments */
    long long i[CQ_MAX_ARGS];             /* value of integer arguments */
    double d[CQ_MAX_ARGS];                /* value of double arguments */
    size_t dim['Z' + 1];                  /* size of each dimension letter */
} cq_args;

typedef struct cq_kernels_object {
    PyObject_HEAD const cq_kernels *table;
    cq_isa isa;
    int threads;
} cq_kernels_object;

/* 0, or -1 with an exception set. */
int cq_parse(PyObject *self, const char *op, PyObject *const *args, Py_ssize_t nargs,
             const cq_arg *sig, size_t nsig, cq_args *out);
#define CQ_PARSE(op, sig, out)                                                                     \
    cq_parse(self, op, args, nargs, sig, sizeof(sig) / sizeof((sig)[0]), out)

/* Check a size that depends on other sizes: 0, or -1 with "<op>: <name> has <got> ..., expected".
 */
int cq_expect_size(const cq_args *a, const char *name, size_t got, size_t expected,
                   const char *formula);

/* cq_ctx.poll: run the signal handlers that wait, between two blocks of a long call. 1 when one
 * raised (Ctrl-C), with that exception set. */
int cq_poll_signals(cq_ctx *cx);

/* None for CQ_OK, otherwise NULL with ValueError built from status.def and the refused value. */
PyObject *cq_done(const cq_args *a, cq_status status);

#endif
