/* What the files of WeightFile, WeightBuffer and WeightWriter share. None of the three
 * holds Python objects, so none is tracked by the collector. */
#ifndef ANE_PY_WEIGHTS_H
#define ANE_PY_WEIGHTS_H

#include "py.h"

typedef struct py_weights {
    PyObject_HEAD
    ane_py_state *state;                /* of the type's module, which the type keeps */
    ane_weight_file *file;              /* NULL: closed */
} py_weights;

extern PyType_Spec ane_py_weights_spec, ane_py_weight_buffer_spec, ane_py_weight_writer_spec;
extern PyMethodDef ane_py_weight_functions[];

/* As ane_py_raise, but a malformed file is a ValueError that names file and place. */
PyObject *ane_py_weights_raise(ane_py_state *st, const ane_error *err);
/* The open file, or NULL with ValueError. */
ane_weight_file *ane_py_weights_opened(PyObject *obj);
/* 1 found, 0 not, -1 exception. */
int ane_py_weights_find(const ane_weight_file *f, PyObject *name, size_t *index);

/* The module state of a type or of the nearest base that has one. */
ane_py_state *ane_py_type_state(PyTypeObject *type);
PyObject *ane_py_type_alloc(PyTypeObject *type);
void ane_py_type_free(PyObject *obj);

#define KEYWORDS(f) (PyCFunction)(void (*)(void))f

#endif
