/* Images, IOSurface references, and the availability probes. */
#include "tensor.h"

METHOD(ane_py_tensor_image) {
    static char *names[] = {"width", "height", "format", "mem", "name", NULL};
    long long width, height;
    const char *format = "RGBA", *name = NULL;
    PyObject *mem = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "LL|sOz:image", names, &width, &height, &format,
                                     &mem, &name))
        return NULL;
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)self);
    ane_memory memory;
    if (!st || ane_py_memory(mem, &memory) < 0) return NULL;
    ane_error err = {0};
    ane_image_layout layout;
    ane_tensor t;
    if (ane_image_layout_init(&layout, format, width, height, &err) ||
        ane_image_create(memory, &layout, name, &t, &err))
        return ane_py_raise(st, &err);
    PyObject *out = ane_py_tensor_make((PyTypeObject *)self, st, &t);
    ane_surface_release(t.surface);
    if (out) {
        ANE_TENSOR(out)->owns = true;
        ANE_TENSOR(out)->image = (int)layout.format;
    }
    return out;
}

PyObject *ane_py_tensor_format(PyObject *self, void *closure) {
    (void)closure;
    const char *name = ane_image_name((ane_image)ANE_TENSOR(self)->image);
    if (!*name) Py_RETURN_NONE;
    return PyUnicode_FromString(name);
}

PyObject *ane_py_tensor_fourcc(PyObject *self, void *closure) {
    (void)closure;
    ane_image_layout layout;
    const char *name = ane_image_name((ane_image)ANE_TENSOR(self)->image);
    if (!*name || ane_image_layout_init(&layout, name, 2, 2, NULL)) Py_RETURN_NONE;
    return PyLong_FromUnsignedLong(layout.fourcc);
}

/* The conversions are arithmetic on arrays: anetorch/images.py. */
static PyObject *images_call(const char *name, PyObject *args, PyObject *kw) {
    PyObject *module = PyImport_ImportModule("anetorch.images"), *f, *r = NULL;
    if (!module) return NULL;
    f = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    if (f) r = PyObject_Call(f, args, kw);
    Py_XDECREF(f);
    return r;
}

METHOD0(ane_py_tensor_to_pil) {
    (void)unused;
    PyObject *args = PyTuple_Pack(1, self);
    PyObject *r = args ? images_call("to_pil", args, NULL) : NULL;
    Py_XDECREF(args);
    return r;
}

METHOD(ane_py_tensor_from_pil) {
    PyObject *first = PyTuple_Pack(1, self), *all = NULL, *r = NULL;
    if (first) all = PySequence_Concat(first, args);
    if (all) r = images_call("from_pil", all, kw);
    Py_XDECREF(all);
    Py_XDECREF(first);
    return r;
}

/* ---------------------------------------------------------------- IOSurface */

PyObject *ane_py_tensor_iosurface_id(PyObject *self, void *closure) {
    (void)closure;
    const ane_tensor *t = ane_py_open(self, "iosurface_id");
    if (!t) return NULL;
    uint32_t id = ane_surface_iosurface_id(t->surface);
    if (!id) Py_RETURN_NONE;
    return PyLong_FromUnsignedLong(id);
}

PyObject *ane_py_tensor_iosurface_ref(PyObject *self, void *closure) {
    (void)closure;
    const ane_tensor *t = ane_py_open(self, "iosurface_ref");
    if (!t) return NULL;
    void *ref = ane_surface_iosurface_ref(t->surface);
    if (!ref) Py_RETURN_NONE;
    return PyLong_FromVoidPtr(ref);
}

METHOD(ane_py_tensor_from_iosurface) {
    static char *names[] = {"ref", "shape", "dtype", NULL};
    PyObject *ref, *shape, *dtype = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "OO|O:from_iosurface", names, &ref, &shape,
                                     &dtype))
        return NULL;
    ane_py_state *st = ane_py_state_by_type((PyTypeObject *)self);
    int64_t dims[ANE_MAX_RANK];
    int rank;
    ane_dtype d = ANE_F32;
    if (!st || ane_py_shape(shape, dims, &rank) < 0) return NULL;
    if (dtype && dtype != Py_None && ane_py_dtype(dtype, &d) < 0) return NULL;
    void *pointer = PyLong_AsVoidPtr(ref);
    if (!pointer && PyErr_Occurred()) return NULL;
    ane_error err = {0};
    size_t bytes;
    ane_surface *s;
    ane_tensor t;
    if (ane_shape_size(d, rank, dims, &bytes, &err) ||
        ane_surface_from_iosurface(pointer, bytes, &s, &err))
        return ane_py_raise(st, &err);
    PyObject *out = NULL;
    if (ane_tensor_init(&t, s, 0, d, rank, dims, &err)) ane_py_raise(st, &err);
    else out = ane_py_tensor_make((PyTypeObject *)self, st, &t);
    ane_surface_release(s);
    return out;
}

/* ---------------------------------------------------------------- probes */

static PyObject *probe(ane_memory kind) { return PyBool_FromLong(ane_memory_available(kind)); }
static PyObject *has_iosurface(PyObject *m, PyObject *u) {
    return (void)m, (void)u, probe(ANE_MEM_IOSURFACE);
}
static PyObject *has_shm(PyObject *m, PyObject *u) { return (void)m, (void)u, probe(ANE_MEM_SHM); }
static PyObject *has_dma(PyObject *m, PyObject *u) { return (void)m, (void)u, probe(ANE_MEM_DMA); }

static PyMethodDef functions[] = {
    {"is_iosurface_available", has_iosurface, METH_NOARGS,
     PyDoc_STR("is_iosurface_available() -> bool\n\nFalse off macOS; never raises.\n\n"
               ">>> anetorch.is_iosurface_available() == (sys.platform == \"darwin\")\nTrue")},
    {"is_shm_available", has_shm, METH_NOARGS,
     PyDoc_STR("is_shm_available() -> bool\n\nWhether mem=\"shm\" works.\n\n"
               ">>> mem = \"shm\" if anetorch.is_shm_available() else \"heap\"\n"
               ">>> anetorch.Tensor((2, 3), mem=mem).memory == mem\nTrue")},
    {"is_dma_available", has_dma, METH_NOARGS,
     PyDoc_STR("is_dma_available() -> bool\n\nWhether a Linux dma-heap can be opened; never "
               "raises.\n\n>>> anetorch.is_dma_available() in (True, False)\nTrue")},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_images(PyObject *module) { return PyModule_AddFunctions(module, functions); }
