/* Request: a kernel bound to tensors. run() is the hot path: nothing is allocated. */
#include "run.h"

#include <string.h>

static PyObject *request_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"kernel", "inputs", "outputs", NULL};
    PyObject *kernel, *inputs, *outputs = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:Request", names, &kernel, &inputs,
                                     &outputs))
        return NULL;
    PyObject *base = PyObject_GetAttrString((PyObject *)type, "_kernel_type");
    int ok = base ? PyObject_IsInstance(kernel, base) : -1;
    Py_XDECREF(base);
    if (ok < 0) return NULL;
    if (!ok) {
        PyErr_Format(PyExc_TypeError, "[bind] expected a Kernel, got %R",
                     (PyObject *)Py_TYPE(kernel));
        return NULL;
    }
    py_kernel *pk = (py_kernel *)kernel;
    ane_py_state *st = pk->state;
    ane_kernel *k = pk->kernel;
    py_bound in = {0}, out = {0};
    ane_request *r = NULL;
    ane_error err = {0};
    py_request *self = NULL;
    if (ane_py_bind_inputs(st, k, inputs, false, "bind", &in) < 0) goto fail;
    if (ane_py_bind_outputs(st, k, outputs, "bind", &out) < 0) goto fail;
    if (ane_py_make_outputs(st, k, &in, &out) < 0) goto fail;
    if (ane_request_create(k, in.t, in.n, out.t, out.n, &r, &err)) {
        (void)ane_py_raise(st, &err);
        goto fail;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    self = (py_request *)alloc(type, 0);
    if (!self) {
        ane_request_release(r);
        goto fail;
    }
    self->state = st;
    self->module = Py_NewRef(pk->module);
    self->kernel = Py_NewRef(kernel);
    self->request = r;
    self->inputs = PyDict_New();
    self->outputs = PyDict_New();
    self->keep = PyTuple_New((Py_ssize_t)(in.n + out.n));
    self->pins = PyMem_Calloc(in.n + out.n + 1, sizeof *self->pins);
    if (!self->inputs || !self->outputs || !self->keep || !self->pins) {
        if (!PyErr_Occurred()) PyErr_NoMemory();
        goto fail;
    }
    for (size_t i = 0; i < in.n + out.n; i++) {
        py_bound *b = i < in.n ? &in : &out;
        size_t j = i < in.n ? i : i - in.n;
        const ane_port *port = i < in.n ? ane_kernel_input(k, j) : ane_kernel_output(k, j);
        PyObject *owner = b->owner[j] ? b->owner[j] : Py_None;
        PyTuple_SetItem(self->keep, (Py_ssize_t)i, Py_NewRef(owner));
        if (b->owner[j] && ane_py_is_tensor(st, owner)) self->pins[self->n_pins++] = owner;
        if (!b->given[j]) {
            self->fresh_outputs = true;
            b->given[j] = Py_NewRef(Py_None);
        }
        if (PyDict_SetItemString(i < in.n ? self->inputs : self->outputs, port->name,
                                 b->given[j]) < 0)
            goto fail;
    }
    ane_py_bound_fini(&in);
    ane_py_bound_fini(&out);
    return (PyObject *)self;
fail:
    ane_py_bound_fini(&in);
    ane_py_bound_fini(&out);
    Py_XDECREF((PyObject *)self);
    return NULL;
}

static int request_traverse(PyObject *obj, visitproc visit, void *arg) {
    py_request *self = (py_request *)obj;
    Py_VISIT((PyObject *)Py_TYPE(obj));
    Py_VISIT(self->module);
    Py_VISIT(self->kernel);
    Py_VISIT(self->inputs);
    Py_VISIT(self->outputs);
    Py_VISIT(self->keep);
    return 0;
}

/* `keep` stays: `pins` points into it. It holds Tensors only, so it closes no cycle that
 * the dicts do not close as well, except through a Tensor subclass's own attributes. */
static int request_clear(PyObject *obj) {
    py_request *self = (py_request *)obj;
    self->n_pins = 0;
    Py_CLEAR(self->kernel);
    Py_CLEAR(self->inputs);
    Py_CLEAR(self->outputs);
    Py_CLEAR(self->keep);
    return 0;
}

static void request_dealloc(PyObject *obj) {
    PyTypeObject *type = Py_TYPE(obj);
    py_request *self = (py_request *)obj;
    PyObject_GC_UnTrack(obj);
    ane_request_release(self->request);
    (void)request_clear(obj);
    PyMem_Free(self->pins);
    Py_CLEAR(self->module);
    freefunc free_ = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_(obj);
    Py_DECREF(type);
}

static PyObject *run_with(py_request *self,
                          ane_status (*run)(ane_request *, const ane_run_options *,
                                            ane_error *)) {
    ane_error err;
    ane_run_options opts;
    ane_status status;
    if (ane_py_pin_all(self->pins, self->n_pins) < 0) return NULL;
    ane_py_run_options(&opts);
    /* A callback of the poll may drop the last reference to self. */
    Py_INCREF((PyObject *)self);
    Py_BEGIN_ALLOW_THREADS
    status = run(self->request, &opts, &err);
    Py_END_ALLOW_THREADS
    ane_py_unpin_all(self->pins, self->n_pins);
    PyObject *result = NULL;
    if (status) (void)ane_py_raise(self->state, &err);
    else if (ane_py_tell_lowering(self->kernel) == 0) result = Py_NewRef(Py_None);
    Py_DECREF((PyObject *)self);
    return result;
}

static PyObject *request_run(PyObject *obj, PyObject *unused) {
    (void)unused;
    return run_with((py_request *)obj, ane_request_run);
}

