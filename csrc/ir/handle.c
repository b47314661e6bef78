/* The public graph calls of ane.h: ids to objects, checked, and nothing else. */
#include "impl.h"

#include <string.h>

static const char *const kinds[] = {"thing", "function", "block", "operation", "value"};

/* The one answer to a stale or foreign id. */
static void *get(const ane_program *p, uint32_t id, ane_id_kind kind, ane_error *err) {
    void *q = ane__id_get(p, id, kind);
    if (q) return q;
    const struct ane_program_impl *m = p->impl;
    if (id && id < m->n_ids && m->ids[id].kind == kind)
        ane_fail(err, ANE_ERR_NOT_FOUND, "%s %u was removed from the program", kinds[kind],
                 (unsigned)id);
    else
        ane_fail(err, ANE_ERR_NOT_FOUND, "the program has no %s %u", kinds[kind], (unsigned)id);
    return NULL;
}

const char *ane_program_version(const ane_program *p) { return p->version; }
uint64_t ane_program_generation(const ane_program *p) { return p->generation; }

/* ---------------------------------------------------------------- reading */

typedef struct listing {
    uint32_t *out;
    size_t cap, n;
} listing;

static void list_add(listing *l, uint32_t id) {
    if (l->n < l->cap) l->out[l->n] = id;
    l->n++;
}

static void list_values(listing *l, ane_value *const *v, int n) {
    for (int i = 0; i < n; i++) list_add(l, v[i]->id);
}

/* Recursion is bounded by ANE_MAX_BLOCK_DEPTH. */
static void list_users(listing *l, const ane_block *b, const ane_value *v) {
    for (const ane_op *o = b->first; o; o = o->next) {
        bool uses = false;
        for (int i = 0; i < o->row->n_params && !uses; i++)
            for (int k = 0; k < o->args[i].n && !uses; k++) uses = o->args[i].v[k] == v;
        if (uses) list_add(l, o->id);
        for (int i = 0; i < o->n_blocks; i++) list_users(l, o->blocks[i], v);
    }
}

ane_status ane_graph_list(const ane_program *p, ane_list which, uint32_t id, uint32_t *out,
                          size_t cap, size_t *n, ane_error *err) {
    listing l = {out, cap, 0};
    const ane_function *f;
    const ane_block *b;
    const ane_op *op;
    const ane_value *v;
    switch (which) {
    case ANE_LIST_FUNCTIONS:
        for (f = p->functions; f; f = f->next) list_add(&l, f->id);
        break;
    case ANE_LIST_FUNCTION_PARAMS:
        if (!(f = get(p, id, ANE_ID_FUNCTION, err))) return ANE_ERR_NOT_FOUND;
        list_values(&l, f->params, f->n_params);
        break;
    case ANE_LIST_BLOCK_PARAMS:
    case ANE_LIST_BLOCK_OPS:
    case ANE_LIST_BLOCK_OUTPUTS:
        if (!(b = get(p, id, ANE_ID_BLOCK, err))) return ANE_ERR_NOT_FOUND;
        if (which == ANE_LIST_BLOCK_OUTPUTS) list_values(&l, b->outputs, b->n_outputs);
        else if (which == ANE_LIST_BLOCK_PARAMS && b == b->function->body)
            list_values(&l, b->function->params, b->function->n_params);
        else if (which == ANE_LIST_BLOCK_PARAMS) list_values(&l, b->params, b->n_params);
        else
            for (op = b->first; op; op = op->next) list_add(&l, op->id);
        break;
    case ANE_LIST_OP_RESULTS:
    case ANE_LIST_OP_BLOCKS:
        if (!(op = get(p, id, ANE_ID_OP, err))) return ANE_ERR_NOT_FOUND;
        if (which == ANE_LIST_OP_RESULTS) list_values(&l, op->results, op->n_results);
        else
            for (int i = 0; i < op->n_blocks; i++) list_add(&l, op->blocks[i]->id);
        break;
    case ANE_LIST_VALUE_USERS:
        if (!(v = get(p, id, ANE_ID_VALUE, err))) return ANE_ERR_NOT_FOUND;
        list_users(&l, v->block, v);
        break;
    default: return ane_fail(err, ANE_ERR_INVALID, "graph: no such list");
    }
    *n = l.n;
    return ANE_OK;
}

