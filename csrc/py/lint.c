/* _core.lint: findings of the engine's rules as plain tuples and dicts. */
#include "py.h"

static const char *const severities[] = {"info", "warning", "error"};

static PyObject *rule_dict(const ane_lint_rule *r) {
    static const char *const chips[] = {"m1", "m2", "m3", "m4", "m5"};
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < 5; i++) {
        if (!(r->chips & (1u << i))) continue;
        PyObject *s = PyUnicode_FromString(chips[i]);
        if (!s || PyList_Append(list, s) < 0) Py_CLEAR(list);
        Py_XDECREF(s);
    }
    if (!list) return NULL;
    return Py_BuildValue("{s:s,s:s,s:s,s:N,s:O,s:O,s:s,s:s,s:s,s:s,s:O}", "id", r->id, "name",
                         r->name, "severity", severities[r->severity], "chips", list,
                         "inmemory", r->routes & ANE_ROUTE_INMEMORY ? Py_True : Py_False,
                         "coreml", r->routes & ANE_ROUTE_COREML ? Py_True : Py_False, "message",
                         r->message, "evidence", r->evidence, "rewrite", r->rewrite, "numerics",
                         r->numerics, "fixable",
                         r->fixable ? Py_True : Py_False);
}

PyDoc_STRVAR(rules_doc, "lint_rules() -> list of dict\n\nEvery rule with its evidence.");

static PyObject *py_lint_rules(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < ane_lint_rule_count(); i++) {
        PyObject *d = rule_dict(ane_lint_rule_at(i));
        if (!d || PyList_Append(list, d) < 0) Py_CLEAR(list);
        Py_XDECREF(d);
    }
    return list;
}

PyDoc_STRVAR(lint_doc,
"lint(program, target=None, route='inmemory') -> list of dict\n\n"
"What is likely to go wrong on the engine: rule, severity, function, what, detail, line,\n"
"column and op (id; 0: none). Raises ValueError for an unknown target or route.");

static PyObject *py_lint(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"program", "target", "route", NULL};
    ane_py_state *st = ane_py_state_of(self);
    PyObject *obj;
    const char *target = NULL, *route = "inmemory";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|zs", names, &obj, &target, &route))
        return NULL;
    ane_program *p = ane_py_program(st, obj);
    ane_findings *found = NULL;
    ane_error err = {0};
    if (!p) return NULL;
    if (ane_lint(p, target, route, &found, &err)) return ane_py_raise(st, &err);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < ane_findings_count(found); i++) {
        const ane_finding *f = ane_findings_at(found, i);
        PyObject *d = Py_BuildValue("{s:s,s:s,s:s,s:s,s:s,s:i,s:i,s:I}", "rule", f->rule->id,
                                    "severity", severities[f->severity], "function",
                                    f->function, "what", f->what, "detail", f->detail, "line",
                                    f->line, "column", f->column, "op", f->op);
        if (!d || PyList_Append(list, d) < 0) Py_CLEAR(list);
        Py_XDECREF(d);
    }
    ane_findings_destroy(found);
    return list;
}

static PyMethodDef methods[] = {
    {"lint_rules", py_lint_rules, METH_NOARGS, rules_doc},
    {"lint", (PyCFunction)(void (*)(void))py_lint, METH_VARARGS | METH_KEYWORDS, lint_doc},
    {NULL, NULL, 0, NULL},
};

int ane_py_add_lint(PyObject *module, ane_py_state *st) {
    (void)st;
    return PyModule_AddFunctions(module, methods);
}
