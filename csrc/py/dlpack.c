/* DLPack both ways. The structs are the ABI of dlpack.h 1.x; version 0 capsules ("dltensor")
 * cannot say that memory is read-only, so we refuse to make one of a read-only tensor and
 * take one as read-only. */
#include "tensor.h"

#include <stdlib.h>
#include <string.h>

typedef struct dl_device { int32_t type, id; } dl_device;
typedef struct dl_type { uint8_t code, bits; uint16_t lanes; } dl_type;
typedef struct dl_tensor {
    void *data;
    dl_device device;
    int32_t ndim;
    dl_type dtype;
    int64_t *shape, *strides;           /* strides in elements; NULL: row-major */
    uint64_t byte_offset;
} dl_tensor;
typedef struct dl_managed {
    dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_managed *self);
} dl_managed;
typedef struct dl_versioned {
    struct { uint32_t major, minor; } version;
    void *context;
    void (*deleter)(struct dl_versioned *self);
    uint64_t flags;
    dl_tensor tensor;
} dl_versioned;

enum { DL_CPU = 1 };
enum { DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_BOOL = 6 };
enum { DL_READ_ONLY = 1, DL_IS_COPIED = 2 };

static const struct {
    ane_dtype dtype;
    uint8_t code, bits;
} types[] = {
    {ANE_F16, DL_FLOAT, 16}, {ANE_F32, DL_FLOAT, 32}, {ANE_F64, DL_FLOAT, 64},
    {ANE_BF16, DL_BFLOAT, 16}, {ANE_BOOL, DL_BOOL, 8}, {ANE_I8, DL_INT, 8},
    {ANE_I16, DL_INT, 16}, {ANE_I32, DL_INT, 32}, {ANE_I64, DL_INT, 64},
    {ANE_U8, DL_UINT, 8}, {ANE_U16, DL_UINT, 16}, {ANE_U32, DL_UINT, 32},
    {ANE_U64, DL_UINT, 64},
};
#define N_TYPES (sizeof types / sizeof *types)

/* ---------------------------------------------------------------- out */

typedef struct export {
    union {
        dl_managed plain;
        dl_versioned versioned;
    } m;
    TensorObject *owner;
    int64_t shape[ANE_MAX_RANK], strides[ANE_MAX_RANK];
} export;

static void drop_export(export *e) {
    TensorObject *owner = e->owner;
    free(e);
    /* Consumers call from any thread, and may do so after the interpreter is gone. */
    if (!Py_IsInitialized()) return;
    PyGILState_STATE g = PyGILState_Ensure();
    owner->exports--;
    if (!ane_surface_readonly(owner->t.surface)) ane_surface_expose(owner->t.surface, false);
    Py_DECREF((PyObject *)owner);
    PyGILState_Release(g);
}

static void delete_plain(dl_managed *m) { drop_export(m->context); }
static void delete_versioned(dl_versioned *m) { drop_export(m->context); }

/* A capsule that nobody took: its name is still ours. */
static void capsule_gone(PyObject *capsule) {
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        dl_managed *m = PyCapsule_GetPointer(capsule, "dltensor");
        m->deleter(m);
    } else if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        dl_versioned *m = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        m->deleter(m);
    }
}

static PyObject *export_capsule(TensorObject *o, bool versioned, bool copied) {
    const ane_tensor *t = &o->t;
    int64_t unit = (int64_t)ane_dtype_size(t->dtype);
    bool readonly = ane_surface_readonly(t->surface);
    size_t k = 0;
    while (k < N_TYPES && types[k].dtype != t->dtype) k++;
    if (k == N_TYPES) {
        PyErr_Format(PyExc_BufferError, "[dlpack] DLPack has no %s",
                     ane_dtype_name(t->dtype));
        return NULL;
    }
    if (readonly && !versioned) {
        PyErr_SetString(PyExc_BufferError, "[dlpack] the tensor is read-only, which a "
                                           "capsule before DLPack 1.0 cannot say; ask with "
                                           "max_version=(1, 0) or copy=True");
        return NULL;
    }
    for (int i = 0; i < t->rank; i++)
        if (t->strides[i] % unit) {
            PyErr_Format(PyExc_BufferError,
                         "[dlpack] stride %lld is no multiple of the element's %lld bytes",
                         (long long)t->strides[i], (long long)unit);
            return NULL;
        }
    export *e = calloc(1, sizeof *e);
    if (!e) return PyErr_NoMemory();
    e->owner = o;
    for (int i = 0; i < t->rank; i++) {
        e->shape[i] = t->shape[i];
        e->strides[i] = t->strides[i] / unit;
    }
    dl_tensor d = {.data = ane_tensor_data(t),
                   .device = {DL_CPU, 0},
                   .ndim = t->rank,
                   .dtype = {types[k].code, types[k].bits, 1},
                   .shape = e->shape,
                   .strides = e->strides};
    PyObject *capsule;
    if (versioned) {
        e->m.versioned.version.major = 1;
        e->m.versioned.version.minor = 0;
        e->m.versioned.context = e;
        e->m.versioned.deleter = delete_versioned;
        e->m.versioned.flags = (readonly ? DL_READ_ONLY : 0) | (copied ? DL_IS_COPIED : 0);
        e->m.versioned.tensor = d;
        capsule = PyCapsule_New(&e->m.versioned, "dltensor_versioned", capsule_gone);
    } else {
        e->m.plain.tensor = d;
        e->m.plain.context = e;
        e->m.plain.deleter = delete_plain;
        capsule = PyCapsule_New(&e->m.plain, "dltensor", capsule_gone);
    }
    if (!capsule) {
        free(e);
        return NULL;
    }
    Py_INCREF((PyObject *)o);
    o->exports++;
    if (!readonly) ane_surface_expose(t->surface, true);
    return capsule;
}

