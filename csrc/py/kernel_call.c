/* Calling a kernel: arguments to views, a run, results. What a loop of k(x, out=y) repeats is
 * kept between calls. */
#include "run.h"
#include "tensor.h"

#include <string.h>

/* k(a, b), k(x=a, w=b), or some by position and the rest by name: one dict or tuple. */
static PyObject *gather_args(const ane_kernel *k, PyObject *args, PyObject *kwargs) {
    Py_ssize_t n = PyTuple_Size(args), named = kwargs ? PyDict_Size(kwargs) : 0;
    if (!named) return Py_NewRef(args);
    if ((size_t)n > ane_kernel_input_count(k)) return Py_NewRef(args);  /* its own message */
    PyObject *d = PyDict_Copy(kwargs);
    for (Py_ssize_t i = 0; d && i < n; i++) {
        const char *name = ane_kernel_input(k, (size_t)i)->name;
        if (PyDict_GetItemString(d, name)) {
            PyErr_Format(PyExc_TypeError, "[call] input %s was given twice", name);
            Py_CLEAR(d);
        } else if (PyDict_SetItemString(d, name, PyTuple_GetItem(args, i)) < 0) {
            Py_CLEAR(d);
        }
    }
    return d;
}

static PyObject *result_of(ane_py_state *st, const ane_request *r, const ane_kernel *k,
                           py_bound *out) {
    for (size_t i = 0; i < out->n; i++) {
        if (out->given[i]) continue;
        out->given[i] = ane_py_tensor_new(st, ane_request_output(r, i));
        if (!out->given[i]) return NULL;
    }
    if (out->n == 1) return Py_NewRef(out->given[0]);
    PyObject *d = PyDict_New();
    for (size_t i = 0; d && i < out->n; i++)
        if (PyDict_SetItemString(d, ane_kernel_output(k, i)->name, out->given[i]) < 0)
            Py_CLEAR(d);
    return d;
}

/* ---------------------------------------------------------------- calls with out= */

/* A loop that calls k(x, out=y) binds once: the request of the last such call is kept. It holds
 * its Tensors' memory, so only small ones are kept. Of an array it holds the address alone, never
 * a reference, and looks there only while a call holds an array of the same dtype, shape and
 * strides at that address, or after it was bound to the new call's. A call takes the request out
 * of the kernel and puts it back: nobody else, no thread and no signal handler, can have it
 * meanwhile; they make one of their own. */
#define KEEP_BYTES 65536

static bool plain_array(PyObject *obj) {
    return PyArray_CheckExact(obj) && PyArray_ISBEHAVED_RO((PyArrayObject *)obj) &&
           PyArray_NDIM((PyArrayObject *)obj) <= ANE_MAX_RANK;
}

/* Is an operand of the layout that was bound? *moved: but somewhere else. Sets no exception. */
static bool same_layout(const py_kernel *self, PyObject *obj, bool array, bool written,
                        const ane_tensor *was, bool *moved) {
    if (!array) {
        if (!ane_py_is_tensor(self->state, obj)) return false;
        const ane_tensor *t = ane_py_tensor_view(obj);
        if (!t) {
            PyErr_Clear();              /* closed: the slow path says so */
            return false;
        }
        *moved = *moved || t->surface != was->surface || t->offset != was->offset;
        return t->dtype == was->dtype && t->rank == was->rank &&
               !memcmp(t->shape, was->shape, (size_t)t->rank * sizeof *t->shape) &&
               !memcmp(t->strides, was->strides, (size_t)t->rank * sizeof *t->strides);
    }
    if (!plain_array(obj)) return false;
    PyArrayObject *a = (PyArrayObject *)obj;
    if (PyArray_TYPE(a) != ane_py_npy_type(was->dtype) || PyArray_NDIM(a) != was->rank ||
        (written && !PyArray_ISWRITEABLE(a)))
        return false;
    for (int i = 0; i < was->rank; i++)
        if (PyArray_DIM(a, i) != was->shape[i] || PyArray_STRIDE(a, i) != was->strides[i])
            return false;
    *moved = *moved || PyArray_DATA(a) != ane_tensor_data(was);
    return true;
}

