/* anetorch.Tensor: life, properties, buffer export. Views are made in tensor_view.c, data
 * moves in tensor_data.c. */
#include "tensor.h"

#include <structmember.h>

#include <string.h>

/* ---------------------------------------------------------------- making */

const ane_tensor *ane_py_open(PyObject *self, const char *what) {
    TensorObject *o = ANE_TENSOR(self);
    if (o->t.surface) return &o->t;
    PyErr_Format(PyExc_ValueError, "[%s] the tensor is closed", what);
    return NULL;
}

int ane_py_is_tensor(ane_py_state *st, PyObject *obj) {
    return PyObject_TypeCheck(obj, st->tensor_type);
}

const ane_tensor *ane_py_tensor_view(PyObject *obj) { return ane_py_open(obj, "tensor"); }

PyObject *ane_py_tensor_make(PyTypeObject *type, ane_py_state *st, const ane_tensor *t) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    TensorObject *o = (TensorObject *)alloc(type, 0);
    if (!o) return NULL;
    o->st = st;
    o->t = *t;
    ane_surface_retain(t->surface);
    return (PyObject *)o;
}

PyObject *ane_py_tensor_new(ane_py_state *st, const ane_tensor *t) {
    return ane_py_tensor_make(st->tensor_type, st, t);
}

void ane_py_tensor_pin(PyObject *obj) { ANE_TENSOR(obj)->runs++; }
void ane_py_tensor_unpin(PyObject *obj) { ANE_TENSOR(obj)->runs--; }

int ane_py_memory(PyObject *obj, ane_memory *out) {
    if (!obj || obj == Py_None) {
        *out = ane_memory_default();
        return 0;
    }
    const char *name = PyUnicode_Check(obj) ? PyUnicode_AsUTF8AndSize(obj, NULL) : NULL;
    if (!name) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "mem is None or a str, not %R", obj);
        return -1;
    }
    for (int k = ANE_MEM_HEAP; k <= ANE_MEM_DMA; k++)
        if (!strcmp(name, ane_memory_name((ane_memory)k))) {
            *out = (ane_memory)k;
            return 0;
        }
    PyErr_Format(PyExc_ValueError,
                 "mem=%R is unknown; use 'shm', 'heap', 'iosurface' or 'dma' (external memory "
                 "comes from Tensor.wrap and from_dlpack)", obj);
    return -1;
}

int ane_py_alloc(ane_py_state *st, int memory, ane_dtype dtype, int rank,
                 const int64_t *shape, size_t capacity, const char *name, ane_tensor *t) {
    ane_error err = {0};
    ane_tensor probe;
    ane_surface *s = NULL;
    size_t bytes = 0;
    ane_status (*create)(ane_memory, size_t, const char *, ane_surface **, ane_error *) =
        memory & ANE_PY_APART ? ane_surface_create_apart : ane_surface_create;
    ane_memory kind = (ane_memory)(memory & ~ANE_PY_APART);
    ane_status status = ane_shape_size(dtype, rank, shape, &bytes, &err);
    if (status) goto fail;
    if (capacity < bytes) capacity = bytes;
    /* The lock is let go only for blocks whose zeroing or mapping takes a while. */
    if (capacity > ((size_t)1 << 16)) {
        Py_BEGIN_ALLOW_THREADS
        status = create(kind, capacity, name, &s, &err);
        Py_END_ALLOW_THREADS
    } else {
        status = create(kind, capacity, name, &s, &err);
    }
    if (!status) status = ane_tensor_init(&probe, s, 0, dtype, rank, shape, &err);
    if (status) goto fail;
    ane_surface_track(s);
    *t = probe;
    return 0;
fail:
    ane_surface_release(s);
    ane_py_raise(st, &err);
    return -1;
}

