/* _core._testing: internals for the tests, reached through the library's one exported
 * table. Each room has a testing_<room>.c of its own; this file is their list. */
#include "testing.h"

#include "../backend/cpu/cpu.h"
#include "../base/env.h"
#include "../base/mem.h"
#include "../base/sync.h"
#include "../pass/group.h"

static PyObject *py_fail_after(PyObject *self, PyObject *args) {
    (void)self;
    long n;
    int sticky = 0;
    if (!PyArg_ParseTuple(args, "l|p", &n, &sticky)) return NULL;
    return PyLong_FromLong(ANE_INTERNAL(ane_mem_fail_after)(n, sticky != 0));
}

/* Every way to turn one optimisation off. */
static PyObject *py_switches(PyObject *self, PyObject *unused) {
    static const struct {
        const char *variable, *value;
    } all[] = {
        {"ANETORCH_FUSION", "0"},
        {"ANETORCH_NO_VIEWS", "1"},
#define X(name) {"ANETORCH_NO_FUSE", #name},
        ANE_FUSION_MAP(X)
#undef X
#define X(name) {"ANETORCH_NO_KERNELS", #name},
        ANE_FAMILY_MAP(X)
#undef X
    };
    PyObject *list = PyList_New(0);
    (void)self;
    (void)unused;
    for (size_t i = 0; list && i < sizeof all / sizeof *all; i++) {
        PyObject *row = Py_BuildValue("(ss)", all[i].variable, all[i].value);
        if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *py_variables(PyObject *self, PyObject *unused) {
    static const char *const names[] = {
#define X(name, def, doc) "ANETORCH_" #name,
        ANE_ENV_MAP(X)
#undef X
    };
    PyObject *list = PyList_New(0);
    (void)self;
    (void)unused;
    for (size_t i = 0; list && i < sizeof names / sizeof *names; i++) {
        PyObject *s = PyUnicode_FromString(names[i]);
        if (!s || PyList_Append(list, s) < 0) Py_CLEAR(list);
        Py_XDECREF(s);
    }
    return list;
}

static PyObject *py_scratch_used(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyLong_FromSize_t(ANE_INTERNAL(ane_scratch_used)());
}

static PyObject *py_kept_packs(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyLong_FromSize_t(ANE_INTERNAL(ane_kept_packs)());
}

static PyObject *py_mem_watch(PyObject *self, PyObject *on) {
    (void)self;
    int yes = PyObject_IsTrue(on);
    if (yes < 0) return NULL;
    ANE_INTERNAL(ane_mem_watch)(yes != 0);
    Py_RETURN_NONE;
}

static PyObject *py_mem_watched(PyObject *self, PyObject *unused) {
    ane_mem_watched w;
    (void)self;
    (void)unused;
    ANE_INTERNAL(ane_mem_watch_read)(&w);
    if (w.all)
        return Py_BuildValue("((nnn)(nnn))", (Py_ssize_t)w.now[0], (Py_ssize_t)w.most[0],
                             (Py_ssize_t)w.blocks[0], (Py_ssize_t)w.now[1],
                             (Py_ssize_t)w.most[1], (Py_ssize_t)w.blocks[1]);
    PyErr_SetString(PyExc_RuntimeError, "too many blocks to watch");
    return NULL;
}

static PyMethodDef methods[] = {
    {"scratch_used", py_scratch_used, METH_NOARGS,
     PyDoc_STR("scratch_used() -> int\n\nThe most bytes that this thread's blocks of kernels were "
               "asked to hold at once.")},
    {"kept_packs", py_kept_packs, METH_NOARGS,
     PyDoc_STR("kept_packs() -> int\n\nHow often a bound operand was packed to be kept.")},
    {"mem_watch", py_mem_watch, METH_O,
     PyDoc_STR("mem_watch(on)\n\nFollows every block that the library allocates from now on.")},
    {"mem_watched", py_mem_watched, METH_NOARGS,
     PyDoc_STR("mem_watched() -> ((now, most, blocks), (now, most, blocks))\n\nBytes of aligned "
               "blocks and of others since mem_watch(True), and the most blocks at once.")},
    {"switches", py_switches, METH_NOARGS,
     PyDoc_STR("switches() -> [(variable, value), ...]\n\nEach turns one optimisation off.")},
    {"variables", py_variables, METH_NOARGS,
     PyDoc_STR("variables() -> [name, ...]\n\nEvery variable that the library reads.")},
    {"fail_after", py_fail_after, METH_VARARGS,
     PyDoc_STR("fail_after(n, sticky=False) -> int\n\nThe n-th allocation from now fails "
               "(0: none). Returns how many were seen since the last call.")},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_testing(PyObject *module, ane_py_state *st) {
    PyObject *t = PyModule_New("anetorch._core._testing");
    if (!t) return -1;
    int rc = -1;
    if (PyModule_AddFunctions(t, methods) < 0) goto done;
    if (ane_py_testing_eval(t, st) < 0) goto done;
    if (ane_py_testing_kernels(t, st) < 0) goto done;
    if (ane_py_testing_conv(t, st) < 0) goto done;
    if (ane_py_testing_weights(t, st) < 0) goto done;
    if (ane_py_testing_run(t, st) < 0) goto done;
    if (ane_py_testing_tensor(t, st) < 0) goto done;
    rc = PyModule_AddObjectRef(module, "_testing", t);
done:
    Py_DECREF(t);
    return rc;
}
