/* The object of `with t.map(mode) as m`: a counted lock on the surface and the only door to
 * the bytes while it lasts. It keeps the surface itself, so it outlives the tensor. */
#include "tensor.h"

#include <structmember.h>

#include <stddef.h> // offsetof
#include <string.h>

typedef struct MapObject {
    PyObject_HEAD
    PyObject *weakrefs;
    ane_py_state *st;
    ane_tensor t;               /* surface retained until dealloc */
    ane_access access;
    Py_ssize_t exports;
    bool mapped;                /* holds the lock */
    bool leaving;               /* unmap was refused: the last export's release does it */
    bool raw;
} MapObject;

#define MAP(obj) ((MapObject *)(obj))

static bool writable(const MapObject *m) { return (m->access & ANE_WRITE) != 0; }

static const char *mode_name(ane_access a) {
    return a == ANE_READ ? "r" : a == ANE_WRITE ? "w" : "rw";
}

PyObject *ane_py_tensor_map(PyObject *self, PyObject *args, PyObject *kw) {
    static char *names[] = {"mode", NULL};
    const char *mode = "rw";
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|s:map", names, &mode)) return NULL;
    ane_access access = !strcmp(mode, "r")    ? ANE_READ
                        : !strcmp(mode, "w")  ? ANE_WRITE
                        : !strcmp(mode, "rw") ? ANE_READWRITE
                                              : 0;
    if (!access) {
        PyErr_Format(PyExc_ValueError, "[map] mode '%s' is none of 'r', 'w', 'rw'", mode);
        return NULL;
    }
    const ane_tensor *t = ane_py_open(self, "map");
    if (!t) return NULL;
    ane_py_state *st = ANE_TENSOR(self)->st;
    ane_error err = {0};
    /* A map for writing alone is how an invalid range becomes valid again. */
    if ((access != ANE_WRITE && ane_tensor_readable(t, &err)) ||
        ane_surface_lock(t->surface, access, &err))
        return ane_py_raise(st, &err);
    allocfunc alloc = (allocfunc)PyType_GetSlot(st->map_type, Py_tp_alloc);
    MapObject *m = (MapObject *)alloc(st->map_type, 0);
    if (!m) {
        (void)ane_surface_unlock(t->surface, access, NULL);
        return NULL;
    }
    m->st = st;
    m->t = *t;
    ane_surface_retain(t->surface);
    m->access = access;
    m->mapped = true;
    return (PyObject *)m;
}

static ane_status unlock(MapObject *m, ane_error *err) {
    if (!m->mapped) return ANE_OK;
    m->mapped = m->leaving = false;
    if (m->access == ANE_WRITE) ane_tensor_written(&m->t);
    return ane_surface_unlock(m->t.surface, m->access, err);
}

static void map_dealloc(PyObject *self) {
    MapObject *m = MAP(self);
    PyTypeObject *type = Py_TYPE(self);
    if (m->weakrefs) PyObject_ClearWeakRefs(self);
    (void)unlock(m, NULL);
    ane_surface_release(m->t.surface);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static int usable(const MapObject *m) {
    if (m->mapped && !m->leaving) return 0;
    PyErr_SetString(PyExc_BufferError, "[map] the map was left (unmapped); map again");
    return -1;
}

static PyObject *map_unmap(PyObject *self, PyObject *unused) {
    (void)unused;
    MapObject *m = MAP(self);
    ane_error err = {0};
    if (!m->mapped) Py_RETURN_NONE;
    if (m->exports) {
        m->leaving = true;
        PyErr_Format(PyExc_BufferError,
                     "[unmap] %zd export%s of this map (arrays, memoryviews) still alive; it "
                     "stays locked until the last is deleted",
                     m->exports, m->exports == 1 ? "" : "s");
        return NULL;
    }
    if (unlock(m, &err)) return ane_py_raise(m->st, &err);
    Py_RETURN_NONE;
}

static PyObject *map_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return usable(MAP(self)) < 0 ? NULL : Py_NewRef(self);
}

static PyObject *map_exit(PyObject *self, PyObject *args) {
    (void)args;
    return map_unmap(self, NULL);
}

static PyObject *map_numpy(PyObject *self, PyObject *unused) {
    (void)unused;
    MapObject *m = MAP(self);
    if (usable(m) < 0) return NULL;
    return ane_py_array_over(m->st, self, &m->raw, &m->t, writable(m));
}

/* ---------------------------------------------------------------- flat access */

static Py_ssize_t map_length(PyObject *self) { return ane_tensor_count(&MAP(self)->t); }

static unsigned char *element(MapObject *m, PyObject *key) {
    if (!PyIndex_Check(key)) {
        PyErr_Format(PyExc_TypeError,
                     "a map is indexed by one flat integer, not %R; use m.numpy()[...]", key);
        return NULL;
    }
    Py_ssize_t at = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (at == -1 && PyErr_Occurred()) return NULL;
    if (usable(m) < 0) return NULL;     /* __index__ may have left the map */
    Py_ssize_t n = ane_tensor_count(&m->t), i = at < 0 ? at + n : at;
    if (i < 0 || i >= n) {
        PyErr_Format(PyExc_IndexError, "[map] index %zd is out of bounds for %zd elements", at,
                     n);
        return NULL;
    }
    unsigned char *p = ane_tensor_data(&m->t);
    for (int a = m->t.rank - 1; a >= 0; a--) {
        p += i % m->t.shape[a] * m->t.strides[a];
        i /= m->t.shape[a];
    }
    return p;
}

