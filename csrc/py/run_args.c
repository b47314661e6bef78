/* Arguments of kernels: Python objects in any of the accepted forms to views by port. */
#include "run.h"

#include <string.h>

int ane_py_bound_init(py_bound *b, size_t n) {
    *b = (py_bound){.n = n};
    b->t = PyMem_Calloc(n + 1, sizeof *b->t);
    b->owner = PyMem_Calloc(n + 1, sizeof *b->owner);
    b->given = PyMem_Calloc(n + 1, sizeof *b->given);
    if (b->t && b->owner && b->given) return 0;
    ane_py_bound_fini(b);
    PyErr_NoMemory();
    return -1;
}

void ane_py_bound_fini(py_bound *b) {
    for (size_t i = 0; b->owner && i < b->n; i++) Py_XDECREF(b->owner[i]);
    for (size_t i = 0; b->given && i < b->n; i++) Py_XDECREF(b->given[i]);
    PyMem_Free(b->t);
    PyMem_Free(b->owner);
    PyMem_Free(b->given);
    *b = (py_bound){0};
}

typedef const ane_port *port_fn(const ane_kernel *k, size_t i);

/* "x, w" */
static PyObject *port_names(const ane_kernel *k, size_t n, port_fn *port) {
    PyObject *list = PyList_New(0), *sep = NULL, *text = NULL;
    for (size_t i = 0; list && i < n; i++) {
        PyObject *s = PyUnicode_FromString(port(k, i)->name);
        if (!s || PyList_Append(list, s) < 0) Py_CLEAR(list);
        Py_XDECREF(s);
    }
    sep = PyUnicode_FromString(", ");
    if (list && sep) text = PyUnicode_Join(sep, list);
    Py_XDECREF(list);
    Py_XDECREF(sep);
    return text;
}

static int wrong_set(const ane_kernel *k, size_t n, port_fn *port, const char *who,
                     const char *kind, const char *fmt, PyObject *detail) {
    PyObject *names = port_names(k, n, port);
    PyObject *what = names ? PyUnicode_FromFormat(fmt, kind, detail) : NULL;
    if (what)
        PyErr_Format(PyExc_TypeError, "[%s] %U; the kernel's %ss are: %U", who, what, kind,
                     names);
    Py_XDECREF(names);
    Py_XDECREF(what);
    return -1;
}

/* Sorts dict, sequence or single object into b->given (new references; NULL: missing). */
static int sort_ports(ane_py_state *st, const ane_kernel *k, PyObject *obj, port_fn *port,
                      const char *who, const char *kind, py_bound *b) {
    size_t n = b->n;
    if (PyDict_Check(obj)) {
        Py_ssize_t found = 0;
        for (size_t i = 0; i < n; i++) {
            PyObject *v = PyDict_GetItemString(obj, port(k, i)->name);
            if (!v) continue;
            b->given[i] = Py_NewRef(v);
            found++;
        }
        if (found == PyDict_Size(obj)) return 0;
        PyObject *key, *value;
        for (Py_ssize_t pos = 0; PyDict_Next(obj, &pos, &key, &value);) {
            const char *text = PyUnicode_Check(key) ? PyUnicode_AsUTF8AndSize(key, NULL) : "";
            if (!text) return -1;
            size_t i = 0;
            while (i < n && strcmp(port(k, i)->name, text)) i++;
            if (i == n) return wrong_set(k, n, port, who, kind, "no %s is named %R", key);
        }
        PyErr_Format(PyExc_TypeError, "[%s] the names of the %ss are ambiguous", who, kind);
        return -1;
    }
    if (PyTuple_Check(obj) || PyList_Check(obj)) {
        Py_ssize_t got = PySequence_Size(obj);
        if (got < 0) return -1;
        if ((size_t)got != n) {
            PyObject *count = PyUnicode_FromFormat("%zd given, %zd expected", got,
                                                   (Py_ssize_t)n);
            if (!count) return -1;
            (void)wrong_set(k, n, port, who, kind, "wrong number of %ss: %U", count);
            Py_DECREF(count);
            return -1;
        }
        for (size_t i = 0; i < n; i++) {
            b->given[i] = PySequence_GetItem(obj, (Py_ssize_t)i);
            if (!b->given[i]) return -1;
            if (b->given[i] == Py_None) Py_CLEAR(b->given[i]);
        }
        return 0;
    }
    if (n == 1 && (ane_py_is_tensor(st, obj) || PyArray_Check(obj))) {
        b->given[0] = Py_NewRef(obj);
        return 0;
    }
    PyErr_Format(PyExc_TypeError,
                 "[%s] expected a dict or a sequence of %zd %s%s (Tensors or arrays), got %R",
                 who, (Py_ssize_t)n, kind, n == 1 ? "" : "s", (PyObject *)Py_TYPE(obj));
    return -1;
}