static PyObject *tensor_new(PyTypeObject *type, PyObject *args, PyObject *kw) {
    static char *names[] = {"shape", "dtype", "mem", "name", "capacity", NULL};
    PyObject *shape, *dtype = NULL, *mem = NULL, *cap = NULL;
    const char *name = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O|OOz$O:Tensor", names, &shape, &dtype, &mem,
                                     &name, &cap))
        return NULL;
    ane_py_state *st = ane_py_state_by_type(type);
    ane_dtype d = ANE_F32;
    ane_memory m;
    int64_t dims[ANE_MAX_RANK];
    int rank;
    size_t capacity = 0;
    if (!st || ane_py_shape(shape, dims, &rank) < 0) return NULL;
    if (dtype && dtype != Py_None && ane_py_dtype(dtype, &d) < 0) return NULL;
    if (ane_py_memory(mem, &m) < 0) return NULL;
    if (cap && cap != Py_None) {
        Py_ssize_t n = PyNumber_AsSsize_t(cap, PyExc_OverflowError);
        if (n == -1 && PyErr_Occurred()) return NULL;
        if (n < 0) {
            PyErr_Format(PyExc_ValueError, "[Tensor] capacity %zd is negative", n);
            return NULL;
        }
        capacity = (size_t)n;
    }
    ane_tensor t;
    ane_error err = {0};
    size_t bytes;
    if (ane_shape_size(d, rank, dims, &bytes, &err)) return ane_py_raise(st, &err);
    if (capacity && capacity < bytes) {
        PyErr_Format(PyExc_ValueError, "[Tensor] insufficient capacity: the shape needs %zu "
                     "bytes, capacity is %zu", bytes, capacity);
        return NULL;
    }
    /* Whoever asks for shm by name wants to share it, maybe with code that maps at 0. */
    int want = mem && mem != Py_None ? (int)m | ANE_PY_APART : (int)m;
    if (ane_py_alloc(st, want, d, rank, dims, capacity, name, &t) < 0) return NULL;
    PyObject *self = ane_py_tensor_make(type, st, &t);
    ane_surface_release(t.surface);
    if (self) ANE_TENSOR(self)->owns = true;
    return self;
}

static void tensor_dealloc(PyObject *self) {
    TensorObject *o = ANE_TENSOR(self);
    PyTypeObject *type = Py_TYPE(self);
    if (o->weakrefs) PyObject_ClearWeakRefs(self);
    ane_surface *s = o->t.surface;
    o->t.surface = NULL;
    Py_CLEAR(o->quant);
    ane_surface_release(s);
    freefunc drop = (freefunc)PyType_GetSlot(type, Py_tp_free);
    drop(self);
    Py_DECREF(type);
}

static int refuse_if_used(TensorObject *o) {
    if (o->exports) {
        PyErr_Format(PyExc_BufferError,
                     "[close] %zd export%s of this tensor (NumPy arrays, memoryviews, DLPack "
                     "capsules) still alive; delete them first",
                     o->exports, o->exports == 1 ? "" : "s");
        return -1;
    }
    if (o->runs) {
        PyErr_Format(PyExc_BufferError, "[close] %zd run%s on this tensor still going",
                     o->runs, o->runs == 1 ? "" : "s");
        return -1;
    }
    return 0;
}

static PyObject *tensor_close(PyObject *self, PyObject *unused) {
    (void)unused;
    TensorObject *o = ANE_TENSOR(self);
    if (!o->t.surface) Py_RETURN_NONE;
    if (refuse_if_used(o) < 0) return NULL;
    ane_surface *s = o->t.surface;
    o->t.surface = NULL;
    ane_surface_release(s);
    Py_RETURN_NONE;
}

static PyObject *tensor_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return ane_py_open(self, "enter") ? Py_NewRef(self) : NULL;
}

static PyObject *tensor_exit(PyObject *self, PyObject *args) {
    (void)args;
    return tensor_close(self, NULL);
}

/* ---------------------------------------------------------------- buffers */

static const char *format_of(ane_dtype dtype, bool raw) {
    switch (dtype) {
    case ANE_F16: return "e";
    case ANE_F32: return "f";
    case ANE_F64: return "d";
    case ANE_BOOL: return "?";
    case ANE_I8: return "b";
    case ANE_I16: return "h";
    case ANE_I32: return "i";
    case ANE_I64: return "q";
    case ANE_U8: return "B";
    case ANE_U16: return "H";
    case ANE_U32: return "I";
    case ANE_U64: return "Q";
    default: return raw ? ane_dtype_size(dtype) == 2 ? "H" : "B" : NULL;
    }
}

