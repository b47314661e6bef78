/* WeightFile, and the list of what else belongs to weight files in the binding.
 * anetorch/weights.py is their public face. */
#include "weights.h"

#include <string.h>

PyObject *ane_py_weights_raise(ane_py_state *st, const ane_error *err) {
    PyObject *type = err->status == ANE_ERR_PARSE ? PyExc_ValueError : PyExc_NotImplementedError;
    if (err->status != ANE_ERR_PARSE && (err->status != ANE_ERR_UNSUPPORTED || !err->file[0]))
        return ane_py_raise(st, err);
    if (!err->file[0]) PyErr_SetString(type, err->message);
    else if (err->line > 1)
        PyErr_Format(type, "'%s', line %d: %s", err->file, err->line, err->message);
    else PyErr_Format(type, "'%s': %s", err->file, err->message);
    return NULL;
}

ane_py_state *ane_py_type_state(PyTypeObject *type) {
    PyObject *mro = PyObject_GetAttrString((PyObject *)type, "__mro__"), *found = NULL;
    Py_ssize_t n = mro ? PyTuple_Size(mro) : 0;
    for (Py_ssize_t i = 0; i < n && !found; i++) {
        found = PyType_GetModule((PyTypeObject *)PyTuple_GetItem(mro, i));
        if (!found) PyErr_Clear();
    }
    Py_XDECREF(mro);
    if (!found) {
        PyErr_SetString(PyExc_TypeError, "not a type of anetorch");
        return NULL;
    }
    return ane_py_state_of(found);
}

PyObject *ane_py_type_alloc(PyTypeObject *type) {
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

void ane_py_type_free(PyObject *obj) {
    PyTypeObject *type = Py_TYPE(obj);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(obj);
    Py_DECREF(type);
}

static PyObject *weights_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", "manifest", NULL};
    PyObject *path = NULL, *manifest = NULL, *given = Py_None, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|O:WeightFile", names,
                                     PyUnicode_FSConverter, &path, &given))
        return NULL;
    if (given != Py_None && !PyUnicode_FSConverter(given, &manifest)) {
        Py_DECREF(path);
        return NULL;
    }
    ane_py_state *st = ane_py_type_state(type);
    ane_weight_file *file = NULL;
    ane_error err = {0};
    ane_status status = ANE_OK;
    if (!st) goto done;
    const char *p = PyBytes_AsString(path), *m = manifest ? PyBytes_AsString(manifest) : NULL;
    Py_BEGIN_ALLOW_THREADS
    status = ane_weight_open(p, m, &file, &err);
    Py_END_ALLOW_THREADS
    if (status) {
        ane_py_weights_raise(st, &err);
        goto done;
    }
    result = ane_py_type_alloc(type);
    if (!result) {
        ane_weight_release(file);
        goto done;
    }
    ((py_weights *)result)->state = st;
    ((py_weights *)result)->file = file;
done:
    Py_DECREF(path);
    Py_XDECREF(manifest);
    return result;
}

static PyObject *weights_open(PyObject *type, PyObject *args, PyObject *kwargs) {
    return PyObject_Call(type, args, kwargs);
}

static void weights_dealloc(PyObject *obj) {
    ane_weight_release(((py_weights *)obj)->file);
    ane_py_type_free(obj);
}

ane_weight_file *ane_py_weights_opened(PyObject *obj) {
    ane_weight_file *f = ((py_weights *)obj)->file;
    if (!f) PyErr_SetString(PyExc_ValueError, "[WeightFile] the file is closed");
    return f;
}

int ane_py_weights_find(const ane_weight_file *f, PyObject *name, size_t *index) {
    Py_ssize_t n = 0;
    if (!PyUnicode_Check(name)) return 0;
    const char *text = PyUnicode_AsUTF8AndSize(name, &n);
    if (!text) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) return -1;
        PyErr_Clear();                  /* a lone surrogate is in no file */
        return 0;
    }
    return strlen(text) == (size_t)n && ane_weight_find(f, text, index);
}

