/* Types and constants of a program: to Python objects and back. */
#include "program.h"

#include "tensor.h"

#include <string.h>

/* ---------------------------------------------------------------- types */

int ane_py_element(PyObject *obj, ane_dtype *out) {
    if (!PyUnicode_Check(obj)) return ane_py_dtype(obj, out);
    ane_error err = {0};
    const char *name = PyUnicode_AsUTF8AndSize(obj, NULL);
    if (!name) return -1;
    if (!ane_dtype_parse(name, out, &err)) return 0;
    PyErr_SetString(PyExc_TypeError, err.message);
    return -1;
}

PyObject *ane_py_type_tuple(const ane_type *t) {
    PyObject *items;
    switch (t->kind) {
    case ANE_T_TENSOR:
        items = PyTuple_New(t->rank);
        for (int i = 0; items && i < t->rank; i++) {
            PyObject *d = t->dims[i] < 0 ? Py_NewRef(Py_None)
                                         : PyLong_FromLongLong(t->dims[i]);
            if (!d || PyTuple_SetItem(items, i, d) < 0) Py_CLEAR(items);
        }
        return items ? Py_BuildValue("(ssN)", "tensor", ane_dtype_mil_name(t->dtype), items)
                     : NULL;
    case ANE_T_LIST: {
        PyObject *e = ane_py_type_tuple(t->elem);
        if (!e) return NULL;
        return t->length < 0 ? Py_BuildValue("(sNO)", "list", e, Py_None)
                             : Py_BuildValue("(sNL)", "list", e, (long long)t->length);
    }
    case ANE_T_STATE: {
        PyObject *e = ane_py_type_tuple(t->elem);
        return e ? Py_BuildValue("(sN)", "state", e) : NULL;
    }
    case ANE_T_DICT: {
        PyObject *k = ane_py_type_tuple(t->elem), *v = k ? ane_py_type_tuple(t->elem2) : NULL;
        if (v) return Py_BuildValue("(sNN)", "dict", k, v);
        Py_XDECREF(k);
        return NULL;
    }
    case ANE_T_TUPLE:
        items = PyTuple_New(t->n + 1);
        for (int i = 0; items && i <= t->n; i++) {
            PyObject *d = i ? ane_py_type_tuple(t->items[i - 1]) : PyUnicode_FromString("tuple");
            if (!d || PyTuple_SetItem(items, i, d) < 0) Py_CLEAR(items);
        }
        return items;
    }
    Py_RETURN_NONE;
}

static const ane_type *made(const ane_type *t) {
    if (!t && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "[type] nested too deeply, or out of memory");
    return t;
}

static int dims_from(PyObject *obj, int64_t *dims, int *rank) {
    PyObject *fast = PySequence_Tuple(obj);
    if (!fast) return -1;
    Py_ssize_t n = PyTuple_Size(fast);
    if (n > ANE_MAX_RANK) {
        PyErr_Format(PyExc_ValueError, "[type] rank %zd is beyond the limit of %d", n,
                     ANE_MAX_RANK);
        n = -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *d = PyTuple_GetItem(fast, i);
        dims[i] = -1;
        if (d == Py_None) continue;
        PyObject *index = PyNumber_Index(d);
        dims[i] = index ? PyLong_AsLongLong(index) : -1;
        Py_XDECREF(index);
        if (dims[i] < 0) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError,
                             "[type] dimension %zd is %lld; expected 0 or more, or None", i,
                             (long long)dims[i]);
            n = -1;
        }
    }
    Py_DECREF(fast);
    *rank = (int)n;
    return n < 0 ? -1 : 0;
}

/* A borrowed item of a tuple checked for length by the caller. */
#define ITEM(i) PyTuple_GetItem(obj, i)

