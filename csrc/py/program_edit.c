/* Program's editing methods: arguments from Python to the graph calls of ane.h. */
#include "program.h"

#include <string.h>

uint32_t ane_py_id(PyObject *obj, const char *what) {
    PyObject *index = PyNumber_Index(obj);
    if (!index) return 0;
    unsigned long v = PyLong_AsUnsignedLong(index);
    Py_DECREF(index);
    if (PyErr_Occurred() || !v || v > UINT32_MAX) {
        PyErr_Clear();
        PyErr_Format(PyExc_KeyError, "[%s] %R is no id of this program", what, obj);
        return 0;
    }
    return (uint32_t)v;
}

static PyObject *raise(PyObject *self, const ane_error *err) {
    return ane_py_raise(ANE_PROGRAM(self)->st, err);
}

/* (block id, [value ids]) */
static PyObject *made(PyObject *self, uint32_t id, ane_list which, uint32_t of) {
    const ane_program *p = ANE_PROGRAM(self)->p;
    ane_error err = {0};
    uint32_t few[32], *ids = few;
    size_t n;
    if (ane_graph_list(p, which, of, few, 32, &n, &err)) return raise(self, &err);
    if (n > 32) {
        if (!(ids = PyMem_Calloc(n, sizeof *ids))) return PyErr_NoMemory();
        (void)ane_graph_list(p, which, of, ids, n, &n, &err);
    }
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *o = PyLong_FromUnsignedLong(ids[i]);
        if (!o || PyList_SetItem(list, (Py_ssize_t)i, o) < 0) Py_CLEAR(list);
    }
    if (ids != few) PyMem_Free(ids);
    return list ? Py_BuildValue("(kN)", (unsigned long)id, list) : NULL;
}

/* [(name, type), ...] to arrays that live while the tuple does. */
typedef struct params {
    PyObject *seq;
    Py_ssize_t n;
    const char **names;
    const ane_type **types;
} params;

static void params_free(params *q) {
    Py_CLEAR(q->seq);
    PyMem_Free(q->names);
    PyMem_Free(q->types);
}

static int params_from(ane_program *p, PyObject *obj, params *q) {
    *q = (params){.seq = PySequence_Tuple(obj)};
    if (!q->seq) return -1;
    q->n = PyTuple_Size(q->seq);
    q->names = PyMem_Calloc((size_t)q->n + 1, sizeof *q->names);
    q->types = PyMem_Calloc((size_t)q->n + 1, sizeof *q->types);
    if (!q->names || !q->types) {
        (void)PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < q->n; i++) {
        PyObject *pair = PyTuple_GetItem(q->seq, i);
        if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
            PyErr_Format(PyExc_TypeError, "[params] expected (name, type), got %R", pair);
            return -1;
        }
        if (!(q->names[i] = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(pair, 0), NULL)) ||
            !(q->types[i] = ane_py_type_from(p, PyTuple_GetItem(pair, 1), 0)))
            return -1;
    }
    return 0;
}

ANE_PROGRAM_METHOD(ane_py_program_add_function) {
    static char *keys[] = {"name", "opset", "params", NULL};
    ane_program *p = ANE_PROGRAM(self)->p;
    const char *name, *opset;
    PyObject *list = NULL, *out = NULL;
    params q = {0};
    ane_error err = {0};
    ane_function_info info;
    uint32_t id;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "ssO:add_function", keys, &name, &opset, &list))
        return NULL;
    if (params_from(p, list, &q) < 0) goto done;
    if (ane_graph_add_function(p, name, opset, q.names, q.types, (int)q.n, &id, &err) ||
        ane_graph_function(p, id, &info, &err))
        (void)raise(self, &err);
    else
        out = made(self, info.body, ANE_LIST_FUNCTION_PARAMS, id);
done:
    params_free(&q);
    return out;
}

