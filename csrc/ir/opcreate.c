/* Making ops: the generic signature check that a row of the op table stands for, the call
 * of its inference, the check against declared types, and linking into the block. */
#include "impl.h"

#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- messages */

static const char *kind_name(ane_param_kind kind) {
    switch (kind) {
    case ANE_P_TENSOR: return "a tensor";
    case ANE_P_LIST: return "a list";
    case ANE_P_STATE: return "a state";
    case ANE_P_ANY: return "a value";
    }
    return "?";
}

static void dtype_set(uint32_t set, char *buf, size_t n) {
    size_t used = 0;
    *buf = 0;
    for (int d = 0; d < ANE_DTYPE_COUNT && used < n; d++)
        if (set & (1u << d))
            used += (size_t)snprintf(buf + used, n - used, "%s%s", used ? ", " : "",
                                     ane_dtype_mil_name((ane_dtype)d));
}

/* "x, y, transpose_x" */
static void param_list(const ane_op_row *row, char *buf, size_t n) {
    size_t used = 0;
    *buf = 0;
    for (int i = 0; i < row->n_params && used < n; i++)
        used += (size_t)snprintf(buf + used, n - used, "%s%s", used ? ", " : "",
                                 row->params[i].name);
    if (!*buf) snprintf(buf, n, "none");
}

/* ---------------------------------------------------------------- signature */

bool ane_value_is_constant(const ane_value *v) {
    return v->konst || (v->def && !strncmp(v->def->row->name, "constexpr_", 10));
}

static const char *shown(const ane_value *v) { return *v->name ? v->name : "the constant"; }

static ane_status check_value(const ane_op_param *q, const ane_value *v, ane_error *err) {
    char want[256], got[ANE_TYPE_TEXT];
    const ane_type *t = v->type;
    bool ok = q->kind == ANE_P_ANY || (q->kind == ANE_P_TENSOR && t->kind == ANE_T_TENSOR) ||
              (q->kind == ANE_P_LIST && t->kind == ANE_T_LIST) ||
              (q->kind == ANE_P_STATE && t->kind == ANE_T_STATE);
    if (!ok)
        return ane_fail(err, ANE_ERR_DTYPE, "parameter %s expects %s, got %s of type %s",
                        q->name, kind_name(q->kind), shown(v),
                        ane_type_text(t, got, sizeof got));
    if (q->kind == ANE_P_TENSOR && q->dtypes && !(q->dtypes & (1u << t->dtype))) {
        dtype_set(q->dtypes, want, sizeof want);
        return ane_fail(err, ANE_ERR_DTYPE, "parameter %s expects %s, got %s of type %s",
                        q->name, want, shown(v), ane_type_text(t, got, sizeof got));
    }
    if (q->rank1 && t->rank > 1)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "parameter %s expects a vector (rank 1), got %s of type %s", q->name,
                        shown(v), ane_type_text(t, got, sizeof got));
    if (q->is_const && !ane_value_is_constant(v))
        return ane_fail(err, ANE_ERR_INVALID,
                        "parameter %s must be a constant, got %s, which is computed", q->name,
                        shown(v));
    return ANE_OK;
}

#define MAX_VARS 32

