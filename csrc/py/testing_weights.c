/* _testing: the JSON reader, weight blobs, and the loops of the optimizer. */
#include "testing.h"

#include "../train/train.h"
#include "../weights/blob.h"
#include "../weights/weights.h"

#include <string.h>

/* ---------------------------------------------------------------- JSON */

static PyObject *raise_json(const ane_error *err) {
    PyErr_Format(err->status == ANE_ERR_NOMEM ? PyExc_MemoryError : PyExc_ValueError,
                 "%s:%d:%d: %s", err->file, err->line, err->column, err->message);
    return NULL;
}

static PyObject *text_of(const ane_json_str *s) {
    char *p = PyMem_Malloc(s->n + 1);
    if (!p) return PyErr_NoMemory();
    ANE_INTERNAL(ane_json_decode)(s, p);
    PyObject *u = PyUnicode_FromStringAndSize(p, (Py_ssize_t)s->n);
    PyMem_Free(p);
    return u;
}

/* The value as Python's json gives it, objects as lists of pairs; numbers that are not
 * plain integers become None. NULL with or without an exception (r->status says). */
static PyObject *value_of(ane_json *r) {
    ane_json_str s;
    PyObject *list;
    const char *from;
    switch (ANE_INTERNAL(ane_json_peek)(r)) {
    case ANE_JSON_OBJECT:
        list = PyList_New(0);
        for (ANE_INTERNAL(ane_json_object)(r); list && ANE_INTERNAL(ane_json_key)(r, &s);) {
            PyObject *k = text_of(&s), *v = k ? value_of(r) : NULL;
            PyObject *pair = v ? PyTuple_Pack(2, k, v) : NULL;
            if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
            Py_XDECREF(pair), Py_XDECREF(k), Py_XDECREF(v);
        }
        return list;
    case ANE_JSON_ARRAY:
        list = PyList_New(0);
        for (ANE_INTERNAL(ane_json_array)(r); list && ANE_INTERNAL(ane_json_item)(r);) {
            PyObject *v = value_of(r);
            if (!v || PyList_Append(list, v) < 0) Py_CLEAR(list);
            Py_XDECREF(v);
        }
        return list;
    case ANE_JSON_STRING: return ANE_INTERNAL(ane_json_string)(r, &s) ? text_of(&s) : NULL;
    case ANE_JSON_NUMBER:
        from = r->p;
        if (!ANE_INTERNAL(ane_json_skip)(r)) return NULL;
        for (const char *c = from; c < r->p; c++)
            if (*c < '0' || *c > '9') Py_RETURN_NONE;
        if (r->p - from > 19) Py_RETURN_NONE;
        r->p = from;
        uint64_t v;
        return ANE_INTERNAL(ane_json_u64)(r, &v) ? PyLong_FromUnsignedLongLong(v) : NULL;
    case ANE_JSON_TRUE: return ANE_INTERNAL(ane_json_skip)(r) ? Py_NewRef(Py_True) : NULL;
    case ANE_JSON_FALSE: return ANE_INTERNAL(ane_json_skip)(r) ? Py_NewRef(Py_False) : NULL;
    default: return ANE_INTERNAL(ane_json_skip)(r) ? Py_NewRef(Py_None) : NULL;
    }
}

static PyObject *py_json(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer b;
    int skip = 0;
    if (!PyArg_ParseTuple(args, "y*|p:json", &b, &skip)) return NULL;
    ane_error err = {0};
    ane_json r;
    ANE_INTERNAL(ane_json_init)(&r, b.buf, (size_t)b.len, "text", &err);
    PyObject *v = NULL;
    if (skip) v = ANE_INTERNAL(ane_json_skip)(&r) ? Py_NewRef(Py_None) : NULL;
    else v = value_of(&r);
    if (v && !ANE_INTERNAL(ane_json_end)(&r)) Py_CLEAR(v);
    if (r.status) {
        Py_CLEAR(v);
        raise_json(&err);
    }
    PyBuffer_Release(&b);
    return v;
}

static PyObject *py_json_u64(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer b;
    uint64_t v = 0;
    if (!PyArg_ParseTuple(args, "y*:json_u64", &b)) return NULL;
    ane_error err = {0};
    ane_json r;
    ANE_INTERNAL(ane_json_init)(&r, b.buf, (size_t)b.len, "text", &err);
    bool ok = ANE_INTERNAL(ane_json_u64)(&r, &v) && ANE_INTERNAL(ane_json_end)(&r);
    PyBuffer_Release(&b);
    return ok ? PyLong_FromUnsignedLongLong(v) : raise_json(&err);
}

/* ---------------------------------------------------------------- blobs */

