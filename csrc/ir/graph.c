/* Functions, blocks and values: creating, wiring, renaming and removing. */
#include "impl.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *keep(ane_program *p, const char *s) {
    return ane_arena_strndup(p->arena, s, strlen(s));
}

ane_value *ane__value_new(ane_program *p, const char *name, const ane_type *type) {
    ane_value *v = ane_arena_alloc(p->arena, sizeof *v);
    if (!v || !(v->name = keep(p, name))) return NULL;
    v->type = type;
    return v;
}

ane_function *ane__function_of(const ane_value *v) { return v->block->function; }

/* ---------------------------------------------------------------- functions */

/* "ios18" -> 18; newer ones act as 18, the newest whose ops are known. */
static ane_status parse_opset(const char *tag, int *opset, ane_error *err) {
    long n = 0;
    if (!strncmp(tag, "ios", 3) && isdigit((unsigned char)tag[3])) {
        char *end;
        n = strtol(tag + 3, &end, 10);
        if (*end || end - tag > 6) n = 0;
    }
    if (n < 15)
        return ane_fail(err, ANE_ERR_INVALID,
                        "unknown opset \"%.40s\"; expected ios15, ios16, ios17, ios18 or newer",
                        tag);
    *opset = n > 18 ? 18 : (int)n;
    return ANE_OK;
}

/* A fresh symbol for every `?` of a parameter. */
static const ane_type *with_symbols(ane_program *p, const ane_type *t) {
    if (t->kind == ANE_T_STATE) {
        const ane_type *e = with_symbols(p, t->elem);
        return e && e != t->elem ? ane_type_state(p, e) : e ? t : NULL;
    }
    if (t->kind != ANE_T_TENSOR) return t;
    int64_t dims[ANE_MAX_RANK];
    bool any = false;
    for (int i = 0; i < t->rank; i++) {
        dims[i] = t->dims[i];
        if (dims[i] == ANE_DIM_ANY) {
            dims[i] = p->impl->next_symbol--;
            any = true;
        }
    }
    return any ? ane_type_tensor(p, t->dtype, t->rank, dims) : t;
}

static ane_block *new_block(ane_function *f) {
    ane_program *p = f->program;
    ane_block *b = ane_arena_alloc(p->arena, sizeof *b);
    if (!b || ane__id_reserve(p, 1, NULL)) return NULL;
    b->function = f;
    b->id = ane__id_new(p, ANE_ID_BLOCK, b);
    return b;
}