const ane_type *ane_py_type_from(ane_program *p, PyObject *obj, int depth) {
    const char *kind = NULL;
    Py_ssize_t n = PyTuple_Check(obj) ? PyTuple_Size(obj) : 0;
    if (n && PyUnicode_Check(ITEM(0))) kind = PyUnicode_AsUTF8AndSize(ITEM(0), NULL);
    if (PyErr_Occurred()) return NULL;
    if (kind && depth < 16) {
        if (!strcmp(kind, "tensor") && n == 3) {
            ane_dtype dtype;
            int64_t dims[ANE_MAX_RANK];
            int rank;
            if (ane_py_element(ITEM(1), &dtype) < 0 || dims_from(ITEM(2), dims, &rank) < 0)
                return NULL;
            return made(ane_type_tensor(p, dtype, rank, dims));
        }
        if (!strcmp(kind, "list") && n == 3) {
            long long length = ITEM(2) == Py_None ? -1 : PyLong_AsLongLong(ITEM(2));
            if (PyErr_Occurred()) return NULL;
            const ane_type *e = ane_py_type_from(p, ITEM(1), depth + 1);
            return e ? made(ane_type_list(p, e, length < 0 ? -1 : length)) : NULL;
        }
        if (!strcmp(kind, "state") && n == 2) {
            const ane_type *e = ane_py_type_from(p, ITEM(1), depth + 1);
            return e ? made(ane_type_state(p, e)) : NULL;
        }
        if (!strcmp(kind, "dict") && n == 3) {
            const ane_type *k = ane_py_type_from(p, ITEM(1), depth + 1);
            const ane_type *v = k ? ane_py_type_from(p, ITEM(2), depth + 1) : NULL;
            return v ? made(ane_type_dict(p, k, v)) : NULL;
        }
        if (!strcmp(kind, "tuple")) {
            const ane_type **items = PyMem_Calloc((size_t)n, sizeof *items);
            const ane_type *t = NULL;
            Py_ssize_t i = 1;
            if (!items) return (void)PyErr_NoMemory(), NULL;
            for (; i < n && (items[i - 1] = ane_py_type_from(p, ITEM(i), depth + 1)); i++) {}
            if (i == n) t = made(ane_type_tuple(p, items, (int)n - 1));
            PyMem_Free(items);
            return t;
        }
    }
    PyErr_Format(PyExc_TypeError,
                 "[type] expected a descriptor such as (\"tensor\", \"fp16\", (1, 8, None)), "
                 "got %R", obj);
    return NULL;
}

/* ---------------------------------------------------------------- constants to Python */

static PyObject *strings(const char *const *s, const ane_type *t, int level, int64_t *at) {
    if (level == t->rank) return PyUnicode_FromString(s[(*at)++]);
    PyObject *list = PyList_New(0);
    for (int64_t i = 0; list && i < t->dims[level]; i++) {
        PyObject *o = strings(s, t, level + 1, at);
        if (!o || PyList_Append(list, o) < 0) Py_CLEAR(list);
        Py_XDECREF(o);
    }
    return list;
}

/* Packed sub-byte elements, one byte each. */
static void unpack(signed char *out, const unsigned char *d, ane_dtype dtype, int64_t n) {
    int bits = ane_dtype_bits(dtype);
    for (int64_t i = 0; i < n; i++) {
        size_t at = (size_t)i * (size_t)bits;
        unsigned v = d[at / 8];
        if (at % 8 + (size_t)bits > 8) v |= (unsigned)d[at / 8 + 1] << 8;
        v = v >> at % 8 & ((1u << bits) - 1u);
        out[i] = (signed char)(dtype == ANE_I4 && v >= 8 ? (int)v - 16 : (int)v);
    }
}

static PyObject *numbers(ane_py_state *st, const ane_const *c) {
    const ane_type *t = c->type;
    ane_error err = {0};
    bool small = ane_dtype_bits(t->dtype) < 8;
    ane_dtype shown = !small ? t->dtype : t->dtype == ANE_I4 ? ANE_I8 : ANE_U8;
    if (c->owner && !small) {
        ane_tensor view;
        size_t at = (size_t)((const char *)c->data - (const char *)ane_surface_base(c->owner));
        if (ane_tensor_init(&view, c->owner, at, t->dtype, t->rank, t->dims, &err))
            return ane_py_raise(st, &err);
        PyObject *tensor = ane_py_tensor_new(st, &view);
        if (!tensor) return NULL;
        bool *raw = &ANE_TENSOR(tensor)->raw;
        PyObject *a = ane_py_array_over(st, tensor, raw, &view, false);
        Py_DECREF(tensor);
        return a;
    }
    npy_intp dims[ANE_MAX_RANK];
    int64_t count = 1;
    for (int i = 0; i < t->rank; i++) {
        dims[i] = (npy_intp)t->dims[i];
        count *= t->dims[i];
    }
    PyArray_Descr *d = ane_py_descr(shown, "const_value");
    if (!d) return NULL;
    PyObject *a = PyArray_NewFromDescr(&PyArray_Type, d, t->rank, dims, NULL, NULL, 0, NULL);
    if (!a) return NULL;
    if (small) unpack(PyArray_DATA((PyArrayObject *)a), c->data, t->dtype, count);
    else memcpy(PyArray_DATA((PyArrayObject *)a), c->data, c->bytes);
    return PyArray_Return((PyArrayObject *)a);      /* rank 0 becomes a NumPy scalar */
}

