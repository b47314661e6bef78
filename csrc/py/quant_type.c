/* anetorch.Quantization: what a Tensor's integers stand for. Immutable, so that a tensor and
 * its views share one; what a view makes of it is decided here. */
#include "tensor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct QuantObject {
    PyObject_HEAD
    bool channels;                      /* one scale per index of axis, which may be negative
                                           until a tensor says its rank */
    int axis;
    size_t n;
    float *scale;
    int64_t *zero_point;                /* NULL: zeros */
} QuantObject;

#define QUANT(obj) ((QuantObject *)(obj))

/* ---------------------------------------------------------------- making */

static QuantObject *quant_alloc(PyTypeObject *type, size_t n, bool zero_points) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    QuantObject *q = (QuantObject *)alloc(type, 0);
    if (!q) return NULL;
    q->n = n;
    q->scale = PyMem_Calloc(n ? n : 1, sizeof *q->scale);
    if (zero_points) q->zero_point = PyMem_Calloc(n ? n : 1, sizeof *q->zero_point);
    if (q->scale && (q->zero_point || !zero_points)) return q;
    Py_DECREF((PyObject *)q);
    PyErr_NoMemory();
    return NULL;
}

static void quant_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyMem_Free(QUANT(self)->scale);
    PyMem_Free(QUANT(self)->zero_point);
    freefunc drop = (freefunc)PyType_GetSlot(type, Py_tp_free);
    drop(self);
    Py_DECREF(type);
}

/* -1 for a number, else the length of a sequence. Never fails. */
static Py_ssize_t length_of(PyObject *obj) {
    Py_ssize_t n = PySequence_Check(obj) ? PySequence_Size(obj) : -1;
    PyErr_Clear();                      /* NumPy's scalars and arrays of rank 0 */
    return n;
}

static int refuse(const char *field, const char *expected, PyObject *got) {
    if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_TypeError) ||
        PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_ValueError, "[quantization] %s: expected %s, got %R", field,
                     expected, got);
    return -1;
}

static int read_scale(PyObject *obj, float *out) {
    double x = PyFloat_AsDouble(obj);
    if (x == -1 && PyErr_Occurred()) return refuse("scale", "numbers", obj);
    *out = (float)x;
    return 0;
}

static int read_zero(PyObject *obj, int64_t *out) {
    PyObject *index = PyNumber_Index(obj);
    long long x = index ? PyLong_AsLongLong(index) : -1;
    Py_XDECREF(index);
    if (x == -1 && PyErr_Occurred()) return refuse("zero_point", "integers of 64 bits", obj);
    *out = x;
    return 0;
}

static ane_quantization view_of(const QuantObject *q) {
    return (ane_quantization){.axis = q->channels ? q->axis : -1, .n = q->n, .scale = q->scale,
                              .zero_point = q->zero_point};
}

static int fill(QuantObject *q, PyObject *scale, bool many, PyObject *zero, Py_ssize_t zeros) {
    for (size_t i = 0; i < q->n; i++) {
        PyObject *x = many ? PySequence_GetItem(scale, (Py_ssize_t)i) : Py_NewRef(scale);
        int rc = x ? read_scale(x, &q->scale[i]) : -1;
        Py_XDECREF(x);
        if (rc < 0) return -1;
        if (!q->zero_point) continue;
        x = zeros < 0 ? Py_NewRef(zero) : PySequence_GetItem(zero, (Py_ssize_t)i);
        rc = x ? read_zero(x, &q->zero_point[i]) : -1;
        Py_XDECREF(x);
        if (rc < 0) return -1;
    }
    return 0;
}

static PyObject *quant_new(PyTypeObject *type, PyObject *args, PyObject *kw) {
    static char *names[] = {"scale", "zero_point", "axis", NULL};
    PyObject *scale, *zero = Py_None, *axis = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O|OO:Quantization", names, &scale, &zero, &axis))
        return NULL;
    Py_ssize_t n = length_of(scale), zeros = length_of(zero);
    if (n < 0 && axis != Py_None) {
        refuse("scale", "one number for each index of the axis", scale);
        return NULL;
    }
    if (zeros >= 0 && zeros != (n < 0 ? 1 : n)) {
        char expected[64];
        PyOS_snprintf(expected, sizeof expected, "one number or %zd, as there are scales",
                      n < 0 ? (Py_ssize_t)1 : n);
        PyErr_Format(PyExc_ValueError, "[quantization] zero_point: expected %s, got %zd",
                     expected, zeros);
        return NULL;
    }
    long at = axis == Py_None ? 0 : PyLong_AsLong(axis);
    if (axis != Py_None && (PyErr_Occurred() || at < -ANE_MAX_RANK || at >= ANE_MAX_RANK)) {
        refuse("axis", "None or an axis of a tensor", axis);
        return NULL;
    }
    QuantObject *q = quant_alloc(type, n < 0 ? 1 : (size_t)n, zero != Py_None);
    if (!q) return NULL;
    q->channels = axis != Py_None;
    q->axis = (int)at;
    if (fill(q, scale, n >= 0, zero, zeros) < 0) goto fail;
    ane_error err = {0};
    ane_quantization view = view_of(q);
    if (q->channels) view.axis = 0;     /* which one is the tensor's matter */
    if (ane_quantization_check(&view, NULL, &err)) {
        PyErr_SetString(PyExc_ValueError, err.message);
        goto fail;
    }
    return (PyObject *)q;
fail:
    Py_DECREF((PyObject *)q);
    return NULL;
}

