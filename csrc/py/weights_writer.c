/* WeightWriter: streams a safetensors file. */
#include "weights.h"

#include <string.h>

typedef struct py_writer {
    PyObject_HEAD
    ane_py_state *state;
    ane_weight_writer *writer;          /* NULL: committed, aborted, or taken by a call */
    Py_ssize_t n;
    int busy;
} py_writer;

/* The text of a str, which is put into `keep` to outlive the container it came from. */
static const char *keep_text(PyObject *keep, PyObject *obj, const char *what) {
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
    return PyList_Append(keep, obj) < 0 ? NULL : text;
}

static int parse_specs(PyObject *list, PyObject *keep, ane_weight_spec *specs) {
    for (Py_ssize_t i = 0; i < PyList_Size(list); i++) {
        PyObject *row = PySequence_Tuple(PyList_GetItem(list, i)), *name, *dtype, *shape;
        int ok = row && PyArg_ParseTuple(row, "OOO;[WeightWriter] specs hold (name, dtype, shape)",
                                         &name, &dtype, &shape);
        ok = ok && (specs[i].name = keep_text(keep, name, "a name")) != NULL;
        const char *type = ok ? keep_text(keep, dtype, "a dtype") : NULL;
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
    PyObject *path = NULL, *given, *metadata = Py_None, *list = NULL, *items = NULL,
             *keep = NULL;
    py_writer *self = NULL;
    const char *(*meta)[2] = NULL;
    ane_weight_spec *specs = NULL;
    ane_py_state *st = ane_py_type_state(type);
    if (!st || !PyArg_ParseTupleAndKeywords(args, kwargs, "O&O|O:WeightWriter", names,
                                            PyUnicode_FSConverter, &path, &given, &metadata))
        return NULL;
    keep = PyList_New(0);
    list = keep ? PySequence_List(given) : NULL;
    items = !list ? NULL : metadata == Py_None ? PyList_New(0) : PyMapping_Items(metadata);
    if (!items) goto done;
    Py_ssize_t n = PyList_Size(list), n_meta = PyList_Size(items);
    specs = PyMem_Calloc((size_t)n + 1, sizeof *specs);
    meta = PyMem_Calloc((size_t)n_meta + 1, sizeof *meta);
    if (!specs || !meta) {
        PyErr_NoMemory();
        goto done;
    }
    if (parse_specs(list, keep, specs) < 0) goto done;
    for (Py_ssize_t i = 0; i < n_meta; i++) {
        PyObject *pair = PyList_GetItem(items, i);
        meta[i][0] = keep_text(keep, PyTuple_GetItem(pair, 0), "a metadata key");
        meta[i][1] = meta[i][0] ? keep_text(keep, PyTuple_GetItem(pair, 1), "a metadata value")
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
        ane_py_weights_raise(st, &err);
        goto done;
    }
    self = (py_writer *)ane_py_type_alloc(type);
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
    Py_XDECREF(keep);
    Py_DECREF(path);
    return (PyObject *)self;
}

static void writer_dealloc(PyObject *obj) {
    py_writer *self = (py_writer *)obj;
    ane_weight_writer_destroy(self->writer);
    ane_py_type_free(obj);
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
    if (status) return ane_py_weights_raise(self->state, &err);
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
    if (status) return ane_py_weights_raise(self->state, &err);
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

PyType_Spec ane_py_weight_writer_spec = {
    .name = "anetorch._core.WeightWriter",
    .basicsize = sizeof(py_writer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = writer_slots,
};