static bool f_contiguous(const ane_tensor *t) {
    int64_t want = (int64_t)ane_dtype_size(t->dtype);
    for (int i = 0; i < t->rank; i++)
        if (t->shape[i] == 0) return true;
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] != 1 && t->strides[i] != want) return false;
        want *= t->shape[i];
    }
    return true;
}

int ane_py_fill_buffer(Py_buffer *b, PyObject *owner, const ane_tensor *t, bool readonly,
                       bool raw, int flags) {
    b->obj = NULL;
    const char *format = format_of(t->dtype, raw);
    bool c = ane_tensor_contiguous(t), f = f_contiguous(t);
#define ASKS(what) ((flags & (what)) == (what))
    const char *why = NULL;
    if (ASKS(PyBUF_WRITABLE) && readonly) why = "it is read-only";
    else if (ASKS(PyBUF_FORMAT) && !format)
        why = "the buffer protocol has no code for bfloat16 and fp8; use numpy(), DLPack, or "
              "view(0, shape, \"uint16\")";
    else if (ASKS(PyBUF_C_CONTIGUOUS) && !c) why = "it is not C-contiguous";
    else if (ASKS(PyBUF_F_CONTIGUOUS) && !f) why = "it is not Fortran-contiguous";
    else if (ASKS(PyBUF_ANY_CONTIGUOUS) && !c && !f) why = "it is not contiguous";
    else if (!ASKS(PyBUF_STRIDES) && !c) why = "it is strided and no strides are asked for";
    if (why) {
        PyErr_Format(PyExc_BufferError, "the tensor cannot be exported like this: %s", why);
        return -1;
    }
    b->obj = Py_NewRef(owner);
    b->buf = ane_tensor_data(t);
    b->itemsize = (Py_ssize_t)ane_dtype_size(t->dtype);
    b->len = ane_tensor_count(t) * b->itemsize;
    b->readonly = readonly;
    b->ndim = t->rank;
    b->format = ASKS(PyBUF_FORMAT) ? (char *)format : NULL;
    b->shape = ASKS(PyBUF_ND) ? (Py_ssize_t *)t->shape : NULL;
    b->strides = ASKS(PyBUF_STRIDES) ? (Py_ssize_t *)t->strides : NULL;
    b->suboffsets = NULL;
    b->internal = NULL;
#undef ASKS
    return 0;
}

static int tensor_getbuffer(PyObject *self, Py_buffer *b, int flags) {
    TensorObject *o = ANE_TENSOR(self);
    ane_error err = {0};
    b->obj = NULL;
    const ane_tensor *t = ane_py_open(self, "buffer");
    if (!t) return -1;
    if (ane_tensor_readable(t, &err)) {
        ane_py_raise(o->st, &err);
        return -1;
    }
    if (ane_py_fill_buffer(b, self, t, ane_surface_readonly(t->surface), o->raw, flags) < 0)
        return -1;
    o->exports++;
    if (!b->readonly) ane_surface_expose(t->surface, true);
    return 0;
}

static void tensor_releasebuffer(PyObject *self, Py_buffer *b) {
    if (!b->readonly) ane_surface_expose(ANE_TENSOR(self)->t.surface, false);
    ANE_TENSOR(self)->exports--;
}

/* ---------------------------------------------------------------- properties */

#define GETTER(name)                                                                     \
    static PyObject *get_##name(PyObject *self, void *closure) {                         \
        (void)closure;                                                                   \
        const ane_tensor *t = ane_py_open(self, #name);                                  \
        if (!t) return NULL;

GETTER(shape) return ane_py_shape_tuple(t->rank, t->shape); }
GETTER(strides) return ane_py_shape_tuple(t->rank, t->strides); }
GETTER(dtype) return PyUnicode_FromString(ane_dtype_name(t->dtype)); }
GETTER(itemsize) return PyLong_FromSize_t(ane_dtype_size(t->dtype)); }
GETTER(ndim) return PyLong_FromLong(t->rank); }
GETTER(size) return PyLong_FromLongLong(ane_tensor_count(t)); }
GETTER(nbytes) return PyLong_FromLongLong(ane_tensor_count(t) * (long long)ane_dtype_size(t->dtype)); }
GETTER(memory) return PyUnicode_FromString(ane_memory_name(ane_surface_memory(t->surface))); }
GETTER(name) const char *n = ane_surface_name(t->surface);
    if (!*n) Py_RETURN_NONE;
    return PyUnicode_FromString(n); }
