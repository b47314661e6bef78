/* Equality of programs: statement for statement, values by their names. */
#include "ir.h"
#include "ops.h"

#include <string.h>

static bool same_text(const char *a, const char *b) {
    return a == b || (a && b && !strcmp(a, b));
}

/* Unknown dims are equal whatever number their symbol has: a text has only `?`. */
static bool same_type(const ane_type *a, const ane_type *b) {
    if (a == b) return true;
    if (a->kind != b->kind) return false;
    switch (a->kind) {
    case ANE_T_TENSOR:
        if (a->dtype != b->dtype || a->rank != b->rank) return false;
        for (int i = 0; i < a->rank; i++)
            if (a->dims[i] != b->dims[i] && (a->dims[i] >= 0 || b->dims[i] >= 0)) return false;
        return true;
    case ANE_T_LIST:
        return (a->length == b->length || (a->length < 0 && b->length < 0)) &&
               same_type(a->elem, b->elem);
    case ANE_T_STATE: return same_type(a->elem, b->elem);
    case ANE_T_DICT: return same_type(a->elem, b->elem) && same_type(a->elem2, b->elem2);
    case ANE_T_TUPLE:
        if (a->n != b->n) return false;
        for (int i = 0; i < a->n; i++)
            if (!same_type(a->items[i], b->items[i])) return false;
        return true;
    }
    return false;
}

static bool same_attrs(const ane_attr *a, int na, const ane_attr *b, int nb) {
    if (na != nb) return false;
    for (int i = 0; i < na; i++)
        if (strcmp(a[i].name, b[i].name) || !ane_const_equal(a[i].value, b[i].value))
            return false;
    return true;
}

static bool inlined(const ane_value *v) { return v->def && v->def->inlined; }

static bool same_use(const ane_value *a, const ane_value *b) {
    if (inlined(a) != inlined(b)) return false;
    return inlined(a) ? ane_const_equal(a->konst, b->konst) : !strcmp(a->name, b->name);
}

static bool same_values(ane_value *const *a, int na, ane_value *const *b, int nb) {
    if (na != nb) return false;
    for (int i = 0; i < na; i++)
        if (strcmp(a[i]->name, b[i]->name) || !same_type(a[i]->type, b[i]->type)) return false;
    return true;
}

static bool same_block(const ane_block *a, const ane_block *b);

static bool same_op(const ane_op *a, const ane_op *b) {
    if (a->row != b->row || !same_text(a->name, b->name) || a->n_blocks != b->n_blocks ||
        !same_values(a->results, a->n_results, b->results, b->n_results) ||
        !same_attrs(a->attrs, a->n_attrs, b->attrs, b->n_attrs))
        return false;
    for (int i = 0; i < a->row->n_params; i++) {
        const ane_arg *x = &a->args[i], *y = &b->args[i];
        if (x->n != y->n || x->tuple != y->tuple) return false;
        for (int k = 0; k < x->n; k++)
            if (!same_use(x->v[k], y->v[k])) return false;
    }
    if (!strcmp(a->row->name, "const") &&
        !ane_const_equal(a->results[0]->konst, b->results[0]->konst))
        return false;
    for (int i = 0; i < a->n_blocks; i++)
        if (!same_block(a->blocks[i], b->blocks[i])) return false;
    return true;
}

static const ane_op *shown(const ane_op *op) {
    while (op && op->inlined) op = op->next;
    return op;
}

/* Recursion is bounded by ANE_MAX_BLOCK_DEPTH. */
static bool same_block(const ane_block *a, const ane_block *b) {
    if (!same_values(a->params, a->n_params, b->params, b->n_params) ||
        !same_values(a->outputs, a->n_outputs, b->outputs, b->n_outputs))
        return false;
    const ane_op *x = shown(a->first), *y = shown(b->first);
    for (; x && y; x = shown(x->next), y = shown(y->next))
        if (!same_op(x, y)) return false;
    return !x && !y;
}

bool ane_program_same(const ane_program *a, const ane_program *b) {
    if (!same_attrs(a->attrs, a->n_attrs, b->attrs, b->n_attrs)) return false;
    const ane_function *f = a->functions, *g = b->functions;
    for (; f && g; f = f->next, g = g->next)
        if (strcmp(f->name, g->name) || strcmp(f->opset_tag, g->opset_tag) ||
            !same_attrs(f->attrs, f->n_attrs, g->attrs, g->n_attrs) ||
            !same_values(f->params, f->n_params, g->params, g->n_params) ||
            !same_block(f->body, g->body))
            return false;
    return !f && !g;
}