ANE_PROGRAM_METHOD(ane_py_program_specialize) {
    static char *keys[] = {"function", "params", NULL};
    const ane_program *p = ANE_PROGRAM(self)->p;
    ane_program *scratch = NULL, *out = NULL;       /* types are copied out of scratch */
    const char *function;
    PyObject *list = NULL, *result = NULL;
    params q = {0};
    ane_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kw, "sO:_specialize", keys, &function, &list))
        return NULL;
    if (ane_program_create("1.3", &scratch, &err)) return raise(self, &err);
    if (params_from(scratch, list, &q) < 0) goto done;
    if (ane_program_specialize(p, function, q.names, q.types, (int)q.n, &out, &err))
        (void)raise(self, &err);
    else
        result = ane_py_program_make(Py_TYPE(self), ANE_PROGRAM(self)->st, out);
done:
    params_free(&q);
    ane_program_release(scratch);
    return result;
}

ANE_PROGRAM_METHOD(ane_py_program_add_block) {
    static char *keys[] = {"like", "params", NULL};
    ane_program *p = ANE_PROGRAM(self)->p;
    PyObject *like, *list = NULL, *out = NULL;
    params q = {0};
    ane_error err = {0};
    ane_block_info info;
    uint32_t block, id, v;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O|O:add_block", keys, &like, &list)) return NULL;
    if (!(block = ane_py_id(like, "add_block"))) return NULL;
    if (list && params_from(p, list, &q) < 0) goto done;
    if (ane_graph_block(p, block, &info, &err) ||
        ane_graph_add_block(p, info.function, &id, &err)) {
        (void)raise(self, &err);
        goto done;
    }
    for (Py_ssize_t i = 0; i < q.n; i++)
        if (ane_graph_add_block_param(p, id, q.names[i], q.types[i], &v, &err)) {
            (void)raise(self, &err);
            goto done;
        }
    out = made(self, id, ANE_LIST_BLOCK_PARAMS, id);
done:
    params_free(&q);
    return out;
}

/* Everything of one add_op call; strings are borrowed from objects that `args` holds. */
typedef struct request {
    ane_argument *args;
    uint32_t *values, *blocks;
    const char **names;
    ane_operation op;
} request;

static void request_free(request *r) {
    PyMem_Free(r->args);
    PyMem_Free(r->values);
    PyMem_Free(r->blocks);
    PyMem_Free(r->names);
}

static int take_arguments(request *r, PyObject *dict) {
    PyObject *key, *value;
    Py_ssize_t pos = 0, total = 0, n = PyDict_Size(dict);
    while (PyDict_Next(dict, &pos, &key, &value))
        total += PyTuple_Check(value) ? PyTuple_Size(value) : 1;
    r->args = PyMem_Calloc((size_t)n + 1, sizeof *r->args);
    r->values = PyMem_Calloc((size_t)total + 1, sizeof *r->values);
    if (!r->args || !r->values) {
        (void)PyErr_NoMemory();
        return -1;
    }
    r->op.args = r->args;
    total = 0;
    pos = 0;
    while (PyDict_Next(dict, &pos, &key, &value)) {
        ane_argument *a = &r->args[r->op.n_args++];
        /* Exact ints only: nothing that runs Python may change the dict meanwhile. */
        a->tuple = PyTuple_Check(value);
        a->n = a->tuple ? (int)PyTuple_Size(value) : 1;
        a->values = r->values + total;
        if (!PyUnicode_Check(key) || !(a->name = PyUnicode_AsUTF8AndSize(key, NULL))) {
            PyErr_SetString(PyExc_TypeError, "[add_op] parameter names are str");
            return -1;
        }
        for (int i = 0; i < a->n; i++) {
            PyObject *id = a->tuple ? PyTuple_GetItem(value, i) : value;
            if (!PyLong_CheckExact(id)) {
                PyErr_Format(PyExc_TypeError, "[add_op] %s: parameter %s takes value ids, got %R",
                             r->op.op, a->name, id);
                return -1;
            }
            if (!(r->values[total++] = ane_py_id(id, "add_op"))) return -1;
        }
    }
    return 0;
}

