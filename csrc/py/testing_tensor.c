/* _core._testing: what a failed run does to a tensor, without a failing run. */
#include "testing.h"

static PyObject *py_invalidate(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *obj;
    Py_ssize_t offset, bytes;
    const char *why;
    if (!PyArg_ParseTuple(args, "Onns:invalidate", &obj, &offset, &bytes, &why)) return NULL;
    const ane_tensor *t = ane_py_tensor_view(obj);
    if (!t) return NULL;
    ane_surface_invalidate(t->surface, t->offset + (size_t)offset, (size_t)bytes, why);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"invalidate", py_invalidate, METH_VARARGS,
     PyDoc_STR("invalidate(t, offset, nbytes, why)\n\nMarks bytes of t as a failed run would.")},
    {NULL, NULL, 0, NULL},
};

int ane_py_testing_tensor(PyObject *t, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(t, methods);
}