ane_status ane_graph_function(const ane_program *p, uint32_t id, ane_function_info *out,
                              ane_error *err) {
    const ane_function *f = get(p, id, ANE_ID_FUNCTION, err);
    if (!f) return ANE_ERR_NOT_FOUND;
    *out = (ane_function_info){f->name, f->opset_tag, f->opset, f->body->id, f->n_attrs};
    return ANE_OK;
}

ane_status ane_graph_block(const ane_program *p, uint32_t id, ane_block_info *out,
                           ane_error *err) {
    const ane_block *b = get(p, id, ANE_ID_BLOCK, err);
    if (!b) return ANE_ERR_NOT_FOUND;
    *out = (ane_block_info){b->function->id, b->owner ? b->owner->id : 0};
    return ANE_OK;
}

ane_status ane_graph_op(const ane_program *p, uint32_t id, ane_op_info *out,
                        ane_error *err) {
    const ane_op *op = get(p, id, ANE_ID_OP, err);
    if (!op) return ANE_ERR_NOT_FOUND;
    *out = (ane_op_info){.op = op->row->name, .name = op->name, .block = op->block->id,
                         .opset = op->row->opset, .n_params = op->row->n_params,
                         .n_attrs = op->n_attrs, .inlined = op->inlined, .line = op->line,
                         .column = op->column};
    return ANE_OK;
}

ane_status ane_graph_value(const ane_program *p, uint32_t id, ane_value_info *out,
                           ane_error *err) {
    const ane_value *v = get(p, id, ANE_ID_VALUE, err);
    if (!v) return ANE_ERR_NOT_FOUND;
    *out = (ane_value_info){.name = v->name, .type = v->type, .op = v->def ? v->def->id : 0,
                            .block = v->block->id, .index = v->def_index, .uses = v->uses,
                            .konst = v->konst};
    return ANE_OK;
}

ane_status ane_graph_argument(const ane_program *p, uint32_t id, int i,
                              ane_argument_info *out, ane_error *err) {
    const ane_op *op = get(p, id, ANE_ID_OP, err);
    if (!op) return ANE_ERR_NOT_FOUND;
    if (i < 0 || i >= op->row->n_params)
        return ane_fail(err, ANE_ERR_INDEX, "%s has no parameter %d", op->row->name, i);
    *out = (ane_argument_info){op->row->params[i].name, op->args[i].n, op->args[i].tuple,
                               op->row->params[i].default_value};
    return ANE_OK;
}

uint32_t ane_graph_argument_value(const ane_program *p, uint32_t id, int i, int k) {
    const ane_op *op = get(p, id, ANE_ID_OP, NULL);
    if (!op || i < 0 || i >= op->row->n_params || k < 0 || k >= op->args[i].n) return 0;
    return op->args[i].v[k]->id;
}

/* ---------------------------------------------------------------- attributes */

ane_status ane_graph_attr(const ane_program *p, uint32_t id, int i, const char **name,
                          const ane_const **value, ane_error *err) {
    const ane_function *f = id ? ane__id_get(p, id, ANE_ID_FUNCTION) : NULL;
    const ane_op *op = id && !f ? get(p, id, ANE_ID_OP, err) : NULL;
    if (id && !f && !op) return ANE_ERR_NOT_FOUND;
    const ane_attr *attrs = f ? f->attrs : op ? op->attrs : p->attrs;
    int n = f ? f->n_attrs : op ? op->n_attrs : p->n_attrs;
    if (i < 0 || i >= n) return ane_fail(err, ANE_ERR_INDEX, "there is no attribute %d", i);
    *name = attrs[i].name;
    *value = attrs[i].value;
    return ANE_OK;
}

ane_status ane_graph_set_attr(ane_program *p, uint32_t id, const char *name,
                              const ane_const *value, ane_error *err) {
    ane_function *f = id ? get(p, id, ANE_ID_FUNCTION, err) : NULL;
    if (id && !f) return ANE_ERR_NOT_FOUND;
    if (!ane__name_ok(name))
        return ane_fail(err, ANE_ERR_INVALID, "attribute: \"%.80s\" is not an identifier", name);
    ane_attr **attrs = f ? &f->attrs : &p->attrs;
    int *n = f ? &f->n_attrs : &p->n_attrs, at = 0;
    while (at < *n && strcmp((*attrs)[at].name, name)) at++;
    if (!value) {
        for (; at + 1 < *n; at++) (*attrs)[at] = (*attrs)[at + 1];
        if (at < *n) --*n;
    } else if (at < *n) {
        (*attrs)[at].value = value;
    } else {
        if (*n >= ANE_MAX_ATTRS)
            return ane_fail(err, ANE_ERR_INVALID, "more than %d attributes", ANE_MAX_ATTRS);
        ane_attr *more = ane_arena_alloc(p->arena, ((size_t)*n + 1) * sizeof *more);
        char *copy = ane_arena_strndup(p->arena, name, strlen(name));
        if (!more || !copy) return ane__nomem(err);
        for (int i = 0; i < *n; i++) more[i] = (*attrs)[i];
        more[at] = (ane_attr){copy, value};
        *attrs = more;
        ++*n;
    }
    p->generation++;
    return ANE_OK;
}

