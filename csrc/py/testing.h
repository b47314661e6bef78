/* What the testing_*.c files share. Only they may include internal headers. */
#ifndef ANE_PY_TESTING_H
#define ANE_PY_TESTING_H

#include "py.h"

#include "../kernels/kernels.h"
#include "../testing.h"

int ane_py_testing_eval(PyObject *t, ane_py_state *st);
int ane_py_testing_weights(PyObject *t, ane_py_state *st);
int ane_py_testing_conv(PyObject *t, ane_py_state *st);
int ane_py_testing_kernels(PyObject *t, ane_py_state *st);
int ane_py_testing_run(PyObject *t, ane_py_state *st);
int ane_py_testing_tensor(PyObject *t, ane_py_state *st);

/* Of testing_kernels.c; NULL and -1 with an exception set. */
const ane_kernels *ane_py_table_of(const char *name);
int ane_py_float_type(PyArrayObject *a, ane_dtype *out);

#endif