GETTER(offset) return PyLong_FromSize_t(t->offset); }
GETTER(capacity_bytes) return PyLong_FromSize_t(ane_surface_bytes(t->surface) - t->offset); }
GETTER(buffer_id) return PyLong_FromUnsignedLongLong(ane_surface_identity(t->surface)); }
GETTER(readonly) return PyBool_FromLong(ane_surface_readonly(t->surface)); }
GETTER(is_contiguous) return PyBool_FromLong(ane_tensor_contiguous(t)); }

static PyObject *get_closed(PyObject *self, void *closure) {
    (void)closure;
    return PyBool_FromLong(!ANE_TENSOR(self)->t.surface);
}
static PyObject *get_exports(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSsize_t(ANE_TENSOR(self)->exports);
}

static PyObject *tensor_repr(PyObject *self) {
    TensorObject *o = ANE_TENSOR(self);
    PyObject *type = PyType_GetName(Py_TYPE(self)), *shape = NULL, *out = NULL;
    if (!type) return NULL;
    if (!o->t.surface) {
        out = PyUnicode_FromFormat("%U(closed)", type);
        Py_DECREF(type);
        return out;
    }
    const ane_tensor *t = &o->t;
    const char *name = ane_surface_name(t->surface);
    PyObject *strides = NULL, *more = NULL, *quant = NULL;
    shape = ane_py_shape_tuple(t->rank, t->shape);
    if (!shape) goto done;
    if (!ane_tensor_contiguous(t)) {
        strides = ane_py_shape_tuple(t->rank, t->strides);
        more = strides ? PyUnicode_FromFormat(", strides=%S", strides) : NULL;
    } else {
        more = PyUnicode_FromString("");
    }
    if (!more) goto done;
    quant = o->quant ? PyUnicode_FromFormat(", quantization=%R", o->quant)
                     : PyUnicode_FromString("");
    if (!quant) goto done;
    out = PyUnicode_FromFormat("%U(shape=%S, dtype='%s', memory='%s'%U%s%s%s%s%U)", type, shape,
                               ane_dtype_name(t->dtype),
                               ane_memory_name(ane_surface_memory(t->surface)), more,
                               *name ? ", name='" : "", name, *name ? "'" : "",
                               ane_surface_readonly(t->surface) ? ", readonly" : "", quant);
done:
    Py_XDECREF(quant);
    Py_XDECREF(more);
    Py_XDECREF(strides);
    Py_XDECREF(shape);
    Py_DECREF(type);
    return out;
}

/* rich's protocol: an iterable of (name, value). */
static PyObject *tensor_rich_repr(PyObject *self, PyObject *unused) {
    (void)unused;
    TensorObject *o = ANE_TENSOR(self);
    if (!o->t.surface) return Py_BuildValue("[(sO)]", "closed", Py_True);
    const ane_tensor *t = &o->t;
    PyObject *list = Py_BuildValue(
        "[(sN)(ss)(ss)(sL)]", "shape", ane_py_shape_tuple(t->rank, t->shape), "dtype",
        ane_dtype_name(t->dtype), "memory", ane_memory_name(ane_surface_memory(t->surface)),
        "nbytes", (long long)ane_tensor_count(t) * (long long)ane_dtype_size(t->dtype));
    const char *name = ane_surface_name(t->surface);
    PyObject *more[3] = {NULL, NULL, NULL};
    bool ok = list != NULL;
    if (ok && *name) ok = (more[0] = Py_BuildValue("(ss)", "name", name)) != NULL;
    if (ok && !ane_tensor_contiguous(t))
        ok = (more[1] = Py_BuildValue("(sN)", "strides",
                                      ane_py_shape_tuple(t->rank, t->strides))) != NULL;
    if (ok && o->quant)
        ok = (more[2] = Py_BuildValue("(sO)", "quantization", o->quant)) != NULL;
    for (int i = 0; i < 3; i++) {
        if (ok && more[i]) ok = PyList_Append(list, more[i]) == 0;
        Py_XDECREF(more[i]);
    }
    if (!ok) Py_CLEAR(list);
    return list;
}

