/* anetorch.TensorPool: tensors whose memory is recycled when the last view goes. */
#include "tensor.h"

#include <string.h>

typedef struct PoolObject {
    PyObject_HEAD
    ane_py_state *st;
    ane_surface_pool *pool;             /* NULL: closed */
} PoolObject;

#define POOL(obj) ((PoolObject *)(obj))

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kw) {
    static char *names[] = {"mem", "max_bytes", NULL};
    PyObject *mem = NULL;
    Py_ssize_t limit = (Py_ssize_t)256 << 20;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|On:TensorPool", names, &mem, &limit))
        return NULL;
    ane_py_state *st = PyType_GetModuleState(type);
    ane_memory memory;
    ane_error err = {0};
    if (!st || ane_py_memory(mem, &memory) < 0) return NULL;
    if (limit < 0) {
        PyErr_Format(PyExc_ValueError, "[TensorPool] max_bytes is %zd, which is negative",
                     limit);
        return NULL;
    }
    PoolObject *p = (PoolObject *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!p) return NULL;
    p->st = st;
    if (ane_surface_pool_create(memory, (size_t)limit, &p->pool, &err)) {
        ane_py_raise(st, &err);
        Py_DECREF((PyObject *)p);
        return NULL;
    }
    return (PyObject *)p;
}

static void pool_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    ane_surface_pool_destroy(POOL(self)->pool);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *make(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames,
                      bool zero, const char *what) {
    PyObject *shape = n > 0 ? args[0] : NULL, *dtype = n > 1 ? args[1] : NULL;
    Py_ssize_t named = kwnames ? PyTuple_Size(kwnames) : 0;
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GetItem(kwnames, i), **slot = NULL;
        if (PyUnicode_CompareWithASCIIString(name, "shape") == 0) slot = &shape;
        else if (PyUnicode_CompareWithASCIIString(name, "dtype") == 0) slot = &dtype;
        if (!slot || *slot) {
            PyErr_Format(PyExc_TypeError, "%s() got '%U' twice, or does not know it", what,
                         name);
            return NULL;
        }
        *slot = args[n + i];
    }
    if (!shape || n > 2) {
        PyErr_Format(PyExc_TypeError, "%s(shape, dtype='float32') takes one or two arguments",
                     what);
        return NULL;
    }
    int64_t dims[ANE_MAX_RANK];
    int rank;
    ane_dtype d = ANE_F32;
    if (ane_py_shape(shape, dims, &rank) < 0) return NULL;
    if (dtype && dtype != Py_None && ane_py_dtype(dtype, &d) < 0) return NULL;
    PoolObject *p = POOL(self);         /* only now: the above may have closed it */
    if (!p->pool) {
        PyErr_Format(PyExc_ValueError, "[%s] the pool is closed", what);
        return NULL;
    }
    ane_error err = {0};
    size_t bytes;
    ane_surface *s;
    ane_tensor t;
    if (ane_shape_size(d, rank, dims, &bytes, &err) ||
        ane_surface_pool_take(p->pool, bytes, &s, &err))
        return ane_py_raise(p->st, &err);
    PyObject *out = NULL;
    if (ane_tensor_init(&t, s, 0, d, rank, dims, &err)) {
        ane_py_raise(p->st, &err);
    } else {
        if (zero) memset(ane_surface_base(s), 0, bytes);
        out = ane_py_tensor_new(p->st, &t);
        if (out) ANE_TENSOR(out)->owns = true;
    }
    ane_surface_release(s);
    return out;
}

static PyObject *pool_empty(PyObject *self, PyObject *const *args, Py_ssize_t n,
                            PyObject *kwnames) {
    return make(self, args, n, kwnames, false, "empty");
}
static PyObject *pool_zeros(PyObject *self, PyObject *const *args, Py_ssize_t n,
                            PyObject *kwnames) {
    return make(self, args, n, kwnames, true, "zeros");
}

static PyObject *pool_clear(PyObject *self, PyObject *unused) {
    (void)unused;
    if (POOL(self)->pool) ane_surface_pool_clear(POOL(self)->pool);
    Py_RETURN_NONE;
}

static PyObject *pool_close(PyObject *self, PyObject *unused) {
    (void)unused;
    ane_surface_pool *p = POOL(self)->pool;
    POOL(self)->pool = NULL;
    ane_surface_pool_destroy(p);
    Py_RETURN_NONE;
}

static PyObject *pool_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}
static PyObject *pool_exit(PyObject *self, PyObject *args) {
    (void)args;
    return pool_close(self, NULL);
}

static PyObject *statistic(PyObject *self, int which) {
    size_t held = 0;
    uint64_t hits = 0, misses = 0;
    if (POOL(self)->pool) ane_surface_pool_stats(POOL(self)->pool, &held, &hits, &misses);
    return PyLong_FromUnsignedLongLong(which == 0 ? held : which == 1 ? hits : misses);
}
static PyObject *get_held(PyObject *self, void *c) { return (void)c, statistic(self, 0); }
static PyObject *get_hits(PyObject *self, void *c) { return (void)c, statistic(self, 1); }
static PyObject *get_misses(PyObject *self, void *c) { return (void)c, statistic(self, 2); }

#define FAST(f) (PyCFunction)(void (*)(void)) f, METH_FASTCALL | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"empty", FAST(pool_empty),
     PyDoc_STR("empty(shape, dtype=\"float32\") -> Tensor\n\nA tensor with arbitrary contents "
               "and a buffer_id of its own.")},
    {"zeros", FAST(pool_zeros), PyDoc_STR("zeros(shape, dtype=\"float32\") -> Tensor")},
    {"clear", pool_clear, METH_NOARGS,
     PyDoc_STR("clear()\n\nGives all idle memory back to the system.")},
    {"close", pool_close, METH_NOARGS,
     PyDoc_STR("close()\n\nclear(), and nothing is recycled any more. Living tensors stay "
               "usable.")},
    {"__enter__", pool_enter, METH_NOARGS, NULL},
    {"__exit__", pool_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"held_bytes", get_held, NULL, PyDoc_STR("Idle bytes kept for reuse."), NULL},
    {"hits", get_hits, NULL, PyDoc_STR("Tensors made of recycled memory."), NULL},
    {"misses", get_misses, NULL, PyDoc_STR("Tensors for which memory was allocated."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR(
         "TensorPool(mem=None, max_bytes=268435456)\n--\n\nRecycles tensor memory by size "
         "class: when the last tensor, view or export of a block goes, the next tensor of about "
         "its size takes the block. At most max_bytes lie idle. Memory shown to another "
         "process, or alive across a fork, is never recycled. Safe to use from several "
         "threads.\n\n>>> pool = TensorPool()\n>>> with pool.empty((8, 64), \"float16\") as t:\n"
         "...     t.fill_(1)")},
    {Py_tp_new, (void *)pool_new},
    {Py_tp_dealloc, (void *)pool_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "anetorch.TensorPool",
    .basicsize = sizeof(PoolObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int ane_py_add_pool(PyObject *module, ane_py_state *st) {
    (void)st;
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
    if (!type) return -1;
    int rc = PyModule_AddType(module, type);
    Py_DECREF((PyObject *)type);
    return rc;
}
