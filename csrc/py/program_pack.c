/* Program.pack: the packed form and where every port went. */
#include "program.h"

static PyObject *slot_dict(const ane_slot *s) {
    PyObject *shape = PyTuple_New(s->rank);
    for (int i = 0; shape && i < s->rank; i++) {
        PyObject *d = PyLong_FromLongLong(s->dims[i]);
        if (!d) Py_CLEAR(shape);
        else PyTuple_SetItem(shape, i, d);
    }
    if (!shape) return NULL;
    return Py_BuildValue("{s:s,s:s,s:N,s:L,s:L,s:L,s:L}", "name", s->name, "dtype",
                         ane_dtype_name(s->dtype), "shape", shape, "row", (long long)s->row,
                         "column", (long long)s->column, "rows", (long long)s->rows, "columns",
                         (long long)s->columns);
}

/* (name of the packed port or None, (rows, columns), [slots]) */
static PyObject *side(const char *name, int64_t rows, int64_t columns, const ane_slot *slots,
                      size_t n) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *d = slot_dict(&slots[i]);
        if (!d || PyList_Append(list, d) < 0) Py_CLEAR(list);
        Py_XDECREF(d);
    }
    if (!list) return NULL;
    return Py_BuildValue("(z(LL)N)", name, (long long)rows, (long long)columns, list);
}

ANE_PROGRAM_METHOD(ane_py_program_pack) {
    static char *keys[] = {"function", NULL};
    ane_py_state *st = ANE_PROGRAM(self)->st;
    const char *function = NULL;
    const ane_packing *layout = NULL;
    ane_program *packed = NULL;
    ane_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|z:pack", keys, &function)) return NULL;
    if (ane_program_pack(ANE_PROGRAM(self)->p, function, &packed, &layout, &err))
        return ane_py_raise(st, &err);
    PyObject *in = side(layout->input, layout->in_rows, layout->in_columns, layout->in,
                        layout->n_in);
    PyObject *out = side(layout->output, layout->out_rows, layout->out_columns, layout->out,
                         layout->n_out);
    PyObject *p = ane_py_program_make(Py_TYPE(self), st, packed);
    PyObject *result = in && out && p ? PyTuple_Pack(3, p, in, out) : NULL;
    Py_XDECREF(in);
    Py_XDECREF(out);
    Py_XDECREF(p);
    return result;
}