static PyObject *py_blob_find(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer b;
    unsigned long long offset, count;
    const char *dtype;
    unsigned flags = 0;
    if (!PyArg_ParseTuple(args, "y*KsK|I:blob_find", &b, &offset, &dtype, &count, &flags))
        return NULL;
    ane_error err = {0};
    ane_dtype d = ANE_F16;
    ane_blob out;
    ane_status st = ane_dtype_parse(dtype, &d, &err);
    if (!st)
        st = ANE_INTERNAL(ane_blob_find)(b.buf, (size_t)b.len, offset, d, count, flags, &out,
                                         &err);
    PyBuffer_Release(&b);
    if (st) {
        PyErr_SetString(st == ANE_ERR_DTYPE ? PyExc_TypeError : PyExc_ValueError, err.message);
        return NULL;
    }
    char text[512];
    ANE_INTERNAL(ane_blob_deviations)(out.deviations, text, sizeof text);
    return Py_BuildValue("(nns)", (Py_ssize_t)out.offset, (Py_ssize_t)out.bytes, text);
}

static ane_status append(void *arg, const void *bytes, size_t n, ane_error *err) {
    PyObject *piece = PyBytes_FromStringAndSize(bytes, (Py_ssize_t)n);
    int rc = piece ? PyList_Append(arg, piece) : -1;
    Py_XDECREF(piece);
    if (rc == 0) return ANE_OK;
    if (err) err->status = ANE_ERR_NOMEM;
    return ANE_ERR_NOMEM;
}

static PyObject *py_blob_write(PyObject *self, PyObject *list) {
    (void)self;
    Py_ssize_t n = PyList_Size(list);
    if (n < 0 || n > 64) return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    ane_blob_record r[64];
    for (Py_ssize_t i = 0; i < n; i++) {
        const char *dtype, *data;
        unsigned long long count;
        Py_ssize_t bytes;
        ane_error err = {0};
        if (!PyArg_ParseTuple(PyList_GetItem(list, i), "sKy#", &dtype, &count, &data, &bytes))
            return NULL;
        r[i] = (ane_blob_record){.count = count, .data = data};
        if (ane_dtype_parse(dtype, &r[i].dtype, &err)) {
            PyErr_SetString(PyExc_TypeError, err.message);
            return NULL;
        }
    }
    size_t total = 0;
    ane_error err = {0};
    PyObject *pieces = PyList_New(0), *offsets = PyList_New(n), *result = NULL;
    ane_status st = ANE_INTERNAL(ane_blob_layout)(r, (size_t)n, &total, &err);
    if (!st && pieces && offsets)
        st = ANE_INTERNAL(ane_blob_emit)(r, (size_t)n, append, pieces, &err);
    if (st) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, err.message);
    } else if (pieces && offsets) {
        for (Py_ssize_t i = 0; i < n; i++)
            PyList_SetItem(offsets, i, PyLong_FromUnsignedLongLong(r[i].offset));
        result = Py_BuildValue("(OOn)", pieces, offsets, (Py_ssize_t)total);
    }
    Py_XDECREF(pieces);
    Py_XDECREF(offsets);
    return result;
}

/* ---------------------------------------------------------------- optimizer loops */

static PyObject *py_train_force(PyObject *self, PyObject *arg) {
    (void)self;
    const ane_train_loops *t = NULL;
    const char *name = NULL;
    if (arg != Py_None && !(name = PyUnicode_AsUTF8AndSize(arg, NULL))) return NULL;
    for (size_t i = 0; name; i++) {
        t = ANE_INTERNAL(ane_train_at)(i);
        if (!t) return PyErr_Format(PyExc_KeyError, "no optimizer loops '%s' here", name);
        if (!strcmp(t->name, name)) break;
    }
    ANE_INTERNAL(ane_train_force)(t);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"json", py_json, METH_VARARGS,
     PyDoc_STR("json(text: bytes, skip=False)\n\nThe value; objects as lists of pairs.")},
    {"json_u64", py_json_u64, METH_VARARGS, NULL},
    {"blob_find", py_blob_find, METH_VARARGS,
     PyDoc_STR("blob_find(file, offset, dtype, count, flags=0) -> (offset, bytes, deviations)")},
    {"blob_write", py_blob_write, METH_O,
     PyDoc_STR("blob_write([(dtype, count, data), ...]) -> (pieces, offsets, size)")},
    {"train_force", py_train_force, METH_O,
     PyDoc_STR("train_force(name or None)\n\nThe optimizer uses these loops from now on.")},
    {NULL, NULL, 0, NULL},
};

int ane_py_testing_weights(PyObject *t, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(t, methods);
}
