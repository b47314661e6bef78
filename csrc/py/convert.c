/* NumPy and Python objects <-> views: dtypes, shapes, arrays, single elements. */
#include "tensor.h"

#include <string.h>

/* ---------------------------------------------------------------- dtypes */

int ane_py_npy_type(ane_dtype dtype) {
    switch (dtype) {
    case ANE_F16: return NPY_HALF;
    case ANE_F32: return NPY_FLOAT;
    case ANE_F64: return NPY_DOUBLE;
    case ANE_BOOL: return NPY_BOOL;
    case ANE_I8: return NPY_INT8;
    case ANE_I16: return NPY_INT16;
    case ANE_I32: return NPY_INT32;
    case ANE_I64: return NPY_INT64;
    case ANE_U8: return NPY_UINT8;
    case ANE_U16: return NPY_UINT16;
    case ANE_U32: return NPY_UINT32;
    case ANE_U64: return NPY_UINT64;
    default: return -1;
    }
}

PyArray_Descr *ane_py_descr(ane_dtype dtype, const char *what) {
    int npy = ane_py_npy_type(dtype);
    if (npy >= 0) return PyArray_DescrFromType(npy);
    /* bfloat16 and the fp8 types exist for NumPy where ml_dtypes is installed. */
    PyObject *ml = PyImport_ImportModule("ml_dtypes"), *type = NULL;
    PyArray_Descr *d = NULL;
    if (ml) type = PyObject_GetAttrString(ml, ane_dtype_name(dtype));
    if (type && PyArray_DescrConverter(type, &d) != NPY_SUCCEED) d = NULL;
    if (!d) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError,
                     "[%s] NumPy has no %s; install ml_dtypes, or look at the bits with "
                     "t.view(0, t.shape, \"uint%d\")",
                     what, ane_dtype_name(dtype), ane_dtype_bits(dtype));
    }
    Py_XDECREF(type);
    Py_XDECREF(ml);
    return d;
}

int ane_py_dtype_of_descr(PyArray_Descr *d, ane_dtype *out) {
    static const ane_dtype signed_[] = {ANE_I8, ANE_I16, ANE_I32, ANE_I64};
    static const ane_dtype unsigned_[] = {ANE_U8, ANE_U16, ANE_U32, ANE_U64};
    npy_intp size = PyDataType_ELSIZE(d);
    int log = size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : size == 8 ? 3 : -1;
    if (PyDataType_ISNOTSWAPPED(d) && log >= 0) {
        /* By kind and size: C's long and long long are two NumPy types of one layout. */
        switch (d->kind) {
        case 'b': *out = ANE_BOOL; return 0;
        case 'i': *out = signed_[log]; return 0;
        case 'u': *out = unsigned_[log]; return 0;
        case 'f':
            if (log < 1) break;
            *out = log == 1 ? ANE_F16 : log == 2 ? ANE_F32 : ANE_F64;
            return 0;
        default: break;
        }
        if (PyTypeNum_ISUSERDEF(d->type_num)) {
            PyObject *name = PyObject_GetAttrString((PyObject *)d->typeobj, "__name__");
            const char *text = name ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
            ane_dtype got;
            bool ok = text && !ane_dtype_parse(text, &got, NULL) &&
                      ane_dtype_size(got) == (size_t)size;
            Py_XDECREF(name);
            if (ok) {
                *out = got;
                return 0;
            }
            PyErr_Clear();
        }
    }
    PyErr_Format(PyExc_TypeError,
                 "dtype %R is not supported; use bool, (u)int8 to 64, float16, float32, "
                 "float64 or bfloat16 in native byte order",
                 d);
    return -1;
}

