/* Module functions that move host data: to_fp16, to_fp32, GQA tile and reduce, and the
 * surface I/O behind anetorch.surface_io. Each takes arrays or tensors alike. */
#include "tensor.h"

#include <string.h>

/* A borrowed argument as a contiguous view: views that are not are copied. */
static int packed_view(ane_py_state *st, PyObject *obj, int want, const char *what,
                       ane_tensor *t, PyObject **owner) {
    if (ane_py_view(st, obj, want, what, t, owner) < 0) return -1;
    if (ane_tensor_contiguous(t)) return 0;
    PyObject *packed = ane_py_tensor_contiguous(*owner, NULL);
    Py_DECREF(*owner);
    *owner = packed;
    if (!packed) return -1;
    *t = *ane_py_tensor_view(packed);
    return 0;
}

/* out=None: a fresh NumPy array (or a Tensor where the input was one); else out itself, which
 * must match. *result is what the function returns, *t a view that *owner keeps. */
static int output(ane_py_state *st, PyObject *out, bool tensor, ane_dtype dtype, int rank,
                  const int64_t *shape, bool packed, const char *what, ane_tensor *t,
                  PyObject **owner, PyObject **result) {
    PyObject *made = NULL;
    if (!out || out == Py_None) {
        if (tensor) {
            ane_tensor fresh;
            if (ane_py_alloc(st, ane_memory_default(), dtype, rank, shape, 0, NULL, &fresh) < 0)
                return -1;
            made = ane_py_tensor_new(st, &fresh);
            ane_surface_release(fresh.surface);
        } else {
            npy_intp dims[ANE_MAX_RANK];
            for (int i = 0; i < rank; i++) dims[i] = (npy_intp)shape[i];
            made = PyArray_SimpleNew(rank, dims, ane_py_npy_type(dtype));
        }
        if (!made) return -1;
        out = made;
    } else if (!ane_py_is_tensor(st, out) && !PyArray_Check(out)) {
        PyErr_Format(PyExc_TypeError, "[%s] out is an array or a Tensor, not %R", what,
                     (PyObject *)Py_TYPE(out));
        return -1;
    }
    int rc = -1;
    ane_tensor v;
    if (ane_py_is_tensor(st, out)) {
        const ane_tensor *open = ane_py_open(out, what);
        if (!open) goto done;
        v = *open;
        ane_surface_retain(v.surface);
    } else if (ane_py_wrap_array(st, (PyArrayObject *)out, &v) < 0) {
        goto done;
    }
    bool equal = v.rank == rank;
    for (int i = 0; equal && i < rank; i++) equal = v.shape[i] == shape[i];
    if (!equal) {
        PyObject *a = ane_py_shape_tuple(rank, shape), *b = ane_py_shape_tuple(v.rank, v.shape);
        if (a && b)
            PyErr_Format(PyExc_ValueError, "[%s] out needs shape %S, it has %S", what, a, b);
        Py_XDECREF(a);
        Py_XDECREF(b);
    } else if (v.dtype != dtype) {
        PyErr_Format(PyExc_TypeError, "[%s] out needs dtype %s, it has %s", what,
                     ane_dtype_name(dtype), ane_dtype_name(v.dtype));
    } else if (ane_surface_readonly(v.surface)) {
        PyErr_Format(PyExc_ValueError, "[%s] out is read-only", what);
    } else if (packed && !ane_tensor_contiguous(&v)) {
        PyErr_Format(PyExc_ValueError, "[%s] out must be contiguous", what);
    } else if ((*owner = ane_py_tensor_new(st, &v))) {
        *t = v;
        *result = Py_NewRef(out);
        rc = 0;
    }
    ane_surface_release(v.surface);
done:
    Py_XDECREF(made);
    return rc;
}

/* ---------------------------------------------------------------- conversion */

static PyObject *convert(PyObject *self, PyObject *args, PyObject *kw, ane_dtype to,
                         const char *format, const char *what) {
    static char *names[] = {"x", "out", NULL};
    ane_py_state *st = ane_py_state_of(self);
    PyObject *x, *out = NULL, *in_owner, *out_owner = NULL, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, format, names, &x, &out)) return NULL;
    ane_tensor src, dst;
    if (ane_py_view(st, x, -1, what, &src, &in_owner) < 0) return NULL;
    if (output(st, out, ane_py_is_tensor(st, x), to, src.rank, src.shape, false, what, &dst,
               &out_owner, &result) == 0 &&
        ane_py_copy(st, &dst, &src) < 0)
        Py_CLEAR(result);
    Py_XDECREF(out_owner);
    Py_DECREF(in_owner);
    return result;
}

