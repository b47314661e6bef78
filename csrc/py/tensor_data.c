/* Moving a tensor's values: NumPy in and out, copies, fills, single items. */
#include "tensor.h"

#include <string.h>

/* ---------------------------------------------------------------- in */

METHOD(ane_py_tensor_from_numpy) {
    static char *names[] = {"a", "mem", "name", NULL};
    PyObject *obj, *mem = NULL;
    const char *name = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O|Oz:from_numpy", names, &obj, &mem, &name))
        return NULL;
    PyTypeObject *type = (PyTypeObject *)self;      /* a class method */
    ane_py_state *st = ane_py_state_by_type(type);
    ane_memory memory;
    if (!st || ane_py_memory(mem, &memory) < 0) return NULL;
    ane_tensor src, dst;
    PyObject *owner, *out = NULL;
    if (ane_py_view(st, obj, -1, "from_numpy", &src, &owner) < 0) return NULL;
    ane_error err = {0};
    ane_status status;
    Py_BEGIN_ALLOW_THREADS              /* owner holds the source */
    status = ane_tensor_create_like(memory, &src, name, &dst, &err);
    Py_END_ALLOW_THREADS
    if (status) {
        ane_py_raise(st, &err);
    } else {
        ane_surface_track(dst.surface);
        out = ane_py_tensor_make(type, st, &dst);
        if (out) ANE_TENSOR(out)->owns = true;
        ane_surface_release(dst.surface);
    }
    Py_DECREF(owner);
    return out;
}

METHOD(ane_py_tensor_wrap) {
    static char *names[] = {"obj", NULL};
    PyObject *obj;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O:wrap", names, &obj)) return NULL;
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)self);
    if (!st) return NULL;
    if (!PyArray_Check(obj) && !PyObject_CheckBuffer(obj)) {
        PyErr_Format(PyExc_TypeError,
                     "[wrap] expected an array or an object with the buffer protocol, got %R",
                     (PyObject *)Py_TYPE(obj));
        return NULL;
    }
    /* Through a memoryview, since NumPy takes bytes for a string. */
    PyObject *from = PyArray_Check(obj) ? Py_NewRef(obj) : PyMemoryView_FromObject(obj);
    PyArrayObject *a =
        from ? (PyArrayObject *)PyArray_FromAny(from, NULL, 0, 0, 0, NULL) : NULL;
    Py_XDECREF(from);
    if (!a) return NULL;
    PyObject *out = NULL;
    ane_tensor t;
    if (!PyArray_ISALIGNED(a))
        PyErr_SetString(PyExc_ValueError, "[wrap] the array is not aligned to its dtype; use "
                                          "Tensor.from_numpy to copy it");
    else if (ane_py_wrap_array(st, a, &t) == 0) {
        out = ane_py_tensor_make((PyTypeObject *)self, st, &t);
        ane_surface_release(t.surface);
    }
    Py_DECREF(a);
    return out;
}

static int refuse_readonly(const ane_tensor *t, const char *what) {
    if (!ane_surface_readonly(t->surface)) return 0;
    PyErr_Format(PyExc_ValueError, "[%s] the tensor is read-only", what);
    return -1;
}

/* The open tensor's view with its surface retained; released by the caller. */
static int hold(PyObject *self, const char *what, ane_tensor *t) {
    const ane_tensor *v = ane_py_open(self, what);
    if (!v) return -1;
    *t = *v;
    ane_surface_retain(t->surface);
    return 0;
}

PyObject *ane_py_tensor_copy_from(PyObject *self, PyObject *arg) {
    ane_py_state *st = ANE_TENSOR(self)->st;
    ane_tensor src, dst;
    PyObject *owner;
    if (ane_py_view(st, arg, -1, "copy_from", &src, &owner) < 0) return NULL;
    int rc = hold(self, "copy_from", &dst);
    if (rc == 0) {
        rc = -1;
        if (src.dtype != dst.dtype)
            PyErr_Format(PyExc_TypeError,
                         "[copy_from] the tensor is %s, the source %s; copy_ converts",
                         ane_dtype_name(dst.dtype), ane_dtype_name(src.dtype));
        else if (refuse_readonly(&dst, "copy_from") == 0)
            rc = ane_py_copy(st, &dst, &src);
        ane_surface_release(dst.surface);
    }
    Py_DECREF(owner);
    return rc < 0 ? NULL : Py_NewRef(self);
}

