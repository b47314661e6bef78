/* Views of a tensor: indexing, reshape, permute. Every function first turns its arguments
 * into plain numbers, which may run Python code that closes the tensor, and only then looks
 * at it. */
#include "tensor.h"

#include <string.h>

/* ---------------------------------------------------------------- indexing */

typedef enum { ITEM_INT, ITEM_SLICE, ITEM_NEW, ITEM_REST } item_kind;

typedef struct item {
    item_kind kind;
    Py_ssize_t start, stop, step;
} item;

static int read_item(PyObject *obj, item *out) {
    *out = (item){0};
    if (obj == Py_None) {
        out->kind = ITEM_NEW;
    } else if (obj == Py_Ellipsis) {
        out->kind = ITEM_REST;
    } else if (PySlice_Check(obj)) {
        out->kind = ITEM_SLICE;
        return PySlice_Unpack(obj, &out->start, &out->stop, &out->step);
    } else if (PyIndex_Check(obj) && !PyBool_Check(obj) && !PySequence_Check(obj)) {
        out->kind = ITEM_INT;
        out->start = PyNumber_AsSsize_t(obj, PyExc_IndexError);
        if (out->start == -1 && PyErr_Occurred()) return -1;
    } else {
        PyErr_Format(PyExc_TypeError,
                     "a tensor is indexed by integers, slices, None and ..., not %R; use "
                     "t.numpy()[...] for masks and index arrays",
                     obj);
        return -1;
    }
    return 0;
}

/* At most one item per axis, one new axis per possible rank, and one ellipsis. */
#define MAX_ITEMS (2 * ANE_MAX_RANK + 1)

