/* WeightFile, WeightBuffer and WeightWriter, the SIGBUS guard, and the blob builders.
 * anetorch/weights.py is their public face.
 *
 * None of the three holds Python objects, so none is tracked by the collector. */
#include "py.h"

#include <string.h>

typedef struct py_weights {
    PyObject_HEAD
    ane_py_state *state;                /* of the type's module, which the type keeps */
    ane_weight_file *file;              /* NULL: closed */
} py_weights;

typedef struct py_buffer {
    PyObject_HEAD
    ane_py_state *state;
    ane_weight_file *file;
    ane_surface *surface;
    size_t shard;
} py_buffer;

typedef struct py_writer {
    PyObject_HEAD
    ane_py_state *state;
    ane_weight_writer *writer;          /* NULL: committed, aborted, or taken by a call */
    ane_weight_spec *specs;
    Py_ssize_t n;
    int busy;
} py_writer;

/* As ane_py_raise, but a malformed file is a ValueError that names file and place. */
static PyObject *raise_weights(ane_py_state *st, const ane_error *err) {
    if (err->status != ANE_ERR_PARSE) return ane_py_raise(st, err);
    if (!err->file[0]) PyErr_SetString(PyExc_ValueError, err->message);
    else if (err->line > 1)
        PyErr_Format(PyExc_ValueError, "'%s', line %d: %s", err->file, err->line, err->message);
    else PyErr_Format(PyExc_ValueError, "'%s': %s", err->file, err->message);
    return NULL;
}

/* The module state of a type or of the nearest base that has one. */
static ane_py_state *state_of_type(PyTypeObject *type) {
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

static PyObject *alloc_of(PyTypeObject *type) {
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

static void free_of(PyObject *obj) {
    PyTypeObject *type = Py_TYPE(obj);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(obj);
    Py_DECREF(type);
}

/* ---------------------------------------------------------------- WeightFile */

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
    ane_py_state *st = state_of_type(type);
    ane_weight_file *file = NULL;
    ane_error err = {0};
    ane_status status = ANE_OK;
    if (!st) goto done;
    const char *p = PyBytes_AsString(path), *m = manifest ? PyBytes_AsString(manifest) : NULL;
    Py_BEGIN_ALLOW_THREADS
    status = ane_weight_open(p, m, &file, &err);
    Py_END_ALLOW_THREADS
    if (status) {
        raise_weights(st, &err);
        goto done;
    }
    result = alloc_of(type);
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
    free_of(obj);
}

/* The open file, or NULL with ValueError. */
static ane_weight_file *opened(PyObject *obj) {
    ane_weight_file *f = ((py_weights *)obj)->file;
    if (!f) PyErr_SetString(PyExc_ValueError, "[WeightFile] the file is closed");
    return f;
}

/* 1 found, 0 not, -1 exception. */
static int find(const ane_weight_file *f, PyObject *name, size_t *index) {
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
    int found = find(f, name, index);
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
    ane_weight_file *f = opened(obj);
    return f ? (Py_ssize_t)ane_weight_count(f) : -1;
}

static int weights_contains(PyObject *obj, PyObject *name) {
    ane_weight_file *f = opened(obj);
    size_t i;
    return f ? find(f, name, &i) : -1;
}

static PyObject *weights_getitem(PyObject *obj, PyObject *name) {
    ane_weight_file *f = opened(obj);
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
    if (status) return raise_weights(st, &err);
    PyObject *result = ane_py_tensor_new(st, &t);
    ane_surface_release(t.surface);
    return result;
}

static PyObject *weights_keys(PyObject *obj, PyObject *unused) {
    ane_weight_file *f = opened(obj);
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
    ane_weight_file *f = opened(obj);
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
    return Py_BuildValue("{s:z,s:N,s:s,s:n,s:n,s:n}", "dtype",
                         e.dtype == ANE_DTYPE_COUNT ? NULL : ane_dtype_name(e.dtype), "shape",
                         shape, "type", e.type, "file", (Py_ssize_t)e.file, "offset",
                         (Py_ssize_t)e.offset, "nbytes", (Py_ssize_t)e.bytes);
}

static PyObject *weights_check(PyObject *obj, PyObject *name) {
    ane_weight_file *f = opened(obj);
    size_t i;
    ane_error err = {0};
    if (!f || must_find(f, name, &i) < 0) return NULL;
    if (ane_weight_check(f, i, &err)) return raise_weights(((py_weights *)obj)->state, &err);
    Py_RETURN_NONE;
}

static PyObject *weights_read_into(PyObject *obj, PyObject *args) {
    ane_weight_file *f = opened(obj);
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
    if (status) return raise_weights(st, &err);
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
    return opened(obj) ? Py_NewRef(obj) : NULL;
}
static PyObject *weights_exit(PyObject *obj, PyObject *args) {
    (void)args;
    return weights_close(obj, NULL);
}

static PyObject *weights_get_metadata(PyObject *obj, void *unused) {
    ane_weight_file *f = opened(obj);
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
    ane_weight_file *f = opened(obj);
    (void)unused;
    return f ? PyUnicode_DecodeFSDefault(ane_weight_path(f)) : NULL;
}

static PyObject *weights_get_format(PyObject *obj, void *unused) {
    ane_weight_file *f = opened(obj);
    (void)unused;
    return f ? PyUnicode_FromString(ane_weight_format(f)) : NULL;
}

static PyObject *weights_get_closed(PyObject *obj, void *unused) {
    (void)unused;
    return PyBool_FromLong(!((py_weights *)obj)->file);
}

static PyObject *weights_get_files(PyObject *obj, void *unused) {
    ane_weight_file *f = opened(obj);
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

#define KEYWORDS(f) (PyCFunction)(void (*)(void))f

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
               "file calls it, file\n(index into .files), offset and nbytes in that file.")},
    {"check", weights_check, METH_O,
     PyDoc_STR("check(name)\n\nRaises RuntimeError when the tensor's file was cut, rewritten or "
               "replaced since it\nwas opened. Every other call does this first.")},
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
    {"path", weights_get_path, NULL, PyDoc_STR("the path that was opened"), NULL},
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
         "when the file was changed since.")},
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