ane_status ane__check_signature(const ane_op *op, ane_error *err) {
    const ane_op_row *row = op->row;
    const ane_value *bound[MAX_VARS] = {NULL};
    const char *by[MAX_VARS] = {NULL};
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    for (int i = 0; i < row->n_params; i++) {
        const ane_op_param *q = &row->params[i];
        const ane_arg *arg = &op->args[i];
        if (!arg->n && !arg->tuple) {
            if (!q->optional && !q->default_text)
                return ane_fail(err, ANE_ERR_INVALID, "required parameter %s is missing",
                                q->name);
            continue;
        }
        if (arg->tuple && !q->tuple)
            return ane_fail(err, ANE_ERR_INVALID, "parameter %s takes one value, got a tuple",
                            q->name);
        if (!arg->tuple && q->tuple)
            return ane_fail(err, ANE_ERR_INVALID,
                            "parameter %s takes a tuple of values, got a single value %s",
                            q->name, shown(arg->v[0]));
        for (int k = 0; k < arg->n; k++) {
            const ane_value *v = arg->v[k];
            ane_status st = check_value(q, v, err);
            if (st) return st;
            if (q->var < 0 || q->var >= MAX_VARS || v->type->kind != ANE_T_TENSOR) continue;
            const ane_value *first = bound[q->var];
            if (!first) {
                bound[q->var] = v;
                by[q->var] = q->name;
            } else if (first->type->dtype != v->type->dtype) {
                return ane_fail(err, ANE_ERR_DTYPE,
                                "parameters %s and %s need one dtype, got %s of type %s and "
                                "%s of type %s", by[q->var], q->name, shown(first),
                                ane_type_text(first->type, a, sizeof a), shown(v),
                                ane_type_text(v->type, b, sizeof b));
            }
        }
    }
    return ANE_OK;
}

/* ---------------------------------------------------------------- inference */

ane_status ane__infer(ane_program *scratch, const ane_op *op, int opset, int declared_n,
                      const ane_type **results, int *n, ane_error *err) {
    const ane_op_row *row = op->row;
    /* Most ops have one result: the room for a thousand is cleared only where it may be used. */
    memset(results, 0, (size_t)(row->n_results < 0 ? ANE_MAX_RESULTS : row->n_results + 8) *
                           sizeof *results);
    ane_infer in = {.program = scratch, .op = op, .opset = opset, .results = results,
                    .n_results = row->n_results, .err = err};
    if (in.n_results < 0) in.n_results = declared_n > 0 ? declared_n : 0;
    if (!row->infer) {
        if (in.n_results)
            return ane_fail(err, ANE_ERR_UNSUPPORTED, "its result type cannot be inferred");
        *n = 0;
        return ANE_OK;
    }
    ane_status st = row->infer(&in);
    if (st) return st;
    ANE_ASSERT(in.n_results >= 0 && in.n_results <= ANE_MAX_RESULTS);
    for (int i = 0; i < in.n_results; i++)
        if (!results[i]) return ane__nomem(err);
    *n = in.n_results;
    return ANE_OK;
}

/* ---------------------------------------------------------------- creating */

typedef struct maker {
    ane_block *b;
    ane_op *before;
    const ane_op_desc *d;
    ane_program *p;
    ane_function *f;
    ane_op *op;
    ane_op **attr_consts;               /* ios16 attributes, as consts not yet linked */
    int n_attr_consts;
    ane_error *err;
} maker;

static ane_op *raw_const(ane_program *p, const ane_op_row *row, const char *name,
                         const ane_const *value, bool inlined) {
    ane_op *op = ane_arena_alloc(p->arena, sizeof *op);
    ane_value *v = ane__value_new(p, name, value->type);
    ane_value **results = ane_arena_alloc(p->arena, sizeof *results);
    ane_arg *args = ane_arena_alloc(p->arena, (size_t)row->n_params * sizeof *args);
    if (!op || !v || !results || !args) return NULL;
    v->def = op;
    v->konst = value;
    results[0] = v;
    op->row = row;
    op->args = args;
    op->results = results;
    op->n_results = 1;
    op->inlined = inlined;
    return op;
}

static void publish(maker *m, ane_op *op) {
    ane__link(m->b, m->before, op);
    op->id = ane__id_new(m->p, ANE_ID_OP, op);
    for (int i = 0; i < op->n_results; i++) {
        ane_value *v = op->results[i];
        v->block = m->b;
        v->id = ane__id_new(m->p, ANE_ID_VALUE, v);
        if (*v->name) (void)ane__names_put(m->f->names, v);     /* room was reserved */
    }
}