/* src repeated along missing and length-1 axes until it has dst's shape. */
static int broadcast(const ane_tensor *dst, ane_tensor *src) {
    ane_tensor v = *src;
    bool fits = src->rank <= dst->rank;
    v.rank = dst->rank;
    for (int i = 0; fits && i < dst->rank; i++) {
        int k = i - (dst->rank - src->rank);
        bool repeat = k < 0 || (src->shape[k] == 1 && dst->shape[i] != 1);
        fits = repeat || src->shape[k] == dst->shape[i];
        v.shape[i] = dst->shape[i];
        v.strides[i] = repeat || !fits ? 0 : src->strides[k];
    }
    if (fits) {
        *src = v;
        return 0;
    }
    PyObject *a = ane_py_shape_tuple(src->rank, src->shape);
    PyObject *b = a ? ane_py_shape_tuple(dst->rank, dst->shape) : NULL;
    if (b) PyErr_Format(PyExc_ValueError, "[copy_] shape %S does not broadcast to %S", a, b);
    Py_XDECREF(a);
    Py_XDECREF(b);
    return -1;
}

PyObject *ane_py_tensor_copy_(PyObject *self, PyObject *arg) {
    ane_py_state *st = ANE_TENSOR(self)->st;
    ane_tensor src, dst, temp = {0};
    PyObject *owner;
    if (ane_py_view(st, arg, -1, "copy_", &src, &owner) < 0) return NULL;
    int rc = hold(self, "copy_", &dst);
    if (rc == 0) {
        rc = refuse_readonly(&dst, "copy_");
        if (rc == 0) rc = broadcast(&dst, &src);
        bool same = ane_tensor_data(&src) == ane_tensor_data(&dst) && src.dtype == dst.dtype &&
                    !memcmp(src.strides, dst.strides, (size_t)src.rank * sizeof *src.strides);
        if (rc == 0 && !same && ane_tensor_overlap(&dst, &src)) {
            rc = ane_py_alloc(st, ANE_MEM_HEAP, src.dtype, src.rank, src.shape, 0, NULL, &temp);
            if (rc == 0) rc = ane_py_copy(st, &temp, &src);
            if (rc == 0) src = temp;
        }
        if (rc == 0) rc = ane_py_copy(st, &dst, &src);
        ane_surface_release(temp.surface);
        ane_surface_release(dst.surface);
    }
    Py_DECREF(owner);
    return rc < 0 ? NULL : Py_NewRef(self);
}

PyObject *ane_py_tensor_fill_(PyObject *self, PyObject *arg) {
    ane_py_state *st = ANE_TENSOR(self)->st;
    const ane_tensor *v = ane_py_open(self, "fill_");
    if (!v) return NULL;
    ane_dtype dtype = v->dtype;         /* fixed for life */
    ane_tensor one, dst;
    if (ane_py_alloc(st, ANE_MEM_HEAP, dtype, 0, NULL, 0, NULL, &one) < 0) return NULL;
    int rc = ane_py_set_item(&one, ane_tensor_data(&one), arg);
    if (rc == 0) rc = hold(self, "fill_", &dst);
    if (rc == 0) {
        rc = refuse_readonly(&dst, "fill_");
        if (rc == 0) rc = broadcast(&dst, &one);
        if (rc == 0) rc = ane_py_copy(st, &dst, &one);
        ane_surface_release(dst.surface);
    }
    ane_surface_release(one.surface);
    return rc < 0 ? NULL : Py_NewRef(self);
}

METHOD0(ane_py_tensor_contiguous) {
    (void)unused;
    ane_py_state *st = ANE_TENSOR(self)->st;
    ane_tensor src, dst;
    const ane_tensor *t = ane_py_open(self, "contiguous");
    if (!t) return NULL;
    if (ane_tensor_contiguous(t)) return Py_NewRef(self);
    ane_memory memory = ane_surface_memory(t->surface);
    if (memory == ANE_MEM_EXTERNAL) memory = ane_memory_default();
    if (hold(self, "contiguous", &src) < 0) return NULL;
    PyObject *quant = Py_XNewRef(ANE_TENSOR(self)->quant);
    PyObject *out = NULL;
    if (ane_py_alloc(st, memory, src.dtype, src.rank, src.shape, 0, NULL, &dst) == 0) {
        if (ane_py_copy(st, &dst, &src) == 0) out = ane_py_tensor_new(st, &dst);
        if (out) {
            ANE_TENSOR(out)->owns = true;
            ANE_TENSOR(out)->quant = Py_XNewRef(quant);
        }
        ane_surface_release(dst.surface);
    }
    Py_XDECREF(quant);
    ane_surface_release(src.surface);
    return out;
}

/* ---------------------------------------------------------------- out */

PyObject *ane_py_array_over(ane_py_state *st, PyObject *exporter, bool *raw,
                            const ane_tensor *t, bool writable) {
    (void)st;
    PyArray_Descr *d = ane_py_descr(t->dtype, "numpy");
    if (!d) return NULL;
    /* Importing ml_dtypes ran Python; the memoryview's own check says whether it is open. */
    *raw = true;
    PyObject *base = PyMemoryView_FromObject(exporter);
    *raw = false;
    if (!base) {
        Py_DECREF(d);
        return NULL;
    }
    npy_intp dims[ANE_MAX_RANK], strides[ANE_MAX_RANK];
    for (int i = 0; i < t->rank; i++) {
        dims[i] = (npy_intp)t->shape[i];
        strides[i] = (npy_intp)t->strides[i];
    }
    PyObject *a = PyArray_NewFromDescr(&PyArray_Type, d, t->rank, dims, strides,
                                       ane_tensor_data(t),
                                       writable ? NPY_ARRAY_WRITEABLE : 0, NULL);
    if (!a) {
        Py_DECREF(base);
        return NULL;
    }
    if (PyArray_SetBaseObject((PyArrayObject *)a, base) < 0) Py_CLEAR(a);
    return a;
}

