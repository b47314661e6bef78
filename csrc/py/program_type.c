/* anetorch._core.Program: life, parsing, printing and walking. Types and constants are in
 * program_const.c, edits in program_edit.c. */
#include "program.h"

#include <structmember.h>

#include <string.h>

#define SELF ANE_PROGRAM(self)

/* ---------------------------------------------------------------- life */

static ane_py_state *state_by_type(PyTypeObject *type) {
    for (PyTypeObject *t = type; t; t = (PyTypeObject *)PyType_GetSlot(t, Py_tp_base)) {
        if (!(PyType_GetFlags(t) & Py_TPFLAGS_HEAPTYPE)) break;
        ane_py_state *st = PyType_GetModuleState(t);
        if (st && st->program_type == t) return st;
        PyErr_Clear();
    }
    PyErr_Format(PyExc_TypeError, "%R does not derive from Program", type);
    return NULL;
}

PyObject *ane_py_program_make(PyTypeObject *type, ane_py_state *st, ane_program *p) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    ProgramObject *o = (ProgramObject *)alloc(type, 0);
    if (!o) {
        ane_program_release(p);
        return NULL;
    }
    o->st = st;
    o->p = p;
    return (PyObject *)o;
}

ane_program *ane_py_program(ane_py_state *st, PyObject *obj) {
    if (PyObject_TypeCheck(obj, st->program_type)) return ANE_PROGRAM(obj)->p;
    PyErr_Format(PyExc_TypeError, "expected a Program, got %R", Py_TYPE(obj));
    return NULL;
}

static PyObject *program_new(PyTypeObject *type, PyObject *args, PyObject *kw) {
    static char *keys[] = {"version", NULL};
    const char *version = "1.3";
    ane_program *p;
    ane_error err = {0};
    ane_py_state *st = state_by_type(type);
    if (!st || !PyArg_ParseTupleAndKeywords(args, kw, "|s:Program", keys, &version)) return NULL;
    if (ane_program_create(version, &p, &err)) return ane_py_raise(st, &err);
    return ane_py_program_make(type, st, p);
}

static void program_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (SELF->weakrefs) PyObject_ClearWeakRefs(self);
    ane_program_release(SELF->p);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* ---------------------------------------------------------------- weights of a text */

typedef struct exported {
    Py_buffer view;
} exported;

/* The last release may come from any thread, without the interpreter lock. */
static void drop_buffer(void *arg) {
    exported *e = arg;
    if (!Py_IsInitialized()) return;
    PyGILState_STATE g = PyGILState_Ensure();
    PyBuffer_Release(&e->view);
    PyMem_Free(e);
    PyGILState_Release(g);
}

/* mapping[path], mapping[path without "@model_path/"] or mapping[file name]; NULL without
 * an exception: none of them is there. */
static PyObject *lookup(PyObject *mapping, const char *path) {
    static const char prefix[] = "@model_path/";
    const char *keys[3] = {path, path, path};
    if (!strncmp(path, prefix, sizeof prefix - 1)) keys[1] = path + sizeof prefix - 1;
    if (strrchr(path, '/')) keys[2] = strrchr(path, '/') + 1;
    for (int i = 0; i < 3; i++) {
        PyObject *key = PyUnicode_FromString(keys[i]);
        PyObject *o = key ? PyObject_GetItem(mapping, key) : NULL;
        Py_XDECREF(key);
        if (o || !key) return o;
        if (!PyErr_ExceptionMatches(PyExc_KeyError)) return NULL;
        PyErr_Clear();
    }
    return NULL;
}