ane_status ane_function_create(ane_program *p, const char *name, const char *opset_tag,
                               const ane_param_desc *params, int n, ane_function **out,
                               ane_error *err) {
    if (!ane__name_ok(name))
        return ane_fail(err, ANE_ERR_INVALID, "function: \"%.80s\" is not an identifier", name);
    if (ane_program_function(p, name))
        return ane_fail(err, ANE_ERR_INVALID, "function \"%.80s\" is already defined", name);
    if (p->impl->n_functions >= ANE_MAX_FUNCTIONS)
        return ane_fail(err, ANE_ERR_INVALID, "program: more than %d functions",
                        ANE_MAX_FUNCTIONS);
    int opset = 0;
    ane_status st = parse_opset(opset_tag, &opset, err);
    if (st) return st;
    ane_function *f = ane_arena_alloc(p->arena, sizeof *f);
    if (!f) return ane__nomem(err);
    f->program = p;
    f->opset = opset;
    f->name = keep(p, name);
    f->opset_tag = keep(p, opset_tag);
    f->params = ane_arena_alloc(p->arena, (size_t)n * sizeof *f->params);
    f->names = ane__names_create();
    if (!f->name || !f->opset_tag || !f->params || !f->names ||
        !ane__names_reserve(f->names, (size_t)n) ||
        ane__id_reserve(p, (size_t)n + 2, NULL)) {
        st = ane__nomem(err);
        goto fail;
    }
    for (int i = 0; i < n; i++) {
        if ((st = ane__name_check(f, params[i].name, "parameter", err))) goto fail;
        if (params[i].type->kind == ANE_T_STATE && opset < 18) {
            st = ane_fail(err, ANE_ERR_INVALID,
                          "parameter \"%.80s\": state types need ios18, the function has %s",
                          params[i].name, opset_tag);
            goto fail;
        }
        const ane_type *t = with_symbols(p, params[i].type);
        ane_value *v = t ? ane__value_new(p, params[i].name, t) : NULL;
        if (!v || !ane__names_put(f->names, v)) {
            st = ane__nomem(err);
            goto fail;
        }
        v->def_index = i;
        f->params[i] = v;
    }
    /* Nothing fails from here on, but for the block's own memory. */
    f->body = ane_arena_alloc(p->arena, sizeof *f->body);
    if (!f->body) {
        st = ane__nomem(err);
        goto fail;
    }
    f->n_params = n;
    f->id = ane__id_new(p, ANE_ID_FUNCTION, f);
    f->body->function = f;
    f->body->id = ane__id_new(p, ANE_ID_BLOCK, f->body);
    for (int i = 0; i < n; i++) {
        f->params[i]->block = f->body;
        f->params[i]->id = ane__id_new(p, ANE_ID_VALUE, f->params[i]);
    }
    if (p->impl->last_function) p->impl->last_function->next = f;
    else p->functions = f;
    p->impl->last_function = f;
    p->impl->n_functions++;
    p->generation++;
    *out = f;
    return ANE_OK;
fail:
    ane__names_destroy(f->names);
    return st;
}

ane_value *ane_function_value(const ane_function *f, const char *name, size_t n) {
    return ane__names_find(f->names, name, n);
}

/* ---------------------------------------------------------------- blocks */

ane_block *ane_block_create(ane_function *f, ane_op *owner) {
    ane_block *b = new_block(f);
    if (b) b->owner = owner;
    return b;
}

ane_status ane_block_add_param(ane_block *b, const char *name, const ane_type *type,
                               ane_value **out, ane_error *err) {
    ane_function *f = b->function;
    ane_program *p = f->program;
    if (b == f->body)
        return ane_fail(err, ANE_ERR_INVALID,
                        "a function's parameters are given when it is created");
    if (b->n_params >= ANE_MAX_BLOCK_PARAMS)
        return ane_fail(err, ANE_ERR_INVALID, "block: more than %d parameters",
                        ANE_MAX_BLOCK_PARAMS);
    ane_status st = ane__name_check(f, name, "block parameter", err);
    if (st || (st = ane__id_reserve(p, 1, err))) return st;
    ane_value **params =
        ane_arena_alloc(p->arena, ((size_t)b->n_params + 1) * sizeof *params);
    ane_value *v = ane__value_new(p, name, type);
    if (!params || !v || !ane__names_put(f->names, v)) return ane__nomem(err);
    for (int i = 0; i < b->n_params; i++) params[i] = b->params[i];
    v->def_index = b->n_params;
    v->block = b;
    v->id = ane__id_new(p, ANE_ID_VALUE, v);
    params[b->n_params] = v;
    b->params = params;
    b->n_params++;
    p->generation++;
    *out = v;
    return ANE_OK;
}

bool ane__visible(const ane_value *v, const ane_block *b, const ane_op *before) {
    while (v->block != b) {
        if (!b->owner) return b != b->function->body && v->block->function == b->function;
        before = b->owner;
        b = before->block;
        if (!b) return false;
    }
    return !v->def || !before || v->def->order < before->order;
}

/* A const written in place that becomes an output needs a name. */
static ane_status uninline(ane_value *v, ane_error *err) {
    char name[64];
    if (!v->def || !v->def->inlined) return ANE_OK;
    snprintf(name, sizeof name, "const_%u", (unsigned)v->id);
    for (unsigned k = 2; ane__names_get(ane__function_of(v)->names, name); k++)
        snprintf(name, sizeof name, "const_%u_%u", (unsigned)v->id, k);
    return ane_value_rename(v, name, err);
}

