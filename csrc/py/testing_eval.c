/* _core._testing.eval: a program run by the reference evaluators; op_rows: the op table. */
#include "testing.h"

#include "../ir/ops.h"

#include <string.h>

/* ---------------------------------------------------------------- arrays and values */

/* NumPy type that holds a dtype's values exactly; int4 and friends go into a byte. */
static int array_type(ane_dtype d, bool wide) {
    switch (d) {
    case ANE_F16: return wide ? NPY_DOUBLE : NPY_HALF;
    case ANE_F32: return wide ? NPY_DOUBLE : NPY_FLOAT;
    case ANE_BOOL: return NPY_BOOL;
    case ANE_I8: case ANE_I4: return NPY_INT8;
    case ANE_I16: return NPY_INT16;
    case ANE_I32: return NPY_INT32;
    case ANE_I64: return NPY_INT64;
    case ANE_U16: return NPY_UINT16;
    case ANE_U32: return NPY_UINT32;
    case ANE_U64: return NPY_UINT64;
    case ANE_F64: return NPY_DOUBLE;
    case ANE_BF16: case ANE_F8E4M3: case ANE_F8E5M2: return wide ? NPY_DOUBLE : NPY_FLOAT;
    default: return NPY_UINT8;
    }
}

static PyObject *to_python(const ane_rt *r, bool wide) {
    if (r->kind == ANE_T_LIST || r->kind == ANE_T_TUPLE) {
        PyObject *list = PyList_New(0);
        for (int64_t i = 0; list && i < r->n; i++) {
            PyObject *v = to_python(r->items[i], wide);
            if (!v || PyList_Append(list, v) < 0) Py_CLEAR(list);
            Py_XDECREF(v);
        }
        return list;
    }
    if (r->kind == ANE_T_DICT) {
        PyObject *dict = PyDict_New();
        for (int64_t i = 0; dict && i + 1 < r->n; i += 2) {
            PyObject *k = to_python(r->items[i], wide), *v = to_python(r->items[i + 1], wide);
            PyObject *key = k && !PyUnicode_Check(k) ? PyObject_CallMethod(k, "item", NULL)
                                                     : Py_XNewRef(k);
            if (!key || !v || PyDict_SetItem(dict, key, v) < 0) Py_CLEAR(dict);
            Py_XDECREF(key);
            Py_XDECREF(k);
            Py_XDECREF(v);
        }
        return dict;
    }
    if (r->strings) {
        if (!r->rank) return PyUnicode_FromString(r->strings[0]);
        PyObject *list = PyList_New(0);
        for (int64_t i = 0; list && i < r->count; i++) {
            PyObject *v = PyUnicode_FromString(r->strings[i]);
            if (!v || PyList_Append(list, v) < 0) Py_CLEAR(list);
            Py_XDECREF(v);
        }
        return list;
    }
    npy_intp dims[ANE_MAX_RANK];
    for (int i = 0; i < r->rank; i++) dims[i] = (npy_intp)r->shape[i];
    PyObject *a = PyArray_SimpleNew(r->rank, dims, NPY_DOUBLE);
    if (!a) return NULL;
    memcpy(PyArray_DATA((PyArrayObject *)a), r->data, (size_t)r->count * sizeof(double));
    int type = array_type(r->dtype, wide);
    if (type == NPY_DOUBLE) return a;
    PyObject *b = PyArray_CastToType((PyArrayObject *)a, PyArray_DescrFromType(type), 0);
    Py_DECREF(a);
    return b;
}

static ane_rt *from_python(PyObject *obj, const char *name, const ane_type *t, bool wide) {
    bool state = t->kind == ANE_T_STATE;
    if (state) t = t->elem;
    if (t->kind != ANE_T_TENSOR || t->dtype == ANE_STRING) {
        PyErr_Format(PyExc_TypeError, "[eval] input '%s' is neither a tensor nor a state", name);
        return NULL;
    }
    PyObject *a = PyArray_FROMANY(obj, NPY_DOUBLE, 0, ANE_MAX_RANK,
                                  NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED |
                                      NPY_ARRAY_FORCECAST);
    if (!a) return NULL;
    int64_t shape[ANE_MAX_RANK];
    int rank = PyArray_NDIM((PyArrayObject *)a);
    bool fits = rank == t->rank;
    for (int i = 0; i < rank; i++) {
        shape[i] = PyArray_DIM((PyArrayObject *)a, i);
        fits = fits && (t->dims[i] < 0 || t->dims[i] == shape[i]);
    }
    ane_rt *r = NULL;
    if (!fits)
        PyErr_Format(PyExc_ValueError, "[eval] input '%s' has the wrong shape", name);
    else if (!(r = ANE_INTERNAL(ane_rt_tensor)(t->dtype, rank, shape)))
        PyErr_NoMemory();
    else {
        memcpy(r->data, PyArray_DATA((PyArrayObject *)a), (size_t)r->count * sizeof(double));
        bool floats = t->dtype == ANE_F16 || t->dtype == ANE_F32 || t->dtype == ANE_BF16;
        if (!wide || !floats) ANE_INTERNAL(ane_rt_round)(r);
        if (state) r->kind = ANE_T_STATE;
    }
    Py_DECREF(a);
    return r;
}

/* ---------------------------------------------------------------- eval */