static int must_find(const ane_weight_file *f, PyObject *name, size_t *index) {
    int found = ane_py_weights_find(f, name, index);
    if (!found) {
        if (!PyUnicode_Check(name))
            PyErr_Format(PyExc_TypeError, "[WeightFile] a name is a str, got %R", name);
        else
            PyErr_Format(PyExc_KeyError, "required tensor '%U' missing from weight file '%s' "
                         "(%zu tensors)", name, ane_weight_path(f), ane_weight_count(f));
    }
    return found == 1 ? 0 : -1;
}

static Py_ssize_t weights_len(PyObject *obj) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    return f ? (Py_ssize_t)ane_weight_count(f) : -1;
}

static int weights_contains(PyObject *obj, PyObject *name) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    size_t i;
    return f ? ane_py_weights_find(f, name, &i) : -1;
}

static PyObject *weights_getitem(PyObject *obj, PyObject *name) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    ane_py_state *st = ((py_weights *)obj)->state;
    size_t i;
    if (!f || must_find(f, name, &i) < 0) return NULL;
    ane_tensor t;
    ane_error err = {0};
    ane_status status;
    ane_weight_retain(f);               /* another thread may close it meanwhile */
    Py_BEGIN_ALLOW_THREADS
    status = ane_weight_get(f, i, &t, &err);
    Py_END_ALLOW_THREADS
    ane_weight_release(f);
    if (status) return ane_py_weights_raise(st, &err);
    PyObject *result = ane_py_tensor_new(st, &t);
    ane_surface_release(t.surface);
    return result;
}

static PyObject *weights_keys(PyObject *obj, PyObject *unused) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    (void)unused;
    if (!f) return NULL;
    size_t n = ane_weight_count(f);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list && i < n; i++) {
        ane_weight_entry e;
        ane_weight_info(f, i, &e);
        PyObject *name = PyUnicode_FromString(e.name);
        if (!name) Py_CLEAR(list);
        else PyList_SetItem(list, (Py_ssize_t)i, name);
    }
    return list;
}

static PyObject *weights_iter(PyObject *obj) {
    PyObject *list = weights_keys(obj, NULL);
    PyObject *it = list ? PyObject_GetIter(list) : NULL;
    Py_XDECREF(list);
    return it;
}

static PyObject *weights_info(PyObject *obj, PyObject *name) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    size_t i;
    if (!f || must_find(f, name, &i) < 0) return NULL;
    ane_weight_entry e;
    ane_weight_info(f, i, &e);
    PyObject *shape = PyTuple_New(e.rank);
    for (int d = 0; shape && d < e.rank; d++) {
        PyObject *v = PyLong_FromLongLong(e.shape[d]);
        if (!v) Py_CLEAR(shape);
        else PyTuple_SetItem(shape, d, v);
    }
    if (!shape) return NULL;
    return Py_BuildValue("{s:z,s:N,s:s,s:n,s:n,s:n,s:i}", "dtype",
                         e.dtype == ANE_DTYPE_COUNT ? NULL : ane_dtype_name(e.dtype), "shape",
                         shape, "type", e.type, "file", (Py_ssize_t)e.file, "offset",
                         (Py_ssize_t)e.offset, "nbytes", (Py_ssize_t)e.bytes, "bits", e.bits);
}

static PyObject *weights_check(PyObject *obj, PyObject *name) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    size_t i;
    ane_error err = {0};
    if (!f || must_find(f, name, &i) < 0) return NULL;
    if (ane_weight_check(f, i, &err)) return ane_py_weights_raise(((py_weights *)obj)->state, &err);
    Py_RETURN_NONE;
}

