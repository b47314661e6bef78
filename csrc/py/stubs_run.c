/* Weak stand-ins until the rooms of Tensor and Program land; the real ones win at link. */
#include "py.h"

#define WEAK __attribute__((weak))
WEAK ane_program *ane_py_program(ane_py_state *st, PyObject *obj) {
    (void)st, (void)obj;
    PyErr_SetString(PyExc_TypeError, "programs are not built in yet");
    return NULL;
}
WEAK int ane_py_is_tensor(ane_py_state *st, PyObject *obj) { return (void)st, (void)obj, 0; }
WEAK const ane_tensor *ane_py_tensor_view(PyObject *obj) { return (void)obj, NULL; }
WEAK PyObject *ane_py_tensor_new(ane_py_state *st, const ane_tensor *t) {
    (void)st, (void)t;
    PyErr_SetString(PyExc_TypeError, "tensors are not built in yet");
    return NULL;
}
WEAK void ane_py_tensor_pin(PyObject *obj) { (void)obj; }
WEAK void ane_py_tensor_unpin(PyObject *obj) { (void)obj; }
WEAK int ane_py_view(ane_py_state *st, PyObject *obj, int want, const char *what,
                     ane_tensor *out, PyObject **owner) {
    (void)st, (void)obj, (void)want, (void)what, (void)out, (void)owner;
    PyErr_SetString(PyExc_TypeError, "tensors are not built in yet");
    return -1;
}