int ane_py_dtype(PyObject *obj, ane_dtype *out) {
    ane_error err = {0};
    if (PyUnicode_Check(obj)) {
        const char *name = PyUnicode_AsUTF8AndSize(obj, NULL);
        if (!name) return -1;
        if (!ane_dtype_parse(name, out, &err)) {
            if (ane_dtype_size(*out)) return 0;
            PyErr_Format(PyExc_TypeError, "dtype '%s' has no size in whole bytes", name);
            return -1;
        }
    }
    PyArray_Descr *d = NULL;
    if (PyArray_DescrConverter(obj, &d) != NPY_SUCCEED || !d) {
        if (!PyUnicode_Check(obj)) return -1;
        PyErr_SetString(PyExc_TypeError, err.message);
        return -1;
    }
    int rc = ane_py_dtype_of_descr(d, out);
    Py_DECREF(d);
    return rc;
}

/* ---------------------------------------------------------------- shapes */

PyObject *ane_py_shape_tuple(int rank, const int64_t *dims) {
    PyObject *t = PyTuple_New(rank);
    for (int i = 0; t && i < rank; i++) {
        PyObject *n = PyLong_FromLongLong(dims[i]);
        if (!n || PyTuple_SetItem(t, i, n) < 0) Py_CLEAR(t);
    }
    return t;
}

static int one_dim(PyObject *obj, int64_t *out) {
    /* OverflowError for what does not fit, TypeError for what is no integer. */
    Py_ssize_t n = PyNumber_AsSsize_t(obj, PyExc_OverflowError);
    if (n == -1 && PyErr_Occurred()) return -1;
    *out = n;
    return 0;
}

int ane_py_shape(PyObject *obj, int64_t *dims, int *rank) {
    if (PyIndex_Check(obj) && !PySequence_Check(obj)) {
        *rank = 1;
        return one_dim(obj, dims);
    }
    PyObject *seq = PySequence_Tuple(obj);
    if (!seq) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError,
                         "a shape is an int or a sequence of ints, not %R", obj);
        return -1;
    }
    int rc = -1;
    Py_ssize_t n = PyTuple_Size(seq);
    if (n > ANE_MAX_RANK) {
        PyErr_Format(PyExc_ValueError, "a shape has at most %d dimensions, not %zd",
                     ANE_MAX_RANK, n);
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (one_dim(PyTuple_GetItem(seq, i), dims + i) < 0) goto done;
    *rank = (int)n;
    rc = 0;
done:
    Py_DECREF(seq);
    return rc;
}

/* ---------------------------------------------------------------- arrays */

/* The last release may come from any thread, without the interpreter lock. */
static void drop_object(void *arg) {
    if (!Py_IsInitialized()) return;
    PyGILState_STATE g = PyGILState_Ensure();
    Py_DECREF((PyObject *)arg);
    PyGILState_Release(g);
}

static int wrap(ane_py_state *st, PyArrayObject *a, bool borrow, ane_tensor *t) {
    ane_error err = {0};
    int rank = PyArray_NDIM(a);
    if (rank > ANE_MAX_RANK) {
        PyErr_Format(PyExc_ValueError, "an array of rank %d is beyond the limit of %d", rank,
                     ANE_MAX_RANK);
        return -1;
    }
    ane_tensor v = {.rank = rank};
    if (ane_py_dtype_of_descr(PyArray_DESCR(a), &v.dtype) < 0) return -1;
    int64_t lo = 0, hi = PyArray_ITEMSIZE(a);
    for (int i = 0; i < rank; i++) {
        v.shape[i] = PyArray_DIM(a, i);
        v.strides[i] = PyArray_STRIDE(a, i);
        if (v.shape[i] == 0) lo = hi = INT64_MIN;
        if (lo == INT64_MIN) continue;
        int64_t span = (v.shape[i] - 1) * v.strides[i];
        if (span < 0) lo += span;
        else hi += span;
    }
    if (lo == INT64_MIN) lo = hi = 0;
    v.offset = (size_t)-lo;
    if (!borrow) Py_INCREF((PyObject *)a);
    if (ane_surface_wrap(PyArray_BYTES(a) + lo, (size_t)(hi - lo), !PyArray_ISWRITEABLE(a),
                         borrow ? NULL : drop_object, a, &v.surface, &err)) {
        if (!borrow) Py_DECREF(a);
        ane_py_raise(st, &err);
        return -1;
    }
    *t = v;
    return 0;
}