static int read_key(PyObject *key, item *items, int *n) {
    if (!PyTuple_Check(key)) {
        *n = 1;
        return read_item(key, items);
    }
    Py_ssize_t count = PyTuple_Size(key);
    if (count > MAX_ITEMS) {
        PyErr_Format(PyExc_IndexError, "%zd indices are more than a tensor can have (%d)",
                     count, MAX_ITEMS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (read_item(PyTuple_GetItem(key, i), items + i) < 0) return -1;
    *n = (int)count;
    return 0;
}

/* What became of one axis: start, start + step, ... along another, or one element (to -1). */
typedef struct traced {
    int axis, to;
    int64_t start, step, n;
} traced;

static int apply(const ane_tensor *t, const item *items, int n, ane_tensor *out, traced *tr) {
    int used = 0, rests = 0;
    for (int i = 0; i < n; i++) {
        used += items[i].kind == ITEM_INT || items[i].kind == ITEM_SLICE;
        rests += items[i].kind == ITEM_REST;
    }
    if (rests > 1) {
        PyErr_SetString(PyExc_IndexError, "an index can hold one ellipsis ('...') only");
        return -1;
    }
    if (used > t->rank) {
        PyErr_Format(PyExc_IndexError, "%d indices for a tensor of rank %d", used, t->rank);
        return -1;
    }
    ane_tensor v = {.surface = t->surface, .offset = t->offset, .dtype = t->dtype};
    int axis = 0;
    for (int i = 0; i <= n; i++) {
        /* A missing ellipsis stands at the end. */
        item it = i < n ? items[i] : (item){.kind = ITEM_REST};
        if (i == n && rests) break;
        int copies = it.kind == ITEM_REST ? t->rank - used : it.kind != ITEM_INT;
        if (v.rank + copies > ANE_MAX_RANK) {
            PyErr_Format(PyExc_IndexError, "the result would have more than %d dimensions",
                         ANE_MAX_RANK);
            return -1;
        }
        if (it.kind == ITEM_NEW) {
            v.shape[v.rank] = 1;
            v.strides[v.rank++] = 0;
        } else if (it.kind == ITEM_REST) {
            for (int k = 0; k < copies; k++, axis++, v.rank++) {
                if (axis == tr->axis)
                    *tr = (traced){axis, v.rank, 0, 1, t->shape[axis]};
                v.shape[v.rank] = t->shape[axis];
                v.strides[v.rank] = t->strides[axis];
            }
        } else if (it.kind == ITEM_INT) {
            int64_t at = it.start, size = t->shape[axis];
            if (at < 0) at += size;
            if (at < 0 || at >= size) {
                PyErr_Format(PyExc_IndexError,
                             "index %zd is out of bounds for axis %d with size %lld",
                             it.start, axis, (long long)size);
                return -1;
            }
            if (axis == tr->axis) *tr = (traced){axis, -1, at, 1, 1};
            v.offset += (size_t)(at * t->strides[axis++]);
        } else {
            int64_t len = PySlice_AdjustIndices(t->shape[axis], &it.start, &it.stop, it.step);
            if (axis == tr->axis) *tr = (traced){axis, v.rank, it.start, it.step, len};
            v.shape[v.rank] = len;
            /* The start of an empty slice may lie outside; a step that is never taken may
             * overflow. */
            if (len) v.offset += (size_t)(it.start * t->strides[axis]);
            v.strides[v.rank++] = t->strides[axis] * (len > 1 ? it.step : 1);
            axis++;
        }
    }
    *out = v;
    return 0;
}

/* The whole of the axis that q's scales go along, where it is. */
static traced whole_axis(PyObject *q, const ane_tensor *t) {
    int axis = ane_py_quant_axis(q);
    return (traced){axis, axis, 0, 1, axis < 0 ? 1 : t->shape[axis]};
}

/* view, or NULL where it is NULL or has no memory for its quantization. */
static PyObject *with_quant(PyObject *view, PyObject *q, const traced *tr) {
    if (view && ane_py_quant_give(view, q, tr->to, tr->start, tr->step, tr->n) < 0)
        Py_CLEAR(view);
    return view;
}

static PyObject *indexed(PyObject *self, const ane_tensor *t, const item *items, int n) {
    ane_tensor v;
    PyObject *q = ANE_TENSOR(self)->quant;
    traced tr = {.axis = ane_py_quant_axis(q)};
    if (apply(t, items, n, &v, &tr) < 0) return NULL;
    return with_quant(ane_py_tensor_new(ANE_TENSOR(self)->st, &v), q, &tr);
}

PyObject *ane_py_tensor_subscript(PyObject *self, PyObject *key) {
    item items[MAX_ITEMS];
    int n;
    if (read_key(key, items, &n) < 0) return NULL;
    const ane_tensor *t = ane_py_open(self, "getitem");
    return t ? indexed(self, t, items, n) : NULL;
}

int ane_py_tensor_assign(PyObject *self, PyObject *key, PyObject *value) {
    if (!value) {
        PyErr_SetString(PyExc_TypeError, "elements of a tensor cannot be deleted");
        return -1;
    }
    PyObject *view = ane_py_tensor_subscript(self, key);
    if (!view) return -1;
    bool scalar = PyLong_Check(value) || PyFloat_Check(value) ||
                  (PyIndex_Check(value) && !PyArray_Check(value) && !PySequence_Check(value));
    PyObject *r = scalar ? ane_py_tensor_fill_(view, value) : ane_py_tensor_copy_(view, value);
    Py_DECREF(view);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

PyObject *ane_py_tensor_batch(PyObject *self, PyObject *arg) {
    Py_ssize_t n = PyNumber_AsSsize_t(arg, PyExc_IndexError);
    if (n == -1 && PyErr_Occurred()) return NULL;
    const ane_tensor *t = ane_py_open(self, "batch");
    if (!t) return NULL;
    long long count = t->rank ? t->shape[0] : 0;
    if (n < 0 || n >= count) {
        PyErr_Format(PyExc_IndexError, "[batch] index %zd is out of bounds for %lld batches", n,
                     count);
        return NULL;
    }
    item it = {.kind = ITEM_INT, .start = n};
    return indexed(self, t, &it, 1);
}

/* ---------------------------------------------------------------- shape */

/* f(2, 3), f((2, 3)) and f(shape=...) alike. */
static int shape_args(const char *fn, const char *word, PyObject *args, PyObject *kw,
                      int64_t *dims, int *rank) {
    PyObject *named = kw ? PyDict_GetItemString(kw, word) : NULL;
    Py_ssize_t n = PyTuple_Size(args);
    if (kw && PyDict_Size(kw) != (named != NULL)) {
        PyErr_Format(PyExc_TypeError, "%s() takes no keyword but '%s'", fn, word);
        return -1;
    }
    if (named && n) {
        PyErr_Format(PyExc_TypeError, "%s() got '%s' twice", fn, word);
        return -1;
    }
    if (named) return ane_py_shape(named, dims, rank);
    if (n == 1) return ane_py_shape(PyTuple_GetItem(args, 0), dims, rank);
    return ane_py_shape(args, dims, rank);
}

/* NumPy's rule: each run of new axes must cover a run of old axes that is contiguous in
 * itself. */
static bool restride(const ane_tensor *t, int rank, const int64_t *shape, int64_t *strides) {
    int64_t od[ANE_MAX_RANK], os[ANE_MAX_RANK];
    int on = 0;
    for (int i = 0; i < t->rank; i++)
        if (t->shape[i] != 1) od[on] = t->shape[i], os[on++] = t->strides[i];
    int oi = 0, oj = 1, ni = 0, nj = 1;
    while (ni < rank && oi < on) {
        int64_t np = shape[ni], op = od[oi];
        while (np != op)
            if (np < op) np *= shape[nj++];
            else op *= od[oj++];
        for (int k = oi; k < oj - 1; k++)
            if (os[k] != od[k + 1] * os[k + 1]) return false;
        strides[nj - 1] = os[oj - 1];
        for (int k = nj - 1; k > ni; k--) strides[k - 1] = strides[k] * shape[k];
        ni = nj++;
        oi = oj++;
    }
    int64_t last = ni ? strides[ni - 1] : (int64_t)ane_dtype_size(t->dtype);
    for (int k = ni; k < rank; k++) strides[k] = last;      /* lengths of 1 */
    return true;
}

METHOD(ane_py_tensor_reshape) {
    int64_t dims[ANE_MAX_RANK];
    int rank, wild = -1;
    if (shape_args("reshape", "shape", args, kw, dims, &rank) < 0) return NULL;
    const ane_tensor *t = ane_py_open(self, "reshape");
    if (!t) return NULL;
    int64_t count = ane_tensor_count(t), known = 1;
    for (int i = 0; i < rank; i++) {
        if (dims[i] < -1 || (dims[i] == -1 && wild >= 0)) {
            PyErr_SetString(PyExc_ValueError,
                            dims[i] < -1 ? "[reshape] a dimension is negative"
                                         : "[reshape] only one dimension can be -1");
            return NULL;
        }
        if (dims[i] == -1) wild = i;
        else if (__builtin_mul_overflow(known, dims[i], &known)) known = INT64_MAX;
    }
    if (wild >= 0 && known > 0 && count % known == 0) {
        dims[wild] = count / known;
        known = count;
    } else if (wild >= 0) {
        known = -1;
    }
    if (known != count) {
        PyObject *want = ane_py_shape_tuple(rank, dims);
        PyObject *have = want ? ane_py_shape_tuple(t->rank, t->shape) : NULL;
        if (have && known >= 0)
            PyErr_Format(PyExc_ValueError,
                         "[reshape] shape %S has %lld elements, %S has %lld", want,
                         (long long)known, have, (long long)count);
        else if (have)
            PyErr_Format(PyExc_ValueError,
                         "[reshape] the %lld elements of %S cannot be laid out as %S",
                         (long long)count, have, want);
        Py_XDECREF(want);
        Py_XDECREF(have);
        return NULL;
    }
    ane_tensor v = {.surface = t->surface, .offset = t->offset, .dtype = t->dtype,
                    .rank = rank};
    memcpy(v.shape, dims, (size_t)rank * sizeof *dims);
    if (ane_tensor_contiguous(t)) {
        int64_t stride = (int64_t)ane_dtype_size(t->dtype);
        for (int i = rank - 1; i >= 0; i--) {
            v.strides[i] = stride;
            if (count) stride *= dims[i];
        }
    } else if (!restride(t, rank, dims, v.strides)) {
        PyErr_SetString(PyExc_ValueError, "[reshape] this strided tensor cannot take the "
                                          "shape without a copy; use "
                                          "t.contiguous().reshape(...)");
        return NULL;
    }
    PyObject *view = ane_py_tensor_new(ANE_TENSOR(self)->st, &v);
    if (view && ane_py_quant_reshape(view, ANE_TENSOR(self)->quant, t, rank, dims) < 0)
        Py_CLEAR(view);
    return view;
}

METHOD(ane_py_tensor_view_method) {
    static char *names[] = {"offset", "shape", "dtype", NULL};
    Py_ssize_t offset;
    PyObject *shape, *dtype = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "nO|O:view", names, &offset, &shape, &dtype))
        return NULL;
    int64_t dims[ANE_MAX_RANK];
    int rank;
    ane_dtype d = ANE_DTYPE_COUNT;
    if (ane_py_shape(shape, dims, &rank) < 0) return NULL;
    if (dtype && dtype != Py_None && ane_py_dtype(dtype, &d) < 0) return NULL;
    const ane_tensor *t = ane_py_open(self, "view");
    if (!t) return NULL;
    if (d == ANE_DTYPE_COUNT) d = t->dtype;
    size_t unit = ane_dtype_size(d), bytes = 0, end = 0;
    size_t capacity = ane_surface_bytes(t->surface) - t->offset;
    ane_error err = {0};
    if (ane_shape_size(d, rank, dims, &bytes, &err))
        return ane_py_raise(ANE_TENSOR(self)->st, &err);
    if (offset < 0 || (size_t)offset % unit || (t->offset + (size_t)offset) % unit) {
        PyErr_Format(PyExc_ValueError,
                     "[view] byte offset %zd (behind %zu of this tensor in the surface) is negative "
                     "or not a multiple of %zu, the size of %s",
                     offset, t->offset, unit, ane_dtype_name(d));
        return NULL;
    }
    if (__builtin_add_overflow((size_t)offset, bytes, &end) || end > capacity) {
        PyErr_Format(PyExc_ValueError,
                     "[view] region out of bounds: %zu bytes at offset %zd do not fit the "
                     "capacity of %zu bytes",
                     bytes, offset, capacity);
        return NULL;
    }
    ane_tensor v;
    if (ane_tensor_init(&v, t->surface, t->offset + (size_t)offset, d, rank, dims, &err))
        return ane_py_raise(ANE_TENSOR(self)->st, &err);
    PyObject *view = ane_py_tensor_new(ANE_TENSOR(self)->st, &v), *q = ANE_TENSOR(self)->quant;
    /* Bytes from anywhere: of the channels nothing is known. */
    if (view && q && d == t->dtype && ane_py_quant_axis(q) < 0)
        ANE_TENSOR(view)->quant = Py_NewRef(q);
    return view;
}

METHOD(ane_py_tensor_permute) {
    int64_t axes[ANE_MAX_RANK];
    int n;
    if (shape_args("permute", "axes", args, kw, axes, &n) < 0) return NULL;
    const ane_tensor *t = ane_py_open(self, "permute");
    if (!t) return NULL;
    if (n != t->rank) {
        PyErr_Format(PyExc_ValueError, "[permute] %d axes for a tensor of rank %d", n,
                     t->rank);
        return NULL;
    }
    ane_tensor v = *t;
    PyObject *q = ANE_TENSOR(self)->quant;
    traced tr = whole_axis(q, t);
    unsigned seen = 0;
    for (int i = 0; i < n; i++) {
        int64_t a = axes[i] < 0 ? axes[i] + n : axes[i];
        if (a < 0 || a >= n || (seen >> a & 1)) {
            PyErr_Format(PyExc_ValueError,
                         "[permute] axis %lld is out of range for rank %d, or named twice",
                         (long long)axes[i], n);
            return NULL;
        }
        seen |= 1u << a;
        v.shape[i] = t->shape[a];
        v.strides[i] = t->strides[a];
        if (a == tr.axis) tr.to = i;
    }
    return with_quant(ane_py_tensor_new(ANE_TENSOR(self)->st, &v), q, &tr);
}

PyObject *ane_py_tensor_transposed(PyObject *self, void *closure) {
    (void)closure;
    const ane_tensor *t = ane_py_open(self, "t");
    if (!t) return NULL;
    ane_tensor v = *t;
    PyObject *q = ANE_TENSOR(self)->quant;
    traced tr = whole_axis(q, t);
    if (v.rank >= 2) {
        int a = v.rank - 2, b = v.rank - 1;
        v.shape[a] = t->shape[b], v.strides[a] = t->strides[b];
        v.shape[b] = t->shape[a], v.strides[b] = t->strides[a];
        tr.to = tr.axis == a ? b : tr.axis == b ? a : tr.axis;
    }
    return with_quant(ane_py_tensor_new(ANE_TENSOR(self)->st, &v), q, &tr);
}
