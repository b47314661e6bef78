/* _testing: convolution and pooling of any kernel table on 5-D NumPy arrays [n, c, d, h, w]
 * with any strides; bfloat16 arrays are uint16. */
#include "testing.h"

#include "../kernels/kernels.h"

static int planes_of(PyObject *obj, ane_planes *out, int64_t *dims) {
    if (!PyArray_Check(obj) || PyArray_NDIM((PyArrayObject *)obj) != 5) {
        PyErr_SetString(PyExc_ValueError, "expected an ndarray of 5 dimensions");
        return -1;
    }
    PyArrayObject *a = (PyArrayObject *)obj;
    const npy_intp *s = PyArray_STRIDES(a), *d = PyArray_DIMS(a);
    *out = (ane_planes){.data = PyArray_DATA(a), .sn = s[0], .sc = s[1]};
    for (int i = 0; i < 5; i++) dims[i] = d[i];
    for (int i = 0; i < 3; i++) out->s[i] = s[i + 2];
    if (PyArray_TYPE(a) == NPY_BYTE || PyArray_TYPE(a) == NPY_UBYTE) {
        out->dtype = PyArray_TYPE(a) == NPY_BYTE ? ANE_I8 : ANE_U8;
        return 0;
    }
    return ane_py_float_type(a, &out->dtype);
}

static const float *floats(PyObject *obj) {
    return obj == Py_None ? NULL : PyArray_DATA((PyArrayObject *)obj);
}

/* (act, low, high): act 1 is limits. */
static int act_of(PyObject *obj, ane_conv_act *a) {
    int act = 0;
    *a = (ane_conv_act){.act = ANE_ACT_NONE};
    if (obj == Py_None) return 0;
    if (!PyArg_ParseTuple(obj, "iff", &act, &a->low, &a->high)) return -1;
    a->limits = act == ANE_ACT_RELU;
    a->act = a->limits ? ANE_ACT_NONE : (ane_act)act;
    return 0;
}

static PyObject *py_conv(PyObject *self, PyObject *args) {
    const char *table;
    PyObject *x, *w, *y, *scale, *shift, *before, *after, *residual;
    int groups, transposed, packed;
    ane_conv_args g = {.groups = 1};
    long long s[3], d[3], p[3];
    (void)self;
    if (!PyArg_ParseTuple(args, "sOOO(LLL)(LLL)(LLL)iiOOOOOi|ii", &table, &x, &w, &y, &s[0], &s[1],
                          &s[2], &d[0], &d[1], &d[2], &p[0], &p[1], &p[2], &groups, &transposed,
                          &scale, &shift, &before, &after, &residual, &packed,
                          &g.x_zero, &g.w_zero))
        return NULL;
    const ane_kernels *t = ane_py_table_of(table);
    ane_planes wp, res;
    int64_t dx[5], dw[5], dy[5], unused[5];
    if (!t || planes_of(x, &g.x, dx) || planes_of(w, &wp, dw) || planes_of(y, &g.y, dy) ||
        (residual != Py_None && planes_of(residual, &res, unused)) ||
        act_of(before, &g.before) || act_of(after, &g.after))
        return NULL;
    g.transposed = transposed != 0;
    g.n = dx[0], g.groups = groups, g.cin = dx[1], g.cout = dy[1];
    g.w = wp.data, g.w_dtype = wp.dtype;
    g.w_out = transposed ? wp.sc : wp.sn;
    g.w_in = transposed ? wp.sn : wp.sc;
    for (int i = 0; i < 3; i++) {
        g.in[i] = dx[i + 2], g.out[i] = dy[i + 2], g.kernel[i] = dw[i + 2];
        g.stride[i] = s[i], g.dilation[i] = d[i], g.pad[i] = p[i], g.w_s[i] = wp.s[i];
    }
    g.scale = floats(scale), g.shift = floats(shift);
    if (residual != Py_None) g.residual = &res;
    ane_error err = {0};
    ane_status st = ANE_OK;
    char *room = NULL;
    if (packed) {
        size_t bytes = ANE_INTERNAL(ane_conv_pack_bytes_with)(t, &g);
        room = PyMem_Malloc(bytes + 64);
        if (!room) return PyErr_NoMemory();
        void *to = room + (64 - (uintptr_t)room % 64);
        if (bytes) st = ANE_INTERNAL(ane_conv_pack_with)(t, &g, to, &err);
        if (bytes) g.packed = to;
    }
    Py_BEGIN_ALLOW_THREADS
    if (!st) st = ANE_INTERNAL(ane_conv_with)(t, &g, &err);
    Py_END_ALLOW_THREADS
    PyMem_Free(room);
    if (st) {
        PyErr_SetString(PyExc_ValueError, err.message);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_pool(PyObject *self, PyObject *args) {
    const char *table;
    PyObject *x, *y;
    int kind, exclude;
    long long k[3], s[3], p[3], f[3];
    ane_pool_args g = {.exclude = false};
    (void)self;
    if (!PyArg_ParseTuple(args, "siiOO(LLL)(LLL)(LLL)(LLL)", &table, &kind, &exclude, &x, &y,
                          &k[0], &k[1], &k[2], &s[0], &s[1], &s[2], &p[0], &p[1], &p[2], &f[0],
                          &f[1], &f[2]))
        return NULL;
    const ane_kernels *t = ane_py_table_of(table);
    int64_t dx[5], dy[5];
    if (!t || planes_of(x, &g.x, dx) || planes_of(y, &g.y, dy)) return NULL;
    g.kind = (ane_pool_kind)kind, g.exclude = exclude != 0, g.n = dx[0], g.channels = dx[1];
    for (int i = 0; i < 3; i++) {
        g.in[i] = dx[i + 2], g.out[i] = dy[i + 2], g.kernel[i] = k[i], g.stride[i] = s[i];
        g.pad[i] = p[i], g.after[i] = f[i];
    }
    ane_error err = {0};
    ane_status st;
    Py_BEGIN_ALLOW_THREADS
    st = ANE_INTERNAL(ane_pool_with)(t, &g, &err);
    Py_END_ALLOW_THREADS
    if (st) {
        PyErr_SetString(PyExc_ValueError, err.message);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"conv", py_conv, METH_VARARGS,
     PyDoc_STR("conv(table, x, w, y, strides, dilations, pads, groups, transposed, scale, "
               "shift, before, after, residual, packed, x_zero=0, w_zero=0)")},
    {"pool", py_pool, METH_VARARGS,
     PyDoc_STR("pool(table, kind, exclude, x, y, kernel, strides, pads, after)")},
    {NULL, NULL, 0, NULL},
};

int ane_py_testing_conv(PyObject *module, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(module, methods);
}
