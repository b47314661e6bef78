/* Types of control flow, lists, states and classify. */
#include "ops_fn.h"

#include <string.h>

/* A type that both fit: dims that differ become unknown. NULL when they are incompatible. */
static const ane_type *joined(ane_infer *in, const ane_type *a, const ane_type *b) {
    if (ane_type_equal(a, b)) return a;
    if (!ane_type_compatible(a, b)) return NULL;
    if (a->kind != ANE_T_TENSOR) return a;
    int64_t dims[ANE_MAX_RANK];
    for (int i = 0; i < a->rank; i++)
        dims[i] = ane_dim_same(a->dims[i], b->dims[i]) ? a->dims[i] : ANE_DIM_ANY;
    return ane_type_tensor(in->program, a->dtype, a->rank, dims);
}

static ane_status two_blocks(ane_infer *in, const char *first, const char *second) {
    if (in->op->n_blocks == 2) return ANE_OK;
    return ane_infer_fail(in, ANE_ERR_INVALID, "needs two blocks, %s and %s, got %d", first,
                          second, in->op->n_blocks);
}

static ane_status mismatch(ane_infer *in, const char *a_name, const ane_type *a,
                           const char *b_name, const ane_type *b, int i) {
    char ta[ANE_TYPE_TEXT], tb[ANE_TYPE_TEXT];
    return ane_infer_fail(in, ANE_ERR_SHAPE, "value %d is %s in %s and %s in %s", i,
                          ane_type_text(a, ta, sizeof ta), a_name,
                          ane_type_text(b, tb, sizeof tb), b_name);
}

ane_status ane__infer_cond(ane_infer *in) {
    ane_status st = two_blocks(in, "true", "false");
    if (!st) st = ane__want_scalar(in, "pred");
    if (st) return st;
    const ane_block *t = in->op->blocks[0], *f = in->op->blocks[1];
    if (t->n_params || f->n_params)
        return ane_infer_fail(in, ANE_ERR_INVALID, "its blocks take no parameters, got %d and "
                              "%d", t->n_params, f->n_params);
    if (t->n_outputs != f->n_outputs || t->n_outputs < 1 || t->n_outputs > ANE_MAX_RESULTS)
        return ane_infer_fail(in, ANE_ERR_INVALID, "both blocks must give the same number of "
                              "values, got %d and %d", t->n_outputs, f->n_outputs);
    for (int i = 0; i < t->n_outputs; i++) {
        const ane_type *a = t->outputs[i]->type, *b = f->outputs[i]->type, *c = joined(in, a, b);
        if (!c) return mismatch(in, "the true block", a, "the false block", b, i);
        st = ane_infer_same(in, i, c);
        if (st) return st;
    }
    in->n_results = t->n_outputs;
    return ANE_OK;
}

ane_status ane__infer_while_loop(ane_infer *in) {
    ane_status st = two_blocks(in, "cond", "body");
    if (st) return st;
    const ane_arg *vars = ane_op_arg(in->op, "loop_vars");
    const ane_block *c = in->op->blocks[0], *b = in->op->blocks[1];
    int n = vars ? vars->n : 0;
    if (c->n_params != n || b->n_params != n || b->n_outputs != n || n > ANE_MAX_RESULTS)
        return ane_infer_fail(in, ANE_ERR_INVALID, "%d loop_vars, but the cond block takes %d, "
                              "the body takes %d and gives %d", n, c->n_params, b->n_params,
                              b->n_outputs);
    const ane_type *t = c->n_outputs == 1 ? c->outputs[0]->type : NULL;
    bool truth = t && t->kind == ANE_T_TENSOR && t->dtype == ANE_BOOL;
    for (int i = 0; truth && i < t->rank; i++) truth = t->dims[i] == 1;
    if (!truth) return ane_infer_fail(in, ANE_ERR_DTYPE, "the cond block must give one bool");
    for (int i = 0; i < n; i++) {
        const ane_type *v = vars->v[i]->type, *o = b->outputs[i]->type;
        if (!ane_type_compatible(v, c->params[i]->type))
            return mismatch(in, "loop_vars", v, "the cond block's parameter", c->params[i]->type,
                            i);
        if (!ane_type_compatible(v, b->params[i]->type))
            return mismatch(in, "loop_vars", v, "the body's parameter", b->params[i]->type, i);
        if (!ane_type_compatible(o, b->params[i]->type))
            return mismatch(in, "the body's parameter", b->params[i]->type, "the body's result",
                            o, i);
        const ane_type *r = joined(in, v, o);
        if (!r) return mismatch(in, "loop_vars", v, "the body's result", o, i);
        st = ane_infer_same(in, i, r);
        if (st) return st;
    }
    in->n_results = n;
    return ANE_OK;
}

/* ---------------------------------------------------------------- lists */