static PyType_Spec weights_spec = {
    .name = "anetorch._core.WeightFile",
    .basicsize = sizeof(py_weights),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = weights_slots,
};

/* ---------------------------------------------------------------- WeightBuffer */

static PyObject *buffer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"file", "shard", NULL};
    PyObject *file;
    Py_ssize_t shard = 0;
    ane_py_state *st = state_of_type(type);
    if (!st || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!|n:WeightBuffer", names,
                                            st->weight_file_type, &file, &shard))
        return NULL;
    ane_weight_file *f = opened(file);
    ane_surface *s = NULL;
    ane_error err = {0};
    if (!f) return NULL;
    if (shard < 0 || (size_t)shard >= ane_weight_file_count(f)) {
        PyErr_Format(PyExc_IndexError, "[WeightBuffer] shard %zd of %zu", shard,
                     ane_weight_file_count(f));
        return NULL;
    }
    if (ane_weight_surface(f, (size_t)shard, &s, &err)) return raise_weights(st, &err);
    py_buffer *self = (py_buffer *)alloc_of(type);
    if (!self) {
        ane_surface_release(s);
        return NULL;
    }
    self->state = st;
    self->file = ane_weight_retain(f);
    self->surface = s;
    self->shard = (size_t)shard;
    return (PyObject *)self;
}

static PyObject *buffer_wrap(PyObject *type, PyObject *args, PyObject *kwargs) {
    return PyObject_Call(type, args, kwargs);
}

static void buffer_dealloc(PyObject *obj) {
    py_buffer *self = (py_buffer *)obj;
    ane_surface_release(self->surface);
    ane_weight_release(self->file);
    free_of(obj);
}

