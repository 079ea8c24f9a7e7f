/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CQ_METHODS_H
#define CQ_METHODS_H

#define METHOD(name, signature)                                                                    \
    PyObject *cq_py_##name(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
#include "bind/methods.def"
#undef METHOD

/* The spec of the immutable `Kernels(isa=None, threads=1)` type. */
extern PyType_Spec cq_kernels_spec;

#endif