/* ---------------------------------------------------------------- editing */

ane_status ane_program_specialize(const ane_program *p, const char *function,
                                  const char *const *names, const ane_type *const *types,
                                  int n, ane_program **out, ane_error *err) {
    const ane_function *f = ane_program_function(p, function);
    if (!f)
        return ane_fail(err, ANE_ERR_NOT_FOUND, "specialize: no function \"%.80s\"", function);
    const ane_type **all = ane_calloc((size_t)f->n_params, sizeof *all);
    if (!all) return ane__nomem(err);
    ane_status st = ANE_OK;
    for (int i = 0; i < n && !st; i++) {
        int k = 0;
        while (k < f->n_params && strcmp(f->params[k]->name, names[i])) k++;
        if (k < f->n_params) all[k] = types[i];
        else st = ane_fail(err, ANE_ERR_INVALID, "specialize: %s has no parameter \"%.80s\"",
                           f->name, names[i]);
    }
    if (!st) st = ane_function_specialize(f, all, out, err);
    ane_free(all);
    return st;
}

ane_status ane_graph_add_function(ane_program *p, const char *name, const char *opset_tag,
                                  const char *const *names, const ane_type *const *types,
                                  int n, uint32_t *out, ane_error *err) {
    ane_function *f;
    ane_param_desc *params = ane_calloc((size_t)n, sizeof *params);
    if (!params) return ane__nomem(err);
    for (int i = 0; i < n; i++) params[i] = (ane_param_desc){names[i], types[i]};
    ane_status st = ane_function_create(p, name, opset_tag, params, n, &f, err);
    ane_free(params);
    if (!st) *out = f->id;
    return st;
}

/* The op in front of which something goes; *before NULL for the end. */
static ane_status place(const ane_program *p, uint32_t block, uint32_t before, ane_block **b,
                        ane_op **op, ane_error *err) {
    *op = NULL;
    if (!(*b = get(p, block, ANE_ID_BLOCK, err))) return ANE_ERR_NOT_FOUND;
    if (before && !(*op = get(p, before, ANE_ID_OP, err))) return ANE_ERR_NOT_FOUND;
    if (*op && (*op)->block != *b)
        return ane_fail(err, ANE_ERR_INVALID, "operation %u is not in block %u",
                        (unsigned)before, (unsigned)block);
    return ANE_OK;
}

ane_status ane_graph_add_op(ane_program *p, uint32_t block, uint32_t before,
                            const ane_operation *op, uint32_t *out, ane_error *err) {
    ane_block *b, **blocks = NULL;
    ane_op *at, *made;
    ane_arg_desc *args = NULL;
    ane_value **values = NULL;
    size_t total = 0;
    ane_status st = place(p, block, before, &b, &at, err);
    if (st) return st;
    for (int i = 0; i < op->n_args; i++) total += (size_t)op->args[i].n;
    args = ane_calloc((size_t)op->n_args, sizeof *args);
    values = ane_calloc(total, sizeof *values);
    blocks = ane_calloc((size_t)op->n_blocks, sizeof *blocks);
    if (!args || !values || !blocks) {
        st = ane__nomem(err);
        goto done;
    }
    total = 0;
    for (int i = 0; i < op->n_args; i++) {
        const ane_argument *a = &op->args[i];
        args[i] = (ane_arg_desc){a->name, a->n, a->tuple, values + total};
        for (int k = 0; k < a->n; k++)
            if (!(values[total++] = get(p, a->values[k], ANE_ID_VALUE, err))) {
                ane_error_prefix(err, "%.80s: parameter %.80s: ", op->op, a->name);
                st = ANE_ERR_NOT_FOUND;
                goto done;
            }
    }
    for (int i = 0; i < op->n_blocks; i++)
        if (!(blocks[i] = get(p, op->blocks[i], ANE_ID_BLOCK, err))) {
            st = ANE_ERR_NOT_FOUND;
            goto done;
        }
    ane_op_desc d = {.op = op->op, .name = op->name, .args = args, .n_args = op->n_args,
                     .n_results = op->n_results, .result_names = op->result_names,
                     .blocks = blocks, .n_blocks = op->n_blocks};
    st = ane_op_create(b, at, &d, &made, err);
    if (!st) *out = made->id;
done:
    ane_free(args);
    ane_free(values);
    ane_free(blocks);
    return st;
}