static PyObject *py_to_fp16(PyObject *self, PyObject *args, PyObject *kw) {
    return convert(self, args, kw, ANE_F16, "O|O:to_fp16", "to_fp16");
}
static PyObject *py_to_fp32(PyObject *self, PyObject *args, PyObject *kw) {
    return convert(self, args, kw, ANE_F32, "O|O:to_fp32", "to_fp32");
}

/* ---------------------------------------------------------------- GQA */

static PyObject *gqa(PyObject *self, PyObject *args, PyObject *kw, bool reduce) {
    static char *names[] = {"x", "heads", "kv_heads", "out", NULL};
    const char *what = reduce ? "gqa_reduce" : "gqa_tile";
    ane_py_state *st = ane_py_state_of(self);
    PyObject *x, *out = NULL, *in_owner, *out_owner = NULL, *result = NULL;
    Py_ssize_t heads, kv;
    if (!PyArg_ParseTupleAndKeywords(args, kw, reduce ? "Onn|O:gqa_reduce" : "Onn|O:gqa_tile",
                                     names, &x, &heads, &kv, &out))
        return NULL;
    if (heads < 1 || kv < 1 || heads % kv) {
        PyErr_Format(PyExc_ValueError,
                     "[%s] %zd query heads are not a positive multiple of %zd KV heads", what,
                     heads, kv);
        return NULL;
    }
    ane_tensor src, dst;
    if (packed_view(st, x, ANE_F32, what, &src, &in_owner) < 0) return NULL;
    int64_t have = reduce ? heads : kv, want = reduce ? kv : heads;
    if (src.rank != 2 || src.shape[0] % have) {
        PyObject *s = ane_py_shape_tuple(src.rank, src.shape);
        if (s)
            PyErr_Format(PyExc_ValueError,
                         "[%s] expected x of shape [%lld*head_dim, seq], got %S", what,
                         (long long)have, s);
        Py_XDECREF(s);
        Py_DECREF(in_owner);
        return NULL;
    }
    int64_t dim = src.shape[0] / have, shape[2] = {0, src.shape[1]};
    if (__builtin_mul_overflow(dim, want, &shape[0])) {
        PyErr_Format(PyExc_ValueError, "[%s] %lld heads overflow", what, (long long)want);
    } else if (output(st, out, ane_py_is_tensor(st, x), ANE_F32, 2, shape, true, what, &dst,
                      &out_owner, &result) == 0) {
        ane_error err = {0};
        ane_status status;
        float *to = ane_tensor_data(&dst);
        const float *from = ane_tensor_data(&src);
        Py_BEGIN_ALLOW_THREADS
        status = (reduce ? ane_gqa_reduce : ane_gqa_tile)(
            to, from, (size_t)heads, (size_t)kv, (size_t)dim, (size_t)src.shape[1], &err);
        if (!status) ane_tensor_written(&dst);
        else ane_surface_touch(dst.surface, 0, SIZE_MAX);       /* a part of it, perhaps */
        Py_END_ALLOW_THREADS
        if (status) {
            Py_CLEAR(result);
            ane_py_raise(st, &err);
        }
    }
    Py_XDECREF(out_owner);
    Py_DECREF(in_owner);
    return result;
}

static PyObject *py_gqa_tile(PyObject *self, PyObject *args, PyObject *kw) {
    return gqa(self, args, kw, false);
}
static PyObject *py_gqa_reduce(PyObject *self, PyObject *args, PyObject *kw) {
    return gqa(self, args, kw, true);
}

/* ---------------------------------------------------------------- surface I/O */

/* The tensor argument with its surface retained. */
static int surface_arg(ane_py_state *st, PyObject *obj, const char *what, ane_tensor *t) {
    if (!ane_py_is_tensor(st, obj)) {
        PyErr_Format(PyExc_TypeError, "[%s] expected a Tensor, got %R", what,
                     (PyObject *)Py_TYPE(obj));
        return -1;
    }
    const ane_tensor *v = ane_py_open(obj, what);
    if (!v) return -1;
    *t = *v;
    ane_surface_retain(t->surface);
    return 0;
}

/* [C, S] or [1, C, 1, S], fp32 and contiguous. */
static int matrix_arg(ane_py_state *st, PyObject *obj, const char *what, const char *name,
                      ane_tensor *t, PyObject **owner) {
    if (packed_view(st, obj, ANE_F32, what, t, owner) < 0) return -1;
    if (t->rank == 4 && t->shape[0] == 1 && t->shape[2] == 1) {
        t->shape[0] = t->shape[1];
        t->shape[1] = t->shape[3];
        t->rank = 2;
    }
    if (t->rank == 2) return 0;
    PyObject *s = ane_py_shape_tuple(t->rank, t->shape);
    if (s)
        PyErr_Format(PyExc_ValueError, "[%s] expected %s of shape [C, S] or [1, C, 1, S], got %S",
                     what, name, s);
    Py_XDECREF(s);
    Py_CLEAR(*owner);
    return -1;
}

