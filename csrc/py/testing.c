/* _core._testing: internals for the tests, reached through the library's one exported
 * table. Each room has a testing_<room>.c of its own; this file is their list. */
#include "testing.h"

#include "../base/mem.h"

static PyObject *py_fail_after(PyObject *self, PyObject *args) {
    (void)self;
    long n;
    int sticky = 0;
    if (!PyArg_ParseTuple(args, "l|p", &n, &sticky)) return NULL;
    return PyLong_FromLong(ANE_INTERNAL(ane_mem_fail_after)(n, sticky != 0));
}

static PyMethodDef methods[] = {
    {"fail_after", py_fail_after, METH_VARARGS,
     PyDoc_STR("fail_after(n, sticky=False) -> int\n\nThe n-th allocation from now fails "
               "(0: none). Returns how many were seen since the last call.")},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_testing(PyObject *module, ane_py_state *st) {
    PyObject *t = PyModule_New("anetorch._core._testing");
    if (!t) return -1;
    int rc = -1;
    if (PyModule_AddFunctions(t, methods) < 0) goto done;
    if (ane_py_testing_eval(t, st) < 0) goto done;
    if (ane_py_testing_kernels(t, st) < 0) goto done;
    if (ane_py_testing_conv(t, st) < 0) goto done;
    if (ane_py_testing_weights(t, st) < 0) goto done;
    if (ane_py_testing_run(t, st) < 0) goto done;
    if (ane_py_testing_tensor(t, st) < 0) goto done;
    rc = PyModule_AddObjectRef(module, "_testing", t);
done:
    Py_DECREF(t);
    return rc;
}
