/* Kernel: a compiled function. anetorch/runtime.py derives the public class from it. */
#include "run.h"

#include <string.h>

/* The module of a type or of the nearest base that has one (subclasses have none). */
static PyObject *module_of(PyTypeObject *type) {
    PyObject *mro = PyObject_GetAttrString((PyObject *)type, "__mro__"), *found = NULL;
    Py_ssize_t n = mro ? PyTuple_Size(mro) : 0;
    for (Py_ssize_t i = 0; i < n && !found; i++) {
        found = PyType_GetModule((PyTypeObject *)PyTuple_GetItem(mro, i));
        if (!found) PyErr_Clear();
    }
    Py_XDECREF(mro);
    if (!found) PyErr_SetString(PyExc_TypeError, "[compile] not a type of anetorch");
    return found;                       /* borrowed from the type */
}

static PyObject *kernel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"program", "function", "device", "numerics", "target",
                            "precision", "prepack", "lowering", "memory_limit", "donor",
                            "exchange", NULL};
    PyObject *program, *donor = NULL;
    const char *function = NULL, *device = NULL, *numerics = NULL, *target = NULL,
               *precision = NULL, *lowering = NULL, *exchange = NULL;
    int prepack = 0;
    PyObject *limit_arg = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$zzzzzpzOOz:Kernel", names, &program,
                                     &function, &device, &numerics, &target, &precision,
                                     &prepack, &lowering, &limit_arg, &donor, &exchange))
        return NULL;
    Py_ssize_t limit = 0;
    if (limit_arg != Py_None) {
        limit = PyNumber_AsSsize_t(limit_arg, PyExc_OverflowError);
        if (limit == -1 && PyErr_Occurred()) return NULL;
        if (limit < 1) {
            PyErr_Format(PyExc_ValueError, "[compile] memory_limit must be at least 1 byte, got %R",
                         limit_arg);
            return NULL;
        }
    }
    PyObject *module = module_of(type);
    if (!module) return NULL;
    ane_py_state *st = ane_py_state_of(module);
    if (donor && donor != Py_None && !PyObject_TypeCheck(donor, st->kernel_type)) {
        PyErr_SetString(PyExc_TypeError, "[compile] donor must be a Kernel");
        return NULL;
    }
    ane_program *p = ane_py_program(st, program);
    if (!p) return NULL;
    ane_compile_options opts = {.size = sizeof opts, .function = function, .device = device,
                                .numerics = numerics, .target = target,
                                .precision = precision, .prepack = prepack != 0,
                                .lowering = lowering, .memory_limit = (size_t)limit,
                                .exchange = exchange};
    if (donor && donor != Py_None) opts.donor = ((py_kernel *)donor)->kernel;
    /* The lock stays held: another thread could edit the program otherwise. */
    ane_kernel *k = NULL;
    ane_error err = {0};
    if (ane_kernel_compile(p, &opts, &k, &err)) return ane_py_raise(st, &err);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    py_kernel *self = (py_kernel *)alloc(type, 0);
    if (!self) {
        ane_kernel_release(k);
        return NULL;
    }
    self->state = st;
    self->module = Py_NewRef(module);
    self->kernel = k;
    const char *why;
    self->may_relower = !strcmp(ane_kernel_device(k), "ane") &&
                        !strcmp(ane_kernel_lowering(k, &why), "inputs");
    return (PyObject *)self;
}

static int kernel_traverse(PyObject *obj, visitproc visit, void *arg) {
    Py_VISIT((PyObject *)Py_TYPE(obj));
    Py_VISIT(((py_kernel *)obj)->module);
    return 0;
}

static void kernel_dealloc(PyObject *obj) {
    PyTypeObject *type = Py_TYPE(obj);
    py_kernel *self = (py_kernel *)obj;
    PyObject_GC_UnTrack(obj);
    ane_request_release(self->last);
    ane_kernel_release(self->kernel);
    Py_CLEAR(self->module);
    freefunc free_ = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_(obj);
    Py_DECREF(type);
}