/* ---------------------------------------------------------------- views */

/* The channels start, start + step, ... of q, along another axis; axis -1: for the whole of a
 * tensor. */
static PyObject *pick(PyObject *obj, int axis, int64_t start, int64_t step, int64_t n) {
    const QuantObject *q = QUANT(obj);
    QuantObject *out = quant_alloc(Py_TYPE(obj), (size_t)n, q->zero_point != NULL);
    if (!out) return NULL;
    out->channels = axis >= 0;
    out->axis = axis;
    for (int64_t i = 0; i < n; i++) {
        out->scale[i] = q->scale[start + i * step];
        if (out->zero_point) out->zero_point[i] = q->zero_point[start + i * step];
    }
    return (PyObject *)out;
}

/* Takes kept's reference. */
static void put(PyObject *tensor, PyObject *kept) {
    PyObject *old = ANE_TENSOR(tensor)->quant;
    ANE_TENSOR(tensor)->quant = kept;
    Py_XDECREF(old);
}

int ane_py_quant_axis(PyObject *q) { return q && QUANT(q)->channels ? QUANT(q)->axis : -1; }

int ane_py_quant_give(PyObject *view, PyObject *q, int axis, int64_t start, int64_t step,
                      int64_t n) {
    PyObject *kept;
    if (!q) return 0;
    const QuantObject *have = QUANT(q);
    if (!have->channels || (axis == have->axis && !start && step == 1 && n == (int64_t)have->n))
        kept = Py_NewRef(q);
    else kept = pick(q, axis, start, step, n);
    if (!kept) return -1;
    put(view, kept);
    return 0;
}

/* The axis of the new shape that counts the same elements as axis did: as many before it and
 * as many of its own. -1: none. */
static int axis_in(const ane_tensor *t, int axis, int rank, const int64_t *shape) {
    int64_t before = 1, at = 1;
    for (int i = 0; i < axis; i++) before *= t->shape[i];
    for (int i = 0; i < rank && at <= before; at *= shape[i++])
        if (at == before && shape[i] == t->shape[axis]) return i;
    return -1;
}

int ane_py_quant_reshape(PyObject *view, PyObject *q, const ane_tensor *t, int rank,
                         const int64_t *shape) {
    int axis = ane_py_quant_axis(q);
    if (axis < 0) return ane_py_quant_give(view, q, 0, 0, 1, 1);
    if (QUANT(q)->n == 1) return ane_py_quant_give(view, q, -1, 0, 1, 1);
    int kept = axis_in(t, axis, rank, shape);
    if (kept >= 0) return ane_py_quant_give(view, q, kept, 0, 1, (int64_t)QUANT(q)->n);
    PyObject *got = ane_py_shape_tuple(rank, shape);
    if (got)
        PyErr_Format(PyExc_ValueError,
                     "[quantization] axis: expected a shape that keeps axis %d with its %zu "
                     "scales, got %S; set t.quantization = None first",
                     axis, QUANT(q)->n, got);
    Py_XDECREF(got);
    return -1;
}

/* ---------------------------------------------------------------- Tensor's side */

PyObject *ane_py_tensor_get_quant(PyObject *self, void *closure) {
    (void)closure;
    if (!ane_py_open(self, "quantization")) return NULL;
    PyObject *q = ANE_TENSOR(self)->quant;
    return Py_NewRef(q ? q : Py_None);
}

