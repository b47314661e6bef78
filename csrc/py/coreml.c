/* Core ML specifications for Python: bytes to a Program and a plain dict, and back. Files
 * and folders are Python's business (anetorch/coreml.py, anetorch/package.py). */
#include "program.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static const char *const kinds[] = {"none", "int64", "double", "string", "image",
                                    "array", "dict", "sequence", "state"};

static PyObject *int_tuple(const int64_t *v, size_t n) {
    PyObject *t = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; t && i < n; i++) {
        PyObject *x = PyLong_FromLongLong(v[i]);
        if (!x || PyTuple_SetItem(t, (Py_ssize_t)i, x) < 0) Py_CLEAR(t);
    }
    return t;
}

/* dict[key] = value, taking over value; -1 when value is NULL or on failure. */
static int put(PyObject *d, const char *key, PyObject *value) {
    int rc = value ? PyDict_SetItemString(d, key, value) : -1;
    Py_XDECREF(value);
    return rc;
}

/* Tuple of rows of `width` values each. */
static PyObject *rows(const int64_t *v, size_t n, size_t width) {
    PyObject *t = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; t && i < n; i++) {
        PyObject *row = int_tuple(v + i * width, width);
        if (!row || PyTuple_SetItem(t, (Py_ssize_t)i, row) < 0) Py_CLEAR(t);
    }
    return t;
}

static PyObject *feature_dict(const ane_feature *f) {
    PyObject *d = PyDict_New();
    bool array = f->kind == ANE_FEATURE_ARRAY || f->kind == ANE_FEATURE_STATE;
    if (!d) return NULL;
    if (put(d, "name", PyUnicode_FromString(f->name)) < 0 ||
        put(d, "doc", PyUnicode_FromString(f->doc)) < 0 ||
        put(d, "kind", PyUnicode_FromString(kinds[f->kind])) < 0 ||
        put(d, "optional", PyBool_FromLong(f->optional)) < 0)
        goto fail;
    if (array && put(d, "dtype", PyUnicode_FromString(ane_dtype_name(f->dtype))) < 0)
        goto fail;
    if ((array || f->kind == ANE_FEATURE_IMAGE) &&
        put(d, "shape", int_tuple(f->shape, (size_t)f->rank)) < 0)
        goto fail;
    if (f->kind == ANE_FEATURE_IMAGE && put(d, "color", PyLong_FromLong(f->color)) < 0)
        goto fail;
    if (f->flexibility == ANE_FLEX_ENUMERATED &&
        put(d, "enumerated", rows(f->flex, f->n_flex, (size_t)f->rank)) < 0)
        goto fail;
    if (f->flexibility == ANE_FLEX_RANGE && put(d, "ranges", rows(f->flex, f->n_flex, 2)) < 0)
        goto fail;
    if (f->has_default && put(d, "default", PyFloat_FromDouble(f->default_value)) < 0)
        goto fail;
    return d;
fail:
    Py_DECREF(d);
    return NULL;
}

static PyObject *interface_dict(const ane_interface *face) {
    static const char *const roles[] = {"inputs", "outputs", "states"};
    PyObject *d = PyDict_New();
    if (!d || put(d, "function", PyUnicode_FromString(face->function)) < 0 ||
        put(d, "predicted_feature", PyUnicode_FromString(face->predicted_feature)) < 0 ||
        put(d, "predicted_probabilities",
            PyUnicode_FromString(face->predicted_probabilities)) < 0)
        goto fail;
    for (int role = 0; role < 3; role++) {
        PyObject *list = PyList_New(0);
        for (size_t i = 0; list && i < face->n[role]; i++) {
            PyObject *f = feature_dict(&face->features[role][i]);
            if (!f || PyList_Append(list, f) < 0) Py_CLEAR(list);
            Py_XDECREF(f);
        }
        if (put(d, roles[role], list) < 0) goto fail;
    }
    return d;
fail:
    Py_XDECREF(d);
    return NULL;
}

static PyObject *metadata_dict(const ane_description *d) {
    PyObject *m = PyDict_New(), *user = PyDict_New();
    if (!m || !user) goto fail;
    for (size_t i = 0; i < d->n_user; i++)
        if (put(user, d->user[2 * i], PyUnicode_FromString(d->user[2 * i + 1])) < 0) goto fail;
    if (put(m, "author", PyUnicode_FromString(d->author)) < 0 ||
        put(m, "license", PyUnicode_FromString(d->license)) < 0 ||
        put(m, "version", PyUnicode_FromString(d->version)) < 0 ||
        put(m, "short_description", PyUnicode_FromString(d->short_description)) < 0 ||
        put(m, "specification_version", PyLong_FromLong(d->specification_version)) < 0)
        goto fail;
    if (put(m, "user", Py_NewRef(user)) < 0) goto fail;
    Py_DECREF(user);
    return m;
fail:
    Py_XDECREF(user);
    Py_XDECREF(m);
    return NULL;
}