static PyObject *request_profile(PyObject *obj, PyObject *unused) {
    (void)unused;
    py_request *self = (py_request *)obj;
    PyObject *done = run_with(self, ane_request_profile);
    if (!done) return NULL;
    Py_DECREF(done);
    size_t n = ane_request_step_count(self->request);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < n; i++) {
        ane_step_info s;
        ane_request_step(self->request, i, &s);
        PyObject *values = PyTuple_New((Py_ssize_t)s.n_values);
        for (size_t j = 0; values && j < s.n_values; j++) {
            PyObject *v = PyUnicode_FromString(s.values[j]);
            if (v) PyTuple_SetItem(values, (Py_ssize_t)j, v);
            else Py_CLEAR(values);
        }
        PyObject *row = values ? Py_BuildValue("{s:s,s:s,s:s,s:s,s:s,s:N,s:d,s:d,s:d,s:d}", "op", s.op,
                                               "name", s.name, "kernel", s.kernel, "packed", s.packed, "isa", s.isa,
                                               "values", values, "flops", s.flops, "bytes",
                                               s.bytes, "begin", s.begin, "seconds", s.seconds)
                               : NULL;
        if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *request_memory(PyObject *obj, PyObject *unused) {
    (void)unused;
    ane_memory_info m;
    ane_request_memory(((py_request *)obj)->request, &m);
    return ane_py_memory_dict(&m);
}

static PyObject *request_threads(PyObject *obj, PyObject *unused) {
    (void)unused;
    py_request *self = (py_request *)obj;
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < ane_request_thread_count(self->request); i++) {
        ane_thread_info t;
        ane_request_thread(self->request, i, &t);
        PyObject *row = Py_BuildValue("(indd)", t.thread, (Py_ssize_t)t.step, t.begin, t.seconds);
        if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *get_kernel(PyObject *obj, void *closure) {
    (void)closure;
    return Py_NewRef(((py_request *)obj)->kernel);
}
static PyObject *get_inputs(PyObject *obj, void *closure) {
    (void)closure;
    return PyDict_Copy(((py_request *)obj)->inputs);
}

static PyObject *get_outputs(PyObject *obj, void *closure) {
    (void)closure;
    py_request *self = (py_request *)obj;
    PyObject *d = PyDict_Copy(self->outputs);
    if (!d || !self->fresh_outputs) return d;
    const ane_kernel *k = ((py_kernel *)self->kernel)->kernel;
    for (size_t i = 0; i < ane_kernel_output_count(k); i++) {
        const char *name = ane_kernel_output(k, i)->name;
        const ane_tensor *t = ane_request_output(self->request, i);
        if (PyDict_GetItemString(d, name) != Py_None || !t->surface) continue;
        PyObject *made = ane_py_tensor_new(self->state, t);
        int rc = made ? PyDict_SetItemString(d, name, made) : -1;
        Py_XDECREF(made);
        if (rc < 0) {
            Py_DECREF(d);
            return NULL;
        }
    }
    return d;
}

static PyMethodDef request_methods[] = {
    {"run", request_run, METH_NOARGS,
     PyDoc_STR("run()\n\nRuns the kernel on the bound tensors. The interpreter lock is "
               "released, nothing is allocated after the first run.\n\nRaises what stopped "
               "it; the outputs are then invalid, and reading them raises.")},
    {"profile", request_profile, METH_NOARGS,
     PyDoc_STR("profile() -> list of dict\n\nRuns once and times every step: op, name (of what "
               "it leaves), values (all that its fused ops make), kernel, isa, flops, bytes, begin "
               "and seconds, from the run's begin.")},
    {"threads", request_threads, METH_NOARGS,
     PyDoc_STR("threads() -> list of (thread, step, begin, seconds)\n\nWhat every thread did in "
               "the last profiled run; 0 is the one that called. At most 16,384 intervals.")},
    {"memory", request_memory, METH_NOARGS,
     PyDoc_STR("memory() -> dict\n\nBytes of inputs, outputs, constants, packed weights, what is kept of "
               "bound ones, "
               "scratch, threads' blocks, reference evaluation and rounding to whole pages, their total, "
               "and what scratch would be without reuse (values). Outputs that the last run made and "
               "what evaluation held are in it.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef request_getset[] = {
    {"kernel", get_kernel, NULL, PyDoc_STR("The Kernel."), NULL},
    {"inputs", get_inputs, NULL, PyDoc_STR("dict: name -> what is bound."), NULL},
    {"outputs", get_outputs, NULL,
     PyDoc_STR("dict: name -> what is bound, or the Tensor that the last run made."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot request_slots[] = {
    {Py_tp_doc, PyDoc_STR("A kernel bound to its tensors; see Kernel.bind.")},
    {Py_tp_new, (void *)request_new},
    {Py_tp_dealloc, (void *)request_dealloc},
    {Py_tp_traverse, (void *)request_traverse},
    {Py_tp_clear, (void *)request_clear},
    {Py_tp_methods, request_methods},
    {Py_tp_getset, request_getset},
    {0, NULL},
};

static PyType_Spec request_spec = {
    .name = "anetorch._core.Request",
    .basicsize = sizeof(py_request),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = request_slots,
};

int ane_py_add_request(PyObject *module, ane_py_state *st) {
    st->request_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &request_spec, NULL);
    if (!st->request_type) return -1;
    if (PyObject_SetAttrString((PyObject *)st->request_type, "_kernel_type",
                               (PyObject *)st->kernel_type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Request", (PyObject *)st->request_type);
}
