/* What follows a convolution element by element goes into its store: batch_norm and other
 * per-channel scales and shifts, one activation, one residual, another activation, a cast,
 * and one quantize, beside whose bytes the result itself may be wanted, too. */
#include "group.h"

#include <string.h>

bool ane_op_is_conv(const ane_op *op) {
    if (strcmp(op->row->name, "conv") && strcmp(op->row->name, "conv_transpose")) return false;
    const ane_value *x = ane_op_in(op, "x"), *w = ane_op_in(op, "weight");
    const ane_value *b = ane_op_in(op, "bias");
    const ane_type *r = op->results[0]->type;
    return x && w && ane_dtype_is_float(x->type->dtype) && ane_dtype_is_float(w->type->dtype) &&
           ane_type_static(x->type) && ane_type_static(w->type) && ane_type_static(r) &&
           ane_dtype_is_float(r->dtype) && (!b || ane_dtype_is_float(b->type->dtype));
}

static bool same_shape(const ane_type *a, const ane_type *b) {
    return a->rank == b->rank && !memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims);
}

/* One number, or one per channel of `of`. */
static bool per_channel(const ane_value *v, const ane_type *of) {
    const ane_type *t = v->type;
    if (!v->konst || !v->konst->data || !ane_dtype_is_float(t->dtype) || t->rank > of->rank)
        return false;
    for (int i = 0; i < t->rank; i++) {
        int d = of->rank - t->rank + i;
        if (t->dims[i] != 1 && (d != 1 || t->dims[i] != of->dims[1])) return false;
    }
    return true;
}

static bool activation(const ane_op *op) {
    static const char *const acts[] = {"relu", "relu6", "clip", "sigmoid", "silu", "tanh"};
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++)
        if (!strcmp(op->row->name, acts[i])) return true;
    return !strcmp(op->row->name, "gelu") && !strcmp(ane_op_str(op, "mode", "EXACT"), "EXACT");
}

/* Takes op, whose operand `in` is the result so far; false: it does not fit. `product`: its
 * channels are the last dim, and only an activation and a cast may follow. */
static bool take(ane_conv_fused *f, const ane_op *op, const ane_value *in, bool product,
                 bool *last) {
    const char *name = op->row->name;
    const ane_type *out = op->results[0]->type;
    if (!same_shape(in->type, out) || !ane_dtype_is_float(out->dtype)) return false;
    bool plain = !f->before && !f->residual && f->n_affine < ANE_CONV_AFFINE;
    if (!ane_op_is_pointwise(op)) return false;
    if (product && (f->before || !activation(op)) && strcmp(name, "cast")) return false;
    if (!strcmp(name, "batch_norm")) {
        if (plain) f->affine[f->n_affine++] = op;
        return plain;
    }
    if (!strcmp(name, "cast")) {
        *last = true;
        return true;
    }
    if (activation(op)) {
        const ane_op **slot = f->residual ? &f->after : &f->before;
        if (*slot) return false;
        *slot = op;
        return true;
    }
    const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, "y");
    if (!x || !y || (x == in) == (y == in)) return false;
    const ane_value *other = x == in ? y : x;
    bool add = !strcmp(name, "add"), mul = !strcmp(name, "mul");
    if ((add || mul) && plain && per_channel(other, out)) {
        f->affine[f->n_affine++] = op;
        return true;
    }
    if (!add || f->residual || f->after || !ane_dtype_is_float(other->type->dtype) ||
        !same_shape(other->type, out))
        return false;
    f->residual = other;
    return true;
}

/* A quantize that is the first to use what grp leaves: all others stand behind it. */
static bool take_quantize(ane_graph *g, ane_group *grp) {
    const ane_value *out = grp->conv.out;
    double scale;
    int zero, n = g->n_users[out->id], u = n ? g->users[out->id][0] : -1;
    if (u < 0 || g->group[u] || !ane_op_quantizes(g->ops[u], &scale, &zero) ||
        ane_op_in(g->ops[u], "input") != out)
        return true;
    grp->conv.eight = g->ops[u];
    grp->conv.only_eight = !g->output[out->id] && n == 1;
    return ane_group_add(g, grp, u);
}

ane_status ane_fuse_conv(ane_graph *g, ane_error *err) {
    bool requant = ane_fusion_on(g, ANE_FUSE_requant) && ane_kernel_on(ANE_FAMILY_int8);
    for (int i = 0; i < g->n; i++) {
        const ane_op *op = g->ops[i];
        ane_quantized q;
        bool conv = ane_op_is_conv(op);
        /* A quantised product runs as a 1x1 convolution. */
        if ((!conv && !ane_op_is_quantized(g, op, &q)) ||
            op->results[0]->konst || g->group[i])
            continue;
        ane_group *grp = ane_group_new(g, ANE_GROUP_CONV);
        if (!grp || !ane_group_add(g, grp, i)) goto nomem;
        grp->core = i;
        grp->conv.out = op->results[0];
        for (bool last = false; !last;) {
            const ane_value *out = grp->conv.out;
            if (g->output[out->id] || g->n_users[out->id] != 1) break;
            int u = g->users[out->id][0];
            if (g->group[u] || !take(&grp->conv, g->ops[u], out, !conv, &last))
                break;
            if (!ane_group_add(g, grp, u)) goto nomem;
            grp->conv.out = g->ops[u]->results[0];
        }
        if (conv && requant && !take_quantize(g, grp)) goto nomem;
    }
    return ANE_OK;
nomem:
    return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
}