int ane_py_tensor_set_quant(PyObject *self, PyObject *value, void *closure) {
    (void)closure;
    TensorObject *o = ANE_TENSOR(self);
    const ane_tensor *t = ane_py_open(self, "quantization");
    if (!t) return -1;
    if (!value || value == Py_None) {
        Py_CLEAR(o->quant);
        return 0;
    }
    if (!PyObject_TypeCheck(value, o->st->quant_type)) {
        PyErr_Format(PyExc_TypeError, "[quantization] expected a Quantization or None, got %R",
                     value);
        return -1;
    }
    ane_error err = {0};
    ane_quantization q = view_of(QUANT(value));
    if (QUANT(value)->channels && q.axis < 0 && (q.axis += t->rank) < 0) {
        PyErr_Format(PyExc_ValueError, "[quantization] axis: expected an axis of a tensor of "
                     "rank %d, got %d", t->rank, QUANT(value)->axis);
        return -1;
    }
    if (ane_quantization_check(&q, t, &err)) {
        ane_py_raise(o->st, &err);
        return -1;
    }
    PyObject *kept = q.axis == QUANT(value)->axis || !QUANT(value)->channels
                         ? Py_NewRef(value) : pick(value, q.axis, 0, 1, (int64_t)q.n);
    if (!kept) return -1;
    put(self, kept);
    return 0;
}

METHOD(ane_py_tensor_dequantize) {
    static char *names[] = {"dtype", "mem", NULL};
    PyObject *dtype = NULL, *mem = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|OO:dequantize", names, &dtype, &mem))
        return NULL;
    ane_py_state *st = ANE_TENSOR(self)->st;
    ane_dtype d = ANE_F32;
    ane_memory memory;
    if (dtype && dtype != Py_None && ane_py_dtype(dtype, &d) < 0) return NULL;
    if (ane_py_memory(mem, &memory) < 0) return NULL;
    const ane_tensor *t = ane_py_open(self, "dequantize");
    PyObject *held = ANE_TENSOR(self)->quant, *out = NULL;
    if (!t) return NULL;
    if (!held) {
        PyErr_SetString(PyExc_ValueError, "[dequantize] the tensor has no quantization; set "
                                          "t.quantization = Quantization(scale, ...)");
        return NULL;
    }
    ane_tensor src = *t, dst;
    Py_INCREF(held);
    ane_surface_retain(src.surface);
    if (ane_py_alloc(st, memory, d, src.rank, src.shape, 0, NULL, &dst) == 0) {
        ane_error err = {0};
        ane_status status;
        ane_quantization q = view_of(QUANT(held));
        Py_BEGIN_ALLOW_THREADS
        status = ane_tensor_dequantize(&dst, &src, &q, &err);
        Py_END_ALLOW_THREADS
        if (status) ane_py_raise(st, &err);
        else if ((out = ane_py_tensor_new(st, &dst))) ANE_TENSOR(out)->owns = true;
        ane_surface_release(dst.surface);
    }
    ane_surface_release(src.surface);
    Py_DECREF(held);
    return out;
}

/* ---------------------------------------------------------------- the type */

static PyObject *one_or_all(const QuantObject *q, PyObject *(*get)(const QuantObject *, size_t)) {
    if (!q->channels) return get(q, 0);
    PyObject *all = PyTuple_New((Py_ssize_t)q->n);
    for (size_t i = 0; all && i < q->n; i++) {
        PyObject *x = get(q, i);
        if (!x || PyTuple_SetItem(all, (Py_ssize_t)i, x) < 0) Py_CLEAR(all);
    }
    return all;
}

static PyObject *scale_at(const QuantObject *q, size_t i) {
    return PyFloat_FromDouble((double)q->scale[i]);
}
static PyObject *zero_at(const QuantObject *q, size_t i) {
    return PyLong_FromLongLong(q->zero_point ? q->zero_point[i] : 0);
}
static PyObject *get_scale(PyObject *self, void *closure) {
    (void)closure;
    return one_or_all(QUANT(self), scale_at);
}
static PyObject *get_zero_point(PyObject *self, void *closure) {
    (void)closure;
    return one_or_all(QUANT(self), zero_at);
}
static PyObject *get_axis(PyObject *self, void *closure) {
    (void)closure;
    return QUANT(self)->channels ? PyLong_FromLong(QUANT(self)->axis) : Py_NewRef(Py_None);
}

static bool any_zero_point(const QuantObject *q) {
    for (size_t i = 0; q->zero_point && i < q->n; i++)
        if (q->zero_point[i]) return true;
    return false;
}

/* The fewest digits that read back as the same fp32 number. */
static void scale_text(float x, char *out, size_t n) {
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(out, n, "%.*g", digits, (double)x);
        if (strtof(out, NULL) == x) return;
    }
}