int ane_py_wrap_array(ane_py_state *st, PyArrayObject *a, ane_tensor *t) {
    return wrap(st, a, false, t);
}

int ane_py_borrow_array(ane_py_state *st, PyArrayObject *a, ane_tensor *t) {
    return wrap(st, a, true, t);
}

int ane_py_copy(ane_py_state *st, const ane_tensor *dst, const ane_tensor *src) {
    ane_error err = {0};
    ane_status status;
    ane_tensor d = *dst, s = *src;
    ane_surface_retain(d.surface);
    ane_surface_retain(s.surface);
    Py_BEGIN_ALLOW_THREADS
    status = ane_tensor_copy(&d, &s, &err);
    Py_END_ALLOW_THREADS
    ane_surface_release(d.surface);
    ane_surface_release(s.surface);
    if (!status) return 0;
    ane_py_raise(st, &err);
    return -1;
}

static bool is_float(ane_dtype d) {
    return d == ANE_F16 || d == ANE_F32 || d == ANE_F64 || d == ANE_BF16;
}

/* The array behind any array-like, behaved (aligned, native order). want only steers
 * objects that have no dtype of their own, such as lists. */
static PyArrayObject *as_array(PyObject *obj, int want, const char *what) {
    PyArray_Descr *d = NULL;
    bool typed = PyArray_Check(obj) || PyArray_CheckAnyScalar(obj) ||
                 PyObject_CheckBuffer(obj) || PyObject_HasAttrString(obj, "__array__") ||
                 PyObject_HasAttrString(obj, "__array_interface__");
    if (!typed && want >= 0 && !(d = ane_py_descr((ane_dtype)want, what))) return NULL;
    /* Steals d. */
    return (PyArrayObject *)PyArray_CheckFromAny(obj, d, 0, 0,
                                                 NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED, NULL);
}

int ane_py_view(ane_py_state *st, PyObject *obj, int want, const char *what,
                ane_tensor *out, PyObject **owner) {
    ane_tensor t;
    ane_error err = {0};
    if (ane_py_is_tensor(st, obj)) {
        const ane_tensor *v = ane_py_tensor_view(obj);
        if (!v) return -1;
        t = *v;
        ane_surface_retain(t.surface);
    } else {
        PyArrayObject *a = as_array(obj, want, what);
        if (!a) return -1;
        int rc = ane_py_wrap_array(st, a, &t);
        Py_DECREF(a);
        if (rc < 0) return -1;
    }
    PyObject *own = NULL;
    if (want >= 0 && t.dtype != (ane_dtype)want) {
        if (!is_float(t.dtype) || !is_float((ane_dtype)want)) {
            PyErr_Format(PyExc_TypeError, "[%s] expected %s, got %s", what,
                         ane_dtype_name((ane_dtype)want), ane_dtype_name(t.dtype));
            goto done;
        }
        ane_tensor fresh;
        if (ane_py_alloc(st, ANE_MEM_HEAP, (ane_dtype)want, t.rank, t.shape, 0, NULL,
                         &fresh) < 0)
            goto done;
        int rc = ane_py_copy(st, &fresh, &t);
        ane_surface_release(t.surface);
        t = fresh;
        if (rc < 0) goto done;
    } else if (ane_tensor_readable(&t, &err)) {
        ane_py_raise(st, &err);
        goto done;
    }
    own = ane_py_tensor_new(st, &t);
    if (own) {
        *out = t;
        *owner = own;
    }
done:
    ane_surface_release(t.surface);
    return own ? 0 : -1;
}

/* ---------------------------------------------------------------- elements */

