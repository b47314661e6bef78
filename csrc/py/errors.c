/* ane_status to exception, in one switch, and the poll that keeps runs interruptible. */
#include "py.h"

static PyObject *raise_mil(ane_py_state *st, const ane_error *err) {
    /* SyntaxError's own layout: (message, (filename, line, column, text)). Its str() shows
     * file and line; the column is put into the message. */
    char message[sizeof err->message + 32];
    if (err->column)
        PyOS_snprintf(message, sizeof message, "%s (column %d)", err->message, err->column);
    else PyOS_snprintf(message, sizeof message, "%s", err->message);
    PyObject *value = PyObject_CallFunction(st->mil_error, "s(ziiO)", message,
                                            err->file[0] ? err->file : "<mil>", err->line,
                                            err->column, Py_None);
    if (!value) return NULL;
    PyErr_SetObject(st->mil_error, value);
    Py_DECREF(value);
    return NULL;
}

PyObject *ane_py_raise(ane_py_state *st, const ane_error *err) {
    PyObject *type = PyExc_RuntimeError;
    switch (err->status) {
    case ANE_ERR_PARSE: return raise_mil(st, err);
    case ANE_ERR_OS: {
        PyObject *value = PyObject_CallFunction(PyExc_OSError, "Ls", err->code, err->message);
        if (value) {
            PyErr_SetObject((PyObject *)Py_TYPE(value), value);
            Py_DECREF(value);
        }
        return NULL;
    }
    case ANE_ERR_CANCELLED:
        if (PyErr_Occurred()) return NULL;
        break;
    case ANE_ERR_NOMEM: type = PyExc_MemoryError; break;
    case ANE_ERR_INVALID:
    case ANE_ERR_SHAPE: type = PyExc_ValueError; break;
    case ANE_ERR_DTYPE: type = PyExc_TypeError; break;
    case ANE_ERR_INDEX: type = PyExc_IndexError; break;
    case ANE_ERR_UNSUPPORTED: type = PyExc_NotImplementedError; break;
    case ANE_ERR_BUSY: type = PyExc_BufferError; break;
    case ANE_ERR_NOT_FOUND: type = PyExc_KeyError; break;
    default: break;
    }
    PyErr_SetString(type, err->message[0] ? err->message : ane_status_text(err->status));
    return NULL;
}

static int poll_signals(void *arg) {
    (void)arg;
    PyGILState_STATE g = PyGILState_Ensure();
    int stop = PyErr_CheckSignals() != 0;
    PyGILState_Release(g);
    return stop;
}

void ane_py_run_options(ane_run_options *opts) {
    *opts = (ane_run_options){.size = sizeof *opts, .poll = poll_signals};
}