/* Quantization(scale=(0.5, 0.25), zero_point=(3, 4), axis=1), at most SHOWN of each. */
#define SHOWN 4
static PyObject *quant_repr(PyObject *self) {
    const QuantObject *q = QUANT(self);
    char scales[SHOWN * 24 + 16] = "", zeros[SHOWN * 24 + 16] = "", axis[24] = "";
    size_t shown = q->n < SHOWN ? q->n : SHOWN, s = 0, z = 0;
    for (size_t i = 0; i < shown; i++) {
        char number[32];
        scale_text(q->scale[i], number, sizeof number);
        s += (size_t)snprintf(scales + s, sizeof scales - s, "%s%s", i ? ", " : "", number);
        z += (size_t)snprintf(zeros + z, sizeof zeros - z, "%s%lld", i ? ", " : "",
                              q->zero_point ? (long long)q->zero_point[i] : 0);
    }
    const char *end = q->n > SHOWN ? ", ..." : q->channels && q->n == 1 ? "," : "";
    const char *open = q->channels ? "(" : "", *shut = q->channels ? ")" : "";
    bool has_zeros = any_zero_point(q);
    if (q->channels) snprintf(axis, sizeof axis, ", axis=%d", q->axis);
    return PyUnicode_FromFormat("Quantization(scale=%s%s%s%s%s%s%s%s%s%s)", open, scales, end,
                                shut, has_zeros ? ", zero_point=" : "", has_zeros ? open : "",
                                has_zeros ? zeros : "", has_zeros ? end : "",
                                has_zeros ? shut : "", axis);
}

static PyObject *parts(PyObject *self) {
    return Py_BuildValue("(NNN)", get_scale(self, NULL), get_zero_point(self, NULL),
                         get_axis(self, NULL));
}

static PyObject *quant_compare(PyObject *self, PyObject *other, int op) {
    if ((op != Py_EQ && op != Py_NE) || Py_TYPE(self) != Py_TYPE(other))
        return Py_NewRef(Py_NotImplemented);
    PyObject *a = parts(self), *b = a ? parts(other) : NULL;
    PyObject *out = b ? PyObject_RichCompare(a, b, op) : NULL;
    Py_XDECREF(a);
    Py_XDECREF(b);
    return out;
}

static Py_hash_t quant_hash(PyObject *self) {
    PyObject *all = parts(self);
    Py_hash_t h = all ? PyObject_Hash(all) : -1;
    Py_XDECREF(all);
    return h;
}

static PyObject *quant_reduce(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_BuildValue("(ON)", (PyObject *)Py_TYPE(self), parts(self));
}

static PyMethodDef quant_methods[] = {
    {"__reduce__", quant_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef quant_getset[] = {
    {"scale", get_scale, NULL, PyDoc_STR("A float, or one per channel. Kept as fp32."), NULL},
    {"zero_point", get_zero_point, NULL, PyDoc_STR("An int, or one per channel."), NULL},
    {"axis", get_axis, NULL, PyDoc_STR("The channels' axis; None: one scale for all."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot quant_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR(
         "Quantization(scale, zero_point=0, axis=None)\n--\n\n"
         "What integers stand for: scale * (stored - zero_point). A Tensor of 8, 16 or 32-bit\n"
         "integers carries one as t.quantization. Immutable, compared by value.\n\n"
         "axis=None: one scale for the whole tensor. Else scale has one number for each index\n"
         "of that axis (negative counts from the end), and zero_point one, or as many.\n\n"
         "Raises ValueError naming the field, what was expected and what it got.\n\n"
         ">>> t = Tensor.from_numpy(np.array([[-4, 0], [1, 127]], np.int8))\n"
         ">>> t.quantization = Quantization((0.5, 0.25), axis=0)\n"
         ">>> t.dequantize().tolist()\n"
         "[[-2.0, 0.0], [0.25, 31.75]]")},
    {Py_tp_new, (void *)quant_new},
    {Py_tp_dealloc, (void *)quant_dealloc},
    {Py_tp_repr, (void *)quant_repr},
    {Py_tp_richcompare, (void *)quant_compare},
    {Py_tp_hash, (void *)quant_hash},
    {Py_tp_methods, quant_methods},
    {Py_tp_getset, quant_getset},
    {0, NULL},
};

static PyType_Spec quant_spec = {
    .name = "anetorch.Quantization",
    .basicsize = sizeof(QuantObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = quant_slots,
};

int ane_py_add_quant(PyObject *module, ane_py_state *st) {
    st->quant_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &quant_spec, NULL);
    return st->quant_type ? PyModule_AddType(module, st->quant_type) : -1;
}
