/* What belongs to the engine as a whole: compiles, the compile cache's index, real time. */
#include "py.h"

static PyObject *py_compiles(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return Py_BuildValue("(iii)", ane_compile_count(), ane_compile_budget(),
                         ane_compile_warn_at());
}

static PyObject *py_cache_info(PyObject *self, PyObject *unused) {
    ane_cache_info i;
    (void)self, (void)unused;
    Py_BEGIN_ALLOW_THREADS
    ane_cache_get_info(&i);
    Py_END_ALLOW_THREADS
    PyObject *folder = PyUnicode_DecodeFSDefault(i.folder);
    if (!folder) return NULL;
    return Py_BuildValue("(NnnnKKK)", folder, (Py_ssize_t)i.entries, (Py_ssize_t)i.limit,
                         (Py_ssize_t)i.bytes, (unsigned long long)i.hits,
                         (unsigned long long)i.misses, (unsigned long long)i.stale);
}

static PyObject *py_cache_clear(PyObject *self, PyObject *unused) {
    ane_error err = {0};
    size_t removed = 0;
    ane_status status;
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
    status = ane_cache_clear(&removed, &err);
    Py_END_ALLOW_THREADS
    if (status) return ane_py_raise(ane_py_state_of(self), &err);
    return PyLong_FromSize_t(removed);
}

static PyObject *py_realtime(PyObject *self, PyObject *arg) {
    ane_error err = {0};
    bool granted = false;
    int begin = PyObject_IsTrue(arg);
    if (begin < 0) return NULL;
    if ((begin ? ane_realtime_begin : ane_realtime_end)(&granted, &err))
        return ane_py_raise(ane_py_state_of(self), &err);
    return PyBool_FromLong(granted);
}

static PyMethodDef methods[] = {
    {"compiles", py_compiles, METH_NOARGS,
     PyDoc_STR("compiles() -> (used, budget, warn_at)\n\nCalls of the engine's compiler.")},
    {"cache_info", py_cache_info, METH_NOARGS,
     PyDoc_STR("cache_info() -> (folder, entries, limit, bytes, hits, misses, stale)")},
    {"cache_clear", py_cache_clear, METH_NOARGS,
     PyDoc_STR("cache_clear() -> int\n\nForgets all entries; how many there were.")},
    {"realtime", py_realtime, METH_O,
     PyDoc_STR("realtime(begin) -> bool\n\nWhat the system answered.")},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_engine(PyObject *module, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(module, methods);
}