/* 1 and *e, 0 absent, -1 exception. */
static int buffer_entry(py_buffer *self, PyObject *name, ane_weight_entry *e) {
    size_t i = 0;
    ane_error err = {0};
    int found = find(self->file, name, &i);
    if (found != 1) return found;
    ane_weight_info(self->file, i, e);
    if (e->file != self->shard) return 0;
    if (ane_weight_check(self->file, i, &err)) return raise_weights(self->state, &err), -1;
    size_t end = ane_weight_file_bytes(self->file, self->shard);
    if (e->offset > end || end - e->offset < e->bytes) {
        PyErr_Format(PyExc_ValueError, "tensor '%s' bytes outside mmap region", e->name);
        return -1;
    }
    return 1;
}

static PyObject *buffer_offset(PyObject *obj, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"name", "required", NULL};
    PyObject *name;
    int required = 0;
    ane_weight_entry e;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "U|p:offset", names, &name, &required))
        return NULL;
    int found = buffer_entry((py_buffer *)obj, name, &e);
    if (found < 0) return NULL;
    if (found) return PyLong_FromSize_t(e.offset);
    if (!required) Py_RETURN_NONE;
    PyErr_Format(PyExc_KeyError, "required tensor '%U' missing from weight manifest", name);
    return NULL;
}

static PyObject *buffer_tensor(PyObject *obj, PyObject *args) {
    py_buffer *self = (py_buffer *)obj;
    PyObject *name = NULL;
    if (!PyArg_ParseTuple(args, "|U:tensor", &name)) return NULL;
    ane_tensor t;
    ane_error err = {0};
    ane_status status;
    if (name) {
        ane_weight_entry e;
        int found = buffer_entry(self, name, &e);
        if (found < 0) return NULL;
        if (!found) {
            PyErr_Format(PyExc_KeyError, "required tensor '%U' missing from weight manifest",
                         name);
            return NULL;
        }
        size_t size = e.dtype == ANE_DTYPE_COUNT ? 0 : ane_dtype_size(e.dtype);
        if (!size || (size_t)ane_dtype_bits(e.dtype) / 8 != size || e.offset % size) {
            PyErr_Format(PyExc_NotImplementedError, "tensor '%s' is stored as %s at offset %zu, "
                         "which is no view; use WeightFile[name]", e.name, e.type, e.offset);
            return NULL;
        }
        status = ane_tensor_init(&t, self->surface, e.offset, e.dtype, e.rank, e.shape, &err);
        if (!status && (size_t)ane_tensor_count(&t) * size != e.bytes) {
            PyErr_Format(PyExc_NotImplementedError, "tensor '%s' is stored as %s, which is no "
                         "view; use WeightFile[name]", e.name, e.type);
            return NULL;
        }
    } else {
        int64_t bytes = (int64_t)ane_surface_bytes(self->surface);
        status = ane_tensor_init(&t, self->surface, 0, ANE_U8, 1, &bytes, &err);
    }
    return status ? raise_weights(self->state, &err) : ane_py_tensor_new(self->state, &t);
}

static PyObject *buffer_get_nbytes(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(ane_surface_bytes(((py_buffer *)obj)->surface));
}
static PyObject *buffer_get_file_bytes(PyObject *obj, void *unused) {
    py_buffer *self = (py_buffer *)obj;
    (void)unused;
    return PyLong_FromSize_t(ane_weight_file_bytes(self->file, self->shard));
}
static PyObject *buffer_get_address(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromVoidPtr(ane_surface_base(((py_buffer *)obj)->surface));
}
static PyObject *buffer_repr(PyObject *obj) {
    py_buffer *self = (py_buffer *)obj;
    size_t n = ane_surface_bytes(self->surface);
    PyObject *gb = PyFloat_FromDouble((double)(n / 10000000) / 100);
    PyObject *path = PyUnicode_DecodeFSDefault(ane_weight_file_path(self->file, self->shard));
    PyObject *r = gb && path ? PyUnicode_FromFormat("<WeightBuffer %R: %zu bytes, %R GB>", path,
                                                    n, gb) : NULL;
    Py_XDECREF(gb);
    Py_XDECREF(path);
    return r;
}