static PyObject *port_tuple(const ane_port *p) {
    PyObject *shape = PyTuple_New(p->rank);
    for (int i = 0; shape && i < p->rank; i++) {
        PyObject *d = p->dims[i] < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(p->dims[i]);
        if (!d) Py_CLEAR(shape);
        else PyTuple_SetItem(shape, i, d);
    }
    if (!shape) return NULL;
    return Py_BuildValue("(ssNO)", p->name, ane_dtype_name(p->dtype), shape,
                         p->state ? Py_True : Py_False);
}

static PyObject *kernel_ports(PyObject *obj, PyObject *arg) {
    const ane_kernel *k = ((py_kernel *)obj)->kernel;
    int outputs = PyObject_IsTrue(arg);
    if (outputs < 0) return NULL;
    size_t n = outputs ? ane_kernel_output_count(k) : ane_kernel_input_count(k);
    PyObject *t = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; t && i < n; i++) {
        PyObject *p = port_tuple(outputs ? ane_kernel_output(k, i) : ane_kernel_input(k, i));
        if (!p) Py_CLEAR(t);
        else PyTuple_SetItem(t, (Py_ssize_t)i, p);
    }
    return t;
}

static PyObject *kernel_device(PyObject *obj, void *closure) {
    (void)closure;
    return PyUnicode_FromString(ane_kernel_device(((py_kernel *)obj)->kernel));
}

static PyObject *kernel_numerics(PyObject *obj, void *closure) {
    (void)closure;
    return PyUnicode_FromString(ane_kernel_numerics(((py_kernel *)obj)->kernel));
}

int ane_py_tell_lowering(PyObject *obj) {
    py_kernel *self = (py_kernel *)obj;
    const char *why;
    if (!obj || !self->may_relower) return 0;
    (void)ane_kernel_lowering(self->kernel, &why);
    if (!*why) return 0;
    self->may_relower = false;
    PyObject *done = PyObject_CallMethod(obj, "_relowered", NULL);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static PyObject *kernel_relowered(PyObject *obj, PyObject *unused) {
    (void)obj, (void)unused;
    Py_RETURN_NONE;
}

/* ("packed", why the first choice was not taken or "") */
static PyObject *kernel_lowered(PyObject *obj, void *closure) {
    const char *why, *name = ane_kernel_lowering(((py_kernel *)obj)->kernel, &why);
    (void)closure;
    return Py_BuildValue("(ss)", name, why);
}

/* ---------------------------------------------------------------- memory */

PyObject *ane_py_memory_dict(const ane_memory_info *m) {
    return Py_BuildValue(
        "{s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n}", "inputs", (Py_ssize_t)m->inputs, "outputs",
        (Py_ssize_t)m->outputs, "constants", (Py_ssize_t)m->constants, "packed",
        (Py_ssize_t)m->packed, "kept", (Py_ssize_t)m->kept, "scratch", (Py_ssize_t)m->scratch, "threads",
        (Py_ssize_t)m->threads, "reference", (Py_ssize_t)m->reference, "rounding",
        (Py_ssize_t)m->rounding, "total", (Py_ssize_t)m->total, "values",
        (Py_ssize_t)m->values);
}

/* Appends a dict to *arg, a list; on failure the list goes. */
static void add_buffer(void *arg, const ane_buffer_info *b) {
    PyObject **list = arg;
    if (!*list) return;
    PyObject *row = Py_BuildValue("{s:s,s:s,s:n}", "name", b->name, "kind", b->kind, "bytes",
                                  (Py_ssize_t)b->bytes);
    if (row && !strcmp(b->kind, "scratch")) {
        PyObject *more = Py_BuildValue("{s:n,s:n,s:n}", "offset", (Py_ssize_t)b->offset, "first",
                                       (Py_ssize_t)b->first, "last", (Py_ssize_t)b->last);
        if (!more || PyDict_Update(row, more) < 0) Py_CLEAR(row);
        Py_XDECREF(more);
    }
    if (!row || PyList_Append(*list, row) < 0) Py_CLEAR(*list);
    Py_XDECREF(row);
}

/* The input's port with the dims of a shape tuple, row-major, of no surface. */
static int tensor_of_shape(const ane_port *port, PyObject *shape, ane_tensor *t) {
    Py_ssize_t rank = PyTuple_Check(shape) ? PyTuple_Size(shape) : -1;
    if (rank < 0 || rank > ANE_MAX_RANK) {
        PyErr_Format(PyExc_TypeError, "[memory] input %s: expected a shape, got %R", port->name,
                     shape);
        return -1;
    }
    *t = (ane_tensor){.dtype = port->dtype, .rank = (int)rank};
    int64_t stride = (int64_t)ane_dtype_size(port->dtype);
    for (int d = (int)rank - 1; d >= 0; d--) {
        long long n = PyLong_AsLongLong(PyTuple_GetItem(shape, d));
        if (n == -1 && PyErr_Occurred()) return -1;
        t->shape[d] = n;
        t->strides[d] = stride;
        if (n < 0 || __builtin_mul_overflow(stride, n ? n : 1, &stride)) {
            PyErr_Format(PyExc_ValueError, "[memory] input %s: the shape %R is no size of memory",
                         port->name, shape);
            return -1;
        }
    }
    return 0;
}

static PyObject *kernel_memory(PyObject *obj, PyObject *shapes) {
    py_kernel *self = (py_kernel *)obj;
    size_t n = ane_kernel_input_count(self->kernel);
    if (!PyTuple_Check(shapes) || (size_t)PyTuple_Size(shapes) != n) {
        PyErr_Format(PyExc_TypeError, "[memory] expected %zu shapes", n);
        return NULL;
    }
    ane_tensor *in = PyMem_Calloc(n + 1, sizeof *in);
    PyObject *list = PyList_New(0), *result = NULL;
    if (!in || !list) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < n; i++)
        if (tensor_of_shape(ane_kernel_input(self->kernel, i),
                            PyTuple_GetItem(shapes, (Py_ssize_t)i), &in[i]) < 0)
            goto done;
    ane_memory_info info;
    ane_error err = {0};
    if (ane_kernel_memory(self->kernel, in, n, &info, add_buffer, &list, &err)) {
        (void)ane_py_raise(self->state, &err);
        goto done;
    }
    PyObject *totals = list ? ane_py_memory_dict(&info) : NULL;
    result = totals ? PyTuple_Pack(2, totals, list) : NULL;
    Py_XDECREF(totals);
done:
    PyMem_Free(in);
    Py_XDECREF(list);
    return result;
}

