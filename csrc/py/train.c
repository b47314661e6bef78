/* Optimizer functions: adamw_step, grad_norm, clip_factor, stage. Blocks are anything
 * that exports a C-contiguous buffer; Tensors go by their view, so that the validity of
 * their bytes is kept and close() refuses while a call runs. */
#include "py.h"

#include <string.h>

/* One operand of a call: memory that stays put until block_release. */
typedef struct block {
    void *data;
    size_t count;
    ane_dtype dtype;
    PyObject *tensor;           /* pinned; NULL: it is a buffer */
    const ane_tensor *view;
    bool write;
    Py_buffer buffer;           /* .obj NULL: none */
} block;

static void touch(const block *b) {
    ane_surface_touch(b->view->surface, b->view->offset, b->count * ane_dtype_size(b->dtype));
}

static void block_release(block *b) {
    if (b->buffer.obj) PyBuffer_Release(&b->buffer);
    if (b->tensor) {
        if (b->write) touch(b);         /* also where the call failed on the way */
        ane_py_tensor_unpin(b->tensor);
        Py_CLEAR(b->tensor);
    }
}

/* What the call wrote is valid, whatever a failed run left there before. */
static void block_written(const block *b) {
    if (b->tensor)
        ane_surface_validate(b->view->surface, b->view->offset,
                             b->count * ane_dtype_size(b->dtype));
}

static int tensor_get(ane_py_state *st, PyObject *obj, const char *fn, const char *what,
                      bool write, bool read, bool only_f32, block *b) {
    const ane_tensor *t = ane_py_tensor_view(obj);
    ane_error err = {0};
    if (!t) return -1;
    if (only_f32 ? t->dtype != ANE_F32
                 : t->dtype != ANE_F32 && t->dtype != ANE_F16 && t->dtype != ANE_BF16) {
        PyErr_Format(PyExc_TypeError, "[%s] %s must be %s, got %s", fn, what,
                     only_f32 ? "float32" : "float32, float16 or bfloat16",
                     ane_dtype_name(t->dtype));
        return -1;
    }
    if (!ane_tensor_contiguous(t)) {
        PyErr_Format(PyExc_ValueError, "[%s] %s must be contiguous", fn, what);
        return -1;
    }
    if (write && ane_surface_readonly(t->surface)) {
        PyErr_Format(PyExc_ValueError, "[%s] %s is read-only", fn, what);
        return -1;
    }
    b->dtype = t->dtype;
    b->count = (size_t)ane_tensor_count(t);
    b->data = ane_tensor_data(t);
    if (read && ane_surface_check(t->surface, t->offset, b->count * ane_dtype_size(b->dtype),
                                  &err)) {
        ane_py_raise(st, &err);
        return -1;
    }
    ane_py_tensor_pin(obj);
    b->write = write;
    b->tensor = Py_NewRef(obj);
    b->view = t;
    return 0;
}

static int format_dtype(const char *f, ane_dtype *out) {
    if (!f) return -1;
    if (*f == '@' || *f == '=' || *f == '<') f++;
    if (!strcmp(f, "f")) *out = ANE_F32;
    else if (!strcmp(f, "e")) *out = ANE_F16;
    else return -1;
    return 0;
}

/* 0, or -1 with an exception that names fn and what. read: the old contents count. */
static int block_get(ane_py_state *st, PyObject *obj, const char *fn, const char *what,
                     bool write, bool read, bool only_f32, block *b) {
    if (ane_py_is_tensor(st, obj))
        return tensor_get(st, obj, fn, what, write, read, only_f32, b);
    int flags = PyBUF_FORMAT | PyBUF_ND | (write ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(obj, &b->buffer, PyBUF_C_CONTIGUOUS | flags) < 0) {
        PyObject *type, *value, *tb;
        PyErr_Fetch(&type, &value, &tb);
        PyErr_Format(type, "[%s] %s: %S", fn, what, value ? value : Py_None);
        Py_XDECREF(type), Py_XDECREF(value), Py_XDECREF(tb);
        b->buffer.obj = NULL;
        return -1;
    }
    if (format_dtype(b->buffer.format, &b->dtype) < 0 || (only_f32 && b->dtype != ANE_F32)) {
        PyErr_Format(PyExc_TypeError, "[%s] %s must be %s, got elements of format '%s'", fn,
                     what, only_f32 ? "float32" : "float32, float16 or bfloat16",
                     b->buffer.format ? b->buffer.format : "B");
        block_release(b);
        b->buffer.obj = NULL;
        return -1;
    }
    b->data = b->buffer.buf;
    b->count = (size_t)b->buffer.len / (size_t)b->buffer.itemsize;
    return 0;
}