/* Binds the request to these operands, to arrays by address alone. 0, or -1 with no exception. */
static int move_kept(py_kernel *self, ane_request *r, PyObject *const *operands, size_t n,
                     uint32_t arrays) {
    ane_tensor t[KEPT_OPERANDS];
    ane_error err = {0};
    size_t made = 0;
    int rc = -1;
    for (; made < n; made++) {
        PyObject *obj = operands[made];
        if (arrays >> made & 1) {
            if (ane_py_borrow_array(self->state, (PyArrayObject *)obj, &t[made]) < 0) goto done;
        } else {
            const ane_tensor *v = ane_py_tensor_view(obj);
            if (!v) goto done;
            t[made] = *v;
            ane_surface_retain(t[made].surface);
        }
    }
    rc = ane_request_rebind(r, t, n - 1, t + n - 1, 1, &err) ? -1 : 0;
done:
    PyErr_Clear();
    for (size_t i = 0; i < made; i++) ane_surface_release(t[i].surface);
    return rc;
}

static size_t tensor_bytes(PyObject *const *operands, size_t n, uint32_t arrays) {
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        const ane_tensor *t = arrays >> i & 1 ? NULL : ane_py_tensor_view(operands[i]);
        if (t) bytes += ane_surface_bytes(t->surface);
    }
    return bytes;
}

/* A kept request outside its kernel, and the operands of the call that took it. */
typedef struct kept_call {
    ane_request *request;
    size_t n;
    uint32_t arrays;
    PyObject *operands[KEPT_OPERANDS];  /* inputs, then the output; borrowed from the call */
} kept_call;

/* Takes the kept request when it fits these operands, or can be moved to them. */
static bool take_kept(py_kernel *self, PyObject *args, PyObject *out, kept_call *c) {
    const ane_kernel *k = self->kernel;
    size_t n = (size_t)PyTuple_Size(args);
    bool moved = false;
    ane_request *r = self->last;
    if (!r || n != ane_kernel_input_count(k)) return false;
    *c = (kept_call){.request = r, .n = n + 1, .arrays = self->last_arrays};
    for (size_t i = 0; i <= n; i++) {
        PyObject *obj = i < n ? PyTuple_GetItem(args, (Py_ssize_t)i) : out;
        const ane_tensor *was = i < n ? ane_request_input(r, i) : ane_request_output(r, 0);
        bool written = i == n || ane_kernel_input(k, i)->state;
        if (!same_layout(self, obj, c->arrays >> i & 1, written, was, &moved)) return false;
        c->operands[i] = obj;
    }
    self->last = NULL;
    if (!moved || (tensor_bytes(c->operands, n + 1, c->arrays) <= KEEP_BYTES &&
                   move_kept(self, r, c->operands, n + 1, c->arrays) == 0))
        return true;
    ane_request_release(r);
    return false;
}

static PyObject *run_kept(py_kernel *self, const kept_call *c) {
    PyObject *pins[KEPT_OPERANDS], *result = NULL;
    Py_ssize_t n_pins = 0;
    for (size_t i = 0; i < c->n; i++)
        if (!(c->arrays >> i & 1)) pins[n_pins++] = c->operands[i];
    if (ane_py_pin_all(pins, n_pins) == 0) {
        ane_error err;
        ane_run_options opts;
        ane_status status;
        ane_py_run_options(&opts);
        Py_BEGIN_ALLOW_THREADS
        status = ane_request_run(c->request, &opts, &err);
        Py_END_ALLOW_THREADS
        ane_py_unpin_all(pins, n_pins);
        result = status ? ane_py_raise(self->state, &err) : Py_NewRef(c->operands[c->n - 1]);
    }
    if (result && !self->last) {
        self->last = c->request;
        self->last_arrays = c->arrays;
    } else {
        ane_request_release(c->request);
    }
    return result;
}

