/* What the files of the Program type share. */
#ifndef ANE_PY_PROGRAM_H
#define ANE_PY_PROGRAM_H

#include "py.h"

typedef struct ProgramObject {
    PyObject_HEAD
    PyObject *weakrefs;
    ane_py_state *st;
    ane_program *p;
} ProgramObject;

#define ANE_PROGRAM(obj) ((ProgramObject *)(obj))
#define ANE_PROGRAM_METHOD(name) PyObject *name(PyObject *self, PyObject *args, PyObject *kw)

/* A new instance of type over p; takes the caller's reference of p, also on failure. */
PyObject *ane_py_program_make(PyTypeObject *type, ane_py_state *st, ane_program *p);

/* program_const.c: types and constants to Python and back. */
/* Any element type of MIL, also strings and sub-byte ones, which tensors cannot have. */
int ane_py_element(PyObject *obj, ane_dtype *out);
PyObject *ane_py_type_tuple(const ane_type *t);
/* ("tensor", "fp16", (1, 8, None)) and nested kinds; NULL with an exception. */
const ane_type *ane_py_type_from(ane_program *p, PyObject *obj, int depth);
/* ndarray | NumPy scalar | str | list of str | list | tuple | dict; None when the data is
 * absent. */
PyObject *ane_py_const_value(ane_py_state *st, const ane_const *c);
/* want: dtype or -1. Arrays above 64 bytes are viewed where they are contiguous. */
const ane_const *ane_py_const_from(ane_py_state *st, ane_program *p, PyObject *obj, int want,
                                   const char *what);
/* The same for a whole type: lists, tuples and dicts from Python's. */
const ane_const *ane_py_const_typed(ane_py_state *st, ane_program *p, PyObject *obj,
                                    const ane_type *type, const char *what);

/* program_edit.c */
ANE_PROGRAM_METHOD(ane_py_program_specialize);
ANE_PROGRAM_METHOD(ane_py_program_add_function);
ANE_PROGRAM_METHOD(ane_py_program_add_op);
ANE_PROGRAM_METHOD(ane_py_program_add_const);
ANE_PROGRAM_METHOD(ane_py_program_add_block);
ANE_PROGRAM_METHOD(ane_py_program_set_attr);
PyObject *ane_py_program_set_outputs(PyObject *self, PyObject *args);
PyObject *ane_py_program_remove_op(PyObject *self, PyObject *arg);
PyObject *ane_py_program_replace(PyObject *self, PyObject *args);
PyObject *ane_py_program_rename(PyObject *self, PyObject *args);
/* program_pack.c */
ANE_PROGRAM_METHOD(ane_py_program_pack);
/* A non-negative id; 0 with an exception. */
uint32_t ane_py_id(PyObject *obj, const char *what);

#endif