static int same_count(const char *fn, const char *what, const block *a, const block *b) {
    if (a->count == b->count) return 0;
    PyErr_Format(PyExc_ValueError, "[%s] %s has %zu elements, params has %zu", fn, what,
                 b->count, a->count);
    return -1;
}

/* A sequence of (begin, end); *out is malloc'd. */
static int ranges_get(PyObject *obj, ane_range **out, size_t *n) {
    PyObject *seq = PySequence_List(obj);
    if (!seq) return -1;
    Py_ssize_t count = PyList_Size(seq);
    ane_range *r = PyMem_Malloc(sizeof *r * (size_t)(count + 1));
    if (!r) {
        PyErr_NoMemory();
        goto fail;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *pair = PySequence_Tuple(PyList_GetItem(seq, i));
        Py_ssize_t lo = -1, hi = -1;
        if (!pair || !PyArg_ParseTuple(pair, "nn;[adamw_step] decay holds (begin, end) pairs",
                                       &lo, &hi)) {
            Py_XDECREF(pair);
            goto fail;
        }
        Py_DECREF(pair);
        if (lo < 0 || hi < 0) {
            PyErr_Format(PyExc_ValueError, "[adamw_step] decay range %zd is (%zd, %zd); "
                         "both must be at least 0", i, lo, hi);
            goto fail;
        }
        r[i] = (ane_range){(size_t)lo, (size_t)hi};
    }
    Py_DECREF(seq);
    *out = r;
    *n = (size_t)count;
    return 0;
fail:
    PyMem_Free(r);
    Py_DECREF(seq);
    return -1;
}

static PyObject *py_adamw_step(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "grads", "m", "v", "staged", "lr", "step", "beta1",
                            "beta2", "eps", "weight_decay", "scale", "decay", NULL};
    PyObject *obj[5] = {NULL, NULL, NULL, NULL, Py_None}, *decay = Py_None, *result = NULL;
    ane_adamw_options o = {.size = sizeof o, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8,
                           .scale = 1};
    long long step = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|O$dLdddddO:adamw_step", names,
                                     &obj[0], &obj[1], &obj[2], &obj[3], &obj[4], &o.lr, &step,
                                     &o.beta1, &o.beta2, &o.eps, &o.weight_decay, &o.scale,
                                     &decay))
        return NULL;
    if (!kwargs || !PyDict_GetItemString(kwargs, "lr") || !PyDict_GetItemString(kwargs, "step")) {
        PyErr_SetString(PyExc_TypeError, "[adamw_step] lr and step must be given; step counts "
                        "updates from 1");
        return NULL;
    }
    o.step = step;
    ane_py_state *st = ane_py_state_of(self);
    block b[5];
    memset(b, 0, sizeof b);
    ane_range *ranges = NULL;
    if (decay != Py_None) {
        if (ranges_get(decay, &ranges, &o.n_decay) < 0) return NULL;
        o.decay = ranges;
    }
    for (int i = 0; i < 5; i++) {
        if (i == 4 && obj[4] == Py_None) break;
        if (block_get(st, obj[i], "adamw_step", names[i], i != 1, i < 4, i < 4, &b[i]) < 0)
            goto done;
        if (same_count("adamw_step", names[i], &b[0], &b[i]) < 0) goto done;
    }
    ane_error err = {0};
    ane_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ane_adamw_step(b[0].data, b[1].data, b[2].data, b[3].data, b[4].data, b[4].dtype,
                            b[0].count, &o, &err);
    Py_END_ALLOW_THREADS
    if (status) {
        ane_py_raise(st, &err);
        goto done;
    }
    for (int i = 0; i < 5; i++)
        if (i != 1) block_written(&b[i]);
    result = Py_NewRef(Py_None);
done:
    for (int i = 0; i < 5; i++) block_release(&b[i]);
    PyMem_Free(ranges);
    return result;
}