static ane_status find_row(maker *m, const ane_op_row **row) {
    const ane_op_row *later = NULL;
    *row = ane_op_row_find(m->d->op, m->f->opset, &later);
    if (*row) return ANE_OK;
    if (later)
        return ane_fail(m->err, ANE_ERR_INVALID,
                        "needs ios%d, but function %.80s has opset %s", later->opset, m->f->name,
                        m->f->opset_tag);
    return ane_fail(m->err, ANE_ERR_INVALID, "unknown operation");
}

static ane_status unknown_param(maker *m, const char *name) {
    char known[400];
    const ane_op_row *row = m->op->row, *later = NULL;
    param_list(row, known, sizeof known);
    (void)ane_op_row_find(row->name, m->f->opset, &later);
    if (later && ane_op_param_index(later, name) >= 0)
        return ane_fail(m->err, ANE_ERR_INVALID,
                        "parameter %.80s needs ios%d, but function %.80s has opset %s", name,
                        later->opset, m->f->name, m->f->opset_tag);
    return ane_fail(m->err, ANE_ERR_INVALID, "unknown parameter %.80s; known: %s", name, known);
}

static ane_status take_args(maker *m) {
    const ane_op_row *row = m->op->row;
    ane_arg *args = m->op->args;
    for (int i = 0; i < m->d->n_args; i++) {
        const ane_arg_desc *a = &m->d->args[i];
        int at = ane_op_param_index(row, a->name);
        if (at < 0) return unknown_param(m, a->name);
        if (args[at].n || args[at].tuple)
            return ane_fail(m->err, ANE_ERR_INVALID, "parameter %s is given twice", a->name);
        if (!a->n && !a->tuple) continue;
        if (!a->tuple && a->n != 1)
            return ane_fail(m->err, ANE_ERR_INVALID, "parameter %s has %d values", a->name,
                            a->n);
        args[at].v = ane_arena_alloc(m->p->arena, (size_t)a->n * sizeof(ane_value *));
        if (!args[at].v) return ane__nomem(m->err);
        args[at].n = a->n;
        args[at].tuple = a->tuple;
        for (int k = 0; k < a->n; k++) {
            ane_value *v = a->v[k];
            if (v->block->function != m->f || !ane__visible(v, m->b, m->before))
                return ane_fail(m->err, ANE_ERR_INVALID,
                                "parameter %s: \"%.80s\" is not defined before this operation",
                                a->name, v->name);
            args[at].v[k] = v;
        }
    }
    return ANE_OK;
}

/* Attributes that the row lists as parameters become consts written in place; the rest is
 * kept as it is. */
static ane_status take_attrs(maker *m) {
    const ane_op_desc *d = m->d;
    const ane_op_row *row = m->op->row;
    if (!d->n_attrs) return ANE_OK;
    if (d->n_attrs > ANE_MAX_ATTRS)
        return ane_fail(m->err, ANE_ERR_INVALID, "more than %d attributes", ANE_MAX_ATTRS);
    ane_attr *rest = ane_arena_alloc(m->p->arena, (size_t)d->n_attrs * sizeof *rest);
    m->attr_consts = ane_arena_alloc(m->p->arena, (size_t)d->n_attrs * sizeof(ane_op *));
    if (!rest || !m->attr_consts) return ane__nomem(m->err);
    const ane_op_row *crow = ane_op_row_find("const", m->f->opset, NULL);
    for (int i = 0; i < d->n_attrs; i++) {
        const ane_attr *a = &d->attrs[i];
        for (int k = 0; k < i; k++)
            if (!strcmp(d->attrs[k].name, a->name))
                return ane_fail(m->err, ANE_ERR_INVALID, "attribute %.80s is given twice",
                                a->name);
        int at = ane_op_param_index(row, a->name);
        if (at < 0 || !row->params[at].attribute || !crow) {
            ane_attr *kept = &rest[m->op->n_attrs];
            kept->value = a->value;
            kept->name = ane_arena_strndup(m->p->arena, a->name, strlen(a->name));
            if (!kept->name) return ane__nomem(m->err);
            m->op->n_attrs++;
            continue;
        }
        if (m->op->args[at].n)
            return ane_fail(m->err, ANE_ERR_INVALID,
                            "parameter %s is given as an argument and as an attribute", a->name);
        ane_op *c = raw_const(m->p, crow, "", a->value, true);
        ane_arg *arg = &m->op->args[at];
        arg->v = ane_arena_alloc(m->p->arena, sizeof *arg->v);
        if (!c || !arg->v) return ane__nomem(m->err);
        arg->v[0] = c->results[0];
        arg->n = 1;
        m->attr_consts[m->n_attr_consts++] = c;
    }
    m->op->attrs = rest;
    return ANE_OK;
}

