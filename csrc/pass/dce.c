/* Dead code: an op none of whose results is used goes, unless it changes a state. */
#include "pass.h"

#include <string.h>

static bool has_effect(const ane_op *op) {
    if (op->n_results == 0) return true;
    for (int p = 0; p < op->row->n_params; p++)
        for (int i = 0; i < op->args[p].n; i++)
            if (op->args[p].v[i]->type->kind == ANE_T_STATE) return true;
    for (int i = 0; i < op->n_blocks; i++)
        for (const ane_op *o = op->blocks[i]->first; o; o = o->next)
            if (has_effect(o)) return true;
    return false;
}

/* The op before this one that is a statement of its own: a const written in place goes with
 * its user, so it may be gone by the time the walk would reach it. */
static ane_op *statement(ane_op *op) {
    while (op && op->inlined) op = op->prev;
    return op;
}

static ane_status sweep(ane_block *b, ane_error *err) {
    for (ane_op *op = statement(b->last), *prev; op; op = prev) {
        prev = statement(op->prev);
        bool used = has_effect(op);
        for (int i = 0; i < op->n_results && !used; i++) used = op->results[i]->uses > 0;
        ane_status st = ANE_OK;
        if (!used) st = ane_op_remove(op, err);
        else
            for (int i = 0; i < op->n_blocks && !st; i++) st = sweep(op->blocks[i], err);
        if (st) return st;
    }
    return ANE_OK;
}

ane_status ane_pass_dce(ane_function *f, unsigned target, ane_error *err) {
    (void)target;
    return sweep(f->body, err);
}