static Py_ssize_t tensor_length(PyObject *self) {
    const ane_tensor *t = ane_py_open(self, "len");
    if (!t) return -1;
    if (t->rank) return (Py_ssize_t)t->shape[0];
    PyErr_SetString(PyExc_TypeError, "a tensor of rank 0 has no length");
    return -1;
}

static PyObject *tensor_sizeof(PyObject *self, PyObject *unused) {
    (void)unused;
    TensorObject *o = ANE_TENSOR(self);
    size_t n = sizeof *o;
    if (o->owns && o->t.surface) n += ane_surface_capacity(o->t.surface);
    return PyLong_FromSize_t(n);
}

/* ---------------------------------------------------------------- the type */

#define KEYWORDS(f) (PyCFunction)(void (*)(void)) f, METH_VARARGS | METH_KEYWORDS

static PyMethodDef tensor_methods[] = {
    {"close", tensor_close, METH_NOARGS,
     PyDoc_STR("close()\n\nLets the memory go. Closing twice is fine.\n\n"
               "Raises BufferError while an array, memoryview, capsule or run uses it.")},
    {"__enter__", tensor_enter, METH_NOARGS, NULL},
    {"__exit__", tensor_exit, METH_VARARGS, NULL},
    {"__sizeof__", tensor_sizeof, METH_NOARGS, NULL},
    {"from_numpy", KEYWORDS(ane_py_tensor_from_numpy) | METH_CLASS,
     PyDoc_STR("from_numpy(a, mem=None, name=None) -> Tensor\n\nA new tensor with a's shape, "
               "dtype and values (any strides).\n\n"
               ">>> Tensor.from_numpy(np.ones((2, 3), np.float16)).shape\n(2, 3)")},
    {"wrap", KEYWORDS(ane_py_tensor_wrap) | METH_CLASS,
     PyDoc_STR("wrap(obj) -> Tensor\n\nA tensor over obj's own memory (an array or buffer), "
               "without a copy and read-only where obj is. memory is 'external'.")},
    {"numpy", ane_py_tensor_numpy, METH_NOARGS,
     PyDoc_STR("numpy() -> numpy.ndarray\n\nAn array over the same memory, without a copy. "
               "While it lives, close() raises BufferError.\n\nRaises RuntimeError when a "
               "failed run left the bytes without a result.")},
    {"__array__", KEYWORDS(ane_py_tensor_array),
     PyDoc_STR("__array__(dtype=None, copy=None) with NumPy 2's meaning: copy=False raises "
               "where a copy is needed.")},
    {"__dlpack__", KEYWORDS(ane_py_tensor_dlpack),
     PyDoc_STR("__dlpack__(*, stream=None, max_version=None, dl_device=None, copy=None)\n\n"
               "A DLPack capsule; while it or its consumer lives, close() raises.")},
    {"__dlpack_device__", ane_py_tensor_dlpack_device, METH_NOARGS,
     PyDoc_STR("__dlpack_device__() -> (1, 0), the CPU")},
    {"from_dlpack", (PyCFunction)ane_py_tensor_from_dlpack, METH_O | METH_CLASS,
     PyDoc_STR("from_dlpack(x) -> Tensor\n\nA tensor over the memory of a PyTorch, JAX, NumPy "
               "... array or a DLPack capsule, without a copy. Read-only where the capsule "
               "says so, or is of a version (before 1.0) that cannot say.")},
    {"map", KEYWORDS(ane_py_tensor_map),
     PyDoc_STR("map(mode=\"rw\") -> TensorMap\n\nLocks the memory for reading ('r'), writing "
               "('w': the old contents are given up) or both. The lock is counted: maps nest "
               "and may be held by several threads.\n\n"
               ">>> with t.map(\"w\") as m:\n...     m.numpy()[:] = 0")},
    {"lookup", (PyCFunction)ane_py_tensor_lookup, METH_O | METH_CLASS,
     PyDoc_STR("lookup(id) -> Tensor\n\nThe tensor that another process (or this one) knows by "
               "t.id, over the same memory.\n\nRaises KeyError when its holder closed it or "
               "ended.")},
    {"fileno", ane_py_tensor_fileno, METH_NOARGS,
     PyDoc_STR("fileno() -> int\n\nThe memory's descriptor, owned by the tensor: dup or send "
               "it, do not close it. Its file position is where the surface starts (0 for "
               "mem=\"shm\"; a small tensor of the default kind lies in a common file).")},
    {"from_fd", KEYWORDS(ane_py_tensor_from_fd) | METH_CLASS,
     PyDoc_STR("from_fd(fd, shape, dtype=\"float32\", offset=None, *, seal=True) -> Tensor\n\n"
               "A tensor over a descriptor's memory; the descriptor is duplicated and stays the "
               "caller's. offset in bytes, by default the file position. Memory that cannot be "
               "sealed against shrinking is refused unless seal=False.\n\nRaises ValueError "
               "when the file is too small.")},
    {"open", KEYWORDS(ane_py_tensor_open) | METH_CLASS,
     PyDoc_STR("open(name, shape, dtype=\"float32\") -> Tensor\n\nNamed POSIX shared memory "
               "that another process made by Tensor(shape, mem=\"shm\", name=\"/...\"). The "
               "name lives until its maker closes the tensor, or unlink().")},
    {"unlink", (PyCFunction)ane_py_tensor_unlink, METH_O | METH_CLASS,
     PyDoc_STR("unlink(name)\n\nRemoves a name that a killed process left behind.")},
    {"image", KEYWORDS(ane_py_tensor_image) | METH_CLASS,
     PyDoc_STR("image(width, height, format=\"RGBA\", mem=None, name=None) -> Tensor\n\nA uint8 "
               "image of format YUYV, NV12, RGBA, BGRA, RGB or GREY, rows padded to 64 bytes: "
               "shape (height, width, bytes per pixel), or (height, width) for GREY, or "
               "(height*3//2, width) for NV12, whose last third is interleaved U and V.\n\n"
               ">>> Tensor.image(30, 2, \"RGB\").strides\n(128, 3, 1)")},
    {"to_pil", ane_py_tensor_to_pil, METH_NOARGS,
     PyDoc_STR("to_pil() -> PIL.Image.Image\n\nA copy of an image tensor: RGBA for RGBA and BGRA, "
               "RGB for RGB, YUYV and NV12 (BT.601, video range), L for GREY.")},
    {"from_pil", KEYWORDS(ane_py_tensor_from_pil) | METH_CLASS,
     PyDoc_STR("from_pil(image, format=None, mem=None, name=None) -> Tensor\n\nAn image tensor "
               "from a PIL image; format defaults to GREY for L, RGB for RGB, else RGBA.")},
    {"from_iosurface", KEYWORDS(ane_py_tensor_from_iosurface) | METH_CLASS,
     PyDoc_STR("from_iosurface(ref, shape, dtype=\"float32\") -> Tensor\n\nA tensor over an "
               "IOSurfaceRef given as an integer, which is retained. macOS.\n\nRaises ValueError "
               "for null, and when the shape needs more than the surface has.")},
    {"_share", ane_py_tensor_share, METH_NOARGS, NULL},
    {"_from_share", (PyCFunction)ane_py_tensor_from_share, METH_VARARGS | METH_CLASS, NULL},
    {"_from_value", (PyCFunction)ane_py_tensor_from_value, METH_VARARGS | METH_CLASS, NULL},
    {"__reduce__", ane_py_tensor_reduce, METH_NOARGS,
     PyDoc_STR("Pickles carry class, shape, dtype, memory kind and values; multiprocessing sends "
               "shm tensors without a copy instead.")},
    {"__rich_repr__", tensor_rich_repr, METH_NOARGS, NULL},
    {"copy_from", ane_py_tensor_copy_from, METH_O,
     PyDoc_STR("copy_from(a) -> self\n\nCopies an array or tensor of the same shape and "
               "dtype into this one. Threaded above 256 KiB.\n\nRaises ValueError for another "
               "shape, TypeError for another dtype.")},
    {"copy_", ane_py_tensor_copy_, METH_O,
     PyDoc_STR("copy_(a) -> self\n\nLike copy_from, but broadcasts and converts dtype (round "
               "to nearest even; float to integer truncates and saturates). Source and "
               "destination may overlap.")},
    {"fill_", ane_py_tensor_fill_, METH_O,
     PyDoc_STR("fill_(value) -> self\n\nSets every element.")},
    {"item", ane_py_tensor_item, METH_NOARGS,
     PyDoc_STR("item() -> bool, int or float\n\nThe value of a tensor of one element.")},
    {"tolist", ane_py_tensor_tolist, METH_NOARGS,
     PyDoc_STR("tolist() -> nested lists of Python values")},
    {"contiguous", ane_py_tensor_contiguous, METH_NOARGS,
     PyDoc_STR("contiguous() -> Tensor\n\nself where it is row-major without gaps, else a "
               "copy that is.")},
    {"dequantize", KEYWORDS(ane_py_tensor_dequantize),
     PyDoc_STR("dequantize(dtype=\"float32\", mem=None) -> Tensor\n\nscale * (stored - "
               "zero_point) in a new tensor of a float type, by t.quantization; rounded once for "
               "integers of 8 and 16 bits.\n\nRaises ValueError where there is no quantization, "
               "TypeError for other types.\n\n"
               ">>> t.quantization = Quantization(0.5, zero_point=3)\n>>> t.dequantize()")},
    {"reshape", KEYWORDS(ane_py_tensor_reshape),
     PyDoc_STR("reshape(*shape) -> Tensor\n\nThe same elements and memory in another shape; "
               "one dimension may be -1.\n\nRaises ValueError when the counts differ, or when "
               "a strided tensor would need a copy.")},
    {"view", KEYWORDS(ane_py_tensor_view_method),
     PyDoc_STR("view(offset, shape, dtype=None) -> Tensor\n\nA row-major view starting offset "
               "bytes after this tensor's first element, anywhere inside capacity_bytes; "
               "dtype reinterprets the bits.\n\nRaises ValueError when it does not fit or is "
               "not aligned to the dtype.")},
    {"permute", KEYWORDS(ane_py_tensor_permute),
     PyDoc_STR("permute(*axes) -> Tensor\n\nThe same memory with its axes reordered.")},
    {"batch", ane_py_tensor_batch, METH_O,
     PyDoc_STR("batch(n) -> Tensor\n\nElement n of the first axis: t[n], without negative "
               "counting.\n\nRaises IndexError naming n and the number of batches.")},
    {NULL, NULL, 0, NULL},
};