PyObject *ane_py_const_value(ane_py_state *st, const ane_const *c) {
    const ane_type *t = c->type;
    PyObject *list, *out = NULL;
    int64_t at = 0;
    switch (t->kind) {
    case ANE_T_TENSOR:
        if (!c->data) Py_RETURN_NONE;
        if (t->dtype == ANE_STRING) return strings(c->data, t, 0, &at);
        return numbers(st, c);
    case ANE_T_DICT:
        out = PyDict_New();
        for (int i = 0; out && i + 1 < c->n; i += 2) {
            PyObject *k = ane_py_const_value(st, c->items[i]);
            PyObject *v = k ? ane_py_const_value(st, c->items[i + 1]) : NULL;
            if (!v || PyDict_SetItem(out, k, v) < 0) Py_CLEAR(out);
            Py_XDECREF(k);
            Py_XDECREF(v);
        }
        return out;
    case ANE_T_LIST:
    case ANE_T_TUPLE:
        list = PyList_New(0);
        for (int i = 0; list && i < c->n; i++) {
            PyObject *o = ane_py_const_value(st, c->items[i]);
            if (!o || PyList_Append(list, o) < 0) Py_CLEAR(list);
            Py_XDECREF(o);
        }
        if (!list || t->kind == ANE_T_LIST) return list;
        out = PyList_AsTuple(list);
        Py_DECREF(list);
        return out;
    case ANE_T_STATE: break;
    }
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------- constants from Python */

static const ane_const *failed(ane_py_state *st, const ane_const *c, const ane_error *err) {
    if (!c && !PyErr_Occurred()) {
        if (err->status) (void)ane_py_raise(st, err);
        else (void)PyErr_NoMemory();
    }
    return c;
}

static const ane_const *string_const(ane_py_state *st, ane_program *p, PyObject *obj) {
    ane_error err = {0};
    Py_ssize_t n;
    const char *s = PyUnicode_AsUTF8AndSize(obj, &n);
    if (!s) return NULL;
    if (strlen(s) != (size_t)n) {
        PyErr_SetString(PyExc_ValueError, "[const] a string must not hold a zero byte");
        return NULL;
    }
    return failed(st, ane_const_string(p, s, &err), &err);
}

static const ane_const *string_list(ane_py_state *st, ane_program *p, PyObject *fast) {
    ane_error err = {0};
    int64_t n = PyTuple_Size(fast);
    const char **s = PyMem_Calloc((size_t)n + 1, sizeof *s);
    const ane_const *c = NULL;
    if (!s) return (void)PyErr_NoMemory(), NULL;
    for (int64_t i = 0; i < n; i++) {
        PyObject *o = PyTuple_GetItem(fast, i);
        if (!PyUnicode_Check(o)) {
            PyErr_Format(PyExc_TypeError, "[const] expected a list of str, got %R in it", o);
            goto done;
        }
        if (!(s[i] = PyUnicode_AsUTF8AndSize(o, NULL))) goto done;
    }
    const ane_type *t = ane_type_tensor(p, ANE_STRING, 1, &n);
    if (t) c = ane_const_tensor(p, t, s, (size_t)n * sizeof *s, &err);
    c = failed(st, c, &err);
done:
    PyMem_Free(s);
    return c;
}

/* Elements of a sub-byte type, packed least significant bit first. */
static const ane_const *packed(ane_py_state *st, ane_program *p, PyObject *obj,
                               ane_dtype dtype, const char *what) {
    ane_error err = {0};
    PyArrayObject *a = (PyArrayObject *)PyArray_CheckFromAny(
        obj, PyArray_DescrFromType(NPY_INT64), 0, ANE_MAX_RANK, NPY_ARRAY_CARRAY_RO, NULL);
    if (!a) return NULL;
    const ane_const *c = NULL;
    int bits = ane_dtype_bits(dtype), rank = PyArray_NDIM(a);
    int64_t lo = dtype == ANE_I4 ? -8 : 0, hi = dtype == ANE_I4 ? 7 : (1 << bits) - 1;
    int64_t n = PyArray_SIZE(a), dims[ANE_MAX_RANK];
    const int64_t *v = PyArray_DATA(a);
    size_t bytes = ((size_t)n * (size_t)bits + 7) / 8;
    unsigned char *d = PyMem_Calloc(bytes + 1, 1);
    if (!d) {
        (void)PyErr_NoMemory();
        goto done;
    }
    for (int i = 0; i < rank; i++) dims[i] = PyArray_DIM(a, i);
    for (int64_t i = 0; i < n; i++) {
        if (v[i] < lo || v[i] > hi) {
            PyErr_Format(PyExc_ValueError, "[%s] %s holds %lld to %lld, got %lld", what,
                         ane_dtype_mil_name(dtype), (long long)lo, (long long)hi,
                         (long long)v[i]);
            goto done;
        }
        size_t at = (size_t)i * (size_t)bits;
        unsigned w = ((unsigned)v[i] & ((1u << bits) - 1u)) << at % 8;
        d[at / 8] |= (unsigned char)w;
        if (w >> 8) d[at / 8 + 1] |= (unsigned char)(w >> 8);
    }
    const ane_type *t = ane_type_tensor(p, dtype, rank, dims);
    if (t) c = ane_const_tensor(p, t, d, bytes, &err);
    c = failed(st, c, &err);
done:
    PyMem_Free(d);
    Py_DECREF(a);
    return c;
}

/* int64 arrays come from plain Python ints: MIL counts in int32. */
static int plain_dtype(PyObject *obj) {
    if (PyBool_Check(obj)) return ANE_BOOL;
    if (PyLong_Check(obj)) return ANE_I32;
    if (PyFloat_Check(obj) && !PyArray_CheckScalar(obj)) return ANE_F32;
    return -1;
}

/* Plain Python numbers and lists of them as an array of `want`; integers must fit, and a
 * float is no integer. */
static PyObject *plain_array(PyObject *obj, ane_dtype want, const char *what) {
    PyObject *cast = NULL;
    PyArrayObject *a = (PyArrayObject *)PyArray_CheckFromAny(
        obj, NULL, 0, ANE_MAX_RANK, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED, NULL);
    if (!a) return NULL;
    char kind = PyArray_DESCR(a)->kind;
    bool float_want = want == ANE_F16 || want == ANE_F32 || want == ANE_F64 || want == ANE_BF16;
    if (PyArray_SIZE(a) && !strchr(float_want ? "biuf" : want == ANE_BOOL ? "b" : "biu", kind)) {
        PyErr_Format(PyExc_TypeError, "[%s] expected %s, got %R", what, ane_dtype_mil_name(want),
                     obj);
        goto done;
    }
    int bits = ane_dtype_bits(want);
    if (!float_want && want != ANE_BOOL && kind == 'i' && PyArray_TYPE(a) == NPY_INT64 &&
        want != ANE_I64) {
        bool is_signed = want == ANE_I8 || want == ANE_I16 || want == ANE_I32;
        int64_t hi = is_signed ? ((int64_t)1 << (bits - 1)) - 1
                     : bits == 64 ? INT64_MAX : ((int64_t)1 << bits) - 1;
        int64_t lo = is_signed ? -hi - 1 : 0;
        const int64_t *v = PyArray_DATA(a);
        for (npy_intp i = 0; i < PyArray_SIZE(a); i++)
            if (v[i] < lo || v[i] > hi) {
                PyErr_Format(PyExc_ValueError, "[%s] %lld does not fit %s", what,
                             (long long)v[i], ane_dtype_mil_name(want));
                goto done;
            }
    }
    PyArray_Descr *d = ane_py_descr(want == ANE_BF16 ? ANE_F64 : want, what);
    if (d) cast = PyArray_CastToType(a, d, 0);
done:
    Py_DECREF(a);
    return cast;
}

static bool is_plain(PyObject *obj) {
    if (PyArray_Check(obj) || PyArray_IsScalar(obj, Generic)) return false;
    return PyLong_Check(obj) || PyFloat_Check(obj) || PyList_Check(obj) || PyTuple_Check(obj);
}

static const ane_const *array_const(ane_py_state *st, ane_program *p, PyObject *obj, int want,
                                    const char *what) {
    ane_error err = {0};
    ane_tensor t, fresh = {0};
    PyObject *owner = NULL;
    const ane_const *c = NULL;
    if (want >= 0 && is_plain(obj)) {
        PyObject *a = plain_array(obj, (ane_dtype)want, what);
        if (a) c = array_const(st, p, a, want, what);
        Py_XDECREF(a);
        return c;
    }
    bool foreign = want >= 0 && ane_py_npy_type((ane_dtype)want) < 0;
    /* bf16 has no NumPy type: through float64, which holds every value given. */
    if (ane_py_view(st, obj, foreign && !ane_py_is_tensor(st, obj) ? ANE_F64 : want, what, &t,
                    &owner) < 0)
        return NULL;
    ane_dtype dtype = want >= 0 ? (ane_dtype)want : t.dtype;
    const ane_type *type = ane_type_tensor(p, dtype, t.rank, t.shape);
    if (!type) {
        (void)PyErr_NoMemory();
        goto done;
    }
    if (!ane_tensor_contiguous(&t) || t.dtype != dtype) {
        if (ane_py_alloc(st, ANE_MEM_HEAP, dtype, t.rank, t.shape, 0, NULL, &fresh) < 0)
            goto done;
        if (ane_py_copy(st, &fresh, &t) < 0) goto done;
        t = fresh;
    }
    size_t bytes = (size_t)ane_tensor_count(&t) * ane_dtype_size(dtype);
    c = bytes > 64 ? ane_const_view(p, type, t.surface, t.offset, bytes, &err)
                   : ane_const_tensor(p, type, ane_tensor_data(&t), bytes, &err);
    c = failed(st, c, &err);
done:
    if (fresh.surface) ane_surface_release(fresh.surface);
    Py_XDECREF(owner);
    return c;
}

static const ane_const *dict_const(ane_py_state *st, ane_program *p, PyObject *obj,
                                   const char *what) {
    PyObject *pairs = PyMapping_Items(obj);
    Py_ssize_t n = pairs ? PyList_Size(pairs) : 0;
    const ane_const **items = pairs ? PyMem_Calloc(2 * (size_t)n + 1, sizeof *items) : NULL;
    const ane_const *c = NULL;
    ane_error err = {0};
    if (!items) {
        if (pairs) (void)PyErr_NoMemory();
        Py_XDECREF(pairs);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < 2 * n; i++) {
        PyObject *o = PyTuple_GetItem(PyList_GetItem(pairs, i / 2), i % 2);
        if (!(items[i] = ane_py_const_from(st, p, o, -1, what))) goto done;
    }
    const ane_type *s = ane_type_tensor(p, ANE_STRING, 0, NULL);
    const ane_type *t = s ? ane_type_dict(p, n ? items[0]->type : s, n ? items[1]->type : s)
                          : NULL;
    if (t) c = ane_const_items(p, t, items, (int)(2 * n), &err);
    c = failed(st, c, &err);
done:
    PyMem_Free(items);
    Py_DECREF(pairs);
    return c;
}

const ane_const *ane_py_const_from(ane_py_state *st, ane_program *p, PyObject *obj, int want,
                                   const char *what) {
    if (PyUnicode_Check(obj)) {
        if (want >= 0 && want != ANE_STRING) {
            PyErr_Format(PyExc_TypeError, "[%s] expected %s, got the string %R", what,
                         ane_dtype_mil_name((ane_dtype)want), obj);
            return NULL;
        }
        return string_const(st, p, obj);
    }
    if (PyDict_Check(obj)) return dict_const(st, p, obj, what);
    if (PyList_Check(obj) || PyTuple_Check(obj)) {
        PyObject *fast = PySequence_Tuple(obj);
        if (!fast) return NULL;
        bool text = PyTuple_Size(fast) ? PyUnicode_Check(PyTuple_GetItem(fast, 0))
                                       : want == ANE_STRING;
        const ane_const *c = NULL;
        if (text) c = string_list(st, p, fast);
        int plain = !text && want < 0 && PyTuple_Size(fast) ? plain_dtype(PyTuple_GetItem(fast, 0))
                                                            : -1;
        Py_DECREF(fast);
        if (text) return c;
        if (want < 0) want = plain;
    }
    if (want < 0) want = plain_dtype(obj);
    if (want == ANE_STRING) {
        PyErr_Format(PyExc_TypeError, "[%s] expected a string, got %R", what, obj);
        return NULL;
    }
    if (want >= 0 && ane_dtype_bits((ane_dtype)want) < 8)
        return packed(st, p, obj, (ane_dtype)want, what);
    return array_const(st, p, obj, want, what);
}

/* One item per element of a sequence (or key and value of a dict), each against its type. */
static const ane_const *items_typed(ane_py_state *st, ane_program *p, PyObject *flat,
                                    const ane_type *t, const char *what) {
    ane_error err = {0};
    Py_ssize_t n = PyTuple_Size(flat);
    const ane_const **items = PyMem_Calloc((size_t)n + 1, sizeof *items), *c = NULL;
    if (!items) return (void)PyErr_NoMemory(), NULL;
    for (Py_ssize_t i = 0; i < n; i++) {
        const ane_type *e = t->kind == ANE_T_TUPLE            ? t->items[i]
                            : t->kind == ANE_T_DICT && i % 2 ? t->elem2
                                                             : t->elem;
        if (!(items[i] = ane_py_const_typed(st, p, PyTuple_GetItem(flat, i), e, what))) goto done;
    }
    c = failed(st, ane_const_items(p, t, items, (int)n, &err), &err);
done:
    PyMem_Free(items);
    return c;
}

/* [k0, v0, k1, v1, ...] as a tuple. */
static PyObject *flat_items(PyObject *dict) {
    PyObject *pairs = PyMapping_Items(dict);
    Py_ssize_t n = pairs ? PyList_Size(pairs) : 0;
    PyObject *flat = pairs ? PyTuple_New(2 * n) : NULL;
    for (Py_ssize_t i = 0; flat && i < 2 * n; i++) {
        PyObject *o = Py_NewRef(PyTuple_GetItem(PyList_GetItem(pairs, i / 2), i % 2));
        if (PyTuple_SetItem(flat, i, o) < 0) Py_CLEAR(flat);
    }
    Py_XDECREF(pairs);
    return flat;
}

const ane_const *ane_py_const_typed(ane_py_state *st, ane_program *p, PyObject *obj,
                                    const ane_type *t, const char *what) {
    char text[ANE_TYPE_TEXT];
    if (t->kind == ANE_T_TENSOR) {
        const ane_const *c = ane_py_const_from(st, p, obj, (int)t->dtype, what);
        bool fits = c && c->type->kind == ANE_T_TENSOR && c->type->rank == t->rank;
        for (int i = 0; fits && i < t->rank; i++)
            fits = t->dims[i] < 0 || c->type->dims[i] == t->dims[i];
        if (c && !fits) {
            PyErr_Format(PyExc_ValueError, "[%s] expected %s, got %R", what,
                         ane_type_text(t, text, sizeof text), obj);
            return NULL;
        }
        return c;
    }
    bool dict = t->kind == ANE_T_DICT;
    if (t->kind == ANE_T_STATE ||
        (dict ? !PyDict_Check(obj) : !PyList_Check(obj) && !PyTuple_Check(obj))) {
        PyErr_Format(PyExc_TypeError, "[%s] expected %s, got %R", what,
                     ane_type_text(t, text, sizeof text), obj);
        return NULL;
    }
    PyObject *flat = dict ? flat_items(obj) : PySequence_Tuple(obj);
    if (!flat) return NULL;
    Py_ssize_t n = PyTuple_Size(flat);
    const ane_const *c = NULL;
    if ((t->kind == ANE_T_TUPLE && n != t->n) ||
        (t->kind == ANE_T_LIST && t->length >= 0 && n != t->length))
        PyErr_Format(PyExc_ValueError, "[%s] expected %s, got %zd items", what,
                     ane_type_text(t, text, sizeof text), n);
    else c = items_typed(st, p, flat, t, what);
    Py_DECREF(flat);
    return c;
}
