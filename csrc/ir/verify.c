/* The structural check: everything that the building calls promise, looked at again from
 * the outside. Types are inferred anew into a scratch program. */
#include "impl.h"

#include <string.h>

typedef struct checker {
    const ane_program *p;
    const ane_function *f;
    ane_program *scratch;
    int *uses;                          /* [id] counted from scratch */
    ane_error *err;
} checker;

static ane_status bad(checker *c, const char *what, const char *name) {
    return ane_fail(c->err, ANE_ERR_INVALID, "verify: %s \"%.80s\" in function %.80s", what,
                    name, c->f->name);
}

static ane_status check_value_links(checker *c, const ane_value *v, const ane_block *b) {
    if (ane__id_get(c->p, v->id, ANE_ID_VALUE) != v) return bad(c, "wrong id of", v->name);
    if (v->block != b || !v->type) return bad(c, "wrong block or type of", v->name);
    bool silent = v->def && v->def->inlined;
    if (silent ? *v->name != 0 : ane__names_get(c->f->names, v->name) != v)
        return bad(c, "name not registered:", v->name);
    return ANE_OK;
}

static ane_status check_uses(checker *c, ane_value *const *v, int n, const ane_block *b,
                             const ane_op *before) {
    for (int i = 0; i < n; i++) {
        if (v[i]->id >= c->p->impl->n_ids || ane_program_value(c->p, v[i]->id) != v[i])
            return bad(c, "use of a removed value", v[i]->name);
        if (!ane__visible(v[i], b, before)) return bad(c, "use before definition of", v[i]->name);
        c->uses[v[i]->id]++;
    }
    return ANE_OK;
}

static ane_status check_block(checker *c, const ane_block *b, int depth);

static ane_status check_types(checker *c, const ane_op *op) {
    const ane_type *types[ANE_MAX_RESULTS];     /* cleared by ane__infer */
    int n = 0;
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    if (!strcmp(op->row->name, "const")) {
        const ane_value *v = op->results[0];
        return v->konst && ane_type_compatible(v->konst->type, v->type)
                   ? ANE_OK
                   : ane_fail(c->err, ANE_ERR_INVALID, "constant of another type");
    }
    ane_status st = ane__check_signature(op, c->err);
    if (st || (st = ane__infer(c->scratch, op, c->f->opset, op->n_results, types, &n, c->err)))
        return st;
    if (n != op->n_results)
        return ane_fail(c->err, ANE_ERR_SHAPE, "gives %d results, has %d", n, op->n_results);
    for (int i = 0; i < n; i++)
        if (!ane_type_compatible(types[i], op->results[i]->type))
            return ane_fail(c->err, ANE_ERR_SHAPE, "result \"%.80s\" is %s, inferred %s",
                            op->results[i]->name,
                            ane_type_text(op->results[i]->type, a, sizeof a),
                            ane_type_text(types[i], b, sizeof b));
    return ANE_OK;
}

static ane_status check_op(checker *c, const ane_op *op, const ane_block *b, int depth) {
    ane_status st;
    const char *name = op->n_results ? op->results[0]->name : op->row->name;
    if (ane__id_get(c->p, op->id, ANE_ID_OP) != op || op->block != b)
        return bad(c, "wrong id or block of the operation of", name);
    for (int i = 0; i < op->row->n_params; i++)
        if ((st = check_uses(c, op->args[i].v, op->args[i].n, b, op))) return st;
    for (int i = 0; i < op->n_results; i++) {
        const ane_value *v = op->results[i];
        if (v->def != op || v->def_index != i) return bad(c, "wrong definition of", v->name);
        if ((st = check_value_links(c, v, b))) return st;
    }
    for (int i = 0; i < op->n_blocks; i++) {
        if (op->blocks[i]->owner != op) return bad(c, "wrong owner of a block of", name);
        if ((st = check_block(c, op->blocks[i], depth + 1))) return st;
    }
    st = check_types(c, op);
    if (st && st != ANE_ERR_NOMEM)
        ane__op_blame(c->err, c->p, st, op->row->name, name, op->line, op->column);
    return st;
}

static ane_status check_block(checker *c, const ane_block *b, int depth) {
    ane_status st;
    const ane_op *prev = NULL;
    if (depth > ANE_MAX_BLOCK_DEPTH) return bad(c, "blocks nest too deeply", "");
    if (ane__id_get(c->p, b->id, ANE_ID_BLOCK) != b || b->function != c->f)
        return bad(c, "wrong id or function of a block", "");
    for (int i = 0; i < b->n_params; i++)
        if ((st = check_value_links(c, b->params[i], b))) return st;
    for (const ane_op *op = b->first; op; prev = op, op = op->next) {
        if (op->prev != prev || (prev && prev->order >= op->order))
            return bad(c, "wrong order at", op->row->name);
        if ((st = check_op(c, op, b, depth))) return st;
    }
    if (b->last != prev) return bad(c, "wrong end of a block", "");
    return check_uses(c, b->outputs, b->n_outputs, b, NULL);
}

ane_status ane_program_verify(const ane_program *p, ane_error *err) {
    checker c = {.p = p, .err = err};
    ane_status st = ane_program_create("1.3", &c.scratch, err);
    if (st) return st;
    c.uses = ane_calloc(p->impl->n_ids + 1, sizeof *c.uses);
    if (!c.uses) st = ane__nomem(err);
    for (c.f = p->functions; c.f && !st; c.f = c.f->next) {
        for (int i = 0; i < c.f->n_params && !st; i++)
            st = check_value_links(&c, c.f->params[i], c.f->body);
        if (!st) st = check_block(&c, c.f->body, 0);
    }
    /* A block that no op owns yet is not reached above, and its uses are not counted. */
    bool loose = false;
    for (size_t i = 0; i < p->impl->n_ids && !st; i++) {
        const ane_block *b = ane_program_block(p, (uint32_t)i);
        loose |= b && !b->owner && b != b->function->body;
    }
    for (size_t i = 0; i < p->impl->n_ids && !st; i++) {
        const ane_value *v = ane_program_value(p, (uint32_t)i);
        if (!v || (loose ? v->uses >= c.uses[i] : v->uses == c.uses[i])) continue;
        c.f = v->block->function;
        st = bad(&c, "wrong count of uses of", v->name);
    }
    ane_free(c.uses);
    ane_program_release(c.scratch);
    return st;
}