static PyMethodDef buffer_methods[] = {
    {"wrap", KEYWORDS(buffer_wrap), METH_VARARGS | METH_KEYWORDS | METH_CLASS,
     PyDoc_STR("wrap(file, shard=0) -> WeightBuffer\n\nOne buffer over the whole mapping of a "
               "WeightFile, rounded up to 16384 readable\nbytes. It keeps the mapping alive.")},
    {"offset", KEYWORDS(buffer_offset), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("offset(name, required=False) -> int or None\n\nByte offset of a tensor in the "
               "buffer; None (or KeyError when required) when the\nfile has no such tensor.")},
    {"tensor", buffer_tensor, METH_VARARGS,
     PyDoc_STR("tensor(name=None) -> Tensor\n\nA view of one tensor, or of all bytes (uint8), "
               "over the one buffer.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef buffer_getset[] = {
    {"nbytes", buffer_get_nbytes, NULL, PyDoc_STR("file size rounded up to 16384"), NULL},
    {"file_bytes", buffer_get_file_bytes, NULL, PyDoc_STR("size of the file"), NULL},
    {"address", buffer_get_address, NULL, PyDoc_STR("base address, for diagnosis"), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot buffer_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR(
         "WeightBuffer(file, shard=0)\n\nOne read-only buffer over a mapped weight file, bound by "
         "kernels as (buffer, offset).\n\n    b = WeightBuffer.wrap(WeightFile.open(path))\n"
         "    b.offset(\"model.norm.weight\", required=True)")},
    {Py_tp_new, (void *)buffer_new},
    {Py_tp_dealloc, (void *)buffer_dealloc},
    {Py_tp_repr, (void *)buffer_repr},
    {Py_tp_methods, buffer_methods},
    {Py_tp_getset, buffer_getset},
    {0, NULL},
};

static PyType_Spec buffer_spec = {
    .name = "anetorch._core.WeightBuffer",
    .basicsize = sizeof(py_buffer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = buffer_slots,
};

/* ---------------------------------------------------------------- WeightWriter */

/* Strings that outlive the list they came from. */
typedef struct strings {
    PyObject *keep;
} strings;

static const char *keep_text(strings *s, PyObject *obj, const char *what) {
    Py_ssize_t n = 0;
    if (!PyUnicode_Check(obj)) {
        PyErr_Format(PyExc_TypeError, "[WeightWriter] %s is a str, got %R", what, obj);
        return NULL;
    }
    const char *text = PyUnicode_AsUTF8AndSize(obj, &n);
    if (!text) return NULL;
    if (strlen(text) != (size_t)n) {
        PyErr_Format(PyExc_ValueError, "[WeightWriter] %s contains NUL: %R", what, obj);
        return NULL;
    }
    return PyList_Append(s->keep, obj) < 0 ? NULL : text;
}

static int parse_specs(PyObject *list, strings *s, ane_weight_spec *specs) {
    for (Py_ssize_t i = 0; i < PyList_Size(list); i++) {
        PyObject *row = PySequence_Tuple(PyList_GetItem(list, i)), *name, *dtype, *shape;
        int ok = row && PyArg_ParseTuple(row, "OOO;[WeightWriter] specs hold (name, dtype, shape)",
                                         &name, &dtype, &shape);
        ok = ok && (specs[i].name = keep_text(s, name, "a name")) != NULL;
        const char *type = ok ? keep_text(s, dtype, "a dtype") : NULL;
        ane_error err = {0};
        if (type && ane_dtype_parse(type, &specs[i].dtype, &err)) {
            PyErr_Format(PyExc_TypeError, "[WeightWriter] '%s': %s", specs[i].name, err.message);
            type = NULL;
        }
        PyObject *dims = type ? PySequence_Tuple(shape) : NULL;
        ok = dims != NULL;
        Py_ssize_t rank = ok ? PyTuple_Size(dims) : 0;
        if (ok && rank > ANE_MAX_RANK) {
            PyErr_Format(PyExc_ValueError, "[WeightWriter] '%s' has %zd dimensions, at most %d",
                         specs[i].name, rank, ANE_MAX_RANK);
            ok = 0;
        }
        for (Py_ssize_t d = 0; ok && d < rank; d++) {
            specs[i].shape[d] = PyLong_AsLongLong(PyTuple_GetItem(dims, d));
            ok = !PyErr_Occurred();
        }
        specs[i].rank = (int)rank;
        Py_XDECREF(dims);
        Py_XDECREF(row);
        if (!ok) return -1;
    }
    return 0;
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", "specs", "metadata", NULL};
    PyObject *path = NULL, *given, *metadata = Py_None, *list = NULL, *items = NULL;
    py_writer *self = NULL;
    strings keep = {NULL};
    const char *(*meta)[2] = NULL;
    ane_weight_spec *specs = NULL;
    ane_py_state *st = state_of_type(type);
    if (!st || !PyArg_ParseTupleAndKeywords(args, kwargs, "O&O|O:WeightWriter", names,
                                            PyUnicode_FSConverter, &path, &given, &metadata))
        return NULL;
    keep.keep = PyList_New(0);
    list = keep.keep ? PySequence_List(given) : NULL;
    items = !list ? NULL : metadata == Py_None ? PyList_New(0) : PyMapping_Items(metadata);
    if (!items) goto done;
    Py_ssize_t n = PyList_Size(list), n_meta = PyList_Size(items);
    specs = PyMem_Calloc((size_t)n + 1, sizeof *specs);
    meta = PyMem_Calloc((size_t)n_meta + 1, sizeof *meta);
    if (!specs || !meta) {
        PyErr_NoMemory();
        goto done;
    }
    if (parse_specs(list, &keep, specs) < 0) goto done;
    for (Py_ssize_t i = 0; i < n_meta; i++) {
        PyObject *pair = PyList_GetItem(items, i);
        meta[i][0] = keep_text(&keep, PyTuple_GetItem(pair, 0), "a metadata key");
        meta[i][1] = meta[i][0] ? keep_text(&keep, PyTuple_GetItem(pair, 1), "a metadata value")
                                : NULL;
        if (!meta[i][1]) goto done;
    }
    ane_weight_writer *w = NULL;
    ane_error err = {0};
    ane_status status;
    const char *p = PyBytes_AsString(path);
    Py_BEGIN_ALLOW_THREADS
    status = ane_weight_writer_create(p, specs, (size_t)n, (const char *const (*)[2])meta,
                                      (size_t)n_meta, &w, &err);
    Py_END_ALLOW_THREADS
    if (status) {
        raise_weights(st, &err);
        goto done;
    }
    self = (py_writer *)alloc_of(type);
    if (!self) {
        ane_weight_writer_destroy(w);
        goto done;
    }
    self->state = st;
    self->writer = w;
    self->n = n;
done:
    PyMem_Free(specs);
    PyMem_Free(meta);
    Py_XDECREF(items);
    Py_XDECREF(list);
    Py_XDECREF(keep.keep);
    Py_DECREF(path);
    return (PyObject *)self;
}

static void writer_dealloc(PyObject *obj) {
    py_writer *self = (py_writer *)obj;
    ane_weight_writer_destroy(self->writer);
    free_of(obj);
}

/* The writer for one call without the lock; a second thread is refused, not raced. */
static ane_weight_writer *writer_take(py_writer *self) {
    if (self->busy) PyErr_SetString(PyExc_RuntimeError, "[WeightWriter] another call is running");
    else if (!self->writer)
        PyErr_SetString(PyExc_ValueError, "[WeightWriter] the file is committed or aborted");
    else {
        self->busy = 1;
        return self->writer;
    }
    return NULL;
}

static PyObject *writer_append(PyObject *obj, PyObject *args) {
    py_writer *self = (py_writer *)obj;
    Py_ssize_t index;
    PyObject *data;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "nO:append", &index, &data)) return NULL;
    if (index < 0 || index >= self->n) {
        PyErr_Format(PyExc_IndexError, "[WeightWriter] entry %zd of %zd", index, self->n);
        return NULL;
    }
    if (PyObject_GetBuffer(data, &b, PyBUF_SIMPLE) < 0) return NULL;
    ane_weight_writer *w = writer_take(self);
    ane_error err = {0};
    ane_status status = ANE_OK;
    if (w) {
        Py_BEGIN_ALLOW_THREADS
        status = ane_weight_writer_append(w, (size_t)index, b.buf, (size_t)b.len, &err);
        Py_END_ALLOW_THREADS
        self->busy = 0;
    }
    PyBuffer_Release(&b);
    if (!w) return NULL;
    if (status) return raise_weights(self->state, &err);
    Py_RETURN_NONE;
}

static PyObject *writer_commit(PyObject *obj, PyObject *unused) {
    py_writer *self = (py_writer *)obj;
    ane_weight_writer *w = writer_take(self);
    ane_error err = {0};
    ane_status status;
    (void)unused;
    if (!w) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = ane_weight_writer_commit(w, &err);
    Py_END_ALLOW_THREADS
    self->busy = 0;
    if (status) return raise_weights(self->state, &err);
    self->writer = NULL;
    ane_weight_writer_destroy(w);
    Py_RETURN_NONE;
}

static PyObject *writer_abort(PyObject *obj, PyObject *unused) {
    py_writer *self = (py_writer *)obj;
    (void)unused;
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "[WeightWriter] another call is running");
        return NULL;
    }
    ane_weight_writer *w = self->writer;
    self->writer = NULL;
    ane_weight_writer_destroy(w);
    Py_RETURN_NONE;
}