ANE_PROGRAM_METHOD(ane_py_program_add_op) {
    static char *keys[] = {"block", "op", "args", "name", "result_names", "before", "blocks", NULL};
    ane_program *p = ANE_PROGRAM(self)->p;
    PyObject *block_obj, *dict, *names = NULL, *before_obj = Py_None, *blocks = NULL, *out = NULL;
    PyObject *names_seq = NULL, *blocks_seq = NULL;
    request r = {.op = {.n_results = -1}};
    ane_error err = {0};
    uint32_t block, before = 0, id;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "OsO!|zOOO:add_op", keys, &block_obj, &r.op.op,
                                     &PyDict_Type, &dict, &r.op.name, &names, &before_obj,
                                     &blocks))
        return NULL;
    if (!(block = ane_py_id(block_obj, "add_op")) ||
        (before_obj != Py_None && !(before = ane_py_id(before_obj, "add_op"))))
        return NULL;
    if (take_arguments(&r, dict) < 0) goto done;
    if (names && names != Py_None) {
        if (!(names_seq = PySequence_Tuple(names))) goto done;
        Py_ssize_t n = PyTuple_Size(names_seq);
        if (!(r.names = PyMem_Calloc((size_t)n + 1, sizeof *r.names))) goto nomem;
        for (Py_ssize_t i = 0; i < n; i++) {
            PyObject *s = PyTuple_GetItem(names_seq, i);
            if (s != Py_None && !(r.names[i] = PyUnicode_AsUTF8AndSize(s, NULL))) goto done;
        }
        r.op.n_results = (int)n;
        r.op.result_names = r.names;
    }
    if (blocks) {
        if (!(blocks_seq = PySequence_Tuple(blocks))) goto done;
        Py_ssize_t n = PyTuple_Size(blocks_seq);
        if (!(r.blocks = PyMem_Calloc((size_t)n + 1, sizeof *r.blocks))) goto nomem;
        for (Py_ssize_t i = 0; i < n; i++)
            if (!(r.blocks[i] = ane_py_id(PyTuple_GetItem(blocks_seq, i), "add_op"))) goto done;
        r.op.n_blocks = (int)n;
        r.op.blocks = r.blocks;
    }
    if (ane_graph_add_op(p, block, before, &r.op, &id, &err)) (void)raise(self, &err);
    else out = made(self, id, ANE_LIST_OP_RESULTS, id);
    goto done;
nomem:
    (void)PyErr_NoMemory();
done:
    Py_XDECREF(names_seq);
    Py_XDECREF(blocks_seq);
    request_free(&r);
    return out;
}

ANE_PROGRAM_METHOD(ane_py_program_add_const) {
    static char *keys[] = {"block", "value", "dtype", "name", "inline", "before", "what", NULL};
    ane_program *p = ANE_PROGRAM(self)->p;
    PyObject *block_obj, *value, *dtype_obj = Py_None, *before_obj = Py_None;
    const char *name = NULL, *what = "const";
    int inlined = 0, want = -1;
    uint32_t block, before = 0, id;
    ane_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kw, "OO|OzpOs:add_const", keys, &block_obj, &value,
                                     &dtype_obj, &name, &inlined, &before_obj, &what))
        return NULL;
    if (!(block = ane_py_id(block_obj, "add_const")) ||
        (before_obj != Py_None && !(before = ane_py_id(before_obj, "add_const"))))
        return NULL;
    ane_py_state *st = ANE_PROGRAM(self)->st;
    const ane_const *c = NULL;
    if (PyTuple_Check(dtype_obj)) {
        const ane_type *t = ane_py_type_from(p, dtype_obj, 0);
        if (t) c = ane_py_const_typed(st, p, value, t, what);
    } else {
        ane_dtype d;
        if (dtype_obj != Py_None) {
            if (ane_py_element(dtype_obj, &d) < 0) return NULL;
            want = (int)d;
        }
        c = ane_py_const_from(st, p, value, want, what);
    }
    if (!c) return NULL;
    if (ane_graph_add_const(p, block, before, c, name, inlined != 0, &id, &err))
        return raise(self, &err);
    return PyLong_FromUnsignedLong(id);
}