static PyObject *scalar_error(ane_dtype dtype) {
    PyErr_Format(PyExc_TypeError, "elements of %s have no Python value",
                 ane_dtype_name(dtype));
    return NULL;
}

PyObject *ane_py_item(const ane_tensor *t, const void *at) {
#define INT(type, make)                                                                  \
    {                                                                                    \
        type x;                                                                          \
        memcpy(&x, at, sizeof x);                                                        \
        return make(x);                                                                  \
    }
    switch (t->dtype) {
    case ANE_F16:
    case ANE_BF16: {
        double x;
        ane_error err = {0};
        if (ane_element_convert(ANE_F64, &x, t->dtype, at, &err))
            return scalar_error(t->dtype);
        return PyFloat_FromDouble(x);
    }
    case ANE_F32: INT(float, PyFloat_FromDouble)
    case ANE_F64: INT(double, PyFloat_FromDouble)
    case ANE_BOOL: INT(uint8_t, PyBool_FromLong)
    case ANE_I8: INT(int8_t, PyLong_FromLong)
    case ANE_I16: INT(int16_t, PyLong_FromLong)
    case ANE_I32: INT(int32_t, PyLong_FromLong)
    case ANE_I64: INT(int64_t, PyLong_FromLongLong)
    case ANE_U8: INT(uint8_t, PyLong_FromLong)
    case ANE_U16: INT(uint16_t, PyLong_FromLong)
    case ANE_U32: INT(uint32_t, PyLong_FromUnsignedLong)
    case ANE_U64: INT(uint64_t, PyLong_FromUnsignedLongLong)
    default: return scalar_error(t->dtype);
    }
#undef INT
}

/* The value in a form that converts with one rounding: bool and int exact, else double. */
int ane_py_set_item(const ane_tensor *t, void *at, PyObject *value) {
    union {
        double d;
        long long i;
        unsigned long long u;
    } x;
    ane_dtype from;
    if (t->dtype == ANE_U64 && PyLong_Check(value)) {
        x.u = PyLong_AsUnsignedLongLong(value);
        from = ANE_U64;
    } else if (PyLong_Check(value) || (!PyFloat_Check(value) && PyIndex_Check(value))) {
        PyObject *n = PyNumber_Index(value);
        if (!n) return -1;
        x.i = PyLong_AsLongLong(n);
        Py_DECREF(n);
        from = ANE_I64;
    } else {
        x.d = PyFloat_AsDouble(value);
        from = ANE_F64;
    }
    if (PyErr_Occurred()) return -1;
    static const struct {
        long long lo, hi;
    } limits[ANE_DTYPE_COUNT] = {
        [ANE_I8] = {INT8_MIN, INT8_MAX},    [ANE_I16] = {INT16_MIN, INT16_MAX},
        [ANE_I32] = {INT32_MIN, INT32_MAX}, [ANE_U8] = {0, UINT8_MAX},
        [ANE_U16] = {0, UINT16_MAX},        [ANE_U32] = {0, UINT32_MAX},
    };
    bool integer = !is_float(t->dtype) && t->dtype != ANE_BOOL;
    if (integer && from == ANE_F64) {
        PyErr_Format(PyExc_TypeError, "%s elements take integers, not %R",
                     ane_dtype_name(t->dtype), value);
        return -1;
    }
    long long lo = limits[t->dtype].lo, hi = limits[t->dtype].hi;
    if ((hi && from == ANE_I64 && (x.i < lo || x.i > hi)) ||
        (t->dtype == ANE_U64 && from == ANE_I64 && x.i < 0)) {
        PyErr_Format(PyExc_OverflowError, "%R does not fit %s", value,
                     ane_dtype_name(t->dtype));
        return -1;
    }
    ane_error err = {0};
    if (ane_element_convert(t->dtype, at, from, &x, &err)) {
        PyErr_SetString(PyExc_TypeError, err.message);
        return -1;
    }
    return 0;
}