PyObject *ane_py_tensor_dlpack(PyObject *self, PyObject *args, PyObject *kw) {
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    PyObject *stream = Py_None, *version = Py_None, *device = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|$OOOO:__dlpack__", names, &stream, &version,
                                     &device, &copy))
        return NULL;
    long major = 0, minor = 0, type = DL_CPU, id = 0;
    if ((version != Py_None && !PyTuple_Check(version)) ||
        (device != Py_None && !PyTuple_Check(device))) {
        PyErr_SetString(PyExc_TypeError, "[dlpack] max_version and dl_device are pairs of "
                                         "integers");
        return NULL;
    }
    if (version != Py_None && !PyArg_ParseTuple(version, "ll", &major, &minor)) return NULL;
    if (device != Py_None && !PyArg_ParseTuple(device, "ll", &type, &id)) return NULL;
    if (stream != Py_None) {
        PyErr_SetString(PyExc_BufferError, "[dlpack] memory of the CPU has no stream; pass "
                                           "None");
        return NULL;
    }
    if (type != DL_CPU || id != 0) {
        PyErr_Format(PyExc_BufferError,
                     "[dlpack] the tensor is on device (1, 0), the CPU, not on (%ld, %ld)",
                     type, id);
        return NULL;
    }
    int must = copy == Py_None ? 0 : PyObject_IsTrue(copy);
    if (must < 0) return NULL;
    const ane_tensor *t = ane_py_open(self, "dlpack");
    if (!t) return NULL;
    ane_py_state *st = ANE_TENSOR(self)->st;
    ane_error err = {0};
    if (ane_tensor_readable(t, &err)) return ane_py_raise(st, &err);
    if (!must) return export_capsule(ANE_TENSOR(self), major >= 1, false);
    ane_tensor src = *t, dst;
    PyObject *fresh = NULL, *capsule = NULL;
    ane_surface_retain(src.surface);
    if (ane_py_alloc(st, ane_memory_default(), src.dtype, src.rank, src.shape, 0, NULL,
                     &dst) == 0) {
        if (ane_py_copy(st, &dst, &src) == 0) fresh = ane_py_tensor_new(st, &dst);
        ane_surface_release(dst.surface);
    }
    ane_surface_release(src.surface);
    if (fresh) capsule = export_capsule(ANE_TENSOR(fresh), major >= 1, true);
    Py_XDECREF(fresh);
    return capsule;
}

PyObject *ane_py_tensor_dlpack_device(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return Py_BuildValue("(ii)", DL_CPU, 0);
}

/* ---------------------------------------------------------------- in */

static void release_plain(void *arg) {
    dl_managed *m = arg;
    if (!m->deleter || !Py_IsInitialized()) return;
    PyGILState_STATE g = PyGILState_Ensure();
    m->deleter(m);
    PyGILState_Release(g);
}

static void release_versioned(void *arg) {
    dl_versioned *m = arg;
    if (!m->deleter || !Py_IsInitialized()) return;
    PyGILState_STATE g = PyGILState_Ensure();
    m->deleter(m);
    PyGILState_Release(g);
}

/* *t = d's view, and the byte range that it covers. The memory's true extent is unknown to
 * DLPack: what the view reaches is taken as granted. */
