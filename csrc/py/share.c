/* Tensors of other processes: ids, descriptors, names, and what multiprocessing and pickle
 * need (anetorch/sharing.py does the rest). */
#include "tensor.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A tensor over a surface that the caller made; takes the reference. */
static PyObject *adopt(PyTypeObject *type, ane_py_state *st, ane_surface *s, ane_tensor *t) {
    ane_error err = {0};
    PyObject *out = NULL;
    t->surface = s;
    if (ane_tensor_check(t, &err)) ane_py_raise(st, &err);
    else out = ane_py_tensor_make(type, st, t);
    ane_surface_release(s);
    return out;
}

/* ---------------------------------------------------------------- id */

/* Surface handle ; dtype ; byte offset ; shape ; strides. */
PyObject *ane_py_tensor_id(PyObject *self, void *closure) {
    (void)closure;
    const ane_tensor *t = ane_py_open(self, "id");
    if (!t) return NULL;
    char handle[192], dims[2][ANE_MAX_RANK * 21 + 1];
    ane_error err = {0};
    if (ane_surface_handle(t->surface, handle, sizeof handle, &err))
        return ane_py_raise(ANE_TENSOR(self)->st, &err);
    for (int k = 0; k < 2; k++) {
        const int64_t *v = k ? t->strides : t->shape;
        size_t at = 0;
        dims[k][0] = 0;
        for (int i = 0; i < t->rank; i++)
            at += (size_t)snprintf(dims[k] + at, sizeof dims[k] - at, "%s%" PRId64,
                                   i ? "," : "", v[i]);
    }
    return PyUnicode_FromFormat("%s;%s;%zu;%s;%s", handle, ane_dtype_name(t->dtype), t->offset,
                                dims[0], dims[1]);
}

static bool read_dims(const char *text, int64_t *dims, int *rank) {
    int n = 0;
    while (*text) {
        char *end;
        errno = 0;
        long long v = strtoll(text, &end, 10);
        if (end == text || errno || n == ANE_MAX_RANK) return false;
        dims[n++] = v;
        if (*end && *end != ',') return false;
        text = *end ? end + 1 : end;
    }
    *rank = n;
    return true;
}

PyObject *ane_py_tensor_lookup(PyObject *cls, PyObject *arg) {
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)cls);
    if (!st) return NULL;
    const char *id = PyUnicode_Check(arg) ? PyUnicode_AsUTF8AndSize(arg, NULL) : NULL;
    if (!id) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "[lookup] an id is a str, not %R", arg);
        return NULL;
    }
    char text[1024], *part[5];
    bool ok = strlen(id) < sizeof text;
    if (ok) {
        strcpy(text, id);
        char *p = text;
        for (int i = 0; i < 5; i++) {
            part[i] = p;
            p = p ? strchr(p, ';') : NULL;
            if (p) *p++ = 0;
            ok = ok && (p != NULL) == (i < 4);
        }
    }
    ane_tensor t = {0};
    int strides = 0;
    if (ok) {
        char *end;
        errno = 0;
        unsigned long long offset = strtoull(part[2], &end, 10);
        t.offset = (size_t)offset;
        ok = !*end && end != part[2] && !errno && !ane_dtype_parse(part[1], &t.dtype, NULL) &&
             read_dims(part[3], t.shape, &t.rank) && read_dims(part[4], t.strides, &strides) &&
             strides == t.rank;
    }
    if (!ok) {
        PyErr_Format(PyExc_ValueError, "[lookup] %R is no tensor id", arg);
        return NULL;
    }
    ane_surface *s;
    ane_error err = {0};
    if (ane_surface_lookup(part[0], &s, &err)) return ane_py_raise(st, &err);
    return adopt((PyTypeObject *)cls, st, s, &t);
}

/* ---------------------------------------------------------------- descriptors */

static int descriptor(PyObject *self, const char *what, int *fd, size_t *offset) {
    const ane_tensor *t = ane_py_open(self, what);
    if (!t) return -1;
    ane_error err = {0};
    if (!ane_surface_descriptor(t->surface, fd, offset, &err)) return 0;
    ane_py_raise(ANE_TENSOR(self)->st, &err);
    return -1;
}

METHOD0(ane_py_tensor_fileno) {
    (void)unused;
    int fd;
    size_t offset;
    return descriptor(self, "fileno", &fd, &offset) < 0 ? NULL : PyLong_FromLong(fd);
}

PyObject *ane_py_tensor_fd_offset(PyObject *self, void *closure) {
    (void)closure;
    int fd;
    size_t offset;
    if (descriptor(self, "fd_offset", &fd, &offset) < 0) return NULL;
    return PyLong_FromSize_t(offset + ANE_TENSOR(self)->t.offset);
}

