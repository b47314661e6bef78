/* _core: module definition, the one import_array, and the functions that belong to no
 * type. Types live in their own files. */
#define ANE_PY_IMPORT_ARRAY
#include "py.h"

#include <stdio.h>

ane_py_state *ane_py_state_of(PyObject *module) {
    return (ane_py_state *)PyModule_GetState(module);
}

static PyObject *py_version(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyUnicode_FromString(ane_version());
}

static PyObject *py_num_threads(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyLong_FromLong(ane_num_threads());
}

static PyObject *py_set_num_threads(PyObject *self, PyObject *arg) {
    long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred()) return NULL;
    ane_error err = {0};
    if (n > 4096 || n < 1) n = n > 4096 ? 4097 : 0;     /* the library's own message */
    if (ane_set_num_threads((int)n, &err)) return ane_py_raise(ane_py_state_of(self), &err);
    Py_RETURN_NONE;
}

static PyObject *py_measure_flops(PyObject *self, PyObject *args) {
    const char *isa = NULL;
    double seconds = 3e-3, rate = 0;
    ane_error err = {0};
    ane_status status;
    if (!PyArg_ParseTuple(args, "|zd:measure_flops", &isa, &seconds)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = ane_measure_flops(isa, seconds, &rate, &err);
    Py_END_ALLOW_THREADS
    return status ? ane_py_raise(ane_py_state_of(self), &err) : PyFloat_FromDouble(rate);
}

static PyObject *py_measure_copy(PyObject *self, PyObject *args) {
    Py_ssize_t bytes;
    double seconds = 3e-3, rate = 0;
    ane_error err = {0};
    ane_status status;
    if (!PyArg_ParseTuple(args, "n|d:measure_copy", &bytes, &seconds)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = ane_measure_copy(bytes < 0 ? 0 : (size_t)bytes, seconds, &rate, &err);
    Py_END_ALLOW_THREADS
    return status ? ane_py_raise(ane_py_state_of(self), &err) : PyFloat_FromDouble(rate);
}

static PyObject *py_devices(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < ane_device_count(); i++) {
        PyObject *d = Py_BuildValue("(sOs)", ane_device_name(i),
                                    ane_device_available(i) ? Py_True : Py_False,
                                    ane_device_detail(i));
        if (!d || PyList_Append(list, d) < 0) Py_CLEAR(list);
        Py_XDECREF(d);
    }
    return list;
}

static PyObject *py_isa_tables(PyObject *self, PyObject *unused) {
    (void)unused;
    ane_error err = {0};
    if (ane_isa_check(&err)) return ane_py_raise(ane_py_state_of(self), &err);
    PyObject *list = PyList_New(0);
    const char *name, *state;
    for (size_t i = 0; list && (name = ane_isa_name(i, &state)); i++) {
        PyObject *row = Py_BuildValue("(ss)", name, state);
        if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *py_blas_kernel(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return Py_BuildValue("z", ane_blas_kernel());
}

static PyMethodDef module_methods[] = {
    {"version", py_version, METH_NOARGS,
     PyDoc_STR("version() -> str\n\nVersion of the C library that is loaded.")},
    {"num_threads", py_num_threads, METH_NOARGS,
     PyDoc_STR("num_threads() -> int\n\nThreads of the CPU device's pool.\n\n"
               ">>> anetorch.num_threads() >= 1\nTrue")},
    {"set_num_threads", py_set_num_threads, METH_O,
     PyDoc_STR("set_num_threads(n)\n\nSize of the CPU device's pool, 1 to 4096. Results "
               "do not depend on it.\n\nRaises ValueError out of range.\n\n"
               ">>> anetorch.set_num_threads(anetorch.num_threads())")},
    {"get_num_threads", py_num_threads, METH_NOARGS,
     PyDoc_STR("get_num_threads() -> int\n\nThreads of the CPU device's pool; the same as "
               "num_threads().\n\n>>> anetorch.get_num_threads() == anetorch.num_threads()\nTrue")},
    {"measure_flops", py_measure_flops, METH_VARARGS,
     PyDoc_STR("measure_flops(isa=None, seconds=3e-3) -> FLOP/s\n\nMultiply-adds in the registers "
               "of a kernel table, on all threads: what fractions of peak are measured against.\n\n"
               "Raises KeyError for a table that does not run here.")},
    {"measure_copy", py_measure_copy, METH_VARARGS,
     PyDoc_STR("measure_copy(bytes, seconds=3e-3) -> bytes/s\n\nA copy that reads and writes so "
               "many bytes altogether, on all threads.")},
    {"devices", py_devices, METH_NOARGS,
     PyDoc_STR("devices() -> list of (name, available, detail)")},
    {"isa_tables", py_isa_tables, METH_NOARGS,
     PyDoc_STR("isa_tables() -> list of (name, state)\n\nKernel tables of this build, the "
               "chosen one among them.\n\nRaises ValueError when ANETORCH_ISA names none.")},
    {"blas_kernel", py_blas_kernel, METH_NOARGS,
     PyDoc_STR("blas_kernel() -> str or None\n\nWhat of another library runs large products: "
               "Accelerate's on macOS, see ANETORCH_BLAS.")},
    {NULL, NULL, 0, NULL},
};

/* Whole lines to standard error. Not Python's logging: messages come from threads that do not
 * hold the interpreter lock, and from under locks of the library. */
static void log_line(void *arg, const char *line) {
    (void)arg;
    fprintf(stderr, "anetorch: %s\n", line);
}

static int module_exec(PyObject *m) {
    ane_set_log(log_line, NULL);
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    ane_py_state *st = ane_py_state_of(m);
    PyObject *dict = PyDict_New();
    if (!dict) return -1;
    st->mil_error = PyErr_NewExceptionWithDoc(
        "anetorch.MILError",
        "A MIL text or a program file is malformed. Has .filename, .lineno and .offset "
        "like SyntaxError.\n\n"
        ">>> try:\n...     anetorch.compile(\"program(1.3)\")\n"
        "... except anetorch.MILError as e:\n...     print(e.lineno, e.offset)\n1 13",
        PyExc_SyntaxError, dict);
    Py_DECREF(dict);
    if (!st->mil_error || PyModule_AddObjectRef(m, "MILError", st->mil_error) < 0) return -1;
    static int (*const add[])(PyObject *, ane_py_state *) = {
        ane_py_add_convert, ane_py_add_tensor,  ane_py_add_program,
        ane_py_add_kernel,  ane_py_add_request, ane_py_add_pipeline,
        ane_py_add_weights, ane_py_add_train,   ane_py_add_coreml,
        ane_py_add_lint,    ane_py_add_engine,  ane_py_add_testing,
    };
    for (size_t i = 0; i < sizeof add / sizeof *add; i++)
        if (add[i](m, st) < 0) return -1;
    return 0;
}

#define ANE_PY_EACH(X)                                                                     \
    X(mil_error) X(tensor_type) X(map_type) X(quant_type) X(program_type) X(kernel_type)   \
    X(request_type) X(pipeline_type) X(weight_file_type) X(weight_buffer_type)     \
    X(weight_writer_type)

static int module_traverse(PyObject *m, visitproc visit, void *arg) {
    ane_py_state *st = ane_py_state_of(m);
#define X(f) Py_VISIT((PyObject *)st->f);
    if (st) { ANE_PY_EACH(X) }
#undef X
    return 0;
}

static int module_clear(PyObject *m) {
    ane_py_state *st = ane_py_state_of(m);
#define X(f) Py_CLEAR(st->f);
    if (st) { ANE_PY_EACH(X) }
#undef X
    return 0;
}

static void module_free(void *m) { (void)module_clear((PyObject *)m); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "anetorch._core",
    .m_doc = PyDoc_STR("The C core of anetorch. Use the package's public names."),
    .m_size = sizeof(ane_py_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);      /* Python.h gives it no prototype */
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&module_def); }