static int read_tensor(const dl_tensor *d, ane_tensor *t, unsigned char **base, size_t *bytes) {
    if (d->device.type != DL_CPU) {
        PyErr_Format(PyExc_BufferError, "[from_dlpack] device (%d, %d) is not the CPU (1, 0)",
                     (int)d->device.type, (int)d->device.id);
        return -1;
    }
    size_t k = 0;
    while (k < N_TYPES && (types[k].code != d->dtype.code || types[k].bits != d->dtype.bits))
        k++;
    if (k == N_TYPES || d->dtype.lanes != 1) {
        PyErr_Format(PyExc_TypeError,
                     "[from_dlpack] DLPack type (code %d, %d bits, %d lanes) is not supported",
                     d->dtype.code, d->dtype.bits, d->dtype.lanes);
        return -1;
    }
    if (d->ndim < 0 || d->ndim > ANE_MAX_RANK) {
        PyErr_Format(PyExc_ValueError, "[from_dlpack] rank %d is beyond the limit of %d",
                     (int)d->ndim, ANE_MAX_RANK);
        return -1;
    }
    int64_t unit = types[k].bits / 8, lo = 0, hi = unit, row = unit;
    bool empty = false, bad = false;
    *t = (ane_tensor){.dtype = types[k].dtype, .rank = d->ndim};
    for (int i = d->ndim - 1; i >= 0; i--) {
        int64_t n = d->shape[i], stride = row, span;
        if (d->strides) bad |= __builtin_mul_overflow(d->strides[i], unit, &stride);
        bad |= n < 0;
        empty |= n == 0;
        t->shape[i] = n;
        t->strides[i] = stride;
        if (!d->strides && n > 0) bad |= __builtin_mul_overflow(row, n, &row);
        if (n > 1) {
            bad |= __builtin_mul_overflow(n - 1, stride, &span);
            if (bad) break;
            bad |= span < 0 ? __builtin_add_overflow(lo, span, &lo)
                            : __builtin_add_overflow(hi, span, &hi);
        }
    }
    if (empty) lo = hi = 0;
    int64_t extent;
    if (bad || __builtin_sub_overflow(hi, lo, &extent) || (!empty && !d->data)) {
        PyErr_SetString(PyExc_ValueError, "[from_dlpack] the capsule's shape or strides are "
                                          "negative, overflow, or have no memory");
        return -1;
    }
    *base = d->data ? (unsigned char *)d->data + d->byte_offset + lo : NULL;
    *bytes = (size_t)extent;
    t->offset = (size_t)-lo;
    return 0;
}

static PyObject *call_dlpack(PyObject *obj) {
    PyObject *method = PyObject_GetAttrString(obj, "__dlpack__"), *r = NULL;
    if (!method) return NULL;
    PyObject *none = PyTuple_New(0), *kw = Py_BuildValue("{s(ii)}", "max_version", 1, 0);
    if (none && kw) r = PyObject_Call(method, none, kw);
    if (!r && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();                  /* a producer of before 1.0 */
        r = PyObject_CallNoArgs(method);
    }
    Py_XDECREF(kw);
    Py_XDECREF(none);
    Py_DECREF(method);
    return r;
}

PyObject *ane_py_tensor_from_dlpack(PyObject *cls, PyObject *arg) {
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)cls);
    if (!st) return NULL;
    PyObject *capsule = PyCapsule_CheckExact(arg) ? Py_NewRef(arg) : call_dlpack(arg);
    if (!capsule) return NULL;
    PyObject *out = NULL;
    ane_error err = {0};
    ane_tensor t;
    unsigned char *base;
    size_t bytes;
    ane_status status;
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        dl_versioned *m = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (m->version.major != 1) {
            PyErr_Format(PyExc_BufferError, "[from_dlpack] DLPack %u.%u is not understood; 1.x "
                                            "is",
                         m->version.major, m->version.minor);
            goto done;
        }
        if (read_tensor(&m->tensor, &t, &base, &bytes) < 0) goto done;
        status = ane_surface_wrap(base, bytes, m->flags & DL_READ_ONLY, release_versioned, m,
                                  &t.surface, &err);
        if (!status) PyCapsule_SetName(capsule, "used_dltensor_versioned");
    } else if (PyCapsule_IsValid(capsule, "dltensor")) {
        dl_managed *m = PyCapsule_GetPointer(capsule, "dltensor");
        if (read_tensor(&m->tensor, &t, &base, &bytes) < 0) goto done;
        status = ane_surface_wrap(base, bytes, true, release_plain, m, &t.surface, &err);
        if (!status) PyCapsule_SetName(capsule, "used_dltensor");
    } else {
        PyErr_Format(PyExc_TypeError,
                     "[from_dlpack] expected a DLPack capsule that was not consumed yet, got %R",
                     capsule);
        goto done;
    }
    if (status) {
        ane_py_raise(st, &err);
        goto done;
    }
    out = ane_py_tensor_make((PyTypeObject *)cls, st, &t);
    ane_surface_release(t.surface);
done:
    Py_DECREF(capsule);
    return out;
}
