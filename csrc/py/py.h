/* The binding's shared declarations: module state, type specs, conversions. This room sees
 * ane.h and NumPy only (testing.c alone may include internal headers). */
#ifndef ANE_PY_H
#define ANE_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL anetorch_ARRAY_API
#ifndef ANE_PY_IMPORT_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "../ane.h"

typedef struct ane_py_state {
    PyObject *mil_error;                /* anetorch.MILError */
    PyTypeObject *tensor_type, *map_type, *quant_type;
    PyTypeObject *program_type;
    PyTypeObject *kernel_type, *request_type, *pipeline_type;
    PyTypeObject *weight_file_type, *weight_buffer_type, *weight_writer_type;
} ane_py_state;

ane_py_state *ane_py_state_of(PyObject *module);

/* Each file adds its types and functions: 0, or -1 with an exception. module.c's list. */
int ane_py_add_tensor(PyObject *module, ane_py_state *st);
int ane_py_add_convert(PyObject *module, ane_py_state *st);
int ane_py_add_program(PyObject *module, ane_py_state *st);
int ane_py_add_kernel(PyObject *module, ane_py_state *st);
int ane_py_add_request(PyObject *module, ane_py_state *st);
int ane_py_add_pipeline(PyObject *module, ane_py_state *st);
int ane_py_add_weights(PyObject *module, ane_py_state *st);
int ane_py_add_train(PyObject *module, ane_py_state *st);
int ane_py_add_lint(PyObject *module, ane_py_state *st);
int ane_py_add_engine(PyObject *module, ane_py_state *st);
int ane_py_add_coreml(PyObject *module, ane_py_state *st);
int ane_py_add_testing(PyObject *module, ane_py_state *st);

/* Adds a METH table to the module (PyModule_AddFunctions). */

/* Sets the exception for a failed call and returns NULL. CANCELLED keeps an exception that
 * is already pending (the signal handler's). */
PyObject *ane_py_raise(ane_py_state *st, const ane_error *err);

/* Interrupts: pass &opts to a run made between Py_BEGIN/END_ALLOW_THREADS. The poll takes
 * the interpreter lock and runs PyErr_CheckSignals. */
void ane_py_run_options(ane_run_options *opts);

/* tensor_type.c: anything that wants a tensor's view. Borrowed while the object lives. */
int ane_py_is_tensor(ane_py_state *st, PyObject *obj);
/* NULL with ValueError when closed. */
const ane_tensor *ane_py_tensor_view(PyObject *obj);
/* New Tensor over t (its surface is retained). */
PyObject *ane_py_tensor_new(ane_py_state *st, const ane_tensor *t);
/* Runs keep a tensor's surface; close() must refuse while a run is live. */
void ane_py_tensor_pin(PyObject *obj);
void ane_py_tensor_unpin(PyObject *obj);

/* program_type.c: the program behind a Program object (borrowed); NULL with TypeError. */
ane_program *ane_py_program(ane_py_state *st, PyObject *obj);

/* convert.c: NumPy and buffers. A view over any array-like of a supported dtype without a
 * copy where possible; *owner keeps it alive (release with Py_DECREF after use). want:
 * wanted dtype or -1; arrays of another float dtype are converted, other mismatches raise
 * TypeError naming `what`. */
int ane_py_view(ane_py_state *st, PyObject *obj, int want, const char *what,
                ane_tensor *out, PyObject **owner);
int ane_py_dtype(PyObject *obj, ane_dtype *out);        /* str, np.dtype, type: 0 or -1 */
int ane_py_npy_type(ane_dtype dtype);                   /* NPY_HALF, ...; -1: none */
PyObject *ane_py_shape_tuple(int rank, const int64_t *dims);
int ane_py_shape(PyObject *obj, int64_t *dims, int *rank);      /* int or sequence */

#endif
