/* SPDX-License-Identifier: Apache-2.0 */
#define CQ_IMPORTS_NUMPY
#include "bind/args.h"
#include "bind/methods.h"
#include "core/parallel.h"

/* A tuple of the names of every ISA level this CPU runs, plainest first. */
static PyObject *isa_tuple(void) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < CQ_ISA_COUNT; i++) {
        if (!cq_isa_supported((cq_isa)i)) continue;
        PyObject *name = PyUnicode_FromString(cq_isa_name((cq_isa)i));
        if (!name || PyList_Append(list, name) < 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    if (!list) return NULL;
    PyObject *tuple = PyList_AsTuple(list);
    Py_DECREF(list);
    return tuple;
}

/* A tuple of (name, exactness class) rows of kernels.def. */
static PyObject *kernel_tuple(void) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)cq_kernel_count);
    for (size_t i = 0; tuple && i < cq_kernel_count; i++) {
        PyObject *row = Py_BuildValue("(ss)", cq_kernel_list[i].name, cq_kernel_list[i].exactness);
        if (!row || PyTuple_SetItem(tuple, (Py_ssize_t)i, row) < 0) Py_CLEAR(tuple);
    }
    return tuple;
}

/* Add a new reference to the module and drop it; -1 on any failure. */
static int add_owned(PyObject *module, const char *name, PyObject *value) {
    const int failed = !value || PyModule_AddObjectRef(module, name, value) < 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

static int module_exec(PyObject *module) {
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
        PyErr_SetString(
            PyExc_ImportError,
            "cmibq._C does not support subinterpreters (NumPy does not); use processes");
        return -1;
    }
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    if (cq_parallel_init() != 0) {
        PyErr_SetString(PyExc_ImportError, "cmibq._C: pthread_atfork failed");
        return -1;
    }
    if (add_owned(module, "Kernels", PyType_FromModuleAndSpec(module, &cq_kernels_spec, NULL)) < 0)
        return -1;
    if (add_owned(module, "ISAS", isa_tuple()) < 0) return -1;
    return add_owned(module, "KERNELS", kernel_tuple());
}

static PyObject *forked(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyBool_FromLong(cq_parallel_forked());
}

static PyMethodDef module_methods[] = {
    {"forked", forked, METH_NOARGS,
     "forked()\n--\n\nTrue in a forked child, where kernels run on one thread."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "C kernels of cmibq.",
    0,
    module_methods,
    module_slots,
    NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__C(void);
PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&module_def); }