static PyObject *weights_read_into(PyObject *obj, PyObject *args) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    ane_py_state *st = ((py_weights *)obj)->state;
    PyObject *name, *target;
    Py_buffer b;
    size_t i;
    if (!f || !PyArg_ParseTuple(args, "UO:read_into", &name, &target) ||
        must_find(f, name, &i) < 0)
        return NULL;
    if (PyObject_GetBuffer(target, &b, PyBUF_WRITABLE) < 0) return NULL;
    ane_tensor t;
    ane_error err = {0};
    ane_status status;
    bool fits = true;
    size_t bytes = 0;
    ane_weight_retain(f);
    Py_BEGIN_ALLOW_THREADS
    status = ane_weight_get(f, i, &t, &err);
    if (!status) {
        bytes = (size_t)ane_tensor_count(&t) * ane_dtype_size(t.dtype);
        fits = bytes == (size_t)b.len;
        if (fits && bytes) memcpy(b.buf, ane_tensor_data(&t), bytes);
        ane_surface_release(t.surface);
        if (fits) status = ane_weight_check(f, i, &err);        /* cut under the copy? */
    }
    Py_END_ALLOW_THREADS
    ane_weight_release(f);
    Py_ssize_t len = b.len;
    PyBuffer_Release(&b);
    if (status) return ane_py_weights_raise(st, &err);
    if (!fits) {
        PyErr_Format(PyExc_ValueError, "[read_into] tensor '%U' has %zu bytes, the target %zd",
                     name, bytes, len);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *weights_close(PyObject *obj, PyObject *unused) {
    py_weights *self = (py_weights *)obj;
    ane_weight_file *f = self->file;
    (void)unused;
    self->file = NULL;
    ane_weight_release(f);
    Py_RETURN_NONE;
}

static PyObject *weights_enter(PyObject *obj, PyObject *unused) {
    (void)unused;
    return ane_py_weights_opened(obj) ? Py_NewRef(obj) : NULL;
}
static PyObject *weights_exit(PyObject *obj, PyObject *args) {
    (void)args;
    return weights_close(obj, NULL);
}

static PyObject *weights_get_metadata(PyObject *obj, void *unused) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    const char *k, *v;
    (void)unused;
    PyObject *dict = f ? PyDict_New() : NULL;
    for (size_t i = 0; dict && ane_weight_metadata(f, i, &k, &v); i++) {
        PyObject *value = PyUnicode_FromString(v);
        if (!value || PyDict_SetItemString(dict, k, value) < 0) Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *weights_get_path(PyObject *obj, void *unused) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    (void)unused;
    return f ? PyUnicode_DecodeFSDefault(ane_weight_path(f)) : NULL;
}

static PyObject *weights_get_format(PyObject *obj, void *unused) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    (void)unused;
    return f ? PyUnicode_FromString(ane_weight_format(f)) : NULL;
}

static PyObject *weights_get_closed(PyObject *obj, void *unused) {
    (void)unused;
    return PyBool_FromLong(!((py_weights *)obj)->file);
}