METHOD(ane_py_tensor_from_fd) {
    static char *names[] = {"fd", "shape", "dtype", "offset", "seal", NULL};
    int fd, seal = 1, rank;
    PyObject *shape, *dtype = NULL, *offset = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "iO|OO$p:from_fd", names, &fd, &shape, &dtype,
                                     &offset, &seal))
        return NULL;
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)self);
    int64_t dims[ANE_MAX_RANK];
    ane_dtype d = ANE_F32;
    if (!st || ane_py_shape(shape, dims, &rank) < 0) return NULL;
    if (dtype && dtype != Py_None && ane_py_dtype(dtype, &d) < 0) return NULL;
    Py_ssize_t at = 0;
    if (offset != Py_None) {
        at = PyNumber_AsSsize_t(offset, PyExc_OverflowError);
        if (at == -1 && PyErr_Occurred()) return NULL;
    } else {
        off_t here = lseek(fd, 0, SEEK_CUR);        /* where fileno() left it */
        at = here > 0 ? (Py_ssize_t)here : 0;
    }
    if (at < 0 || (size_t)at % ane_dtype_size(d)) {
        PyErr_Format(PyExc_ValueError, "[from_fd] offset %zd is negative or not a multiple of "
                                       "%zu, the size of %s",
                     at, ane_dtype_size(d), ane_dtype_name(d));
        return NULL;
    }
    ane_error err = {0};
    size_t bytes;
    ane_surface *s;
    ane_tensor t;
    if (ane_shape_size(d, rank, dims, &bytes, &err) ||
        ane_surface_from_descriptor(fd, (size_t)at, bytes, seal != 0, &s, &err))
        return ane_py_raise(st, &err);
    if (ane_tensor_init(&t, s, 0, d, rank, dims, &err)) {
        ane_surface_release(s);
        return ane_py_raise(st, &err);
    }
    return adopt((PyTypeObject *)self, st, s, &t);
}

METHOD(ane_py_tensor_open) {
    static char *names[] = {"name", "shape", "dtype", NULL};
    const char *name;
    PyObject *shape, *dtype = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "sO|O:open", names, &name, &shape, &dtype))
        return NULL;
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)self);
    int64_t dims[ANE_MAX_RANK];
    int rank;
    ane_dtype d = ANE_F32;
    if (!st || ane_py_shape(shape, dims, &rank) < 0) return NULL;
    if (dtype && dtype != Py_None && ane_py_dtype(dtype, &d) < 0) return NULL;
    ane_error err = {0};
    size_t bytes;
    ane_surface *s;
    ane_tensor t;
    if (ane_shape_size(d, rank, dims, &bytes, &err) || ane_surface_open(name, bytes, &s, &err))
        return ane_py_raise(st, &err);
    if (ane_tensor_init(&t, s, 0, d, rank, dims, &err)) {
        ane_surface_release(s);
        return ane_py_raise(st, &err);
    }
    return adopt((PyTypeObject *)self, st, s, &t);
}

PyObject *ane_py_tensor_unlink(PyObject *cls, PyObject *arg) {
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)cls);
    if (!st) return NULL;
    const char *name = PyUnicode_Check(arg) ? PyUnicode_AsUTF8AndSize(arg, NULL) : NULL;
    if (!name) {
        if (!PyErr_Occurred()) PyErr_Format(PyExc_TypeError, "[unlink] a name is a str, not %R", arg);
        return NULL;
    }
    ane_error err = {0};
    if (ane_surface_unlink(name, &err)) return ane_py_raise(st, &err);
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------- multiprocessing, pickle */

/* What travels beside the bytes. */
static PyObject *quant_or_none(PyObject *self) {
    PyObject *q = ANE_TENSOR(self)->quant;
    return q ? q : Py_None;
}

/* Of a tensor that is being received. */
static PyObject *with_quant(PyObject *self, PyObject *q) {
    if (self && q && ane_py_tensor_set_quant(self, q, NULL) < 0) Py_CLEAR(self);
    return self;
}

/* (fd, file offset, surface bytes, dtype, byte offset, shape, strides, quantization):
 * _from_share's arguments after the class. */
METHOD0(ane_py_tensor_share) {
    (void)unused;
    int fd;
    size_t base;
    if (descriptor(self, "share", &fd, &base) < 0) return NULL;
    const ane_tensor *t = &ANE_TENSOR(self)->t;
    return Py_BuildValue("(innsnNNO)", fd, (Py_ssize_t)base,
                         (Py_ssize_t)ane_surface_bytes(t->surface), ane_dtype_name(t->dtype),
                         (Py_ssize_t)t->offset, ane_py_shape_tuple(t->rank, t->shape),
                         ane_py_shape_tuple(t->rank, t->strides), quant_or_none(self));
}