ane_status ane_block_set_outputs(ane_block *b, ane_value *const *v, int n, ane_error *err) {
    ane_program *p = b->function->program;
    for (int i = 0; i < n; i++)
        if (v[i]->block->function != b->function || !ane__visible(v[i], b, NULL))
            return ane_fail(err, ANE_ERR_INVALID,
                            "output %d: \"%.80s\" is not defined in this block", i, v[i]->name);
    ane_value **copy = ane_arena_alloc(p->arena, (size_t)n * sizeof *copy);
    if (!copy) return ane__nomem(err);
    for (int i = 0; i < n; i++) {
        ane_status st = uninline(v[i], err);
        if (st) return st;
    }
    for (int i = 0; i < n; i++) {
        copy[i] = v[i];
        copy[i]->uses++;
    }
    for (int i = 0; i < b->n_outputs; i++) b->outputs[i]->uses--;
    b->outputs = copy;
    b->n_outputs = n;
    p->generation++;
    return ANE_OK;
}

/* ---------------------------------------------------------------- links and order */

#define ORDER_STEP ((uint64_t)1 << 20)

void ane__link(ane_block *b, ane_op *before, ane_op *op) {
    op->block = b;
    op->next = before;
    op->prev = before ? before->prev : b->last;
    if (op->prev) op->prev->next = op;
    else b->first = op;
    if (before) before->prev = op;
    else b->last = op;
    uint64_t lo = op->prev ? op->prev->order : 0;
    if (!before) {
        op->order = lo + ORDER_STEP;
    } else if (before->order - lo > 1) {
        op->order = lo + (before->order - lo) / 2;
    } else {
        /* No room between the neighbours: number the block anew. Twenty inserts at one
         * place halve a step away, so this is rare. */
        uint64_t k = 0;
        for (ane_op *o = b->first; o; o = o->next) o->order = k += ORDER_STEP;
    }
}

void ane__unlink(ane_op *op) {
    ane_block *b = op->block;
    if (op->prev) op->prev->next = op->next;
    else b->first = op->next;
    if (op->next) op->next->prev = op->prev;
    else b->last = op->prev;
    op->block = NULL;
    op->prev = op->next = NULL;
}

/* ---------------------------------------------------------------- editing */

static void drop_op(ane_op *op);

static void drop_value(ane_program *p, ane_function *f, ane_value *v) {
    if (*v->name) ane__names_remove(f->names, v->name);
    ane__id_drop(p, v->id);
}

static void drop_block(ane_block *b) {
    ane_function *f = b->function;
    for (int i = 0; i < b->n_outputs; i++) b->outputs[i]->uses--;
    b->n_outputs = 0;
    while (b->last) drop_op(b->last);
    for (int i = 0; i < b->n_params; i++) drop_value(f->program, f, b->params[i]);
    ane__id_drop(f->program, b->id);
}

/* Recursion is bounded by ANE_MAX_BLOCK_DEPTH. */
static void drop_op(ane_op *op) {
    ane_function *f = op->block->function;
    ane_program *p = f->program;
    for (int i = 0; i < op->n_blocks; i++) drop_block(op->blocks[i]);
    for (int i = 0; i < op->n_results; i++) drop_value(p, f, op->results[i]);
    ane__unlink(op);
    ane__id_drop(p, op->id);
    for (int i = 0; i < op->row->n_params; i++)
        for (int k = 0; k < op->args[i].n; k++) {
            ane_value *v = op->args[i].v[k];
            /* A const written in place goes with its only user. */
            if (--v->uses == 0 && v->def && v->def->inlined) drop_op(v->def);
        }
}