static PyMethodDef kernel_methods[] = {
    {"_ports", kernel_ports, METH_O,
     PyDoc_STR("_ports(outputs) -> ((name, dtype, shape, state), ...)")},
    {"_memory", kernel_memory, METH_O,
     PyDoc_STR("_memory(shapes) -> (totals, buffers) of a run on inputs of these shapes")},
    {"_relowered", kernel_relowered, METH_NOARGS,
     PyDoc_STR("_relowered()\n\nCalled once, when a run found another lowering.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef kernel_getset[] = {
    {"device", kernel_device, NULL, PyDoc_STR("Device that runs it: \"cpu\" or \"ane\"."),
     NULL},
    {"_lowered", kernel_lowered, NULL, NULL, NULL},
    {"numerics", kernel_numerics, NULL,
     PyDoc_STR("\"ieee\", or \"ane\": the engine's arithmetic, its own or imitated."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot kernel_slots[] = {
    {Py_tp_doc, PyDoc_STR("A compiled function of a program; see anetorch.compile.")},
    {Py_tp_new, (void *)kernel_new},
    {Py_tp_dealloc, (void *)kernel_dealloc},
    {Py_tp_traverse, (void *)kernel_traverse},
    {Py_tp_call, (void *)ane_py_kernel_call},
    {Py_tp_methods, kernel_methods},
    {Py_tp_getset, kernel_getset},
    {0, NULL},
};

static PyType_Spec kernel_spec = {
    .name = "anetorch._core.Kernel",
    .basicsize = sizeof(py_kernel),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = kernel_slots,
};

int ane_py_add_kernel(PyObject *module, ane_py_state *st) {
    st->kernel_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &kernel_spec, NULL);
    if (!st->kernel_type) return -1;
    return PyModule_AddObjectRef(module, "Kernel", (PyObject *)st->kernel_type);
}
