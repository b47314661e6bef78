/* _core._testing.eval_pipeline: a pipeline in doubles; memplan: lifetimes to offsets. */
#include "run.h"

#include "testing.h"

#include "../pass/memplan.h"
#include "../program.h"

static PyObject *dense(PyObject *obj) {
    return PyArray_FROMANY(obj, NPY_DOUBLE, 0, ANE_MAX_RANK,
                           NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED);
}

static PyObject *py_eval_pipeline(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *pipeline, *inputs, *outputs, *result = NULL, *in = NULL, *out = NULL;
    if (!PyArg_ParseTuple(args, "OOO:eval_pipeline", &pipeline, &inputs, &outputs))
        return NULL;
    if (!PyObject_HasAttrString(pipeline, "requests")) {
        PyErr_SetString(PyExc_TypeError, "[eval_pipeline] expected a Pipeline");
        return NULL;
    }
    py_pipeline *p = (py_pipeline *)pipeline;
    ane_error err = {0};
    ane_shadow *s = ANE_INTERNAL(ane_shadow_create)();
    if (!s) return PyErr_NoMemory();
    in = PySequence_Tuple(inputs);
    out = PySequence_Tuple(outputs);
    if (!in || !out) goto done;
    for (Py_ssize_t i = 0; i < PyTuple_Size(in); i++) {
        PyObject *tensor, *values;
        if (!PyArg_ParseTuple(PyTuple_GetItem(in, i), "OO", &tensor, &values)) goto done;
        const ane_tensor *t = ane_py_tensor_view(tensor);
        PyObject *a = t ? dense(values) : NULL;
        if (!a) goto done;
        if (PyArray_SIZE((PyArrayObject *)a) != ane_tensor_count(t)) {
            PyErr_Format(PyExc_ValueError, "[eval_pipeline] input %zd: %zd elements for a "
                         "tensor of %lld", i, (Py_ssize_t)PyArray_SIZE((PyArrayObject *)a),
                         (long long)ane_tensor_count(t));
            Py_DECREF(a);
            goto done;
        }
        ane_status st = ANE_INTERNAL(ane_shadow_write)(
            s, t, PyArray_DATA((PyArrayObject *)a), &err);
        Py_DECREF(a);
        if (st) goto raise;
    }
    if (ANE_INTERNAL(ane_shadow_run)(s, p->pipeline, &err)) goto raise;
    result = PyList_New(0);
    for (Py_ssize_t i = 0; result && i < PyTuple_Size(out); i++) {
        const ane_tensor *t = ane_py_tensor_view(PyTuple_GetItem(out, i));
        npy_intp dims[ANE_MAX_RANK];
        for (int d = 0; t && d < t->rank; d++) dims[d] = (npy_intp)t->shape[d];
        PyObject *a = t ? PyArray_SimpleNew(t->rank, dims, NPY_DOUBLE) : NULL;
        if (!a) {
            Py_CLEAR(result);
            break;
        }
        if (ANE_INTERNAL(ane_shadow_read)(s, t, PyArray_DATA((PyArrayObject *)a), &err)) {
            Py_DECREF(a);
            Py_CLEAR(result);
            goto raise;
        }
        if (PyList_Append(result, a) < 0) Py_CLEAR(result);
        Py_DECREF(a);
    }
    goto done;
raise:
    (void)ane_py_raise(p->state, &err);
done:
    ANE_INTERNAL(ane_shadow_destroy)(s);
    Py_XDECREF(in);
    Py_XDECREF(out);
    return result;
}

static PyObject *py_memplan(PyObject *self, PyObject *arg) {
    PyObject *result = NULL, *rows = PySequence_Tuple(arg);
    Py_ssize_t n = rows ? PyTuple_Size(rows) : 0;
    ane_lifetime *items = PyMem_Calloc((size_t)n + 1, sizeof *items);
    (void)self;
    if (!rows || !items) goto done;
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_ssize_t bytes;
        if (!PyArg_ParseTuple(PyTuple_GetItem(rows, i), "nii", &bytes, &items[i].first,
                              &items[i].last))
            goto done;
        items[i].bytes = (size_t)bytes;
    }
    size_t total;
    ane_error err = {0};
    if (ANE_INTERNAL(ane_memplan)(items, (int)n, &total, &err)) {
        PyErr_SetString(PyExc_MemoryError, err.message);
        goto done;
    }
    PyObject *offsets = PyList_New(n);
    for (Py_ssize_t i = 0; offsets && i < n; i++)
        PyList_SetItem(offsets, i, PyLong_FromSize_t(items[i].offset));
    result = offsets ? Py_BuildValue("(Nn)", offsets, (Py_ssize_t)total) : NULL;
done:
    PyMem_Free(items);
    Py_XDECREF(rows);
    return result;
}

static PyMethodDef methods[] = {
    {"memplan", py_memplan, METH_O,
     PyDoc_STR("memplan([(bytes, first, last), ...]) -> ([offset, ...], total)")},
    {"eval_pipeline", py_eval_pipeline, METH_VARARGS,
     PyDoc_STR("eval_pipeline(pipeline, [(Tensor, array), ...], [Tensor, ...]) -> [array]\n\n"
               "Evaluates the pipeline in doubles: every surface has a shadow of doubles that "
               "the requests read and write; places never written are read from the surface. "
               "Nothing is stored in the tensors.")},
    {NULL, NULL, 0, NULL},
};

int ane_py_testing_run(PyObject *t, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(t, methods);
}
