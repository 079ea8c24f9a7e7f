/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"

/* 1 unless this is surely not Python's main thread, the only one that runs signal handlers. */
static int may_be_main_thread(void) {
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *main = threading ? PyObject_CallMethod(threading, "main_thread", NULL) : NULL;
    PyObject *ident = main ? PyObject_GetAttrString(main, "ident") : NULL;
    const unsigned long value = ident ? PyLong_AsUnsignedLong(ident) : 0;
    const int known = ident && !PyErr_Occurred();
    PyErr_Clear();
    Py_XDECREF(ident);
    Py_XDECREF(main);
    Py_XDECREF(threading);
    return !known || value == PyThread_get_thread_ident();
}

/* The wrapper gave the GIL up; PyGILState_Ensure takes it with the state of this thread. */
int cq_poll_signals(cq_ctx *cx) {
    const PyGILState_STATE state = PyGILState_Ensure();
    const int raised = PyErr_CheckSignals() < 0;
    if (!raised && !may_be_main_thread()) cx->poll = NULL;
    PyGILState_Release(state);
    return raised;
}