ane_status ane__infer_make_list(ane_infer *in) {
    static const uint32_t any = ANE__SET_A;
    const ane_arg *shape = ane_op_arg(in->op, "elem_shape");
    ane_dtype d;
    int64_t dims[ANE_MAX_RANK], length = ane_op_i64(in->op, "init_length", ANE_DIM_ANY);
    ane_status st = ane__want_dtype(in, "dtype", any, &d);
    if (!st) st = ane__want_scalar(in, "init_length");
    if (st) return st;
    int rank = shape ? shape->n : 0;
    if (rank > ANE_MAX_RANK)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'elem_shape' has %d entries; at most %d are "
                              "possible", rank, ANE_MAX_RANK);
    for (int i = 0; i < rank; i++) {
        /* A string names a dimension that is not known yet. */
        const ane_const *c = shape->v[i]->konst;
        if (!c || !c->data)
            return ane_infer_fail(in, ANE_ERR_INVALID, "elem_shape[%d] must be a constant", i);
        dims[i] = c->type->dtype == ANE_STRING ? ANE_DIM_ANY : ane_const_i64(c, 0);
        if (dims[i] < 0) dims[i] = ANE_DIM_ANY;
    }
    const ane_type *elem = ane_type_tensor(in->program, d, rank, dims);
    bool fixed = !ane_op_bool(in->op, "dynamic_length", true);
    return ane_infer_same(in, 0, elem ? ane_type_list(in->program, elem, fixed ? length : -1)
                                      : NULL);
}

static const ane_type *list_of(ane_infer *in) { return ane__in_type(in, "ls"); }

ane_status ane__infer_list_length(ane_infer *in) {
    return ane_infer_set(in, 0, ANE_I32, 0, NULL);
}

ane_status ane__infer_list_read(ane_infer *in) {
    ane_status st = ane__want_scalar(in, "index");
    return st ? st : ane_infer_same(in, 0, list_of(in)->elem);
}

static ane_status elem_fits(ane_infer *in, const ane_type *elem, const ane_type *got) {
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    if (ane_type_compatible(elem, got)) return ANE_OK;
    return ane_infer_fail(in, ANE_ERR_SHAPE, "the list holds %s, got %s",
                          ane_type_text(elem, a, sizeof a), ane_type_text(got, b, sizeof b));
}

ane_status ane__infer_list_write(ane_infer *in) {
    ane_status st = ane__want_scalar(in, "index");
    if (!st) st = elem_fits(in, list_of(in)->elem, ane__in_type(in, "value"));
    return st ? st : ane_infer_same(in, 0, list_of(in));
}

ane_status ane__infer_list_gather(ane_infer *in) {
    const ane_type *e = list_of(in)->elem, *idx = ane__in_type(in, "indices");
    ane_status st = ane__want_rank(in, "indices", 1, 1);
    if (st) return st;
    if (e->kind != ANE_T_TENSOR || e->rank == ANE_MAX_RANK)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "the elements cannot be stacked");
    int64_t dims[ANE_MAX_RANK];
    dims[0] = idx->dims[0];
    memcpy(dims + 1, e->dims, sizeof *dims * (size_t)e->rank);
    return ane_infer_set(in, 0, e->dtype, e->rank + 1, dims);
}

ane_status ane__infer_list_scatter(ane_infer *in) {
    const ane_type *v = ane__in_type(in, "value"), *idx = ane__in_type(in, "indices");
    ane_status st = ane__want_rank(in, "indices", 1, 1);
    if (!st) st = ane__want_rank(in, "value", 1, ANE_MAX_RANK);
    if (st) return st;
    if (!ane__dim_fits(v->dims[0], idx->dims[0]))
        return ane_infer_fail(in, ANE_ERR_SHAPE, "%lld values for %lld indices",
                              (long long)v->dims[0], (long long)idx->dims[0]);
    const ane_type *e = ane_type_tensor(in->program, v->dtype, v->rank - 1, v->dims + 1);
    if (!e) return ane_infer_same(in, 0, NULL);
    st = elem_fits(in, list_of(in)->elem, e);
    return st ? st : ane_infer_same(in, 0, list_of(in));
}

/* ---------------------------------------------------------------- states, classify */

ane_status ane__infer_read_state(ane_infer *in) {
    return ane_infer_same(in, 0, ane__in_type(in, "input")->elem);
}

static ane_status state_takes(ane_infer *in, const char *state, const char *value) {
    const ane_type *s = ane__in_type(in, state)->elem, *v = ane__in_type(in, value);
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    if (ane_type_compatible(s, v)) return ANE_OK;
    return ane_infer_fail(in, v->kind == ANE_T_TENSOR && s->dtype != v->dtype ? ANE_ERR_DTYPE
                                                                             : ANE_ERR_SHAPE,
                          "the state holds %s, '%s' is %s", ane_type_text(s, a, sizeof a), value,
                          ane_type_text(v, b, sizeof b));
}

ane_status ane__infer_write_state(ane_infer *in) {
    in->n_results = 0;
    return state_takes(in, "input", "data");
}

ane_status ane__infer_coreml_update_state(ane_infer *in) {
    ane_status st = state_takes(in, "state", "value");
    return st ? st : ane_infer_same(in, 0, ane__in_type(in, "value"));
}

ane_status ane__infer_classify(ane_infer *in) {
    const ane_type *p = ane__in_type(in, "probabilities"), *c = ane__in_type(in, "classes");
    const ane_type *label = c->elem;
    int64_t n = ane_type_count(p);
    const ane_const *list = ane_op_const(in->op, "classes");
    if (label->kind != ANE_T_TENSOR || (label->dtype != ANE_STRING && label->dtype != ANE_I64) ||
        label->rank)
        return ane_infer_fail(in, ANE_ERR_DTYPE, "'classes' must be strings or int64");
    if (list && n >= 0 && list->n != n)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "%d classes for %lld probabilities", list->n,
                              (long long)n);
    const ane_type *value = ane_type_tensor(in->program, ANE_F64, 0, NULL);
    ane_status st = ane_infer_same(in, 0, label);
    if (st) return st;
    return ane_infer_same(in, 1, value ? ane_type_dict(in->program, label, value) : NULL);
}