static PyObject *map_get(PyObject *self, PyObject *key) {
    const unsigned char *p = element(MAP(self), key);
    return p ? ane_py_item(&MAP(self)->t, p) : NULL;
}

static int map_set(PyObject *self, PyObject *key, PyObject *value) {
    MapObject *m = MAP(self);
    if (!value) {
        PyErr_SetString(PyExc_TypeError, "elements of a map cannot be deleted");
        return -1;
    }
    /* The value first: turning it into a number may run Python. */
    uint64_t x;
    if (ane_py_set_item(&m->t, &x, value) < 0) return -1;
    unsigned char *p = element(m, key);
    if (!p) return -1;
    if (!writable(m)) {
        PyErr_SetString(PyExc_TypeError, "[map] a map for reading (mode 'r') cannot be "
                                         "written");
        return -1;
    }
    memcpy(p, &x, ane_dtype_size(m->t.dtype));
    return 0;
}

/* ---------------------------------------------------------------- buffers */

static int map_getbuffer(PyObject *self, Py_buffer *b, int flags) {
    MapObject *m = MAP(self);
    b->obj = NULL;
    if (usable(m) < 0) return -1;
    if (ane_py_fill_buffer(b, self, &m->t, !writable(m), m->raw, flags) < 0) return -1;
    m->exports++;
    return 0;
}

static void map_releasebuffer(PyObject *self, Py_buffer *b) {
    (void)b;
    MapObject *m = MAP(self);
    if (--m->exports == 0 && m->leaving) (void)unlock(m, NULL);
}

/* ---------------------------------------------------------------- the type */

#define GETTER(name, expr)                                                               \
    static PyObject *get_##name(PyObject *self, void *closure) {                         \
        (void)closure;                                                                   \
        MapObject *m = MAP(self);                                                        \
        return expr;                                                                     \
    }
GETTER(shape, ane_py_shape_tuple(m->t.rank, m->t.shape))
GETTER(strides, ane_py_shape_tuple(m->t.rank, m->t.strides))
GETTER(dtype, PyUnicode_FromString(ane_dtype_name(m->t.dtype)))
GETTER(nbytes, PyLong_FromLongLong(ane_tensor_count(&m->t) *
                                   (long long)ane_dtype_size(m->t.dtype)))
GETTER(mode, PyUnicode_FromString(mode_name(m->access)))
GETTER(mapped, PyBool_FromLong(m->mapped))
GETTER(exports, PyLong_FromSsize_t(m->exports))

static PyObject *map_repr(PyObject *self) {
    MapObject *m = MAP(self);
    PyObject *shape = ane_py_shape_tuple(m->t.rank, m->t.shape);
    PyObject *r = shape ? PyUnicode_FromFormat("<map '%s' of Tensor(shape=%S, dtype='%s')%s>",
                                               mode_name(m->access), shape,
                                               ane_dtype_name(m->t.dtype),
                                               m->mapped ? "" : ", unmapped")
                        : NULL;
    Py_XDECREF(shape);
    return r;
}

static PyMethodDef map_methods[] = {
    {"unmap", map_unmap, METH_NOARGS,
     PyDoc_STR("unmap()\n\nGives the lock back; twice is fine.\n\nRaises BufferError while "
               "arrays or memoryviews of the map live.")},
    {"numpy", map_numpy, METH_NOARGS,
     PyDoc_STR("numpy() -> numpy.ndarray\n\nThe mapped elements, without a copy; read-only in "
               "mode 'r'.")},
    {"__enter__", map_enter, METH_NOARGS, NULL},
    {"__exit__", map_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef map_getset[] = {
    {"shape", get_shape, NULL, PyDoc_STR("Elements per axis."), NULL},
    {"strides", get_strides, NULL, PyDoc_STR("Bytes per axis."), NULL},
    {"dtype", get_dtype, NULL, PyDoc_STR("NumPy's name of the element type."), NULL},
    {"nbytes", get_nbytes, NULL, PyDoc_STR("Bytes of the elements."), NULL},
    {"mode", get_mode, NULL, PyDoc_STR("'r', 'w' or 'rw'."), NULL},
    {"mapped", get_mapped, NULL, PyDoc_STR("Whether the lock is held."), NULL},
    {"exports", get_exports, NULL, PyDoc_STR("Live arrays and memoryviews."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef map_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(MapObject, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot map_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR("A locked view of a tensor's elements (see Tensor.map): buffer "
                       "protocol, numpy(), len and flat m[i].\n\n"
                       ">>> with t.map(\"r\") as m:\n...     total = m.numpy().sum()")},
    {Py_tp_dealloc, (void *)map_dealloc},
    {Py_tp_repr, (void *)map_repr},
    {Py_tp_methods, map_methods},
    {Py_tp_getset, map_getset},
    {Py_tp_members, map_members},
    {Py_mp_length, (void *)map_length},
    {Py_mp_subscript, (void *)map_get},
    {Py_mp_ass_subscript, (void *)map_set},
    {Py_bf_getbuffer, (void *)map_getbuffer},
    {Py_bf_releasebuffer, (void *)map_releasebuffer},
    {0, NULL},
};

static PyType_Spec map_spec = {
    .name = "anetorch.TensorMap",
    .basicsize = sizeof(MapObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = map_slots,
};

int ane_py_add_map(PyObject *module, ane_py_state *st) {
    st->map_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &map_spec, NULL);
    return st->map_type ? PyModule_AddType(module, st->map_type) : -1;
}