static PyMethodDef writer_methods[] = {
    {"append", writer_append, METH_VARARGS,
     PyDoc_STR("append(index, data)\n\nAppends a buffer's bytes to entry index of specs.")},
    {"commit", writer_commit, METH_NOARGS,
     PyDoc_STR("commit()\n\nfsync, rename over path, fsync the folder. ValueError when an entry "
               "is incomplete.")},
    {"abort", writer_abort, METH_NOARGS,
     PyDoc_STR("abort()\n\nRemoves the temporary file; nothing appears at path.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR(
         "WeightWriter(path, specs, metadata=None)\n\nStreams a safetensors file: specs is a list "
         "of (name, dtype, shape). The file appears\nat path, whole and durable, with commit().")},
    {Py_tp_new, (void *)writer_new},
    {Py_tp_dealloc, (void *)writer_dealloc},
    {Py_tp_methods, writer_methods},
    {0, NULL},
};

static PyType_Spec writer_spec = {
    .name = "anetorch._core.WeightWriter",
    .basicsize = sizeof(py_writer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = writer_slots,
};

/* ---------------------------------------------------------------- functions */

static PyObject *py_weight_guard(PyObject *self, PyObject *arg) {
    ane_error err = {0};
    int on = PyObject_IsTrue(arg);
    if (on < 0) return NULL;
    if (ane_weight_guard(on != 0, &err)) return raise_weights(ane_py_state_of(self), &err);
    Py_RETURN_NONE;
}

/* A C-contiguous matrix or vector of the format; 0 or -1 with an exception. */
static int matrix(PyObject *obj, const char *fn, const char *format, const char *dtype,
                  Py_buffer *b, size_t *rows, size_t *cols) {
    if (PyObject_GetBuffer(obj, b, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return -1;
    if (!b->format || strcmp(b->format, format)) {
        PyErr_Format(PyExc_TypeError, "[%s] expected %s, got elements of format '%s'", fn, dtype,
                     b->format ? b->format : "B");
    } else if (b->ndim != 1 && b->ndim != 2) {
        PyErr_Format(PyExc_ValueError, "[%s] expected a matrix or a vector, got %d dimensions",
                     fn, b->ndim);
    } else {
        *rows = b->ndim == 2 ? (size_t)b->shape[0] : 1;
        *cols = (size_t)b->shape[b->ndim - 1];
        return 0;
    }
    PyBuffer_Release(b);
    return -1;
}

static PyObject *blob_result(PyObject *self, ane_status status, uint8_t *blob, size_t n,
                             const ane_error *err) {
    if (status) return raise_weights(ane_py_state_of(self), err);
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)blob, (Py_ssize_t)n);
    ane_free(blob);
    return bytes;
}

static PyObject *py_build_blob(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"weights", "transpose", NULL};
    PyObject *obj;
    int transpose = 0;
    Py_buffer b;
    size_t rows, cols, n = 0;
    uint8_t *blob = NULL;
    ane_error err = {0};
    ane_status status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:build_blob", names, &obj, &transpose))
        return NULL;
    if (matrix(obj, "build_blob", "f", "float32", &b, &rows, &cols) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = ane_blob_build_f32(b.buf, rows, cols, transpose != 0, &blob, &n, &err);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&b);
    return blob_result(self, status, blob, n, &err);
}