ane_status ane_graph_add_const(ane_program *p, uint32_t block, uint32_t before,
                               const ane_const *value, const char *name, bool inlined,
                               uint32_t *out, ane_error *err) {
    ane_block *b;
    ane_op *at;
    ane_value *v;
    ane_status st = place(p, block, before, &b, &at, err);
    if (st || (st = ane_const_insert(b, at, name, value, inlined, &v, err))) return st;
    *out = v->id;
    return ANE_OK;
}

ane_status ane_graph_add_block(ane_program *p, uint32_t function, uint32_t *out,
                               ane_error *err) {
    ane_function *f = get(p, function, ANE_ID_FUNCTION, err);
    if (!f) return ANE_ERR_NOT_FOUND;
    ane_block *b = ane_block_create(f, NULL);
    if (!b) return ane__nomem(err);
    *out = b->id;
    return ANE_OK;
}

ane_status ane_graph_add_block_param(ane_program *p, uint32_t block, const char *name,
                                     const ane_type *type, uint32_t *out, ane_error *err) {
    ane_block *b = get(p, block, ANE_ID_BLOCK, err);
    ane_value *v;
    if (!b) return ANE_ERR_NOT_FOUND;
    ane_status st = ane_block_add_param(b, name, type, &v, err);
    if (!st) *out = v->id;
    return st;
}

ane_status ane_graph_set_outputs(ane_program *p, uint32_t block, const uint32_t *values,
                                 int n, ane_error *err) {
    ane_block *b = get(p, block, ANE_ID_BLOCK, err);
    if (!b) return ANE_ERR_NOT_FOUND;
    ane_value **v = ane_calloc((size_t)n, sizeof *v);
    ane_status st = v ? ANE_OK : ane__nomem(err);
    for (int i = 0; i < n && !st; i++)
        if (!(v[i] = get(p, values[i], ANE_ID_VALUE, err))) st = ANE_ERR_NOT_FOUND;
    if (!st) st = ane_block_set_outputs(b, v, n, err);
    ane_free(v);
    return st;
}

ane_status ane_graph_remove_op(ane_program *p, uint32_t id, ane_error *err) {
    ane_op *op = get(p, id, ANE_ID_OP, err);
    return op ? ane_op_remove(op, err) : ANE_ERR_NOT_FOUND;
}

ane_status ane_graph_replace(ane_program *p, uint32_t from, uint32_t to, ane_error *err) {
    ane_value *a = get(p, from, ANE_ID_VALUE, err), *b;
    if (!a || !(b = get(p, to, ANE_ID_VALUE, err))) return ANE_ERR_NOT_FOUND;
    return ane_value_replace(a, b, err);
}

ane_status ane_graph_rename(ane_program *p, uint32_t value, const char *name,
                            ane_error *err) {
    ane_value *v = get(p, value, ANE_ID_VALUE, err);
    return v ? ane_value_rename(v, name, err) : ANE_ERR_NOT_FOUND;
}

/* ---------------------------------------------------------------- the op table */

int ane_operation_params(const char *op, int opset) {
    const ane_op_row *row = ane_op_row_find(op, opset, NULL);
    return row ? row->n_params : -1;
}

bool ane_operation_param(const char *op, int opset, int i, ane_parameter_info *out) {
    const ane_op_row *row = ane_op_row_find(op, opset, NULL);
    if (!row || i < 0 || i >= row->n_params) return false;
    const ane_op_param *q = &row->params[i];
    *out = (ane_parameter_info){
        .name = q->name,
        .kind = q->kind == ANE_P_TENSOR  ? ANE_T_TENSOR
                : q->kind == ANE_P_LIST  ? ANE_T_LIST
                : q->kind == ANE_P_STATE ? ANE_T_STATE
                                         : ANE_T_TUPLE,
        .dtypes = q->dtypes, .var = q->var, .is_const = q->is_const, .is_vector = q->rank1,
        .is_tuple = q->tuple, .optional = q->optional || q->default_text,
        .attribute = q->attribute};
    return true;
}