METHOD0(ane_py_tensor_numpy) {
    (void)unused;
    TensorObject *o = ANE_TENSOR(self);
    const ane_tensor *t = ane_py_open(self, "numpy");
    if (!t) return NULL;
    return ane_py_array_over(o->st, self, &o->raw, t, !ane_surface_readonly(t->surface));
}

METHOD(ane_py_tensor_array) {
    static char *names[] = {"dtype", "copy", NULL};
    PyObject *dtype = NULL, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|OO:__array__", names, &dtype, &copy))
        return NULL;
    int must = copy == Py_None ? -1 : PyObject_IsTrue(copy);
    if (copy != Py_None && must < 0) return NULL;
    PyArray_Descr *want = NULL;
    if (dtype && dtype != Py_None && PyArray_DescrConverter(dtype, &want) != NPY_SUCCEED)
        return NULL;
    PyObject *a = ane_py_tensor_numpy(self, NULL);
    if (!a) {
        Py_XDECREF((PyObject *)want);
        return NULL;
    }
    bool same = !want || PyArray_EquivTypes(want, PyArray_DESCR((PyArrayObject *)a));
    PyObject *out = NULL;
    if (same && must != 1) {
        out = Py_NewRef(a);
    } else if (must == 0) {
        PyErr_Format(PyExc_ValueError,
                     "[__array__] converting %R to %R needs a copy and copy=False forbids it",
                     PyArray_DESCR((PyArrayObject *)a), want);
    } else {
        out = same ? PyArray_NewCopy((PyArrayObject *)a, NPY_KEEPORDER)
                   : PyArray_CastToType((PyArrayObject *)a,
                                        (PyArray_Descr *)Py_NewRef((PyObject *)want), 0);
    }
    Py_XDECREF((PyObject *)want);
    Py_DECREF(a);
    return out;
}

METHOD0(ane_py_tensor_item) {
    (void)unused;
    ane_error err = {0};
    const ane_tensor *t = ane_py_open(self, "item");
    if (!t) return NULL;
    if (ane_tensor_count(t) != 1) {
        PyErr_Format(PyExc_ValueError, "[item] the tensor has %lld elements, not one",
                     (long long)ane_tensor_count(t));
        return NULL;
    }
    if (ane_tensor_readable(t, &err)) return ane_py_raise(ANE_TENSOR(self)->st, &err);
    return ane_py_item(t, ane_tensor_data(t));
}

/* float() and int() would otherwise take the bytes for the text of a number. */
static PyObject *number_of(PyObject *self, PyTypeObject *type) {
    PyObject *value = ane_py_tensor_item(self, NULL);
    PyObject *number = value ? PyObject_CallFunctionObjArgs((PyObject *)type, value, NULL) : NULL;
    Py_XDECREF(value);
    return number;
}

PyObject *ane_py_tensor_float(PyObject *self) { return number_of(self, &PyFloat_Type); }

PyObject *ane_py_tensor_int(PyObject *self) { return number_of(self, &PyLong_Type); }

/* The value of a scalar; else "not empty", as for a container. */
int ane_py_tensor_bool(PyObject *self) {
    const ane_tensor *t = ane_py_open(self, "bool");
    if (!t) return -1;
    if (t->rank) return t->shape[0] != 0;
    PyObject *value = ane_py_tensor_item(self, NULL);
    int truth = value ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return truth;
}

static PyObject *nested(const ane_tensor *t, int axis, const unsigned char *at) {
    if (axis == t->rank) return ane_py_item(t, at);
    PyObject *list = PyList_New((Py_ssize_t)t->shape[axis]);
    for (int64_t i = 0; list && i < t->shape[axis]; i++) {
        PyObject *x = nested(t, axis + 1, at + i * t->strides[axis]);
        if (!x || PyList_SetItem(list, (Py_ssize_t)i, x) < 0) Py_CLEAR(list);
    }
    return list;
}

METHOD0(ane_py_tensor_tolist) {
    (void)unused;
    ane_error err = {0};
    ane_tensor t;
    if (hold(self, "tolist", &t) < 0) return NULL;
    PyObject *out = NULL;
    if (ane_tensor_readable(&t, &err)) ane_py_raise(ANE_TENSOR(self)->st, &err);
    else out = nested(&t, 0, ane_tensor_data(&t));
    ane_surface_release(t.surface);
    return out;
}
