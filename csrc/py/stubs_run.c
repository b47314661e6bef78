/* Weak stand-ins until the rooms of Tensor and Program land; the real ones win at link. */
#include "py.h"

#define WEAK __attribute__((weak))
WEAK ane_program *ane_py_program(ane_py_state *st, PyObject *obj) {
    (void)st, (void)obj;
    PyErr_SetString(PyExc_TypeError, "programs are not built in yet");
    return NULL;
}
