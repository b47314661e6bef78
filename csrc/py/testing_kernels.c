/* _testing: any kernel table of this machine on NumPy arrays: products, conversions, vector
 * primitives, the worker pool. bfloat16 arrays are uint16. */
#include "testing.h"

#include "../base/sync.h"
#include "../kernels/kernels.h"

#include <math.h>
#include <string.h>

const ane_kernels *ane_py_table_of(const char *name) {
    size_t n = ANE_INTERNAL(ane_kernels_count)();
    for (size_t i = 0; i < n; i++) {
        const ane_kernels *t = ANE_INTERNAL(ane_kernels_at)(i);
        if (!strcmp(t->name, name)) return t;
    }
    PyErr_Format(PyExc_KeyError, "no kernel table '%s' here; see tables()", name);
    return NULL;
}

static PyObject *py_tables(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *list = PyList_New(0);
    size_t n = ANE_INTERNAL(ane_kernels_count)();
    for (size_t i = 0; list && i < n; i++) {
        PyObject *s = PyUnicode_FromString(ANE_INTERNAL(ane_kernels_at)(i)->name);
        if (!s || PyList_Append(list, s) < 0) Py_CLEAR(list);
        Py_XDECREF(s);
    }
    return list;
}

int ane_py_float_type(PyArrayObject *a, ane_dtype *out) {
    switch (PyArray_TYPE(a)) {
    case NPY_HALF: *out = ANE_F16; return 0;
    case NPY_FLOAT: *out = ANE_F32; return 0;
    case NPY_USHORT: *out = ANE_BF16; return 0;
    default:
        PyErr_SetString(PyExc_TypeError, "expected float16, float32 or uint16 (bfloat16)");
        return -1;
    }
}

/* [m, n] or [batch, m, n]; Py_None gives data NULL. */
static int mat_of(PyObject *obj, ane_mat *out, int64_t *batch, int64_t *dims) {
    if (!PyArray_Check(obj)) {
        PyErr_SetString(PyExc_TypeError, "expected an ndarray");
        return -1;
    }
    PyArrayObject *a = (PyArrayObject *)obj;
    int nd = PyArray_NDIM(a);
    if (nd != 2 && nd != 3) {
        PyErr_SetString(PyExc_ValueError, "expected 2 or 3 dimensions");
        return -1;
    }
    const npy_intp *s = PyArray_STRIDES(a), *d = PyArray_DIMS(a);
    out->data = PyArray_DATA(a);
    out->rs = s[nd - 2];
    out->cs = s[nd - 1];
    *batch = nd == 3 ? s[0] : 0;
    dims[0] = nd == 3 ? d[0] : 1;
    dims[1] = d[nd - 2];
    dims[2] = d[nd - 1];
    return ane_py_float_type(a, &out->dtype);
}

static char *aligned(void *p) { return (char *)p + (64 - (uintptr_t)p % 64); }

/* pack(table, a, b, c, which, precision=0): the packed operand for gemm's pa= or pb=. */
static PyObject *py_pack(PyObject *self, PyObject *args) {
    const char *table;
    PyObject *a, *b, *c;
    int which, precision = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "sOOOi|i", &table, &a, &b, &c, &which, &precision)) return NULL;
    const ane_kernels *t = ane_py_table_of(table);
    if (!t) return NULL;
    ane_gemm_args g = {.precision = (ane_precision)precision};
    int64_t da[3], db[3], dc[3];
    if (mat_of(a, &g.a, &g.a_batch, da) || mat_of(b, &g.b, &g.b_batch, db) ||
        mat_of(c, &g.c, &g.c_batch, dc))
        return NULL;
    g.batch = dc[0], g.m = dc[1], g.n = dc[2], g.k = da[2];
    npy_intp bytes = (npy_intp)ANE_INTERNAL(ane_gemm_pack_bytes_with)(t, &g, which) + 64;
    PyObject *out = PyArray_ZEROS(1, &bytes, NPY_UINT8, 0);
    if (!out) return NULL;
    ane_error err = {0};
    char *dst = aligned(PyArray_DATA((PyArrayObject *)out));
    if (ANE_INTERNAL(ane_gemm_pack_with)(t, &g, which, dst, &err)) {
        Py_DECREF(out);
        PyErr_SetString(PyExc_RuntimeError, err.message);
        return NULL;
    }
    return out;
}

