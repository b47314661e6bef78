/* Pipeline: a list of requests run by one C call. */
#include "run.h"

static PyObject *pipeline_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"requests", NULL};
    PyObject *given;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Pipeline", names, &given)) return NULL;
    PyObject *list = PySequence_Tuple(given);
    if (!list) return NULL;
    PyObject *base = PyObject_GetAttrString((PyObject *)type, "_request_type");
    py_pipeline *self = NULL;
    Py_ssize_t n = PyTuple_Size(list);
    ane_request **r = PyMem_Calloc((size_t)n + 1, sizeof *r);
    if (!base) goto done;
    if (!r) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyTuple_GetItem(list, i);
        int ok = PyObject_IsInstance(item, base);
        if (ok < 0) goto done;
        if (!ok) {
            PyErr_Format(PyExc_TypeError, "[Pipeline] item %zd: expected a Request, got %R", i,
                         (PyObject *)Py_TYPE(item));
            goto done;
        }
        r[i] = ((py_request *)item)->request;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    self = (py_pipeline *)alloc(type, 0);
    if (!self) goto done;
    ane_error err = {0};
    if (ane_pipeline_create(r, (size_t)n, &self->pipeline, &err)) {
        PyErr_SetString(PyExc_MemoryError, err.message);
        Py_CLEAR(self);
        goto done;
    }
    self->requests = Py_NewRef(list);
    if (n) self->state = ((py_request *)PyTuple_GetItem(list, 0))->state;
done:
    PyMem_Free(r);
    Py_XDECREF(list);
    Py_XDECREF(base);
    return (PyObject *)self;
}

static int pipeline_traverse(PyObject *obj, visitproc visit, void *arg) {
    Py_VISIT((PyObject *)Py_TYPE(obj));
    Py_VISIT(((py_pipeline *)obj)->requests);
    return 0;
}

static int pipeline_clear(PyObject *obj) {
    Py_CLEAR(((py_pipeline *)obj)->requests);
    return 0;
}

static void pipeline_dealloc(PyObject *obj) {
    PyTypeObject *type = Py_TYPE(obj);
    py_pipeline *self = (py_pipeline *)obj;
    PyObject_GC_UnTrack(obj);
    ane_pipeline_release(self->pipeline);
    Py_CLEAR(self->requests);
    freefunc free_ = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_(obj);
    Py_DECREF(type);
}

static void unpin(PyObject *list, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++) {
        py_request *r = (py_request *)PyTuple_GetItem(list, i);
        ane_py_unpin_all(r->pins, r->n_pins);
    }
}

static PyObject *pipeline_run(PyObject *obj, PyObject *unused) {
    (void)unused;
    py_pipeline *self = (py_pipeline *)obj;
    PyObject *list = Py_NewRef(self->requests);         /* outlives what the poll may run */
    Py_ssize_t n = PyTuple_Size(list);
    for (Py_ssize_t i = 0; i < n; i++) {
        py_request *r = (py_request *)PyTuple_GetItem(list, i);
        if (ane_py_pin_all(r->pins, r->n_pins) < 0) {
            unpin(list, i);
            Py_DECREF(list);
            return NULL;
        }
    }
    ane_pipeline *p = ane_pipeline_retain(self->pipeline);
    ane_error err;
    ane_run_options opts;
    ane_status status;
    ane_py_run_options(&opts);
    Py_BEGIN_ALLOW_THREADS
    status = ane_pipeline_run(p, &opts, &err);
    Py_END_ALLOW_THREADS
    ane_pipeline_release(p);
    unpin(list, n);
    int told = 0;
    for (Py_ssize_t i = 0; !status && !told && i < n; i++)
        told = ane_py_tell_lowering(((py_request *)PyTuple_GetItem(list, i))->kernel);
    Py_DECREF(list);
    if (status) return ane_py_raise(self->state, &err);
    if (told < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *get_requests(PyObject *obj, void *closure) {
    (void)closure;
    return Py_NewRef(((py_pipeline *)obj)->requests);
}

static Py_ssize_t pipeline_length(PyObject *obj) {
    return PyTuple_Size(((py_pipeline *)obj)->requests);
}

static PyMethodDef pipeline_methods[] = {
    {"run", pipeline_run, METH_NOARGS,
     PyDoc_STR("run()\n\nRuns every request in order, in one C call without the interpreter "
               "lock.\n\nRaises what stopped it; the outputs of that request and of all "
               "later ones are then invalid.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pipeline_getset[] = {
    {"requests", get_requests, NULL, PyDoc_STR("tuple of Request."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pipeline_slots[] = {
    {Py_tp_doc, PyDoc_STR("Requests that run one after another: Pipeline([request, ...]).")},
    {Py_tp_new, (void *)pipeline_new},
    {Py_tp_dealloc, (void *)pipeline_dealloc},
    {Py_tp_traverse, (void *)pipeline_traverse},
    {Py_tp_clear, (void *)pipeline_clear},
    {Py_tp_methods, pipeline_methods},
    {Py_tp_getset, pipeline_getset},
    {Py_sq_length, (void *)pipeline_length},
    {0, NULL},
};

static PyType_Spec pipeline_spec = {
    .name = "anetorch._core.Pipeline",
    .basicsize = sizeof(py_pipeline),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = pipeline_slots,
};

int ane_py_add_pipeline(PyObject *module, ane_py_state *st) {
    st->pipeline_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &pipeline_spec, NULL);
    if (!st->pipeline_type) return -1;
    if (PyObject_SetAttrString((PyObject *)st->pipeline_type, "_request_type",
                               (PyObject *)st->request_type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Pipeline", (PyObject *)st->pipeline_type);
}
