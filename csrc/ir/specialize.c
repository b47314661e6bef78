/* Deep copies: one function with other parameter types, or a whole program. Ops are made
 * again through ane__op_create, so every type is inferred anew. */
#include "impl.h"

#include <string.h>

typedef struct copier {
    ane_program *to;
    ane_function *f;
    ane_value **map;                    /* [old id] */
    bool hint;                          /* old types only fill what inference cannot say */
    ane_error *err;
} copier;

static ane_status copy_attrs(copier *c, const ane_attr *from, int n, ane_attr **out) {
    ane_attr *a = ane_arena_alloc(c->to->arena, (size_t)n * sizeof *a);
    if (!a) return ane__nomem(c->err);
    for (int i = 0; i < n; i++) {
        a[i].name = ane_arena_strndup(c->to->arena, from[i].name, strlen(from[i].name));
        if (!a[i].name) return ane__nomem(c->err);
        if (!(a[i].value = ane_const_copy(c->to, from[i].value, c->err)))
            return c->err ? c->err->status : ANE_ERR_NOMEM;
    }
    *out = a;
    return ANE_OK;
}

static ane_status copy_block(copier *c, const ane_block *from, ane_block *to);

static ane_status copy_const(copier *c, const ane_op *op, ane_block *to) {
    ane_value *old = op->results[0], *v;
    const ane_const *k = ane_const_copy(c->to, old->konst, c->err);
    if (!k) return c->err ? c->err->status : ANE_ERR_NOMEM;
    ane_status st = ane_const_create(to, *old->name ? old->name : NULL, k, op->inlined, &v,
                                     c->err);
    if (st) return st;
    ane_op *fresh = v->def;
    fresh->line = op->line;
    fresh->column = op->column;
    if (op->name &&
        !(fresh->name = ane_arena_strndup(c->to->arena, op->name, strlen(op->name))))
        return ane__nomem(c->err);
    fresh->n_attrs = op->n_attrs;
    if (op->n_attrs && (st = copy_attrs(c, op->attrs, op->n_attrs, &fresh->attrs))) return st;
    c->map[old->id] = v;
    return ANE_OK;
}

static ane_status copy_op(copier *c, const ane_op *op, ane_block *to) {
    if (!strcmp(op->row->name, "const")) return copy_const(c, op, to);
    const ane_op_row *row = op->row;
    ane_arena *scratch = c->to->arena;  /* descriptors are small next to the op itself */
    ane_arg_desc *args = ane_arena_alloc(scratch, (size_t)row->n_params * sizeof *args);
    const char **names = ane_arena_alloc(scratch, (size_t)op->n_results * sizeof *names);
    const ane_type **types = ane_arena_alloc(scratch, (size_t)op->n_results * sizeof *types);
    ane_block **blocks = ane_arena_alloc(scratch, (size_t)op->n_blocks * sizeof *blocks);
    if (!args || !names || !types || !blocks) return ane__nomem(c->err);
    int n = 0;
    for (int i = 0; i < row->n_params; i++) {
        const ane_arg *a = &op->args[i];
        if (!a->n && !a->tuple) continue;
        ane_value **v = ane_arena_alloc(scratch, (size_t)a->n * sizeof *v);
        if (!v) return ane__nomem(c->err);
        for (int k = 0; k < a->n; k++)
            if (!(v[k] = c->map[a->v[k]->id]))
                return ane_fail(c->err, ANE_ERR_INVALID, "%s: \"%.80s\" is used before it is "
                                "defined", row->name, a->v[k]->name);
        args[n++] = (ane_arg_desc){row->params[i].name, a->n, a->tuple, v};
    }
    for (int i = 0; i < op->n_results; i++) {
        names[i] = op->results[i]->name;
        types[i] = op->results[i]->type;
    }
    ane_status st;
    for (int i = 0; i < op->n_blocks; i++) {
        if (!(blocks[i] = ane_block_create(c->f, NULL))) return ane__nomem(c->err);
        if ((st = copy_block(c, op->blocks[i], blocks[i]))) return st;
    }
    ane_attr *attrs = NULL;
    if (op->n_attrs && (st = copy_attrs(c, op->attrs, op->n_attrs, &attrs))) return st;
    ane_op_desc d = {.op = row->name, .name = op->name, .args = args, .n_args = n,
                     .n_results = op->n_results, .result_names = names, .declared = types,
                     .blocks = blocks, .n_blocks = op->n_blocks, .attrs = attrs,
                     .n_attrs = op->n_attrs, .line = op->line, .column = op->column};
    ane_op *fresh;
    if ((st = ane__op_create(to, NULL, &d, c->hint, &fresh, c->err))) return st;
    for (int i = 0; i < op->n_results; i++) {
        ane_value *v = fresh->results[i];
        const ane_const *k = op->results[i]->konst;
        if (k && !(v->konst = ane_const_copy(c->to, k, c->err)))
            return c->err ? c->err->status : ANE_ERR_NOMEM;
        c->map[op->results[i]->id] = v;
    }
    return ANE_OK;
}