/* Called with the interpreter lock held: a mapping's parse keeps it. */
static ane_status open_from_mapping(void *arg, const char *path, ane_surface **out,
                                    ane_error *err) {
    PyObject *o = lookup(arg, path);
    if (!o) {
        if (PyErr_Occurred()) return ANE_ERR_CANCELLED;
        err->status = ANE_ERR_NOT_FOUND;
        PyOS_snprintf(err->message, sizeof err->message,
                      "weight file \"%.200s\" is not in the mapping of weights", path);
        return ANE_ERR_NOT_FOUND;
    }
    exported *e = PyMem_Calloc(1, sizeof *e);
    ane_status st = ANE_ERR_CANCELLED;
    if (!e) {
        (void)PyErr_NoMemory();
    } else if (PyObject_GetBuffer(o, &e->view, PyBUF_SIMPLE) < 0) {
        PyMem_Free(e);
    } else {
        st = ane_surface_wrap(e->view.buf, (size_t)e->view.len, true, drop_buffer, e, out, err);
        if (st) drop_buffer(e);
    }
    Py_DECREF(o);
    return st;
}

static PyObject *program_parse(PyObject *cls, PyObject *args, PyObject *kw) {
    static char *keys[] = {"text", "filename", "weights", "allow_missing", NULL};
    PyTypeObject *type = (PyTypeObject *)cls;
    PyObject *text, *filename = Py_None, *weights = Py_None, *out = NULL;
    PyObject *name_bytes = NULL, *dir_bytes = NULL;
    int allow_missing = 0;
    Py_buffer view = {0};
    const char *s;
    Py_ssize_t n;
    ane_program *p = NULL;
    ane_error err = {0};
    ane_status status;
    ane_parse_options opts = {.size = sizeof opts};
    ane_py_state *st = state_by_type(type);
    if (!st || !PyArg_ParseTupleAndKeywords(args, kw, "O|OOp:parse", keys, &text, &filename,
                                            &weights, &allow_missing))
        return NULL;
    opts.allow_missing_weights = allow_missing != 0;
    if (filename != Py_None) {
        if (!PyUnicode_FSConverter(filename, &name_bytes)) return NULL;
        opts.filename = PyBytes_AsString(name_bytes);
    }
    bool mapping = weights != Py_None && !PyUnicode_Check(weights) && !PyBytes_Check(weights) &&
                   !PyObject_HasAttrString(weights, "__fspath__");
    if (mapping) {
        if (!PyMapping_Check(weights)) {
            PyErr_Format(PyExc_TypeError,
                         "[parse] weights is a folder or a mapping from path to bytes, got %R",
                         Py_TYPE(weights));
            goto done;
        }
        opts.open = open_from_mapping;
        opts.open_arg = weights;
    } else if (weights != Py_None) {
        if (!PyUnicode_FSConverter(weights, &dir_bytes)) goto done;
        opts.weights_dir = PyBytes_AsString(dir_bytes);
    }
    if (PyUnicode_Check(text)) {
        if (!(s = PyUnicode_AsUTF8AndSize(text, &n))) goto done;
    } else {
        if (PyObject_GetBuffer(text, &view, PyBUF_SIMPLE) < 0) goto done;
        s = view.buf;
        n = view.len;
    }
    if (mapping) {
        status = ane_program_parse(s, (size_t)n, &opts, &p, &err);
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = ane_program_parse(s, (size_t)n, &opts, &p, &err);
        Py_END_ALLOW_THREADS
    }
    if (status) {
        if (status == ANE_ERR_CANCELLED) err.status = status;
        (void)ane_py_raise(st, &err);
    } else {
        out = ane_py_program_make(type, st, p);
    }
done:
    if (view.obj) PyBuffer_Release(&view);
    Py_XDECREF(name_bytes);
    Py_XDECREF(dir_bytes);
    return out;
}

/* ---------------------------------------------------------------- whole program */

static PyObject *program_text(PyObject *self, PyObject *args, PyObject *kw) {
    static char *keys[] = {"spelling", NULL};
    const char *spelling = NULL;
    char *text;
    size_t n;
    ane_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|z:text", keys, &spelling)) return NULL;
    if (ane_program_print(SELF->p, spelling, &text, &n, &err)) return ane_py_raise(SELF->st, &err);
    PyObject *out = PyUnicode_DecodeUTF8(text, (Py_ssize_t)n, "strict");
    ane_free(text);
    return out;
}