ANE_PROGRAM_METHOD(ane_py_program_set_attr) {
    static char *keys[] = {"name", "value", "function", "type", NULL};
    ane_program *p = ANE_PROGRAM(self)->p;
    ane_py_state *st = ANE_PROGRAM(self)->st;
    PyObject *value, *type = Py_None;
    const char *name, *function = NULL;
    const ane_const *c = NULL;
    uint32_t id = 0;
    ane_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kw, "sO|zO:set_attr", keys, &name, &value, &function,
                                     &type))
        return NULL;
    if (function) {
        PyObject *found = PyObject_CallMethod(self, "_function_id", "s", function);
        if (!found) return NULL;
        id = ane_py_id(found, "set_attr");
        Py_DECREF(found);
        if (!id) return NULL;
    }
    if (value != Py_None) {
        const ane_type *t = type == Py_None ? NULL : ane_py_type_from(p, type, 0);
        if (type != Py_None && !t) return NULL;
        c = t ? ane_py_const_typed(st, p, value, t, "set_attr")
              : ane_py_const_from(st, p, value, -1, "set_attr");
        if (!c) return NULL;
    }
    if (ane_graph_set_attr(p, id, name, c, &err)) return raise(self, &err);
    Py_RETURN_NONE;
}

PyObject *ane_py_program_set_outputs(PyObject *self, PyObject *args) {
    PyObject *block_obj, *list, *seq, *out = NULL;
    ane_error err = {0};
    if (!PyArg_ParseTuple(args, "OO:set_outputs", &block_obj, &list)) return NULL;
    uint32_t block = ane_py_id(block_obj, "set_outputs");
    if (!block || !(seq = PySequence_Tuple(list))) return NULL;
    Py_ssize_t n = PyTuple_Size(seq);
    uint32_t *ids = PyMem_Calloc((size_t)n + 1, sizeof *ids);
    if (!ids) {
        (void)PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (!(ids[i] = ane_py_id(PyTuple_GetItem(seq, i), "set_outputs"))) goto done;
    if (ane_graph_set_outputs(ANE_PROGRAM(self)->p, block, ids, (int)n, &err))
        (void)raise(self, &err);
    else
        out = Py_NewRef(Py_None);
done:
    PyMem_Free(ids);
    Py_DECREF(seq);
    return out;
}

PyObject *ane_py_program_remove_op(PyObject *self, PyObject *arg) {
    ane_error err = {0};
    uint32_t id = ane_py_id(arg, "remove_op");
    if (!id) return NULL;
    if (ane_graph_remove_op(ANE_PROGRAM(self)->p, id, &err)) return raise(self, &err);
    Py_RETURN_NONE;
}

PyObject *ane_py_program_replace(PyObject *self, PyObject *args) {
    PyObject *a, *b;
    ane_error err = {0};
    if (!PyArg_ParseTuple(args, "OO:replace_value", &a, &b)) return NULL;
    uint32_t from = ane_py_id(a, "replace_value");
    uint32_t to = from ? ane_py_id(b, "replace_value") : 0;
    if (!to) return NULL;
    if (ane_graph_replace(ANE_PROGRAM(self)->p, from, to, &err)) return raise(self, &err);
    Py_RETURN_NONE;
}

PyObject *ane_py_program_rename(PyObject *self, PyObject *args) {
    PyObject *v;
    const char *name;
    ane_error err = {0};
    if (!PyArg_ParseTuple(args, "Os:rename", &v, &name)) return NULL;
    uint32_t id = ane_py_id(v, "rename");
    if (!id) return NULL;
    if (ane_graph_rename(ANE_PROGRAM(self)->p, id, name, &err)) return raise(self, &err);
    Py_RETURN_NONE;
}