static ane_status copy_block(copier *c, const ane_block *from, ane_block *to) {
    ane_status st;
    for (int i = 0; from != from->function->body && i < from->n_params; i++) {
        const ane_value *old = from->params[i];
        const ane_type *t = ane__type_copy(c->to, old->type);
        ane_value *v;
        if (!t) return ane__nomem(c->err);
        if ((st = ane_block_add_param(to, old->name, t, &v, c->err))) return st;
        c->map[old->id] = v;
    }
    for (const ane_op *op = from->first; op; op = op->next)
        if ((st = copy_op(c, op, to))) return st;
    ane_value **out = ane_arena_alloc(c->to->arena, (size_t)from->n_outputs * sizeof *out);
    if (!out) return ane__nomem(c->err);
    for (int i = 0; i < from->n_outputs; i++)
        if (!(out[i] = c->map[from->outputs[i]->id]))
            return ane_fail(c->err, ANE_ERR_INVALID, "output \"%.80s\" is not defined",
                            from->outputs[i]->name);
    return ane_block_set_outputs(to, out, from->n_outputs, c->err);
}

static ane_status copy_function(copier *c, const ane_function *f,
                                const ane_type *const *types) {
    ane_param_desc *params =
        ane_arena_alloc(c->to->arena, (size_t)f->n_params * sizeof *params);
    if (!params) return ane__nomem(c->err);
    /* Old symbols keep meaning "equal to each other" in the copy. */
    for (int i = 0; i < f->n_params; i++) {
        params[i].name = f->params[i]->name;
        params[i].type = ane__type_copy(c->to, types && types[i] ? types[i]
                                                                 : f->params[i]->type);
        if (!params[i].type) return ane__nomem(c->err);
    }
    ane_function *g;
    ane_status st = ane_function_create(c->to, f->name, f->opset_tag, params, f->n_params, &g,
                                        c->err);
    if (st) return st;
    c->f = g;
    g->line = f->line;
    g->column = f->column;
    if (f->n_attrs) {
        if ((st = copy_attrs(c, f->attrs, f->n_attrs, &g->attrs))) return st;
        g->n_attrs = f->n_attrs;
    }
    for (int i = 0; i < f->n_params; i++) c->map[f->params[i]->id] = g->params[i];
    return copy_block(c, f->body, g->body);
}

static ane_status copy_program(const ane_program *from, const ane_function *only,
                               const ane_type *const *types, ane_program **out,
                               ane_error *err) {
    ane_error local = {0};
    ane_program *to = NULL;
    copier c = {.err = err ? err : &local, .hint = only != NULL};
    ane_status st = ane_program_create(from->version, &to, c.err);
    if (st) return st;
    c.to = to;
    to->line = from->line;
    to->column = from->column;
    to->impl->next_symbol = from->impl->next_symbol;
    c.map = ane_calloc(from->impl->n_ids, sizeof *c.map);
    if (!c.map || (from->filename &&
                   !(to->filename = ane_arena_strndup(to->arena, from->filename,
                                                      strlen(from->filename))))) {
        st = ane__nomem(c.err);
        goto done;
    }
    if (from->n_attrs) {
        if ((st = copy_attrs(&c, from->attrs, from->n_attrs, &to->attrs))) goto done;
        to->n_attrs = from->n_attrs;
    }
    for (const ane_function *f = from->functions; f && !st; f = f->next)
        if (!only || f == only) st = copy_function(&c, f, types);
    const ane_warning *w;
    size_t n = ane_program_warnings(from, &w);
    for (size_t i = 0; i < n && !st; i++)
        ane_program_warn(to, w[i].line, w[i].column, "%s", w[i].message);
done:
    ane_free(c.map);
    if (st) ane_program_release(to);
    else *out = to;
    return st;
}

ane_status ane_function_specialize(const ane_function *f, const ane_type *const *types,
                                   ane_program **out, ane_error *err) {
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    for (int i = 0; types && i < f->n_params; i++) {
        const ane_type *t = f->params[i]->type;
        if (!types[i]) continue;
        bool same = t->kind == types[i]->kind &&
                    (t->kind != ANE_T_TENSOR ||
                     (t->dtype == types[i]->dtype && t->rank == types[i]->rank));
        if (!same)
            return ane_fail(err, ANE_ERR_SHAPE, "specialize %s: parameter \"%.80s\" is %s and "
                            "cannot become %s", f->name, f->params[i]->name,
                            ane_type_text(t, a, sizeof a),
                            ane_type_text(types[i], b, sizeof b));
    }
    return copy_program(f->program, f, types, out, err);
}

ane_status ane_function_inline(const ane_function *f, ane_block *to, ane_value *const *args,
                               ane_error *err) {
    ane_error local = {0};
    copier c = {.to = to->function->program, .f = to->function, .hint = true,
                .err = err ? err : &local};
    c.map = ane_calloc(f->program->impl->n_ids, sizeof *c.map);
    if (!c.map) return ane__nomem(c.err);
    for (int i = 0; i < f->n_params; i++) c.map[f->params[i]->id] = args[i];
    ane_status st = copy_block(&c, f->body, to);
    ane_free(c.map);
    return st;
}

ane_status ane_program_clone(const ane_program *p, ane_program **out, ane_error *err) {
    return copy_program(p, NULL, NULL, out, err);
}
