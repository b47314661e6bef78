/* What kernel_type.c, request_type.c and pipeline_type.c share. */
#ifndef ANE_PY_RUN_H
#define ANE_PY_RUN_H

#include "py.h"

typedef struct py_kernel {
    PyObject_HEAD
    ane_py_state *state;
    PyObject *module;                   /* keeps state alive */
    ane_kernel *kernel;
    ane_request *last;                  /* of a k(x, out=y); NULL: none, or being run */
    uint32_t last_arrays;               /* bit i: its operand i is an array */
    bool may_relower;                   /* a run may still find another lowering */
} py_kernel;

/* After a run that succeeded: a kernel that it lowered anew warns, once. 0 or -1. NULL is
 * fine. */
int ane_py_tell_lowering(PyObject *kernel);

#define KEPT_OPERANDS 17                /* a call with out= of more is bound each time */

PyObject *ane_py_kernel_call(PyObject *kernel, PyObject *args, PyObject *kwargs);

typedef struct py_request {
    PyObject_HEAD
    ane_py_state *state;
    PyObject *module;
    ane_request *request;
    PyObject *kernel;
    PyObject *inputs, *outputs;         /* dicts: name -> Tensor or what was bound */
    PyObject *keep;                     /* owners of views over foreign memory */
    Py_ssize_t n_pins;
    PyObject **pins;                    /* Tensors of inputs and outputs; borrowed */
    bool fresh_outputs;                 /* some output is made by each run */
} py_request;

typedef struct py_pipeline {
    PyObject_HEAD
    ane_py_state *state;                /* NULL: no requests */
    PyObject *requests;                 /* tuple */
    ane_pipeline *pipeline;
} py_pipeline;

/* Views and their owners while a call or a request is being put together. */
typedef struct py_bound {
    size_t n;
    ane_tensor *t;
    PyObject **owner;                   /* what keeps t alive */
    PyObject **given;                   /* what the caller passed, or a new Tensor */
} py_bound;

int ane_py_bound_init(py_bound *b, size_t n);
void ane_py_bound_fini(py_bound *b);
/* dict, sequence, or (for one port) the thing itself, sorted by port. `convert`: arrays of
 * another float dtype and lists are taken, by copy. */
int ane_py_bind_inputs(ane_py_state *st, const ane_kernel *k, PyObject *obj, bool convert,
                       const char *who, py_bound *b);
int ane_py_bind_outputs(ane_py_state *st, const ane_kernel *k, PyObject *obj,
                        const char *who, py_bound *b);
/* Fills the outputs that nobody gave, from the shapes of the inputs. */
int ane_py_make_outputs(ane_py_state *st, ane_kernel *k, const py_bound *in, py_bound *out);

PyObject *ane_py_memory_dict(const ane_memory_info *m);

/* Pins live Tensors around a run; -1 with ValueError when one is closed. */
int ane_py_pin_all(PyObject *const *pins, Py_ssize_t n);
void ane_py_unpin_all(PyObject *const *pins, Py_ssize_t n);

#endif