static PyObject *py_build_blob_fp16(PyObject *self, PyObject *obj) {
    Py_buffer b;
    size_t rows, cols, n = 0;
    uint8_t *blob = NULL;
    ane_error err = {0};
    if (matrix(obj, "build_blob_fp16", "e", "float16", &b, &rows, &cols) < 0) return NULL;
    ane_status status = ane_blob_build_f16(b.buf, rows * cols, &blob, &n, &err);
    PyBuffer_Release(&b);
    return blob_result(self, status, blob, n, &err);
}

static PyObject *py_build_blob_int8(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"weights", "bare", NULL};
    PyObject *obj;
    int bare = 0;
    Py_buffer b;
    size_t rows, cols, n = 0;
    uint8_t *blob = NULL;
    ane_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:build_blob_int8", names, &obj, &bare))
        return NULL;
    if (matrix(obj, "build_blob_int8", "b", "int8", &b, &rows, &cols) < 0) return NULL;
    ane_status status = ane_blob_build_i8(b.buf, rows, cols, bare != 0, &blob, &n, &err);
    PyBuffer_Release(&b);
    return blob_result(self, status, blob, n, &err);
}

static PyObject *py_quantize_int8(PyObject *self, PyObject *obj) {
    Py_buffer b;
    size_t rows, cols;
    (void)self;
    if (matrix(obj, "quantize_int8", "f", "float32", &b, &rows, &cols) < 0) return NULL;
    PyObject *bytes = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(rows * cols));
    double scale = 0;
    if (bytes) scale = (double)ane_quantize_i8((int8_t *)PyByteArray_AsString(bytes), b.buf,
                                               rows * cols);
    PyBuffer_Release(&b);
    return bytes ? Py_BuildValue("(Nd)", bytes, scale) : NULL;
}