/* Keeps the request of a call that went the long way, where the next can take the short one. */
static void keep_request(py_kernel *self, ane_request *r, PyObject *args, PyObject *out_arg,
                         const py_bound *in, const py_bound *out) {
    PyObject *operands[KEPT_OPERANDS] = {NULL};
    uint32_t arrays = 0;
    size_t n = in->n + 1;
    if (n > KEPT_OPERANDS || out->n != 1 || out->given[0] != out_arg ||
        (size_t)PyTuple_Size(args) != in->n)
        return;
    for (size_t i = 0; i < n; i++) {
        const py_bound *b = i < in->n ? in : out;
        size_t j = i < in->n ? i : 0;
        PyObject *obj = operands[i] = b->given[j];
        if (plain_array(obj) &&
            PyArray_TYPE((PyArrayObject *)obj) == ane_py_npy_type(b->t[j].dtype) &&
            PyArray_DATA((PyArrayObject *)obj) == ane_tensor_data(&b->t[j]))
            arrays |= (uint32_t)1 << i;
        else if (b->owner[j] != obj)
            return;                     /* converted */
    }
    if (tensor_bytes(operands, n, arrays) > KEEP_BYTES ||
        (arrays && move_kept(self, r, operands, n, arrays) < 0))
        return;
    ane_request *before = self->last;
    self->last = ane_request_retain(r);
    self->last_arrays = arrays;
    ane_request_release(before);        /* may run Python */
}

PyObject *ane_py_kernel_call(PyObject *obj, PyObject *args, PyObject *kwargs) {
    py_kernel *self = (py_kernel *)obj;
    ane_py_state *st = self->state;
    ane_kernel *k = self->kernel;
    PyObject *out_arg = NULL, *inputs = NULL, *result = NULL, *kw = NULL;
    py_bound in = {0}, out = {0};
    PyObject **pins = NULL;
    Py_ssize_t n_pins = 0;
    ane_request *r = NULL;
    ane_error err = {0};
    if (kwargs && (out_arg = PyDict_GetItemString(kwargs, "out"))) {
        kept_call kept;
        Py_INCREF(out_arg);
        if (PyDict_Size(kwargs) == 1 && take_kept(self, args, out_arg, &kept)) {
            result = run_kept(self, &kept);
            Py_DECREF(out_arg);
            return result;
        }
        kw = PyDict_Copy(kwargs);
        if (!kw || PyDict_DelItemString(kw, "out") < 0) goto done;
    }
    inputs = gather_args(k, args, kw ? kw : kwargs);
    if (!inputs) goto done;
    if (ane_py_bind_inputs(st, k, inputs, true, "call", &in) < 0) goto done;
    if (ane_py_bind_outputs(st, k, out_arg, "call", &out) < 0) goto done;
    if (ane_py_make_outputs(st, k, &in, &out) < 0) goto done;
    if (ane_request_create(k, in.t, in.n, out.t, out.n, &r, &err)) {
        (void)ane_py_raise(st, &err);
        goto done;
    }
    ane_request_once(r);
    pins = PyMem_Calloc(in.n + out.n + 1, sizeof *pins);
    if (!pins) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < in.n + out.n; i++) {
        PyObject *p = i < in.n ? in.owner[i] : out.owner[i - in.n];
        if (p && ane_py_is_tensor(st, p)) pins[n_pins++] = p;
    }
    if (ane_py_pin_all(pins, n_pins) < 0) goto done;
    ane_run_options opts;
    ane_py_run_options(&opts);
    ane_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ane_request_run(r, &opts, &err);
    Py_END_ALLOW_THREADS
    ane_py_unpin_all(pins, n_pins);
    if (status) (void)ane_py_raise(st, &err);
    else if (ane_py_tell_lowering(obj) == 0) result = result_of(st, r, k, &out);
    if (result && out_arg) keep_request(self, r, args, out_arg, &in, &out);
done:
    ane_request_release(r);
    PyMem_Free(pins);
    ane_py_bound_fini(&in);
    ane_py_bound_fini(&out);
    Py_XDECREF(inputs);
    Py_XDECREF(out_arg);
    Py_XDECREF(kw);
    return result;
}

