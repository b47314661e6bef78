/* WeightBuffer: one buffer over a whole mapped weight file. */
#include "weights.h"

typedef struct py_buffer {
    PyObject_HEAD
    ane_py_state *state;
    ane_weight_file *file;
    ane_surface *surface;
    size_t shard;
} py_buffer;

static PyObject *buffer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"file", "shard", NULL};
    PyObject *file;
    Py_ssize_t shard = 0;
    ane_py_state *st = ane_py_type_state(type);
    if (!st || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!|n:WeightBuffer", names,
                                            st->weight_file_type, &file, &shard))
        return NULL;
    ane_weight_file *f = ane_py_weights_opened(file);
    ane_surface *s = NULL;
    ane_error err = {0};
    if (!f) return NULL;
    if (shard < 0 || (size_t)shard >= ane_weight_file_count(f)) {
        PyErr_Format(PyExc_IndexError, "[WeightBuffer] shard %zd of %zu", shard,
                     ane_weight_file_count(f));
        return NULL;
    }
    if (ane_weight_surface(f, (size_t)shard, &s, &err)) return ane_py_weights_raise(st, &err);
    py_buffer *self = (py_buffer *)ane_py_type_alloc(type);
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
    ane_py_type_free(obj);
}

/* 1 and *e, 0 absent, -1 exception. */
static int buffer_entry(py_buffer *self, PyObject *name, ane_weight_entry *e) {
    size_t i = 0;
    ane_error err = {0};
    int found = ane_py_weights_find(self->file, name, &i);
    if (found != 1) return found;
    ane_weight_info(self->file, i, e);
    if (e->file != self->shard) return 0;
    if (ane_weight_check(self->file, i, &err)) return ane_py_weights_raise(self->state, &err), -1;
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
    return status ? ane_py_weights_raise(self->state, &err) : ane_py_tensor_new(self->state, &t);
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

PyType_Spec ane_py_weight_buffer_spec = {
    .name = "anetorch._core.WeightBuffer",
    .basicsize = sizeof(py_buffer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = buffer_slots,
};