static bool blocks_see(const ane_block *b) {
    for (const ane_op *o = b->first; o; o = o->next) {
        for (int i = 0; i < o->row->n_params; i++)
            for (int k = 0; k < o->args[i].n; k++)
                if (!ane__visible(o->args[i].v[k], b, o)) return false;
        for (int i = 0; i < o->n_blocks; i++)
            if (!blocks_see(o->blocks[i])) return false;
    }
    for (int i = 0; i < b->n_outputs; i++)
        if (!ane__visible(b->outputs[i], b, NULL)) return false;
    return true;
}

/* Nested blocks: not owned yet, and not too deep with what is above. */
static ane_status take_blocks(maker *m, int *height) {
    const ane_op_desc *d = m->d;
    *height = 0;
    if (!d->n_blocks) return ANE_OK;
    if (d->n_blocks > ANE_MAX_BLOCKS)
        return ane_fail(m->err, ANE_ERR_INVALID, "more than %d blocks", ANE_MAX_BLOCKS);
    for (int i = 0; i < d->n_blocks; i++) {
        ane_block *c = d->blocks[i];
        if (c->owner || c->function != m->f || c == m->f->body || c == m->b)
            return ane_fail(m->err, ANE_ERR_INVALID,
                            "block %d already belongs to another operation or function", i);
        for (int k = 0; k < i; k++)
            if (d->blocks[k] == c)
                return ane_fail(m->err, ANE_ERR_INVALID, "block %d is given twice", i);
        for (const ane_block *up = m->b; up; up = up->owner ? up->owner->block : NULL)
            if (up == c)
                return ane_fail(m->err, ANE_ERR_INVALID, "block %d would hold itself", i);
        if (c->height + 1 > *height) *height = c->height + 1;
    }
    int depth = *height;
    for (const ane_block *up = m->b; up->owner; up = up->owner->block) depth++;
    if (depth > ANE_MAX_BLOCK_DEPTH)
        return ane_fail(m->err, ANE_ERR_INVALID, "blocks nest deeper than %d",
                        ANE_MAX_BLOCK_DEPTH);
    m->op->blocks = ane_arena_alloc(m->p->arena, (size_t)d->n_blocks * sizeof(ane_block *));
    if (!m->op->blocks) return ane__nomem(m->err);
    for (int i = 0; i < d->n_blocks; i++) m->op->blocks[i] = d->blocks[i];
    m->op->n_blocks = d->n_blocks;
    return ANE_OK;
}

static ane_status check_declared(maker *m, const ane_type **types, int n, bool hint) {
    const ane_op_desc *d = m->d;
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    if (d->n_results >= 0 && d->n_results != n)
        return ane_fail(m->err, ANE_ERR_SHAPE, "gives %d result%s, the statement names %d", n,
                        n == 1 ? "" : "s", d->n_results);
    for (int i = 0; d->declared && i < n; i++) {
        const ane_type *want = d->declared[i];
        if (!want) continue;
        if (!hint && !ane_type_compatible(types[i], want)) {
            bool dtype = want->kind == ANE_T_TENSOR && types[i]->kind == ANE_T_TENSOR &&
                         want->dtype != types[i]->dtype;
            const char *name = d->result_names && d->result_names[i] ? d->result_names[i] : "";
            return ane_fail(m->err, dtype ? ANE_ERR_DTYPE : ANE_ERR_SHAPE,
                            "result \"%.80s\" is declared %s, but the operation gives %s", name,
                            ane_type_text(want, a, sizeof a),
                            ane_type_text(types[i], b, sizeof b));
        }
        if (!(types[i] = ane__type_refine(m->p, types[i], want))) return ane__nomem(m->err);
    }
    return ANE_OK;
}