static int not_negative(const char *what, const char *name, Py_ssize_t n) {
    if (n >= 0) return 0;
    PyErr_Format(PyExc_ValueError, "[%s] %s is %zd, which is negative", what, name, n);
    return -1;
}

static PyObject *done(ane_py_state *st, ane_status status, const ane_error *err) {
    if (status) return ane_py_raise(st, err);
    Py_RETURN_NONE;
}

static PyObject *py_io_write(PyObject *self, PyObject *args) {
    ane_py_state *st = ane_py_state_of(self);
    PyObject *obj, *x, *owner;
    Py_ssize_t channel;
    if (!PyArg_ParseTuple(args, "OnO:io_write", &obj, &channel, &x)) return NULL;
    if (not_negative("io_write", "channel", channel) < 0) return NULL;
    ane_tensor t, src;
    ane_error err = {0};
    ane_status status;
    if (matrix_arg(st, x, "io_write", "x", &src, &owner) < 0) return NULL;
    if (surface_arg(st, obj, "io_write", &t) < 0) {
        Py_DECREF(owner);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = ane_io_write(&t, (size_t)channel, ane_tensor_data(&src), (size_t)src.shape[0],
                          (size_t)src.shape[1], &err);
    Py_END_ALLOW_THREADS
    ane_surface_release(t.surface);
    Py_DECREF(owner);
    return done(st, status, &err);
}

static PyObject *py_io_read(PyObject *self, PyObject *args) {
    ane_py_state *st = ane_py_state_of(self);
    PyObject *obj, *out = NULL, *owner, *result;
    Py_ssize_t channel, channels, s;
    if (!PyArg_ParseTuple(args, "Onnn|O:io_read", &obj, &channel, &channels, &s, &out))
        return NULL;
    if (not_negative("io_read", "channel", channel) < 0 ||
        not_negative("io_read", "channels", channels) < 0 ||
        not_negative("io_read", "seq", s) < 0)
        return NULL;
    ane_tensor t, dst;
    ane_error err = {0};
    ane_status status;
    int64_t shape[2] = {channels, s};
    if (surface_arg(st, obj, "io_read", &t) < 0) return NULL;
    /* Before the result is allocated: a wrong count should not ask for petabytes. */
    size_t count = (size_t)ane_tensor_count(&t), n;
    if (__builtin_mul_overflow((size_t)channels, (size_t)s, &n) || n > count) {
        PyErr_Format(PyExc_ValueError,
                     "[io_read] %zd channels of %zd elements do not fit the tensor's %zu "
                     "elements",
                     channels, s, count);
        ane_surface_release(t.surface);
        return NULL;
    }
    if (output(st, out, false, ANE_F32, 2, shape, true, "io_read", &dst, &owner, &result) < 0) {
        ane_surface_release(t.surface);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = ane_io_read(&t, (size_t)channel, ane_tensor_data(&dst), (size_t)channels,
                         (size_t)s, &err);
    if (!status) ane_tensor_written(&dst);
    else ane_surface_touch(dst.surface, 0, SIZE_MAX);
    Py_END_ALLOW_THREADS
    ane_surface_release(t.surface);
    Py_DECREF(owner);
    if (!status) return result;
    Py_DECREF(result);
    return ane_py_raise(st, &err);
}

static PyObject *py_io_copy(PyObject *self, PyObject *args) {
    ane_py_state *st = ane_py_state_of(self);
    PyObject *to, *from;
    Py_ssize_t dch, sch, channels, s;
    if (!PyArg_ParseTuple(args, "OnOnnn:io_copy", &to, &dch, &from, &sch, &channels, &s))
        return NULL;
    if (not_negative("io_copy", "dst_channel", dch) < 0 ||
        not_negative("io_copy", "src_channel", sch) < 0 ||
        not_negative("io_copy", "channels", channels) < 0 ||
        not_negative("io_copy", "seq", s) < 0)
        return NULL;
    ane_tensor dst, src;
    ane_error err = {0};
    ane_status status;
    if (surface_arg(st, to, "io_copy", &dst) < 0) return NULL;
    if (surface_arg(st, from, "io_copy", &src) < 0) {
        ane_surface_release(dst.surface);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = ane_io_copy(&dst, (size_t)dch, &src, (size_t)sch, (size_t)channels, (size_t)s,
                         &err);
    Py_END_ALLOW_THREADS
    ane_surface_release(dst.surface);
    ane_surface_release(src.surface);
    return done(st, status, &err);
}

static PyObject *py_io_write_dyn(PyObject *self, PyObject *args) {
    ane_py_state *st = ane_py_state_of(self);
    PyObject *obj, *act_obj, *w_obj, *act_owner = NULL, *w_owner = NULL, *result = NULL;
    if (!PyArg_ParseTuple(args, "OOO:io_write_dyn", &obj, &act_obj, &w_obj)) return NULL;
    ane_tensor t, act, w;
    ane_error err = {0};
    ane_status status;
    if (matrix_arg(st, act_obj, "io_write_dyn", "act", &act, &act_owner) < 0) return NULL;
    if (matrix_arg(st, w_obj, "io_write_dyn", "w", &w, &w_owner) < 0) goto done;
    if (act.shape[0] != w.shape[0]) {
        PyErr_Format(PyExc_ValueError,
                     "[io_write_dyn] act has %lld rows and w %lld; both are [IC, ...]",
                     (long long)act.shape[0], (long long)w.shape[0]);
        goto done;
    }
    if (surface_arg(st, obj, "io_write_dyn", &t) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    status = ane_io_write_dyn(&t, ane_tensor_data(&act), (size_t)act.shape[0],
                              (size_t)act.shape[1], ane_tensor_data(&w), (size_t)w.shape[1],
                              &err);
    Py_END_ALLOW_THREADS
    ane_surface_release(t.surface);
    result = done(st, status, &err);
done:
    Py_XDECREF(w_owner);
    Py_DECREF(act_owner);
    return result;
}

#define KEYWORDS(f) (PyCFunction)(void (*)(void)) f, METH_VARARGS | METH_KEYWORDS

static PyMethodDef functions[] = {
    {"to_fp16", KEYWORDS(py_to_fp16),
     PyDoc_STR("to_fp16(x, out=None) -> numpy.ndarray or Tensor\n\nx in float16, rounded to "
               "nearest even: |x| >= 65520 becomes inf, subnormals and NaN are kept. Any shape "
               "and strides; threaded when large. A Tensor gives a Tensor, anything else an "
               "array; out (same shape, float16) is filled and returned.\n\n"
               ">>> to_fp16(np.float32([1, 65520, 1e-8]))\narray([ 1., inf,  0.], dtype=float16)")},
    {"to_fp32", KEYWORDS(py_to_fp32),
     PyDoc_STR("to_fp32(x, out=None) -> numpy.ndarray or Tensor\n\nx in float32; exact from "
               "float16 and bfloat16. See to_fp16.\n\n"
               ">>> to_fp32(np.float16([0.1, 65504]))\n"
               "array([9.9975586e-02, 6.5504000e+04], dtype=float32)")},
    {"gqa_tile", KEYWORDS(py_gqa_tile),
     PyDoc_STR("gqa_tile(x, heads, kv_heads, out=None) -> array\n\nRepeats each KV head for its "
               "query heads: x [kv_heads*head_dim, seq] -> [heads*head_dim, seq]; query head h "
               "gets KV head h // (heads // kv_heads). float32.\n\n"
               ">>> gqa_tile(np.float32([[1], [2]]), heads=4, kv_heads=2).ravel()\n"
               "array([1., 1., 2., 2.], dtype=float32)")},
    {"gqa_reduce", KEYWORDS(py_gqa_reduce),
     PyDoc_STR("gqa_reduce(x, heads, kv_heads, out=None) -> array\n\nThe adjoint of gqa_tile: "
               "sums the query heads of each KV head, in increasing order. x [heads*head_dim, "
               "seq] -> [kv_heads*head_dim, seq]. float32.\n\n"
               ">>> gqa_reduce(np.float32([[1], [2], [3], [4]]), heads=4, kv_heads=2).ravel()\n"
               "array([3., 7.], dtype=float32)")},
    {"io_write", py_io_write, METH_VARARGS, PyDoc_STR("io_write(t, channel, x)")},
    {"io_read", py_io_read, METH_VARARGS,
     PyDoc_STR("io_read(t, channel, channels, seq, out=None) -> array")},
    {"io_copy", py_io_copy, METH_VARARGS,
     PyDoc_STR("io_copy(dst, dst_channel, src, src_channel, channels, seq)")},
    {"io_write_dyn", py_io_write_dyn, METH_VARARGS, PyDoc_STR("io_write_dyn(t, act, w)")},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_convert(PyObject *module, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(module, functions);
}