static PyObject *description_dict(const ane_description *d) {
    PyObject *out = PyDict_New(), *faces = PyList_New(0);
    if (!out || !faces) goto fail;
    for (size_t i = 0; i < d->n_interfaces; i++) {
        PyObject *face = interface_dict(&d->interfaces[i]);
        int rc = face ? PyList_Append(faces, face) : -1;
        Py_XDECREF(face);
        if (rc < 0) goto fail;
    }
    if (put(out, "functions", Py_NewRef(faces)) < 0 ||
        put(out, "metadata", metadata_dict(d)) < 0 ||
        put(out, "default_function", PyUnicode_FromString(d->default_function)) < 0 ||
        put(out, "raw", PyBytes_FromStringAndSize(d->raw, (Py_ssize_t)d->raw_bytes)) < 0)
        goto fail;
    Py_DECREF(faces);
    return out;
fail:
    Py_XDECREF(faces);
    Py_XDECREF(out);
    return NULL;
}

PyDoc_STRVAR(read_doc,
"coreml_read(data, filename='<model>', weights=None, allow_missing=False,\n"
"            program_type=Program) -> (Program, dict)\n\n"
"A serialized Core ML Model and its description. weights is the folder that stands for\n"
"@model_path. Raises MILError (file and byte) for a malformed specification and\n"
"NotImplementedError for a model that is not an ML Program.");

static PyObject *py_coreml_read(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"data", "filename", "weights", "allow_missing", "program_type",
                            NULL};
    ane_py_state *st = ane_py_state_of(self);
    Py_buffer data;
    const char *filename = "<model>", *weights = NULL;
    int missing = 0;
    PyObject *type = (PyObject *)st->program_type, *program = NULL, *dict = NULL, *out = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|szpO", names, &data, &filename,
                                     &weights, &missing, &type))
        return NULL;
    ane_parse_options opts = {.size = sizeof opts, .filename = filename,
                              .weights_dir = weights, .allow_missing_weights = missing != 0};
    ane_program *p = NULL;
    ane_description *d = NULL;
    ane_error err = {0};
    ane_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ane_coreml_read(data.buf, (size_t)data.len, &opts, &p, &d, &err);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    if (status) return ane_py_raise(st, &err);
    program = ane_py_program_make((PyTypeObject *)type, st, p);
    p = NULL;
    dict = program ? description_dict(d) : NULL;
    if (dict) out = PyTuple_Pack(2, program, dict);
    Py_XDECREF(program);
    Py_XDECREF(dict);
    ane_program_release(p);
    ane_description_destroy(d);
    return out;
}

static ane_status write_all(void *arg, const void *bytes, size_t n, ane_error *err) {
    int fd = *(int *)arg;
    for (const char *p = bytes; n;) {
        ssize_t k = write(fd, p, n > (1u << 30) ? (1u << 30) : n);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) {
            err->status = ANE_ERR_OS;
            err->code = errno;
            PyOS_snprintf(err->message, sizeof err->message, "writing the weight file: %s",
                          strerror(errno));
            return ANE_ERR_OS;
        }
        p += k;
        n -= (size_t)k;
    }
    return ANE_OK;
}

PyDoc_STRVAR(write_doc,
"coreml_write(program, fd, weight_path, description=None) -> bytes\n\n"
"The serialized Core ML Model of program; the weight file goes to descriptor fd. description\n"
"is the raw ModelDescription to keep, None makes one from the functions' types.");

static PyObject *py_coreml_write(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"program", "fd", "weight_path", "description", NULL};
    ane_py_state *st = ane_py_state_of(self);
    PyObject *obj, *out = NULL;
    int fd;
    const char *path;
    Py_buffer raw = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Ois|z*", names, &obj, &fd, &path, &raw))
        return NULL;
    ane_program *p = ane_py_program(st, obj);
    if (p) {
        ane_description d = {.raw = raw.buf, .raw_bytes = (size_t)raw.len};
        void *model = NULL;
        size_t n = 0;
        ane_error err = {0};
        ane_status status;
        Py_BEGIN_ALLOW_THREADS
        status = ane_coreml_write(p, raw.buf ? &d : NULL, path, write_all, &fd, &model, &n,
                                  &err);
        Py_END_ALLOW_THREADS
        if (status) ane_py_raise(st, &err);
        else out = PyBytes_FromStringAndSize(model, (Py_ssize_t)n);
        ane_free(model);
    }
    if (raw.obj) PyBuffer_Release(&raw);
    return out;
}

static PyMethodDef methods[] = {
    {"coreml_read", (PyCFunction)(void (*)(void))py_coreml_read, METH_VARARGS | METH_KEYWORDS,
     read_doc},
    {"coreml_write", (PyCFunction)(void (*)(void))py_coreml_write,
     METH_VARARGS | METH_KEYWORDS, write_doc},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_coreml(PyObject *module, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(module, methods);
}
