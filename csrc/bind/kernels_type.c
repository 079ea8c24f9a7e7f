/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels(isa=None, threads=1): an immutable table of kernels and a thread count; ops are methods.
 */
#include "bind/args.h"
#include "bind/methods.h"

#include <string.h>

static int find_isa(const char *name, cq_isa *out) {
    for (int i = 0; i < CQ_ISA_COUNT; i++) {
        if (strcmp(cq_isa_name((cq_isa)i), name) == 0 && cq_isa_supported((cq_isa)i)) {
            *out = (cq_isa)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "isa is '%s', which this CPU does not run; see cmibq._C.ISAS",
                 name);
    return -1;
}

static PyObject *kernels_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"isa", "threads", NULL};
    const char *isa_name = NULL;
    int threads = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|zi:Kernels", names, &isa_name, &threads))
        return NULL;
    if (threads < 1 || threads > 1024) {
        PyErr_Format(PyExc_ValueError, "threads is %d, allowed are 1..1024", threads);
        return NULL;
    }
    cq_isa isa = cq_isa_best();
    if (isa_name && find_isa(isa_name, &isa) < 0) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    cq_kernels_object *self = (cq_kernels_object *)alloc(type, 0);
    if (!self) return NULL;
    self->table = cq_isa_table(isa);
    self->isa = isa;
    self->threads = threads;
    return (PyObject *)self;
}

static void kernels_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *kernels_repr(PyObject *self) {
    const cq_kernels_object *k = (const cq_kernels_object *)(const void *)self;
    return PyUnicode_FromFormat("Kernels(isa='%s', threads=%d)", cq_isa_name(k->isa), k->threads);
}

static PyObject *get_isa(PyObject *self, void *closure) {
    (void)closure;
    return PyUnicode_FromString(cq_isa_name(((cq_kernels_object *)self)->isa));
}

static PyObject *get_threads(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(((cq_kernels_object *)self)->threads);
}

static PyGetSetDef kernels_getset[] = {
    {"isa", get_isa, NULL, "Name of the ISA level.", NULL},
    {"threads", get_threads, NULL, "Thread count of every call.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef kernels_methods[] = {
#define METHOD(name, signature)                                                                    \
    {#name, (PyCFunction)(void (*)(void))cq_py_##name, METH_FASTCALL,                              \
     #name "($self, " signature "\n--\n\n"},
#include "bind/methods.def"
#undef METHOD
    {NULL, NULL, 0, NULL},
};

static PyType_Slot kernels_slots[] = {
    {Py_tp_new, (void *)kernels_new},
    {Py_tp_dealloc, (void *)kernels_dealloc},
    {Py_tp_repr, (void *)kernels_repr},
    {Py_tp_getset, kernels_getset},
    {Py_tp_methods, kernels_methods},
    {Py_tp_doc, "Kernels(isa=None, threads=1)\n--\n\nImmutable kernel table and thread count."},
    {0, NULL},
};

PyType_Spec cq_kernels_spec = {
    .name = "cmibq._C.Kernels",
    .basicsize = sizeof(cq_kernels_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = kernels_slots,
};