static PyObject *py_grad_norm(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"grads", "scale", NULL};
    ane_py_state *st = ane_py_state_of(self);
    PyObject *grads, *list = NULL, *result = NULL;
    double scale = 1, norm = 0;
    bool finite = false;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d:grad_norm", names, &grads, &scale))
        return NULL;
    bool many = PyList_Check(grads) || PyTuple_Check(grads);
    list = many ? PySequence_List(grads) : PyList_New(1);
    if (!list) return NULL;
    if (!many && PyList_SetItem(list, 0, Py_NewRef(grads)) < 0) {
        Py_DECREF(list);
        return NULL;
    }
    size_t n = (size_t)PyList_Size(list), got = 0;
    block *b = PyMem_Calloc(n + 1, sizeof *b);
    const float **at = PyMem_Calloc(n + 1, sizeof *at);
    size_t *counts = PyMem_Calloc(n + 1, sizeof *counts);
    if (!b || !at || !counts) {
        PyErr_NoMemory();
        goto done;
    }
    for (; got < n; got++) {
        if (block_get(st, PyList_GetItem(list, (Py_ssize_t)got), "grad_norm", "grads", false,
                      true, true, &b[got]) < 0)
            goto done;
        at[got] = b[got].data;
        counts[got] = b[got].count;
    }
    Py_BEGIN_ALLOW_THREADS
    ane_grad_norm(at, counts, n, scale, &norm, &finite);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("(dO)", norm, finite ? Py_True : Py_False);
done:
    for (size_t i = 0; i < got; i++) block_release(&b[i]);
    PyMem_Free(b);
    PyMem_Free(at);
    PyMem_Free(counts);
    Py_DECREF(list);
    return result;
}

static PyObject *py_clip_factor(PyObject *self, PyObject *args) {
    double norm, limit;
    (void)self;
    if (!PyArg_ParseTuple(args, "dd:clip_factor", &norm, &limit)) return NULL;
    return PyFloat_FromDouble(ane_clip_factor(norm, limit));
}

static PyObject *py_stage(PyObject *self, PyObject *args) {
    PyObject *dst, *src, *result = NULL;
    if (!PyArg_ParseTuple(args, "OO:stage", &dst, &src)) return NULL;
    ane_py_state *st = ane_py_state_of(self);
    block d = {0}, s = {0};
    if (block_get(st, dst, "stage", "dst", true, false, false, &d) < 0 ||
        block_get(st, src, "stage", "src", false, true, true, &s) < 0)
        goto done;
    if (d.count != s.count) {
        PyErr_Format(PyExc_ValueError, "[stage] dst has %zu elements, src has %zu", d.count,
                     s.count);
        goto done;
    }
    ane_error err = {0};
    ane_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ane_stage(d.data, d.dtype, s.data, d.count, &err);
    Py_END_ALLOW_THREADS
    if (status) {
        ane_py_raise(st, &err);
        goto done;
    }
    block_written(&d);
    result = Py_NewRef(Py_None);
done:
    block_release(&d);
    block_release(&s);
    return result;
}

static PyMethodDef train_methods[] = {
    {"adamw_step", (PyCFunction)(void (*)(void))py_adamw_step, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR(
         "adamw_step(params, grads, m, v, staged=None, *, lr, step, beta1=0.9, beta2=0.95,\n"
         "           eps=1e-8, weight_decay=0.0, scale=1.0, decay=None)\n\n"
         "One AdamW update in place over flat float32 blocks of equal length:\n"
         "p -= lr*(m'/(sqrt(v') + eps) + weight_decay*p), bias-corrected by step, which counts\n"
         "updates from 1. Gradients are multiplied by scale first (clipping, accumulation and\n"
         "loss scale in one factor). decay: [(begin, end), ...] element ranges that decay,\n"
         "ascending; None: all. staged gets the new parameters as float32, float16 or\n"
         "bfloat16 in the same pass. The bits do not depend on threads or CPU.\n\n"
         "    norm, finite = grad_norm(g, scale=1/256)\n"
         "    if finite:\n"
         "        adamw_step(p, g, m, v, half, lr=3e-4, step=t, weight_decay=0.1,\n"
         "                   scale=clip_factor(norm, 1.0)/256, decay=[(0, n_matrices)])")},
    {"grad_norm", (PyCFunction)(void (*)(void))py_grad_norm, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("grad_norm(grads, scale=1.0) -> (norm, finite)\n\n"
               "|scale| times the L2 norm over one float32 block or a list of them, summed in\n"
               "double in a fixed order. finite is False when any element is inf or NaN.")},
    {"clip_factor", py_clip_factor, METH_VARARGS,
     PyDoc_STR("clip_factor(norm, limit) -> float\n\nlimit/norm when norm > limit > 0, else "
               "1.0.")},
    {"stage", py_stage, METH_VARARGS,
     PyDoc_STR("stage(dst, src)\n\nCopies a flat float32 block into a float32, float16 or "
               "bfloat16 block of equal\nlength, rounding to nearest even. Threaded.")},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_train(PyObject *module, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(module, train_methods);
}