static PyObject *program_verify(PyObject *self, PyObject *unused) {
    ane_error err = {0};
    (void)unused;
    if (ane_program_verify(SELF->p, &err)) return ane_py_raise(SELF->st, &err);
    Py_RETURN_NONE;
}

static PyObject *program_clone(PyObject *self, PyObject *unused) {
    ane_program *p;
    ane_error err = {0};
    (void)unused;
    if (ane_program_clone(SELF->p, &p, &err)) return ane_py_raise(SELF->st, &err);
    return ane_py_program_make(Py_TYPE(self), SELF->st, p);
}

static PyObject *program_warnings(PyObject *self, PyObject *unused) {
    const ane_warning *w;
    (void)unused;
    size_t n = ane_program_warnings(SELF->p, &w);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *o = Py_BuildValue("(iis)", w[i].line, w[i].column, w[i].message);
        if (!o || PyList_Append(list, o) < 0) Py_CLEAR(list);
        Py_XDECREF(o);
    }
    return list;
}

static PyObject *program_compare(PyObject *self, PyObject *other, int op) {
    if ((op != Py_EQ && op != Py_NE) || !PyObject_TypeCheck(other, SELF->st->program_type))
        Py_RETURN_NOTIMPLEMENTED;
    bool same = ane_program_same(SELF->p, ANE_PROGRAM(other)->p);
    return PyBool_FromLong(same == (op == Py_EQ));
}

/* ---------------------------------------------------------------- walking */

static PyObject *ids(PyObject *self, ane_list which, uint32_t id) {
    uint32_t few[64], *v = few;
    size_t n;
    ane_error err = {0};
    if (ane_graph_list(SELF->p, which, id, few, 64, &n, &err)) return ane_py_raise(SELF->st, &err);
    if (n > 64) {
        if (!(v = PyMem_Calloc(n, sizeof *v))) return PyErr_NoMemory();
        (void)ane_graph_list(SELF->p, which, id, v, n, &n, &err);
    }
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *o = PyLong_FromUnsignedLong(v[i]);
        if (!o || PyList_SetItem(list, (Py_ssize_t)i, o) < 0) Py_CLEAR(list);
    }
    if (v != few) PyMem_Free(v);
    return list;
}

