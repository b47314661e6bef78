/* What follows a matrix product element by element goes into its store: scale, bias along
 * rows or columns, one activation, one residual, and a cast. Widening casts in front of it
 * are left to the packing. */
#include "group.h"

#include <string.h>

bool ane_op_is_product(const ane_op *op) {
    bool matmul = !strcmp(op->row->name, "matmul"), linear = !strcmp(op->row->name, "linear");
    if (!matmul && !linear) return false;
    const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, matmul ? "y" : "weight");
    const ane_value *b = linear ? ane_op_in(op, "bias") : NULL;
    const ane_type *r = op->results[0]->type;
    return x && y && ane_dtype_is_float(x->type->dtype) && ane_dtype_is_float(y->type->dtype) &&
           ane_type_static(x->type) && ane_type_static(y->type) && ane_type_static(r) &&
           ane_dtype_is_float(r->dtype) && (!b || ane_dtype_is_float(b->type->dtype));
}

static bool scalar_const(const ane_value *v, double *out) {
    if (!v->konst || v->type->kind != ANE_T_TENSOR || ane_type_count(v->type) != 1 ||
        !v->konst->data)
        return false;
    *out = ane_const_f64(v->konst, 0);
    return true;
}

/* A vector along the product's rows or columns: its one long dim lines up with one of the
 * last two dims of the product, where `out` differs from the product in ones only. */
static bool is_bias(const ane_type *b, const ane_type *out, const ane_type *product) {
    int along = -1, skipped = 0;
    for (int i = 0; i < b->rank; i++) {
        if (b->dims[i] == 1) continue;
        if (along >= 0) return false;
        along = out->rank - b->rank + i;
    }
    if (along < 0) return false;
    for (int i = 0; i < along; i++) skipped += out->dims[i] != 1;
    for (int i = 0; i < product->rank; i++) {
        if (product->dims[i] == 1) continue;
        if (skipped-- == 0) return i >= product->rank - 2;
    }
    return false;
}

/* Takes op `u`, whose operand `in` is the product so far; false: it does not fit. */
static bool take(const ane_graph *g, ane_product *pr, const ane_type *product, int u,
                 const ane_value *in, bool *last) {
    static const char *const acts[] = {"relu", "sigmoid", "silu", "tanh", "gelu"};
    const ane_op *op = g->ops[u];
    const char *name = op->row->name;
    const ane_type *out = op->results[0]->type;
    if (!ane_op_is_pointwise(op) || !ane_dtype_is_float(out->dtype) ||
        !ane_shape_same_but_ones(product, out))
        return false;
    if (!strcmp(name, "cast")) {
        *last = true;
        return true;
    }
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
        if (strcmp(name, acts[i])) continue;
        if (pr->act || pr->residual || strcmp(ane_op_str(op, "mode", "EXACT"), "EXACT"))
            return false;
        pr->act = acts[i];
        return true;
    }
    const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, "y");
    if (!x || !y) return false;
    bool left = ane_value_through(x) == ane_value_through(in);
    const ane_value *other = left ? y : x;
    double s;
    if (left && ane_value_through(y) == ane_value_through(in)) return false;
    bool mul = !strcmp(name, "mul"), div = !strcmp(name, "real_div") && left;
    if ((mul || div) && scalar_const(other, &s) && !pr->bias && !pr->act && !pr->residual) {
        pr->alpha = mul ? pr->alpha * s : pr->alpha / s;
        return true;
    }
    bool add = !strcmp(name, "add"), sub = !strcmp(name, "sub");
    if (!add && !sub) return false;
    if (!ane_dtype_is_float(other->type->dtype)) return false;
    if (add && !pr->bias && !pr->act && !pr->residual && is_bias(other->type, out, product)) {
        pr->bias = other;
        return true;
    }
    if (pr->residual || !ane_shape_same_but_ones(other->type, out)) return false;
    if (sub && !left) {                 /* r - act(...): only a plain product can negate */
        if (pr->bias || pr->act) return false;
        pr->alpha = -pr->alpha;
    }
    pr->residual = other;
    pr->beta = sub && left ? -1 : 1;
    return true;
}

static bool widening(const ane_op *op) {
    if (strcmp(op->row->name, "cast")) return false;
    ane_dtype from = ane_op_in(op, "x")->type->dtype, to = op->results[0]->type->dtype;
    return to == ANE_F32 && (from == ANE_F16 || from == ANE_BF16) && !op->results[0]->konst;
}

static bool feeds_products_only(const ane_graph *g, const ane_value *v) {
    if (g->output[v->id] || !g->n_users[v->id]) return false;
    for (int i = 0; i < g->n_users[v->id]; i++) {
        const ane_op *u = g->ops[g->users[v->id][i]];
        bool view = !strcmp(u->row->name, "reshape") || !strcmp(u->row->name, "transpose") ||
                    !strcmp(u->row->name, "expand_dims") || !strcmp(u->row->name, "squeeze");
        if (view ? !feeds_products_only(g, u->results[0])
                 : !ane_op_is_product(u) || ane_op_in(u, "bias") == v)
            return false;
    }
    return true;
}

ane_status ane_fuse_product(ane_graph *g, ane_error *err) {
    for (int i = 0; i < g->n; i++) {
        const ane_op *op = g->ops[i];
        if (widening(op) && feeds_products_only(g, op->results[0])) g->folded[i] = true;
        if (!ane_op_is_product(op) || g->group[i] || op->results[0]->konst) continue;
        ane_group *grp = ane_group_new(g, ANE_GROUP_PRODUCT);
        if (!grp || !ane_group_add(g, grp, i))
            return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
        grp->core = i;
        ane_product *pr = &grp->product;
        *pr = (ane_product){.alpha = 1, .out = op->results[0]};
        if (!strcmp(op->row->name, "linear")) pr->bias = ane_op_in(op, "bias");
        const ane_type *product = op->results[0]->type;
        for (bool last = false; !last;) {
            int u = ane_value_only_user(g, pr->out);
            if (u < 0 || g->group[u] || !take(g, pr, product, u, pr->out, &last)) break;
            if (!ane_group_add(g, grp, u))
                return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
            pr->out = g->ops[u]->results[0];
        }
    }
    return ANE_OK;
}