static int view_of(ane_py_state *st, PyObject *obj, const ane_port *port, bool convert,
                   const char *who, const char *kind, ane_tensor *t, PyObject **owner) {
    if (ane_py_is_tensor(st, obj)) {
        const ane_tensor *v = ane_py_tensor_view(obj);
        if (!v) return -1;
        if (v->dtype == port->dtype || !convert) {
            *t = *v;
            *owner = Py_NewRef(obj);
            return 0;
        }
    } else if (!convert && !PyArray_Check(obj)) {
        PyErr_Format(PyExc_TypeError,
                     "[%s] %s %s: expected a Tensor or a NumPy array whose memory is used in "
                     "place, got %R", who, kind, port->name, (PyObject *)Py_TYPE(obj));
        return -1;
    }
    char what[256];
    PyOS_snprintf(what, sizeof what, "%s: %s %.150s", who, kind, port->name);
    return ane_py_view(st, obj, convert ? (int)port->dtype : -1, what, t, owner);
}

int ane_py_bind_inputs(ane_py_state *st, const ane_kernel *k, PyObject *obj, bool convert,
                       const char *who, py_bound *b) {
    if (ane_py_bound_init(b, ane_kernel_input_count(k)) < 0) return -1;
    if (sort_ports(st, k, obj, ane_kernel_input, who, "input", b) < 0) return -1;
    for (size_t i = 0; i < b->n; i++) {
        const ane_port *port = ane_kernel_input(k, i);
        if (!b->given[i]) {
            PyObject *name = PyUnicode_FromString(port->name);
            if (!name) return -1;
            (void)wrong_set(k, b->n, ane_kernel_input, who, "input", "%s %R is missing", name);
            Py_DECREF(name);
            return -1;
        }
        if (view_of(st, b->given[i], port, convert, who, "input", &b->t[i], &b->owner[i]) < 0)
            return -1;
    }
    return 0;
}

int ane_py_bind_outputs(ane_py_state *st, const ane_kernel *k, PyObject *obj,
                        const char *who, py_bound *b) {
    if (ane_py_bound_init(b, ane_kernel_output_count(k)) < 0) return -1;
    if (!obj || obj == Py_None) return 0;
    if (sort_ports(st, k, obj, ane_kernel_output, who, "output", b) < 0) return -1;
    for (size_t i = 0; i < b->n; i++)
        if (b->given[i] && view_of(st, b->given[i], ane_kernel_output(k, i), false, who,
                                   "output", &b->t[i], &b->owner[i]) < 0)
            return -1;
    return 0;
}

int ane_py_make_outputs(ane_py_state *st, ane_kernel *k, const py_bound *in, py_bound *out) {
    bool all = true;
    for (size_t i = 0; i < out->n; i++) all = all && out->given[i];
    if (all) return 0;
    ane_port *ports = PyMem_Calloc(out->n + 1, sizeof *ports);
    if (!ports) {
        PyErr_NoMemory();
        return -1;
    }
    ane_error err = {0};
    int rc = -1;
    if (ane_kernel_check_memory(k, in->t, in->n, &err)) goto raise;
    if (ane_kernel_infer(k, in->t, in->n, ports, out->n, &err)) goto raise;
    for (size_t i = 0; i < out->n; i++) {
        if (out->given[i]) continue;
        bool open = ports[i].dtype == ANE_STRING;
        size_t bytes = ane_dtype_size(ports[i].dtype);
        for (int d = 0; d < ports[i].rank && !open; d++) {
            open = ports[i].dims[d] < 0;
            if (!open && __builtin_mul_overflow(bytes, (size_t)ports[i].dims[d], &bytes))
                bytes = SIZE_MAX / 2;
        }
        if (open) continue;             /* the run makes it */
        ane_surface *s = NULL;
        if (ane_surface_create(ane_memory_default(), bytes, NULL, &s, &err)) goto raise;
        if (ane_tensor_init(&out->t[i], s, 0, ports[i].dtype, ports[i].rank, ports[i].dims,
                            &err)) {
            ane_surface_release(s);
            goto raise;
        }
        ane_surface_track(s);
        out->given[i] = ane_py_tensor_new(st, &out->t[i]);
        ane_surface_release(s);
        if (!out->given[i]) goto done;
        out->owner[i] = Py_NewRef(out->given[i]);
    }
    rc = 0;
    goto done;
raise:
    (void)ane_py_raise(st, &err);
done:
    PyMem_Free(ports);
    return rc;
}

int ane_py_pin_all(PyObject *const *pins, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!ane_py_tensor_view(pins[i])) {
            ane_py_unpin_all(pins, i);
            return -1;
        }
        ane_py_tensor_pin(pins[i]);
    }
    return 0;
}

void ane_py_unpin_all(PyObject *const *pins, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++) ane_py_tensor_unpin(pins[i]);
}