static PyObject *program_functions(PyObject *self, PyObject *unused) {
    (void)unused;
    ane_error err = {0};
    PyObject *list = ids(self, ANE_LIST_FUNCTIONS, 0);
    for (Py_ssize_t i = 0; list && i < PyList_Size(list); i++) {
        ane_function_info f;
        uint32_t id = (uint32_t)PyLong_AsUnsignedLong(PyList_GetItem(list, i));
        PyObject *params, *o = NULL;
        if (ane_graph_function(SELF->p, id, &f, &err)) (void)ane_py_raise(SELF->st, &err);
        else if ((params = ids(self, ANE_LIST_FUNCTION_PARAMS, id)))
            o = Py_BuildValue("(sskN)", f.name, f.opset_tag, (unsigned long)f.body, params);
        if (!o || PyList_SetItem(list, i, o) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *program_function_id(PyObject *self, PyObject *arg) {
    const char *name = PyUnicode_AsUTF8AndSize(arg, NULL);
    ane_error err = {0};
    PyObject *list = name ? ids(self, ANE_LIST_FUNCTIONS, 0) : NULL, *out = NULL;
    for (Py_ssize_t i = 0; list && !out && i < PyList_Size(list); i++) {
        ane_function_info f;
        PyObject *id = PyList_GetItem(list, i);
        if (!ane_graph_function(SELF->p, (uint32_t)PyLong_AsUnsignedLong(id), &f, &err) &&
            !strcmp(f.name, name))
            out = Py_NewRef(id);
    }
    if (!out && !PyErr_Occurred())
        PyErr_Format(PyExc_KeyError, "the program has no function %s", name);
    Py_XDECREF(list);
    return out;
}

/* Adds key: value to a dict and takes value's reference. 0 or -1. */
static int put(PyObject *dict, const char *key, PyObject *value) {
    if (!value) return -1;
    int rc = PyDict_SetItemString(dict, key, value);
    Py_DECREF(value);
    return rc;
}

static PyObject *id_or_none(uint32_t id) {
    return id ? PyLong_FromUnsignedLong(id) : Py_NewRef(Py_None);
}

static PyObject *str_or_none(const char *s) {
    return s ? PyUnicode_FromString(s) : Py_NewRef(Py_None);
}

static PyObject *attrs(PyObject *self, uint32_t id, int n) {
    ane_error err = {0};
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < n; i++) {
        const char *name;
        const ane_const *c;
        if (ane_graph_attr(SELF->p, id, i, &name, &c, &err)) {
            (void)ane_py_raise(SELF->st, &err);
            Py_CLEAR(dict);
        } else if (put(dict, name, ane_py_const_value(SELF->st, c)) < 0) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

static PyObject *program_attrs(PyObject *self, PyObject *args) {
    PyObject *name = NULL;
    ane_error err = {0};
    ane_function_info f;
    uint32_t id = 0;
    if (!PyArg_ParseTuple(args, "|O:attrs", &name)) return NULL;
    if (name && name != Py_None) {
        PyObject *found = program_function_id(self, name);
        if (!found) return NULL;
        id = ane_py_id(found, "attrs");
        Py_DECREF(found);
        if (!id) return NULL;
        if (ane_graph_function(SELF->p, id, &f, &err)) return ane_py_raise(SELF->st, &err);
        return attrs(self, id, f.n_attrs);
    }
    int n = 0;
    const char *s;
    const ane_const *c;
    while (!ane_graph_attr(SELF->p, 0, n, &s, &c, NULL)) n++;
    return attrs(self, 0, n);
}

static PyObject *program_block_info(PyObject *self, PyObject *arg) {
    ane_error err = {0};
    ane_block_info b;
    ane_function_info f;
    uint32_t id = ane_py_id(arg, "block_info");
    if (!id) return NULL;
    if (ane_graph_block(SELF->p, id, &b, &err) ||
        ane_graph_function(SELF->p, b.function, &f, &err))
        return ane_py_raise(SELF->st, &err);
    PyObject *d = PyDict_New();
    if (d && (put(d, "id", PyLong_FromUnsignedLong(id)) < 0 ||
              put(d, "function", PyUnicode_FromString(f.name)) < 0 ||
              put(d, "owner", id_or_none(b.owner)) < 0 ||
              put(d, "params", ids(self, ANE_LIST_BLOCK_PARAMS, id)) < 0 ||
              put(d, "ops", ids(self, ANE_LIST_BLOCK_OPS, id)) < 0 ||
              put(d, "outputs", ids(self, ANE_LIST_BLOCK_OUTPUTS, id)) < 0))
        Py_CLEAR(d);
    return d;
}

/* {parameter: id | (ids, ...)} and the defaults of what is absent. */
static int arguments(PyObject *self, uint32_t id, int n, PyObject *given, PyObject *defaults) {
    ane_error err = {0};
    for (int i = 0; i < n; i++) {
        ane_argument_info a;
        if (ane_graph_argument(SELF->p, id, i, &a, &err)) {
            (void)ane_py_raise(SELF->st, &err);
            return -1;
        }
        if (a.tuple) {
            PyObject *t = PyTuple_New(a.n);
            for (int k = 0; t && k < a.n; k++) {
                PyObject *o = PyLong_FromUnsignedLong(ane_graph_argument_value(SELF->p, id, i, k));
                if (!o || PyTuple_SetItem(t, k, o) < 0) Py_CLEAR(t);
            }
            if (put(given, a.name, t) < 0) return -1;
        } else if (a.n) {
            unsigned long v = ane_graph_argument_value(SELF->p, id, i, 0);
            if (put(given, a.name, PyLong_FromUnsignedLong(v)) < 0) return -1;
        } else if (a.default_value) {
            if (put(defaults, a.name, ane_py_const_value(SELF->st, a.default_value)) < 0)
                return -1;
        }
    }
    return 0;
}

static PyObject *program_op_info(PyObject *self, PyObject *arg) {
    ane_error err = {0};
    ane_op_info o;
    uint32_t id = ane_py_id(arg, "op_info");
    if (!id) return NULL;
    if (ane_graph_op(SELF->p, id, &o, &err)) return ane_py_raise(SELF->st, &err);
    PyObject *d = PyDict_New(), *given = PyDict_New(), *defaults = PyDict_New();
    if (!d || !given || !defaults || arguments(self, id, o.n_params, given, defaults) < 0 ||
        put(d, "id", PyLong_FromUnsignedLong(id)) < 0 ||
        put(d, "op", PyUnicode_FromString(o.op)) < 0 || put(d, "name", str_or_none(o.name)) < 0 ||
        put(d, "block", PyLong_FromUnsignedLong(o.block)) < 0 ||
        put(d, "opset", PyLong_FromLong(o.opset)) < 0 ||
        put(d, "args", Py_NewRef(given)) < 0 || put(d, "defaults", Py_NewRef(defaults)) < 0 ||
        put(d, "results", ids(self, ANE_LIST_OP_RESULTS, id)) < 0 ||
        put(d, "blocks", ids(self, ANE_LIST_OP_BLOCKS, id)) < 0 ||
        put(d, "attrs", attrs(self, id, o.n_attrs)) < 0 ||
        put(d, "inlined", PyBool_FromLong(o.inlined)) < 0 ||
        put(d, "line", PyLong_FromLong(o.line)) < 0 ||
        put(d, "column", PyLong_FromLong(o.column)) < 0)
        Py_CLEAR(d);
    Py_XDECREF(given);
    Py_XDECREF(defaults);
    return d;
}

static PyObject *program_value_info(PyObject *self, PyObject *arg) {
    ane_error err = {0};
    ane_value_info v;
    uint32_t id = ane_py_id(arg, "value_info");
    if (!id) return NULL;
    if (ane_graph_value(SELF->p, id, &v, &err)) return ane_py_raise(SELF->st, &err);
    PyObject *d = PyDict_New(), *blob;
    blob = v.konst && v.konst->blob_path
               ? Py_BuildValue("(sK)", v.konst->blob_path,
                               (unsigned long long)v.konst->blob_offset)
               : Py_NewRef(Py_None);
    if (!d || put(d, "id", PyLong_FromUnsignedLong(id)) < 0 ||
        put(d, "name", PyUnicode_FromString(v.name)) < 0 ||
        put(d, "type", ane_py_type_tuple(v.type)) < 0 || put(d, "op", id_or_none(v.op)) < 0 ||
        put(d, "index", PyLong_FromLong(v.index)) < 0 ||
        put(d, "block", PyLong_FromUnsignedLong(v.block)) < 0 ||
        put(d, "uses", PyLong_FromLong(v.uses)) < 0 ||
        put(d, "const", PyBool_FromLong(v.konst != NULL)) < 0 || !blob ||
        put(d, "blob", Py_NewRef(blob)) < 0)
        Py_CLEAR(d);
    Py_XDECREF(blob);
    return d;
}

static PyObject *program_value_type(PyObject *self, PyObject *arg) {
    ane_error err = {0};
    ane_value_info v;
    uint32_t id = ane_py_id(arg, "value_type");
    if (!id) return NULL;
    if (ane_graph_value(SELF->p, id, &v, &err)) return ane_py_raise(SELF->st, &err);
    return ane_py_type_tuple(v.type);
}

static PyObject *program_const_value(PyObject *self, PyObject *arg) {
    ane_error err = {0};
    ane_value_info v;
    uint32_t id = ane_py_id(arg, "const_value");
    if (!id) return NULL;
    if (ane_graph_value(SELF->p, id, &v, &err)) return ane_py_raise(SELF->st, &err);
    if (!v.konst) Py_RETURN_NONE;
    return ane_py_const_value(SELF->st, v.konst);
}

static PyObject *program_users(PyObject *self, PyObject *arg) {
    uint32_t id = ane_py_id(arg, "users");
    return id ? ids(self, ANE_LIST_VALUE_USERS, id) : NULL;
}

static PyObject *get_version(PyObject *self, void *closure) {
    (void)closure;
    return PyUnicode_FromString(ane_program_version(SELF->p));
}

static PyObject *get_generation(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(ane_program_generation(SELF->p));
}

/* ---------------------------------------------------------------- op table */

static PyObject *py_op_signature(PyObject *self, PyObject *args) {
    const char *op;
    int opset = 18;
    (void)self;
    if (!PyArg_ParseTuple(args, "s|i:op_signature", &op, &opset)) return NULL;
    int n = ane_operation_params(op, opset);
    if (n < 0) return PyErr_Format(PyExc_KeyError, "ios%d has no operation %s", opset, op);
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < n; i++) {
        ane_parameter_info q;
        if (!ane_operation_param(op, opset, i, &q)) break;
        const char *kind = q.kind == ANE_T_TENSOR  ? "tensor"
                           : q.kind == ANE_T_LIST  ? "list"
                           : q.kind == ANE_T_STATE ? "state"
                                                   : "any";
        PyObject *dtypes = PyList_New(0);
        for (int d = 0; dtypes && d < ANE_DTYPE_COUNT; d++) {
            if (!(q.dtypes & 1u << d)) continue;
            PyObject *s = PyUnicode_FromString(ane_dtype_mil_name((ane_dtype)d));
            if (!s || PyList_Append(dtypes, s) < 0) Py_CLEAR(dtypes);
            Py_XDECREF(s);
        }
        PyObject *o = dtypes ? Py_BuildValue("(ssNiOOOOO)", q.name, kind, dtypes, q.var,
                                             q.is_const ? Py_True : Py_False,
                                             q.is_vector ? Py_True : Py_False,
                                             q.is_tuple ? Py_True : Py_False,
                                             q.optional ? Py_True : Py_False,
                                             q.attribute ? Py_True : Py_False)
                             : NULL;
        if (!o || PyList_Append(list, o) < 0) Py_CLEAR(list);
        Py_XDECREF(o);
    }
    return list;
}

/* ---------------------------------------------------------------- tables */

#define KW(fn) (PyCFunction)(void (*)(void))(fn), METH_VARARGS | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"parse", (PyCFunction)(void (*)(void))program_parse,
     METH_VARARGS | METH_KEYWORDS | METH_CLASS,
     PyDoc_STR("parse(text, filename=None, weights=None, allow_missing=False)\n\n"
               "A program from MIL text (str or UTF-8 bytes). weights is the folder that\n"
               "\"@model_path\" stands for, or a mapping from the paths of BLOBFILE to bytes.\n"
               "With allow_missing, constants whose file is absent stay without data.\n\n"
               "Raises MILError with file, line and column.")},
    {"text", KW(program_text),
     PyDoc_STR("text(spelling=None) -> str\n\nMIL text; spelling is \"1.0\", \"1.3\" or "
               "None (the program's own). Parses to an equal program.")},
    {"functions", program_functions, METH_NOARGS,
     PyDoc_STR("functions() -> [(name, opset, body block id, [parameter value ids])]")},
    {"attrs", program_attrs, METH_VARARGS,
     PyDoc_STR("attrs(function=None) -> dict\n\nAttributes of the program or a function.")},
    {"set_attr", KW(ane_py_program_set_attr),
     PyDoc_STR("set_attr(name, value, function=None, type=None)\n\nNone removes the "
               "attribute. type: a descriptor, where the value alone does not say it.")},
    {"_function_id", program_function_id, METH_O, NULL},
    {"block_info", program_block_info, METH_O,
     PyDoc_STR("block_info(id) -> dict of id, function, owner, params, ops, outputs")},
    {"op_info", program_op_info, METH_O,
     PyDoc_STR("op_info(id) -> dict of id, op, name, block, opset, args, defaults, results, "
               "blocks, attrs, inlined, line, column")},
    {"value_info", program_value_info, METH_O,
     PyDoc_STR("value_info(id) -> dict of id, name, type, op, index, block, uses, const, "
               "blob")},
    {"value_type", program_value_type, METH_O, PyDoc_STR("value_type(id) -> descriptor")},
    {"const_value", program_const_value, METH_O,
     PyDoc_STR("const_value(id) -> ndarray | NumPy scalar | str | list | dict | None\n\n"
               "None: not a constant, or its weight file is missing. Arrays are read-only "
               "views where they are large.")},
    {"users", program_users, METH_O,
     PyDoc_STR("users(value id) -> [op ids]\n\nScans the function.")},
    {"_specialize", KW(ane_py_program_specialize),
     PyDoc_STR("_specialize(function, [(name, type)]) -> a program of this function alone")},
    {"add_function", KW(ane_py_program_add_function),
     PyDoc_STR("add_function(name, opset, [(name, type)]) -> (block id, [value ids])")},
    {"add_block", KW(ane_py_program_add_block),
     PyDoc_STR("add_block(like, params=()) -> (block id, [value ids])\n\nA loose block in "
               "the function of block `like`, for add_op's blocks=.")},
    {"add_op", KW(ane_py_program_add_op),
     PyDoc_STR("add_op(block, op, args, name=None, result_names=None, before=None, "
               "blocks=()) -> (op id, [value ids])\n\nargs: {parameter: id | (ids, ...)}. "
               "Checks the signature and infers the result types.")},
    {"add_const", KW(ane_py_program_add_const),
     PyDoc_STR("add_const(block, value, dtype=None, name=None, inline=False, before=None, "
               "what=\"const\") -> value id\n\ndtype: a name, or a type descriptor for "
               "lists and the like. Contiguous arrays above 64 bytes are viewed, not copied.")},
    {"set_outputs", ane_py_program_set_outputs, METH_VARARGS,
     PyDoc_STR("set_outputs(block, [value ids])")},
    {"remove_op", ane_py_program_remove_op, METH_O,
     PyDoc_STR("remove_op(id)\n\nBufferError while a result is used.")},
    {"replace_value", ane_py_program_replace, METH_VARARGS,
     PyDoc_STR("replace_value(a, b)\n\nEvery use of a becomes b.")},
    {"rename", ane_py_program_rename, METH_VARARGS, PyDoc_STR("rename(value id, name)")},
    {"verify", program_verify, METH_NOARGS,
     PyDoc_STR("verify()\n\nChecks the structure and infers every type anew.")},
    {"warnings", program_warnings, METH_NOARGS,
     PyDoc_STR("warnings() -> [(line, column, message)]")},
    {"clone", program_clone, METH_NOARGS, PyDoc_STR("clone() -> an equal program")},
    {"pack", KW(ane_py_program_pack),
     PyDoc_STR("pack(function=None) -> (program, inputs, outputs)\n\nOne packed port a side; "
               "see anetorch.mil.pack. A side is (port or None, (rows, columns), slots).")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"version", get_version, NULL, PyDoc_STR("Version of the text, such as \"1.3\"."), NULL},
    {"generation", get_generation, NULL, PyDoc_STR("Grows with every edit."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(ProgramObject, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Program(version=\"1.3\")\n\nA MIL program: functions, "
                                  "blocks, operations and values, by numeric id.")},
    {Py_tp_new, (void *)program_new},
    {Py_tp_dealloc, (void *)program_dealloc},
    {Py_tp_richcompare, (void *)program_compare},
    {Py_tp_hash, (void *)PyObject_HashNotImplemented},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "anetorch._core.Program",
    .basicsize = sizeof(ProgramObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

static PyMethodDef functions[] = {
    {"op_signature", py_op_signature, METH_VARARGS,
     PyDoc_STR("op_signature(op, opset=18) -> [(parameter, kind, dtypes, var, is_const, "
               "is_vector, is_tuple, optional, attribute)]\n\nFrom the op table. Parameters "
               "with the same var (not -1) share a dtype; attributes are written by value.")},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_program(PyObject *module, ane_py_state *st) {
    st->program_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    if (!st->program_type || PyModule_AddType(module, st->program_type) < 0) return -1;
    return PyModule_AddFunctions(module, functions);
}