ane_status ane_op_remove(ane_op *op, ane_error *err) {
    ane_program *p = op->block->function->program;
    for (int i = 0; i < op->n_results; i++)
        if (op->results[i]->uses)
            return ane_fail(err, ANE_ERR_BUSY,
                            "%s: result \"%.80s\" is still used %d times; replace it first",
                            op->row->name, op->results[i]->name, op->results[i]->uses);
    drop_op(op);
    p->generation++;
    return ANE_OK;
}

static void replace_in(ane_block *b, ane_op *first, ane_value *from, ane_value *to) {
    for (ane_op *o = first; o && from->uses; o = o->next) {
        for (int i = 0; i < o->row->n_params; i++)
            for (int k = 0; k < o->args[i].n; k++)
                if (o->args[i].v[k] == from) {
                    o->args[i].v[k] = to;
                    from->uses--;
                    to->uses++;
                }
        for (int i = 0; i < o->n_blocks; i++)
            replace_in(o->blocks[i], o->blocks[i]->first, from, to);
    }
    for (int i = 0; i < b->n_outputs; i++)
        if (b->outputs[i] == from) {
            b->outputs[i] = to;
            from->uses--;
            to->uses++;
        }
}

/* Every use of `from` in b, at any depth, sees `to`. */
static bool all_after(ane_block *b, const ane_value *from, const ane_value *to) {
    for (ane_op *o = b->first; o; o = o->next) {
        for (int i = 0; i < o->row->n_params; i++)
            for (int k = 0; k < o->args[i].n; k++)
                if (o->args[i].v[k] == from && !ane__visible(to, b, o)) return false;
        for (int i = 0; i < o->n_blocks; i++)
            if (!all_after(o->blocks[i], from, to)) return false;
    }
    for (int i = 0; i < b->n_outputs; i++)
        if (b->outputs[i] == from && !ane__visible(to, b, NULL)) return false;
    return true;
}

ane_status ane_value_replace(ane_value *from, ane_value *to, ane_error *err) {
    ane_function *f = ane__function_of(from);
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    if (from == to) return ANE_OK;
    if (ane__function_of(to) != f)
        return ane_fail(err, ANE_ERR_INVALID,
                        "replace: \"%.80s\" and \"%.80s\" belong to different functions",
                        from->name, to->name);
    if (!ane_type_compatible(from->type, to->type))
        return ane_fail(err, ANE_ERR_SHAPE, "replace: \"%.80s\" is %s but \"%.80s\" is %s",
                        from->name, ane_type_text(from->type, a, sizeof a), to->name,
                        ane_type_text(to->type, b, sizeof b));
    /* Defined no later than `from` in the same or an outer block: every use sees it. */
    bool before = !to->def || (from->def && from->block == to->block &&
                               to->def->order < from->def->order);
    if (!(before && (to->block == f->body || to->block == from->block)) &&
        !all_after(f->body, from, to))
        return ane_fail(err, ANE_ERR_INVALID,
                        "replace: \"%.80s\" is defined after a use of \"%.80s\"", to->name,
                        from->name);
    ane_status st = uninline(to, err);
    if (st) return st;
    replace_in(from->block, from->def ? from->def->next : from->block->first, from, to);
    f->program->generation++;
    return ANE_OK;
}

ane_status ane_value_rename(ane_value *v, const char *name, ane_error *err) {
    ane_function *f = ane__function_of(v);
    if (!strcmp(v->name, name)) return ANE_OK;
    ane_status st = ane__name_check(f, name, "rename", err);
    if (st) return st;
    char *copy = keep(f->program, name);
    if (!copy || !ane__names_reserve(f->names, 1)) return ane__nomem(err);
    if (*v->name) ane__names_remove(f->names, v->name);
    v->name = copy;
    if (v->def && v->def->inlined) v->def->inlined = false;
    if (!ane__names_put(f->names, v)) return ane__nomem(err);   /* reserved: cannot happen */
    f->program->generation++;
    return ANE_OK;
}