static PyObject *weights_get_files(PyObject *obj, void *unused) {
    ane_weight_file *f = ane_py_weights_opened(obj);
    (void)unused;
    PyObject *list = f ? PyList_New(0) : NULL;
    for (size_t i = 0; list && i < ane_weight_file_count(f); i++) {
        PyObject *path = PyUnicode_DecodeFSDefault(ane_weight_file_path(f, i));
        PyObject *pair = path ? Py_BuildValue("(Nn)", path,
                                              (Py_ssize_t)ane_weight_file_bytes(f, i)) : NULL;
        if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

static PyObject *weights_repr(PyObject *obj) {
    ane_weight_file *f = ((py_weights *)obj)->file;
    if (!f) return PyUnicode_FromString("<WeightFile closed>");
    PyObject *path = PyUnicode_DecodeFSDefault(ane_weight_path(f));
    PyObject *r = path ? PyUnicode_FromFormat("<WeightFile %R: %s, %zu tensors>", path,
                                              ane_weight_format(f), ane_weight_count(f)) : NULL;
    Py_XDECREF(path);
    return r;
}

static PyMethodDef weights_methods[] = {
    {"open", KEYWORDS(weights_open), METH_VARARGS | METH_KEYWORDS | METH_CLASS,
     PyDoc_STR("open(path, manifest=None) -> WeightFile\n\n"
               "Maps a weight file read-only: safetensors, an index of safetensors shards\n"
               "(model.safetensors.index.json), a raw file with a JSON manifest, or GGUF. The\n"
               "whole header is checked against the file; nothing is copied.\n\n"
               "    with WeightFile.open(\"model.safetensors\") as w:\n"
               "        x = w[\"model.norm.weight\"]")},
    {"keys", weights_keys, METH_NOARGS, PyDoc_STR("keys() -> list of names, in file order")},
    {"info", weights_info, METH_O,
     PyDoc_STR("info(name) -> dict\n\ndtype (None when it cannot be read), shape, type as the "
               "file calls it, file\n(index into .files), offset and nbytes in that file, and bits: the width "
               "of the values\npacked in a manifest's U32 words (4 unless it says), else 0.")},
    {"check", weights_check, METH_O,
     PyDoc_STR("check(name)\n\nRaises RuntimeError when the tensor's file was cut, rewritten or "
               "replaced since it\nwas ane_py_weights_opened. Every other call does this first.")},
    {"read_into", weights_read_into, METH_VARARGS,
     PyDoc_STR("read_into(name, target)\n\nCopies a tensor's bytes into a writable contiguous "
               "buffer of the same size.")},
    {"close", weights_close, METH_NOARGS,
     PyDoc_STR("close()\n\nTensors taken from the file keep its mapping alive.")},
    {"__enter__", weights_enter, METH_NOARGS, NULL},
    {"__exit__", weights_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef weights_getset[] = {
    {"metadata", weights_get_metadata, NULL,
     PyDoc_STR("dict of str: safetensors' __metadata__, or GGUF's scalars and strings"), NULL},
    {"path", weights_get_path, NULL, PyDoc_STR("the path that was ane_py_weights_opened"), NULL},
    {"format", weights_get_format, NULL, PyDoc_STR("'safetensors', 'manifest' or 'gguf'"), NULL},
    {"files", weights_get_files, NULL, PyDoc_STR("[(path, bytes), ...] of the mapped files"),
     NULL},
    {"closed", weights_get_closed, NULL, PyDoc_STR("whether close() was called"), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot weights_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR(
         "WeightFile(path, manifest=None)\n\nA mapping of names to zero-copy Tensors over a "
         "read-only mapped file; see open.\nw[name] raises KeyError for a name that is not "
         "there, NotImplementedError for a\nstorage type that is not supported, RuntimeError "
         "when the file was changed since.\n\n"
         ">>> anetorch.save_file({\"w\": np.ones((2, 3), np.float32)}, \"w.safetensors\")\n"
         ">>> with anetorch.WeightFile(\"w.safetensors\") as f:\n"
         "...     print(list(f), f[\"w\"].shape)\n['w'] (2, 3)")},
    {Py_tp_new, (void *)weights_new},
    {Py_tp_dealloc, (void *)weights_dealloc},
    {Py_tp_repr, (void *)weights_repr},
    {Py_tp_iter, (void *)weights_iter},
    {Py_tp_methods, weights_methods},
    {Py_tp_getset, weights_getset},
    {Py_mp_length, (void *)weights_len},
    {Py_mp_subscript, (void *)weights_getitem},
    {Py_sq_contains, (void *)weights_contains},
    {0, NULL},
};

PyType_Spec ane_py_weights_spec = {
    .name = "anetorch._core.WeightFile",
    .basicsize = sizeof(py_weights),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = weights_slots,
};

int ane_py_add_weights(PyObject *module, ane_py_state *st) {
    const struct {
        PyType_Spec *spec;
        PyTypeObject **slot;
    } types[] = {
        {&ane_py_weights_spec, &st->weight_file_type},
        {&ane_py_weight_buffer_spec, &st->weight_buffer_type},
        {&ane_py_weight_writer_spec, &st->weight_writer_type},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        *types[i].slot = (PyTypeObject *)PyType_FromModuleAndSpec(module, types[i].spec, NULL);
        if (!*types[i].slot || PyModule_AddType(module, *types[i].slot) < 0) return -1;
    }
    return PyModule_AddFunctions(module, ane_py_weight_functions);
}