static PyMethodDef weights_functions[] = {
    {"weight_guard", py_weight_guard, METH_O,
     PyDoc_STR("weight_guard(on)\n\nInstalls or removes the SIGBUS handler: where a mapped weight "
               "file was cut, code that\nis not anetorch's reads zeros, and the next call of "
               "anetorch raises.")},
    {"build_blob", KEYWORDS(py_build_blob), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("build_blob(weights, transpose=False) -> bytes\n\nA one-tensor fp16 weight file "
               "(128-byte header, BLOBFILE offset 64) of a float32 matrix.")},
    {"build_blob_fp16", py_build_blob_fp16, METH_O,
     PyDoc_STR("build_blob_fp16(weights) -> bytes\n\nThe same of float16 data, copied.")},
    {"build_blob_int8", KEYWORDS(py_build_blob_int8), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("build_blob_int8(weights, bare=False) -> bytes\n\nThe same of int8 data; bare: the "
               "C bridge's 64-byte header without a file header.")},
    {"quantize_int8", py_quantize_int8, METH_O,
     PyDoc_STR("quantize_int8(weights) -> (bytearray, scale)\n\nOne scale, max|w|/127, half away "
               "from zero; w is about q * scale.")},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_weights(PyObject *module, ane_py_state *st) {
    const struct {
        PyType_Spec *spec;
        PyTypeObject **slot;
    } types[] = {
        {&weights_spec, &st->weight_file_type},
        {&buffer_spec, &st->weight_buffer_type},
        {&writer_spec, &st->weight_writer_type},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        *types[i].slot = (PyTypeObject *)PyType_FromModuleAndSpec(module, types[i].spec, NULL);
        if (!*types[i].slot || PyModule_AddType(module, *types[i].slot) < 0) return -1;
    }
    return PyModule_AddFunctions(module, weights_functions);
}
