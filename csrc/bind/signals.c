/* SPDX-License-Identifier: Apache-2.0 */
#include "bind/args.h"

/* 1 in Python's main thread, the only one that runs signal handlers, 0 elsewhere, -1 with an
 * exception set. */
static int is_main_thread(void) {
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *main = threading ? PyObject_CallMethod(threading, "main_thread", NULL) : NULL;
    PyObject *ident = main ? PyObject_GetAttrString(main, "ident") : NULL;
    const unsigned long value = ident ? PyLong_AsUnsignedLong(ident) : 0;
    Py_XDECREF(ident);
    Py_XDECREF(main);
    Py_XDECREF(threading);
    if (PyErr_Occurred()) return -1;
    return value == PyThread_get_thread_ident();
}

/* The wrapper gave the GIL up; PyGILState_Ensure takes it with the state of this thread. */
int cq_poll_signals(cq_ctx *cx) {
    const PyGILState_STATE state = PyGILState_Ensure();
    int raised = PyErr_CheckSignals() < 0;
    if (!raised) {
        const int main = is_main_thread();
        raised = main < 0; /* a signal may have come meanwhile, too */
        if (main == 0) cx->poll = NULL;
    }
    PyGILState_Release(state);
    return raised;
}