/* A free name: what was asked for; else one made from the op's `name` attribute or, where
 * that is none, from the op itself, with the id that the value will have. */
static ane_status result_name(maker *m, int i, int n, uint32_t id, char *buf, size_t room,
                              const char **name) {
    const ane_op_desc *d = m->d;
    *name = buf;
    if (d->result_names && d->result_names[i]) {
        *name = d->result_names[i];
        for (int k = 0; k < i; k++)
            if (d->result_names[k] && !strcmp(d->result_names[k], *name))
                return ane_fail(m->err, ANE_ERR_INVALID, "result \"%.80s\" is named twice",
                                *name);
        return ane__name_check(m->f, *name, "result", m->err);
    }
    bool own = d->name && strlen(d->name) < 80 && !ane__name_check(NULL, d->name, "", NULL);
    if (own && n == 1) snprintf(buf, room, "%s", d->name);
    else if (own) snprintf(buf, room, "%s_%d", d->name, i);
    if (own && !ane__names_get(m->f->names, buf)) return ANE_OK;
    const char *base = own ? d->name : d->op;
    snprintf(buf, room, "%.80s_%u", base, (unsigned)id);
    for (unsigned k = 2; ane__names_get(m->f->names, buf); k++)
        snprintf(buf, room, "%.80s_%u_%u", base, (unsigned)id, k);
    return ANE_OK;
}

static ane_status make_results(maker *m, const ane_type **types, int n) {
    ane_op *op = m->op;
    op->results = ane_arena_alloc(m->p->arena, (size_t)n * sizeof(ane_value *));
    if (!op->results) return ane__nomem(m->err);
    /* Ids in the order publish gives them: attribute consts first, each op and value. */
    uint32_t id = (uint32_t)m->p->impl->n_ids + 2u * (uint32_t)m->n_attr_consts + 1u;
    for (int i = 0; i < n; i++) {
        char buf[128];
        const char *name;
        ane_status st = result_name(m, i, n, id + (uint32_t)i, buf, sizeof buf, &name);
        if (st) return st;
        ane_value *v = ane__value_new(m->p, name, types[i]);
        if (!v) return ane__nomem(m->err);
        v->def = op;
        v->def_index = i;
        op->results[i] = v;
    }
    op->n_results = n;
    return ANE_OK;
}