static PyObject *py_eval(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"program", "inputs", "function", "wide", "seed", NULL};
    PyObject *obj, *inputs, *result = NULL;
    const char *function = "main";
    int wide = 0;
    unsigned long long seed = 0;
    ane_py_state *st = PyCapsule_GetPointer(self, NULL);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!|spK:eval", names, &obj, &PyDict_Type,
                                     &inputs, &function, &wide, &seed))
        return NULL;
    ane_program *p = ane_py_program(st, obj);
    if (!p) return NULL;
    ane_error err = {0};
    const ane_function *f = ANE_INTERNAL(ane_program_function)(p, function);
    if (!f) return PyErr_Format(PyExc_KeyError, "[eval] no function '%s'", function);
    int n = f->n_params, m = f->body->n_outputs;
    ane_rt **in = PyMem_Calloc((size_t)n + 1, sizeof *in);
    ane_rt **out = PyMem_Calloc((size_t)m + 1, sizeof *out);
    if (!in || !out) {
        PyErr_NoMemory();
        goto done;
    }
    if (PyDict_Size(inputs) != n) {
        PyErr_Format(PyExc_TypeError, "[eval] '%s' takes %d inputs, got %zd", function, n,
                     PyDict_Size(inputs));
        goto done;
    }
    for (int i = 0; i < n; i++) {
        const ane_value *v = f->params[i];
        PyObject *a = PyDict_GetItemString(inputs, v->name);
        if (!a) {
            PyErr_Format(PyExc_TypeError, "[eval] input '%s' is missing", v->name);
            goto done;
        }
        Py_INCREF(a);
        in[i] = from_python(a, v->name, v->type, wide);
        Py_DECREF(a);
        if (!in[i]) goto done;
    }
    ane_run_options run;
    ane_py_run_options(&run);
    ane_walk_options opts = {.wide = wide, .seed = seed, .run = &run};
    ane_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ANE_INTERNAL(ane_function_eval)(f, in, out, &opts, &err);
    Py_END_ALLOW_THREADS
    if (status) {
        ane_py_raise(st, &err);
        goto done;
    }
    result = PyDict_New();
    for (int i = 0; result && i < m + n; i++) {
        const ane_value *v = i < m ? f->body->outputs[i] : f->params[i - m];
        if (i >= m && in[i - m]->kind != ANE_T_STATE) continue;
        PyObject *a = to_python(i < m ? out[i] : in[i - m], wide);
        if (!a || PyDict_SetItemString(result, v->name, a) < 0) Py_CLEAR(result);
        Py_XDECREF(a);
    }
done:
    for (int i = 0; in && i < n; i++) ANE_INTERNAL(ane_rt_release)(in[i]);
    for (int i = 0; out && i < m; i++) ANE_INTERNAL(ane_rt_release)(out[i]);
    PyMem_Free(in);
    PyMem_Free(out);
    return result;
}

static PyObject *py_op_rows(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *rows = PyList_New(0);
    for (size_t i = 0; rows && i < ANE_INTERNAL(ane_op_row_count)(); i++) {
        const ane_op_row *r = ANE_INTERNAL(ane_op_row_at)(i);
        PyObject *params = PyList_New(0);
        for (int k = 0; params && k < r->n_params; k++) {
            const ane_op_param *p = &r->params[k];
            PyObject *dtypes = PyList_New(0);
            for (int d = 0; dtypes && d < ANE_DTYPE_COUNT; d++) {
                PyObject *name = p->dtypes & (1u << d)
                                     ? PyUnicode_FromString(ane_dtype_mil_name((ane_dtype)d))
                                     : NULL;
                if (name && PyList_Append(dtypes, name) < 0) Py_CLEAR(dtypes);
                Py_XDECREF(name);
            }
            PyObject *d = !dtypes ? NULL : Py_BuildValue(
                "{s:s, s:i, s:N, s:i, s:O, s:O, s:O, s:O, s:O, s:z}", "name", p->name, "kind",
                (int)p->kind, "dtypes", dtypes, "var", p->var, "const",
                p->is_const ? Py_True : Py_False, "vector", p->rank1 ? Py_True : Py_False,
                "tuple", p->tuple ? Py_True : Py_False, "optional",
                p->optional ? Py_True : Py_False, "attribute",
                p->attribute ? Py_True : Py_False, "default", p->default_text);
            if (!d || PyList_Append(params, d) < 0) Py_CLEAR(params);
            Py_XDECREF(d);
        }
        PyObject *row = !params ? NULL : Py_BuildValue(
            "{s:s, s:i, s:s, s:N, s:s, s:i, s:O}", "name", r->name, "opset", r->opset, "doc",
            r->doc, "params", params, "results", r->results_text, "n_results", r->n_results,
            "evaluates", r->eval ? Py_True : Py_False);
        if (!row || PyList_Append(rows, row) < 0) Py_CLEAR(rows);
        Py_XDECREF(row);
    }
    return rows;
}

static PyMethodDef methods[] = {
    {"eval", (PyCFunction)(void (*)(void))py_eval, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("eval(program, inputs, function='main', wide=False, seed=0) -> dict\n\n"
               "Runs a function with the reference evaluators. inputs: name to array; states "
               "too, and their final values are in the result under their names. wide=True "
               "keeps every float a double.")},
    {"op_rows", py_op_rows, METH_NOARGS,
     PyDoc_STR("op_rows() -> list\n\nThe op table, one dict per (op, opset).")},
    {NULL, NULL, 0, NULL},
};

/* The functions' self is a capsule round the module's state, which lives in _core. */
int ane_py_testing_eval(PyObject *t, ane_py_state *st) {
    PyObject *self = PyCapsule_New(st, NULL, NULL);
    int rc = self ? 0 : -1;
    for (PyMethodDef *m = methods; !rc && m->ml_name; m++) {
        PyObject *fn = PyCFunction_NewEx(m, self, NULL);
        rc = fn ? PyModule_AddObjectRef(t, m->ml_name, fn) : -1;
        Py_XDECREF(fn);
    }
    Py_XDECREF(self);
    return rc;
}