#define GET(name, doc) {#name, get_##name, NULL, PyDoc_STR(doc), NULL}
static PyGetSetDef tensor_getset[] = {
    GET(shape, "Elements per axis."),
    GET(strides, "Bytes from one element to the next, per axis."),
    GET(dtype, "NumPy's name of the element type, e.g. 'float16'."),
    GET(itemsize, "Bytes per element."),
    GET(ndim, "Number of axes."),
    GET(size, "Number of elements (as NumPy's; see nbytes for bytes)."),
    GET(nbytes, "size * itemsize."),
    GET(memory, "'shm', 'heap', 'iosurface', 'dma' or 'external'."),
    GET(name, "The surface's name, or None."),
    GET(offset, "Bytes from the surface's start to the first element."),
    GET(capacity_bytes, "Bytes from the first element to the surface's end."),
    GET(buffer_id, "Identity of the memory: equal for views, never used twice in a process."),
    GET(readonly, "Whether writing raises."),
    GET(is_contiguous, "Whether the elements are row-major without gaps."),
    GET(closed, "Whether close() was called."),
    GET(exports, "Live arrays, memoryviews and capsules."),
    {"id", ane_py_tensor_id, NULL,
     PyDoc_STR("Names this tensor to other processes: see lookup. It stays valid while this "
               "process holds the memory."), NULL},
    {"fd_offset", ane_py_tensor_fd_offset, NULL,
     PyDoc_STR("Bytes from the start of fileno()'s file to the first element."), NULL},
    {"format", ane_py_tensor_format, NULL,
     PyDoc_STR("The image format, or None. Views have none."), NULL},
    {"quantization", ane_py_tensor_get_quant, ane_py_tensor_set_quant,
     PyDoc_STR("The Quantization that says what the integers stand for, or None. Views keep "
               "what of it concerns them; copies into the tensor leave it alone."), NULL},
    {"fourcc", ane_py_tensor_fourcc, NULL,
     PyDoc_STR("IOSurface's code of the image format, or None."), NULL},
    {"iosurface_id", ane_py_tensor_iosurface_id, NULL,
     PyDoc_STR("The IOSurface's id, or None for other memory."), NULL},
    {"iosurface_ref", ane_py_tensor_iosurface_ref, NULL,
     PyDoc_STR("The IOSurfaceRef as an integer (borrowed), or None."), NULL},
    {"t", ane_py_tensor_transposed, NULL,
     PyDoc_STR("A view with the last two axes exchanged."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef tensor_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(TensorObject, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(tensor_doc,
"Tensor(shape, dtype=\"float32\", mem=None, name=None, *, capacity=None)\n"
"--\n\n"
"An n-dimensional view of a surface: memory that kernels, NumPy, PyTorch and other processes\n"
"can use without a copy. Contents start as zeros.\n\n"
"shape is an int or a sequence of at most 8; dtype a name ('float16', 'fp16', 'f16') or a\n"
"NumPy dtype; mem 'shm' (the default on Linux), 'heap', 'iosurface' (macOS) or 'dma';\n"
"capacity the bytes to reserve when more than the shape needs (see view).\n\n"
"Equality and hash are by identity. Views keep the memory alive; closing one tensor leaves\n"
"its views usable.\n\n"
">>> t = Tensor((1, 8, 1, 32), \"float16\")\n"
">>> np.asarray(t)[:] = 1          # the same bytes\n"
">>> t[0, :4].shape\n"
"(4, 1, 32)");

static PyType_Slot tensor_slots[] = {
    {Py_tp_doc, (void *)tensor_doc},
    {Py_tp_new, (void *)tensor_new},
    {Py_tp_dealloc, (void *)tensor_dealloc},
    {Py_tp_repr, (void *)tensor_repr},
    {Py_tp_methods, tensor_methods},
    {Py_tp_getset, tensor_getset},
    {Py_tp_members, tensor_members},
    {Py_mp_length, (void *)tensor_length},
    {Py_mp_subscript, (void *)ane_py_tensor_subscript},
    {Py_mp_ass_subscript, (void *)ane_py_tensor_assign},
    {Py_nb_float, (void *)ane_py_tensor_float},
    {Py_nb_int, (void *)ane_py_tensor_int},
    {Py_nb_bool, (void *)ane_py_tensor_bool},
    {Py_bf_getbuffer, (void *)tensor_getbuffer},
    {Py_bf_releasebuffer, (void *)tensor_releasebuffer},
    {0, NULL},
};

static PyType_Spec tensor_spec = {
    .name = "anetorch.Tensor",
    .basicsize = sizeof(TensorObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = tensor_slots,
};

/* A subclass has no module of its own: walk up to the type that has. */
ane_py_state *ane_py_state_by_type(PyTypeObject *type) {
    for (PyTypeObject *t = type; t; t = (PyTypeObject *)PyType_GetSlot(t, Py_tp_base)) {
        if (!(PyType_GetFlags(t) & Py_TPFLAGS_HEAPTYPE)) break;
        ane_py_state *st = PyType_GetModuleState(t);
        if (st && st->tensor_type == t) return st;
        PyErr_Clear();
    }
    PyErr_Format(PyExc_TypeError, "%R does not derive from Tensor", type);
    return NULL;
}

int ane_py_add_tensor(PyObject *module, ane_py_state *st) {
    st->tensor_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &tensor_spec, NULL);
    if (!st->tensor_type || PyModule_AddType(module, st->tensor_type) < 0) return -1;
    if (ane_py_add_quant(module, st) < 0 || ane_py_add_map(module, st) < 0 || ane_py_add_pool(module, st) < 0) return -1;
    return ane_py_add_images(module);
}
