/* What the testing_*.c files share. Only they may include internal headers. */
#ifndef ANE_PY_TESTING_H
#define ANE_PY_TESTING_H

#include "py.h"

#include "../testing.h"

int ane_py_testing_eval(PyObject *t, ane_py_state *st);
int ane_py_testing_weights(PyObject *t, ane_py_state *st);
int ane_py_testing_kernels(PyObject *t, ane_py_state *st);
int ane_py_testing_run(PyObject *t, ane_py_state *st);
int ane_py_testing_tensor(PyObject *t, ane_py_state *st);

#endif