static PyObject *py_gemm(PyObject *self, PyObject *args, PyObject *kw) {
    static char *names[] = {"table", "a", "b", "c", "alpha", "beta", "bias", "act",
                            "residual", "precision", "packed", "pa", "pb", NULL};
    const char *table;
    PyObject *a, *b, *c, *bias = Py_None, *residual = Py_None, *pa = Py_None, *pb = Py_None;
    float alpha = 1, beta = 1;
    int act = 0, precision = 0, packed = 0;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "sOOO|$ffOiOiiOO", names, &table, &a, &b, &c,
                                     &alpha, &beta, &bias, &act, &residual, &precision,
                                     &packed, &pa, &pb))
        return NULL;
    const ane_kernels *t = ane_py_table_of(table);
    if (!t) return NULL;
    ane_gemm_args g = {.precision = (ane_precision)precision};
    int64_t da[3], db[3], dc[3], dr[3];
    if (mat_of(a, &g.a, &g.a_batch, da) || mat_of(b, &g.b, &g.b_batch, db) ||
        mat_of(c, &g.c, &g.c_batch, dc))
        return NULL;
    g.batch = dc[0];
    g.m = dc[1];
    g.n = dc[2];
    g.k = da[2];
    if (da[1] != g.m || db[1] != g.k || db[2] != g.n) {
        PyErr_SetString(PyExc_ValueError, "shapes do not agree");
        return NULL;
    }
    ane_epilogue ep = {.alpha = alpha, .act = (ane_act)act, .beta = beta};
    ane_mat r, bm;
    int64_t unused;
    if (residual != Py_None) {
        if (mat_of(residual, &r, &g.r_batch, dr)) return NULL;
        ep.residual = &r;
    }
    if (bias != Py_None) {
        if (mat_of(bias, &bm, &unused, dr)) return NULL;
        ep.bias = bm.data;
        ep.bias_dtype = bm.dtype;
        ep.bias_rs = bm.rs;
        ep.bias_cs = bm.cs;
    }
    if (alpha != 1 || act || ep.residual || ep.bias) g.epilogue = &ep;
    ane_error err = {0};
    ane_status st = ANE_OK;
    void *pack[2] = {NULL, NULL};
    for (int i = 0; i < 2 && !st; i++) {
        if (!(packed & (1 << i))) continue;
        size_t bytes = ANE_INTERNAL(ane_gemm_pack_bytes_with)(t, &g, i);
        char *block = PyMem_Malloc(bytes + 64);
        if (!block) {
            PyMem_Free(pack[0]);
            return PyErr_NoMemory();
        }
        pack[i] = block;
        block = aligned(block);
        st = ANE_INTERNAL(ane_gemm_pack_with)(t, &g, i, block, &err);
        if (i) g.packed_b = block;
        else g.packed_a = block;
    }
    /* The originals may go once packed: prove that nothing reads them. */
    if (g.packed_a) g.a.data = NULL;
    if (g.packed_b) g.b.data = NULL;
    if (pa != Py_None) g.packed_a = aligned(PyArray_DATA((PyArrayObject *)pa));
    if (pb != Py_None) g.packed_b = aligned(PyArray_DATA((PyArrayObject *)pb));
    if (!st) {
        Py_BEGIN_ALLOW_THREADS
        st = ANE_INTERNAL(ane_gemm_with)(t, &g, NULL, &err);
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(pack[0]);
    PyMem_Free(pack[1]);
    if (st) {
        PyErr_SetString(PyExc_RuntimeError, err.message);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_gemm_name(PyObject *self, PyObject *args) {
    PyObject *a, *b, *c;
    int precision = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOO|i", &a, &b, &c, &precision)) return NULL;
    ane_gemm_args g = {.precision = (ane_precision)precision};
    int64_t da[3], db[3], dc[3];
    if (mat_of(a, &g.a, &g.a_batch, da) || mat_of(b, &g.b, &g.b_batch, db) ||
        mat_of(c, &g.c, &g.c_batch, dc))
        return NULL;
    g.batch = dc[0], g.m = dc[1], g.n = dc[2], g.k = da[2];
    return PyUnicode_FromString(ANE_INTERNAL(ane_gemm_name)(&g));
}

/* One dimension, contiguous, any alignment. */
static char *row_of(PyObject *obj, ane_dtype *dtype, size_t *n) {
    if (!PyArray_Check(obj) || PyArray_NDIM((PyArrayObject *)obj) != 1) {
        PyErr_SetString(PyExc_TypeError, "expected a 1-D ndarray");
        return NULL;
    }
    PyArrayObject *a = (PyArrayObject *)obj;
    *n = (size_t)PyArray_DIM(a, 0);
    if (*n > 1 && PyArray_STRIDE(a, 0) != PyArray_ITEMSIZE(a)) {
        PyErr_SetString(PyExc_ValueError, "expected a contiguous array");
        return NULL;
    }
    return ane_py_float_type(a, dtype) ? NULL : PyArray_BYTES(a);
}

static PyObject *py_convert(PyObject *self, PyObject *args) {
    const char *table;
    PyObject *dst, *src;
    (void)self;
    if (!PyArg_ParseTuple(args, "sOO", &table, &dst, &src)) return NULL;
    const ane_kernels *t = ane_py_table_of(table);
    ane_dtype to, from;
    size_t n, m;
    if (!t) return NULL;
    char *d = row_of(dst, &to, &n), *s = d ? row_of(src, &from, &m) : NULL;
    if (!s) return NULL;
    if (n != m) return PyErr_Format(PyExc_ValueError, "lengths differ: %zu, %zu", n, m);
    Py_BEGIN_ALLOW_THREADS
    ANE_INTERNAL(ane_convert_with)(t, d, to, s, from, n);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* vec(table, name, y, x, b=None, s=0.0, t=0.0): name is a row of vec.h; y is written, or the
 * reduction's value is returned. */
static PyObject *py_vec(PyObject *self, PyObject *args) {
    const char *table, *name;
    PyObject *po, *px, *pb = Py_None;
    float s = 0, u = 0, value = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "ssOO|Off", &table, &name, &po, &px, &pb, &s, &u)) return NULL;
    const ane_kernels *t = ane_py_table_of(table);
    if (!t) return NULL;
    const ane_vec *v = ANE_INTERNAL(ane_whole_for)(t)->vec;
    ane_dtype dx, dy, db;
    size_t n, ny, nb;
    float *x = (float *)(void *)row_of(px, &dx, &n);
    if (!x) return NULL;
    float *y = x, *b = NULL;
    if (po != Py_None && !(y = (float *)(void *)row_of(po, &dy, &ny))) return NULL;
    if (pb != Py_None && !(b = (float *)(void *)row_of(pb, &db, &nb))) return NULL;
    if (dx != ANE_F32 || (po != Py_None && (dy != ANE_F32 || ny != n)) ||
        (b && (db != ANE_F32 || nb != n))) {
        PyErr_SetString(PyExc_ValueError, "expected float32 rows of one length");
        return NULL;
    }
#define X(N, f)                                                                           \
    if (!strcmp(name, #f)) {                                                              \
        v->unary[ANE_VEC_##N](y, x, n);                                                   \
        Py_RETURN_NONE;                                                                   \
    }
    ANE_VEC_UNARY_MAP(X)
#undef X
#define X(N, f)                                                                           \
    if (!strcmp(name, #f)) {                                                              \
        if (b) v->binary[ANE_VEC_##N](y, x, b, n);                                        \
        else v->scalar[ANE_VEC_##N](y, x, s, n);                                          \
        Py_RETURN_NONE;                                                                   \
    }                                                                                     \
    if (!strcmp(name, "r" #f)) {                                                          \
        v->rscalar[ANE_VEC_##N](y, x, s, n);                                              \
        Py_RETURN_NONE;                                                                   \
    }
    ANE_VEC_BINARY_MAP(X)
#undef X
    if (!strcmp(name, "affine")) v->affine(y, x, s, u, n);
    else if (!strcmp(name, "axpy")) v->axpy(y, s, x, n);
    else if (!strcmp(name, "muladd") && b) v->muladd(y, x, b, n);
    else if (!strcmp(name, "softmax")) v->softmax(y, x, n);
    else if (!strcmp(name, "exp_sum")) value = v->exp_sum(y, x, s, u, n);
    else if (!strcmp(name, "sum")) value = v->sum(x, n);
    else if (!strcmp(name, "sumsq")) value = v->sumsq(x, n);
    else if (!strcmp(name, "sumsq_about")) value = v->sumsq_about(x, s, n);
    else if (!strcmp(name, "rowmax")) value = v->max(x, n);
    else if (!strcmp(name, "rowmin")) value = v->min(x, n);
    else if (!strcmp(name, "dot") && b) value = v->dot(x, b, n);
    else return PyErr_Format(PyExc_KeyError, "no vector primitive '%s'", name);
    return PyFloat_FromDouble((double)value);
}

/* steps(table, y, x, [(name, None | float | row, left), ...], stream=False): ane_vec.steps. */
static PyObject *py_steps(PyObject *self, PyObject *args) {
    const char *table;
    PyObject *po, *px, *list;
    int stream = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "sOOO!|p", &table, &po, &px, &PyList_Type, &list, &stream))
        return NULL;
    const ane_kernels *t = ane_py_table_of(table);
    if (!t) return NULL;
    t = ANE_INTERNAL(ane_whole_for)(t);
    ane_dtype dx, dy, dr;
    size_t n, ny, nr, count = (size_t)PyList_Size(list);
    char *x = row_of(px, &dx, &n), *y = x ? row_of(po, &dy, &ny) : NULL;
    ane_vec_step steps[ANE_STEPS_MAX];
    if (!y) return NULL;
    if (n != ny || count > ANE_STEPS_MAX) return PyErr_Format(PyExc_ValueError, "lengths or steps");
    for (size_t k = 0; k < count; k++) {
        const char *name;
        PyObject *operand;
        int left = 0;
        steps[k] = (ane_vec_step){.code = -1};
        if (!PyArg_ParseTuple(PyList_GetItem(list, (Py_ssize_t)k), "sO|p", &name, &operand, &left))
            return NULL;
        int kind = ANE_STEP_S;
        if (PyArray_Check(operand)) {
            if (!(steps[k].row = row_of(operand, &dr, &nr))) return NULL;
            if (nr != n) return PyErr_Format(PyExc_ValueError, "row %zu has another length", k);
            kind = dr == ANE_F32 ? ANE_STEP_32 : dr == ANE_F16 ? ANE_STEP_16 : ANE_STEP_B;
        } else if (operand != Py_None) {
            steps[k].s = (float)PyFloat_AsDouble(operand);
            if (PyErr_Occurred()) return NULL;
        }
        if (left) kind += ANE_STEP_RS - ANE_STEP_S;
#define X(N, f)                                                                           \
        if (operand == Py_None && !strcmp(name, #f)) steps[k].code = ANE_STEP_UNARY(ANE_VEC_##N);
        ANE_STEP_UNARY_MAP(X)
#undef X
#define X(N, f)                                                                           \
        if (operand != Py_None && !strcmp(name, #f)) steps[k].code = ANE_STEP(ANE_VEC_##N, kind);
        ANE_VEC_BINARY_MAP(X)
#undef X
        if (steps[k].code < 0) return PyErr_Format(PyExc_KeyError, "no step '%s'", name);
    }
    t->vec->steps(y, dy, stream, x, dx, steps, count, n);
    Py_RETURN_NONE;
}

static PyObject *py_vec_names(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    static const char *const unary[] = {
#define X(N, f) #f,
        ANE_VEC_UNARY_MAP(X)
    };
    static const char *const binary[] = {ANE_VEC_BINARY_MAP(X)};
#undef X
    PyObject *out = PyTuple_New(2);
    for (int k = 0; out && k < 2; k++) {
        PyObject *list = PyList_New(0);
        size_t n = k ? sizeof binary / sizeof *binary : sizeof unary / sizeof *unary;
        for (size_t i = 0; list && i < n; i++) {
            PyObject *s = PyUnicode_FromString((k ? binary : unary)[i]);
            if (!s || PyList_Append(list, s) < 0) Py_CLEAR(list);
            Py_XDECREF(s);
        }
        if (!list || PyTuple_SetItem(out, k, list) < 0) Py_CLEAR(out);
    }
    return out;
}

/* parallel(n, depth=0): how often each i of [0, n) ran, as int32 (the loop nests `depth`
 * times, each inner loop of 3 counting towards its i); and the largest worker index. */
typedef struct count {
    int32_t *runs;
    int depth;
    int top;
} count;

typedef struct inner {
    count *c;
    size_t at;
    int depth;
} inner;

static void count_inner(void *arg, size_t i) {
    inner *in = arg;
    (void)i;
    if (in->depth > 1) {
        inner next = {in->c, in->at, in->depth - 1};
        ANE_INTERNAL(ane_parallel_for)(3, count_inner, &next);
        return;
    }
    __atomic_fetch_add(&in->c->runs[in->at], 1, __ATOMIC_RELAXED);
}

static void count_task(void *arg, size_t i) {
    count *c = arg;
    int w = ANE_INTERNAL(ane_worker_index)();
    int top = __atomic_load_n(&c->top, __ATOMIC_RELAXED);
    while (w > top && !__atomic_compare_exchange_n(&c->top, &top, w, 0, __ATOMIC_RELAXED,
                                                   __ATOMIC_RELAXED)) {}
    if (!c->depth) {
        __atomic_fetch_add(&c->runs[i], 1, __ATOMIC_RELAXED);
        return;
    }
    inner in = {c, i, c->depth};
    ANE_INTERNAL(ane_parallel_for)(3, count_inner, &in);
}

static PyObject *py_parallel(PyObject *self, PyObject *args) {
    Py_ssize_t n;
    int depth = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "n|i", &n, &depth)) return NULL;
    npy_intp dim = n;
    PyObject *out = PyArray_ZEROS(1, &dim, NPY_INT32, 0);
    if (!out) return NULL;
    count c = {.runs = PyArray_DATA((PyArrayObject *)out), .depth = depth};
    Py_BEGIN_ALLOW_THREADS
    ANE_INTERNAL(ane_parallel_for)((size_t)n, count_task, &c);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(Ni)", out, c.top);
}

/* [batch, heads, positions, channels], any strides; `group` heads make a group. */
static int mat5_of(PyObject *obj, ane_mat5 *out, int64_t *dims, int64_t group) {
    if (!PyArray_Check(obj) || PyArray_NDIM((PyArrayObject *)obj) != 4) {
        PyErr_SetString(PyExc_TypeError, "expected a 4-D ndarray");
        return -1;
    }
    PyArrayObject *a = (PyArrayObject *)obj;
    out->data = PyArray_DATA(a);
    for (int i = 0; i < 4; i++) {
        out->s[i < 2 ? i : i + 1] = PyArray_STRIDE(a, i);
        dims[i] = PyArray_DIM(a, i);
    }
    out->s[2] = out->s[1];
    out->s[1] *= group;
    if (PyArray_TYPE(a) == NPY_BOOL) {
        out->dtype = ANE_BOOL;
        return 0;
    }
    return ane_py_float_type(a, &out->dtype);
}

/* attention(table, q, k, v, out, scale, mask, grads=(), **rest) */
static PyObject *py_attention(PyObject *self, PyObject *args, PyObject *kw) {
    static char *names[] = {"table", "q", "k", "v", "out", "scale", "mask", "grads",
                            "causal", "span", "hidden", "plain", "fill", "keep", "mask_scale",
                            "dscale", NULL};
    const char *table;
    PyObject *o[5], *grads = NULL, *span = NULL;
    float scale, hidden = -INFINITY, fill = -INFINITY, mask_scale = 1, dscale = NAN;
    int causal = 0, plain = 0, keep = 1;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "sOOOOfO|O!pOfpfpff", names, &table, &o[0],
                                     &o[1], &o[2], &o[3], &scale, &o[4], &PyTuple_Type,
                                     &grads, &causal, &span, &hidden, &plain, &fill, &keep,
                                     &mask_scale, &dscale))
        return NULL;
    const ane_kernels *t = ane_py_table_of(table);
    if (!t) return NULL;
    ane_attention_args a = {.scale = scale, .mask_scale = mask_scale, .fill = fill,
                            .keep = keep != 0, .hidden = hidden, .plain = plain != 0};
    ane_mat5 mask;
    int64_t q[4], k[4], v[4], unused[4];
    if (mat5_of(o[1], &a.k, k, 1) || mat5_of(o[2], &a.v, v, 1) ||
        mat5_of(o[0], &a.q, q, 1))
        return NULL;
    if (!k[1] || q[1] % k[1]) {
        PyErr_SetString(PyExc_ValueError, "heads must be a multiple of KV heads");
        return NULL;
    }
    int64_t group = q[1] / k[1];
    if (mat5_of(o[0], &a.q, q, group) || mat5_of(o[3], &a.out, unused, group) ||
        (o[4] != Py_None && mat5_of(o[4], &mask, unused, group)))
        return NULL;
    if (o[4] != Py_None) a.mask = &mask;
    a.batch = q[0], a.kv_heads = k[1], a.group = group;
    a.q_len = q[2], a.k_len = k[2], a.qk_dim = q[3], a.v_dim = v[3];
    ane_attention_grad_args g = {.fwd = &a, .dscale = isnan(dscale) ? scale : dscale};
    ane_mat5 *to[] = {&g.dout, &g.dq, &g.dk, &g.dv};
    for (int i = 0; grads && i < 4; i++) {
        if (i >= PyTuple_Size(grads) || PyTuple_GetItem(grads, i) == Py_None) continue;
        if (mat5_of(PyTuple_GetItem(grads, i), to[i], unused, i < 2 ? group : 1)) return NULL;
    }
    ane_span *made = NULL;
    if (span && span != Py_None) {
        a.span = PyArray_DATA((PyArrayObject *)span);   /* int32 [q_len, 2] */
    } else if (causal) {
        a.span = made = PyMem_Malloc((size_t)(a.q_len + 1) * sizeof *made);
        if (!made) return PyErr_NoMemory();
        for (int64_t i = 0; i < a.q_len; i++) {
            int64_t end = i + 1 + a.k_len - a.q_len;
            made[i] = (ane_span){0, (int32_t)(end < 0 ? 0 : end > a.k_len ? a.k_len : end)};
        }
    }
    ane_error err = {0};
    ane_status st;
    Py_BEGIN_ALLOW_THREADS
    if (grads && PyTuple_Size(grads)) st = ANE_INTERNAL(ane_attention_grad_with)(t, &g, &err);
    else st = ANE_INTERNAL(ane_attention_with)(t, &a, &err);
    Py_END_ALLOW_THREADS
    PyMem_Free(made);
    if (st) {
        PyErr_SetString(PyExc_ValueError, err.message);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_peak(PyObject *self, PyObject *args) {
    const char *table;
    double seconds = 1e-3, rate;
    (void)self;
    if (!PyArg_ParseTuple(args, "s|d", &table, &seconds)) return NULL;
    const ane_kernels *t = ane_py_table_of(table);
    if (!t) return NULL;
    Py_BEGIN_ALLOW_THREADS
    rate = ANE_INTERNAL(ane_kernels_peak)(t, seconds);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(rate);
}

static PyMethodDef methods[] = {
    {"tables", py_tables, METH_NOARGS,
     PyDoc_STR("tables() -> list of str\n\nKernel tables this machine can run.")},
    {"gemm", (PyCFunction)(void (*)(void))py_gemm, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("gemm(table, a, b, c, *, alpha=1, beta=1, bias=None, act=0, residual=None, "
               "precision=0, packed=0)\n\nc = act(alpha a@b + bias) + beta residual with the "
               "tables up to `table`; packed: bit 0 a, bit 1 b.")},
    {"pack", py_pack, METH_VARARGS,
     PyDoc_STR("pack(table, a, b, c, which, precision=0) -> ndarray for gemm's pa= or pb=")},
    {"gemm_name", py_gemm_name, METH_VARARGS, PyDoc_STR("gemm_name(a, b, c, precision=0)")},
    {"convert", py_convert, METH_VARARGS, PyDoc_STR("convert(table, dst, src)")},
    {"vec", py_vec, METH_VARARGS,
     PyDoc_STR("vec(table, name, y, x, b=None, s=0.0, t=0.0) -> float or None")},
    {"steps", py_steps, METH_VARARGS,
     PyDoc_STR("steps(table, y, x, [(name, operand, left), ...], stream=False) -> None")},
    {"vec_names", py_vec_names, METH_NOARGS, PyDoc_STR("vec_names() -> (unary, binary)")},
    {"attention", (PyCFunction)(void (*)(void))py_attention, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("attention(table, q, k, v, out, scale, mask, grads=(), causal=False, "
               "span=None, hidden=-inf, plain=False, fill=-inf, keep=True, mask_scale=1, "
               "dscale=scale)\n\nForward; with grads = (dout, dq, dk, dv) the gradient.")},
    {"peak", py_peak, METH_VARARGS, PyDoc_STR("peak(table, seconds=1e-3) -> GFLOP/s")},
    {"parallel", py_parallel, METH_VARARGS,
     PyDoc_STR("parallel(n, depth=0) -> (runs per i, largest worker index)")},
    {NULL, NULL, 0, NULL},
};

int ane_py_testing_kernels(PyObject *t, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(t, methods);
}