PyObject *ane_py_tensor_from_share(PyObject *cls, PyObject *args) {
    int fd, strides;
    Py_ssize_t base, bytes, offset;
    const char *dtype;
    PyObject *shape, *stride, *quant = NULL;
    if (!PyArg_ParseTuple(args, "innsnOO|O:_from_share", &fd, &base, &bytes, &dtype, &offset,
                          &shape, &stride, &quant))
        return NULL;
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)cls);
    ane_tensor t = {0};
    ane_error err = {0};
    ane_surface *s;
    if (!st || ane_py_shape(shape, t.shape, &t.rank) < 0 ||
        ane_py_shape(stride, t.strides, &strides) < 0)
        return NULL;
    if (base < 0 || bytes < 0 || offset < 0 || strides != t.rank) {
        PyErr_SetString(PyExc_ValueError, "[_from_share] malformed arguments");
        return NULL;
    }
    t.offset = (size_t)offset;
    if (ane_dtype_parse(dtype, &t.dtype, &err) ||
        ane_surface_from_descriptor(fd, (size_t)base, (size_t)bytes, true, &s, &err))
        return ane_py_raise(st, &err);
    return with_quant(adopt((PyTypeObject *)cls, st, s, &t), quant);
}

/* Plain pickles carry the values. */
METHOD0(ane_py_tensor_reduce) {
    (void)unused;
    ane_py_state *st = ane_py_state_by_type(Py_TYPE(self));
    const ane_tensor *v = ane_py_open(self, "pickle");
    if (!v || !st) return NULL;
    ane_tensor src = *v, packed;
    ane_memory memory = ane_surface_memory(src.surface);
    ane_surface_retain(src.surface);
    PyObject *bytes = NULL, *out = NULL, *make = NULL;
    if (ane_py_alloc(st, ANE_MEM_HEAP, src.dtype, src.rank, src.shape, 0, NULL, &packed) == 0) {
        if (ane_py_copy(st, &packed, &src) == 0)
            bytes = PyBytes_FromStringAndSize(ane_tensor_data(&packed),
                                              (Py_ssize_t)ane_surface_bytes(packed.surface));
        ane_surface_release(packed.surface);
    }
    if (bytes) make = PyObject_GetAttrString((PyObject *)Py_TYPE(self), "_from_value");
    if (make)
        out = Py_BuildValue("N(NssOO)", make, ane_py_shape_tuple(src.rank, src.shape),
                            ane_dtype_name(src.dtype),
                            memory == ANE_MEM_EXTERNAL ? "heap" : ane_memory_name(memory),
                            bytes, quant_or_none(self));
    Py_XDECREF(bytes);
    ane_surface_release(src.surface);
    return out;
}

PyObject *ane_py_tensor_from_value(PyObject *cls, PyObject *args) {
    PyObject *shape, *quant = NULL;
    const char *dtype, *mem, *data;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "Ossy#|O:_from_value", &shape, &dtype, &mem, &data, &n, &quant))
        return NULL;
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)cls);
    int64_t dims[ANE_MAX_RANK];
    int rank;
    ane_dtype d;
    ane_error err = {0};
    ane_tensor t;
    if (!st || ane_py_shape(shape, dims, &rank) < 0) return NULL;
    if (ane_dtype_parse(dtype, &d, &err)) return ane_py_raise(st, &err);
    ane_memory memory = ane_memory_default();   /* where this machine lacks the pickle's kind */
    for (int k = ANE_MEM_HEAP; k <= ANE_MEM_DMA; k++)
        if (!strcmp(mem, ane_memory_name((ane_memory)k)) && ane_memory_available((ane_memory)k))
            memory = (ane_memory)k;
    if (ane_py_alloc(st, memory, d, rank, dims, 0, NULL, &t) < 0) return NULL;
    PyObject *out = NULL;
    if ((size_t)n == ane_surface_bytes(t.surface)) {
        memcpy(ane_tensor_data(&t), data, (size_t)n);
        out = ane_py_tensor_make((PyTypeObject *)cls, st, &t);
        if (out) ANE_TENSOR(out)->owns = true;
    } else {
        PyErr_Format(PyExc_ValueError, "[_from_value] %zd bytes for a shape of %zu", n,
                     ane_surface_bytes(t.surface));
    }
    ane_surface_release(t.surface);
    return with_quant(out, quant);
}