static ane_status make(maker *m, bool hint) {
    const ane_op_desc *d = m->d;
    const ane_op_row *row;
    const ane_type *types[ANE_MAX_RESULTS];     /* cleared by ane__infer */
    int n = 0, height;
    ane_status st = find_row(m, &row);
    if (st) return st;
    ane_op *op = m->op = ane_arena_alloc(m->p->arena, sizeof *op);
    if (!op) return ane__nomem(m->err);
    op->row = row;
    op->line = d->line;
    op->column = d->column;
    op->args = ane_arena_alloc(m->p->arena, (size_t)row->n_params * sizeof *op->args);
    if (!op->args) return ane__nomem(m->err);
    if (d->name && !(op->name = ane_arena_strndup(m->p->arena, d->name, strlen(d->name))))
        return ane__nomem(m->err);
    op->block = m->b;                   /* for inference; ane__link sets it for good */
    if ((st = take_args(m)) || (st = take_attrs(m)) || (st = take_blocks(m, &height)) ||
        (st = ane__check_signature(op, m->err)))
        return st;
    if ((st = ane__infer(m->p, op, m->f->opset, d->n_results, types, &n, m->err)) ||
        (st = check_declared(m, types, n, hint)) || (st = make_results(m, types, n)))
        return st;
    if ((st = ane__id_reserve(m->p, 1 + (size_t)n + 2 * (size_t)m->n_attr_consts, m->err)))
        return st;
    if (!ane__names_reserve(m->f->names, (size_t)n)) return ane__nomem(m->err);

    /* From here on nothing fails, except blocks that look at what they cannot see. */
    op->block = m->b;
    op->order = m->before ? m->before->order : UINT64_MAX;
    for (int i = 0; i < op->n_blocks; i++) op->blocks[i]->owner = op;
    for (int i = 0; i < op->n_blocks; i++)
        if (!blocks_see(op->blocks[i])) {
            for (int k = 0; k < op->n_blocks; k++) op->blocks[k]->owner = NULL;
            return ane_fail(m->err, ANE_ERR_INVALID,
                            "block %d uses a value that is not defined before this operation",
                            i);
        }
    for (int i = 0; i < m->n_attr_consts; i++) publish(m, m->attr_consts[i]);
    publish(m, op);
    for (int i = 0; i < row->n_params; i++)
        for (int k = 0; k < op->args[i].n; k++) op->args[i].v[k]->uses++;
    for (ane_block *up = m->b; up; up = up->owner ? up->owner->block : NULL) {
        if (up->height < height) up->height = height;
        height++;
    }
    m->p->generation++;
    return ANE_OK;
}

ane_status ane__op_create(ane_block *b, ane_op *before, const ane_op_desc *desc, bool hint,
                          ane_op **out, ane_error *err) {
    maker m = {.b = b, .before = before, .d = desc, .p = b->function->program,
               .f = b->function, .err = err};
    ANE_ASSERT(!before || before->block == b);
    ane_status st = make(&m, hint);
    if (!st) {
        *out = m.op;
        return ANE_OK;
    }
    const char *name = desc->result_names ? desc->result_names[0] : NULL;
    if (!name || !desc->n_results) name = desc->name;
    return st == ANE_ERR_NOMEM
               ? st
               : ane__op_blame(err, m.p, st, desc->op, name, desc->line, desc->column);
}

ane_status ane_op_create(ane_block *b, ane_op *before, const ane_op_desc *desc, ane_op **out,
                         ane_error *err) {
    if (!strcmp(desc->op, "const"))
        return ane_fail(err, ANE_ERR_INVALID, "const: made by ane_const_create");
    return ane__op_create(b, before, desc, false, out, err);
}

ane_status ane_const_create(ane_block *b, const char *name, const ane_const *value,
                            bool inlined, ane_value **out, ane_error *err) {
    return ane_const_insert(b, NULL, name, value, inlined, out, err);
}

ane_status ane_const_insert(ane_block *b, ane_op *before, const char *name,
                            const ane_const *value, bool inlined, ane_value **out,
                            ane_error *err) {
    ane_function *f = b->function;
    maker m = {.b = b, .before = before, .p = f->program, .f = f, .err = err};
    char buf[64];
    const ane_op_row *row = ane_op_row_find("const", f->opset, NULL);
    if (!row) return ane_fail(err, ANE_ERR_UNSUPPORTED, "const: not in the op table");
    if (inlined) {
        name = "";
    } else if (!name) {
        snprintf(buf, sizeof buf, "const_%u", (unsigned)m.p->impl->n_ids + 1u);
        for (unsigned k = 2; ane__names_get(f->names, buf); k++)
            snprintf(buf, sizeof buf, "const_%u_%u", (unsigned)m.p->impl->n_ids + 1u, k);
        name = buf;
    } else {
        ane_status st = ane__name_check(f, name, "const", err);
        if (st) return st;
    }
    ane_status st = ane__id_reserve(m.p, 2, err);
    if (st) return st;
    ane_op *op = raw_const(m.p, row, name, value, inlined);
    if (!op || !ane__names_reserve(f->names, 1)) return ane__nomem(err);
    publish(&m, op);
    m.p->generation++;
    *out = op->results[0];
    return ANE_OK;
}
