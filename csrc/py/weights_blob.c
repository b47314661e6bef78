/* Functions: one-record blobs, int8 quantisation, the SIGBUS guard. */
#include "weights.h"

#include <string.h>

static PyObject *py_weight_guard(PyObject *self, PyObject *arg) {
    ane_error err = {0};
    int on = PyObject_IsTrue(arg);
    if (on < 0) return NULL;
    if (ane_weight_guard(on != 0, &err)) return ane_py_weights_raise(ane_py_state_of(self), &err);
    Py_RETURN_NONE;
}

/* A C-contiguous matrix or vector of the format; 0 or -1 with an exception. */
static int matrix(PyObject *obj, const char *fn, const char *format, const char *dtype,
                  Py_buffer *b, size_t *rows, size_t *cols) {
    if (PyObject_GetBuffer(obj, b, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return -1;
    if (!b->format || strcmp(b->format, format)) {
        PyErr_Format(PyExc_TypeError, "[%s] expected %s, got elements of format '%s'", fn, dtype,
                     b->format ? b->format : "B");
    } else if (b->ndim != 1 && b->ndim != 2) {
        PyErr_Format(PyExc_ValueError, "[%s] expected a matrix or a vector, got %d dimensions",
                     fn, b->ndim);
    } else {
        *rows = b->ndim == 2 ? (size_t)b->shape[0] : 1;
        *cols = (size_t)b->shape[b->ndim - 1];
        return 0;
    }
    PyBuffer_Release(b);
    return -1;
}

static PyObject *blob_result(PyObject *self, ane_status status, uint8_t *blob, size_t n,
                             const ane_error *err) {
    if (status) return ane_py_weights_raise(ane_py_state_of(self), err);
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)blob, (Py_ssize_t)n);
    ane_free(blob);
    return bytes;
}

static PyObject *py_build_blob(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"weights", "transpose", NULL};
    PyObject *obj;
    int transpose = 0;
    Py_buffer b;
    size_t rows, cols, n = 0;
    uint8_t *blob = NULL;
    ane_error err = {0};
    ane_status status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:build_blob", names, &obj, &transpose))
        return NULL;
    if (matrix(obj, "build_blob", "f", "float32", &b, &rows, &cols) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = ane_blob_build_f32(b.buf, rows, cols, transpose != 0, &blob, &n, &err);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&b);
    return blob_result(self, status, blob, n, &err);
}

static PyObject *py_build_blob_fp16(PyObject *self, PyObject *obj) {
    Py_buffer b;
    size_t rows, cols, n = 0;
    uint8_t *blob = NULL;
    ane_error err = {0};
    if (matrix(obj, "build_blob_fp16", "e", "float16", &b, &rows, &cols) < 0) return NULL;
    ane_status status = ane_blob_build_f16(b.buf, rows * cols, &blob, &n, &err);
    PyBuffer_Release(&b);
    return blob_result(self, status, blob, n, &err);
}

static PyObject *py_build_blob_int8(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"weights", "bare", NULL};
    PyObject *obj;
    int bare = 0;
    Py_buffer b;
    size_t rows, cols, n = 0;
    uint8_t *blob = NULL;
    ane_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:build_blob_int8", names, &obj, &bare))
        return NULL;
    if (matrix(obj, "build_blob_int8", "b", "int8", &b, &rows, &cols) < 0) return NULL;
    ane_status status = ane_blob_build_i8(b.buf, rows, cols, bare != 0, &blob, &n, &err);
    PyBuffer_Release(&b);
    return blob_result(self, status, blob, n, &err);
}

static PyObject *py_quantize_int8(PyObject *self, PyObject *obj) {
    Py_buffer b;
    size_t rows, cols;
    (void)self;
    if (matrix(obj, "quantize_int8", "f", "float32", &b, &rows, &cols) < 0) return NULL;
    PyObject *bytes = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(rows * cols));
    double scale = 0;
    if (bytes) scale = (double)ane_quantize_i8((int8_t *)PyByteArray_AsString(bytes), b.buf,
                                               rows * cols);
    PyBuffer_Release(&b);
    return bytes ? Py_BuildValue("(Nd)", bytes, scale) : NULL;
}

PyMethodDef ane_py_weight_functions[] = {
    {"weight_guard", py_weight_guard, METH_O,
     PyDoc_STR("weight_guard(on)\n\nInstalls or removes the SIGBUS handler: where a mapped weight "
               "file was cut, code that\nis not anetorch's reads zeros, and the next call of "
               "anetorch raises.\n\n>>> guard(True)\n>>> guard(False)")},
    {"build_blob", KEYWORDS(py_build_blob), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("build_blob(weights, transpose=False) -> bytes\n\nA one-tensor fp16 weight file "
               "(128-byte header, BLOBFILE offset 64) of a float32 matrix.\n\n"
               ">>> len(build_blob(np.ones((3, 4), np.float32)))\n152")},
    {"build_blob_fp16", py_build_blob_fp16, METH_O,
     PyDoc_STR("build_blob_fp16(weights) -> bytes\n\nThe same of float16 data, copied.\n\n"
               ">>> len(build_blob_fp16(np.ones((3, 4), np.float16)))\n152")},
    {"build_blob_int8", KEYWORDS(py_build_blob_int8), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("build_blob_int8(weights, bare=False) -> bytes\n\nThe same of int8 data; bare: the "
               "C bridge's 64-byte header without a file header.\n\n"
               ">>> len(build_blob_int8(np.ones((3, 4), np.int8)))\n140")},
    {"quantize_int8", py_quantize_int8, METH_O,
     PyDoc_STR("quantize_int8(weights) -> (bytearray, scale)\n\nOne scale, max|w|/127, half away "
               "from zero; w is about q * scale.\n\n"
               ">>> q, scale = quantize_int8(np.float32([[-127, 64]]))\n"
               ">>> np.frombuffer(q, np.int8), scale\n(array([-127,   64], dtype=int8), 1.0)")},
    {NULL, NULL, 0, NULL},
};

