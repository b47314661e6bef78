/* Quantised products: a convolution, linear or matmul whose operands are a dequantised 8-bit
 * tensor with one scale and constant 8-bit weights with one scale per output channel. Its sums
 * are then exact in integers, and the dequantisation is in its store. */
#include "group.h"

#include <string.h>

static bool is_byte(const ane_type *t) { return t->dtype == ANE_I8 || t->dtype == ANE_U8; }

static bool is_linear(const ane_op *op) { return !strcmp(op->row->name, "linear"); }

bool ane_op_is_fixed_product(const ane_op *op) {
    if (!ane_op_is_product(op)) return false;
    const ane_value *y = ane_op_in(op, is_linear(op) ? "weight" : "y");
    return y->type->rank == 2 && ane_op_in(op, "x")->type->rank >= 2 &&
           !ane_op_bool(op, "transpose_x", false);
}

/* The weights behind a folded constexpr or dequantize. */
static bool weights_of(const ane_value *w, int out_axis, ane_quantized *q) {
    const ane_op *def = w->def;
    if (!w->konst || !def) return false;
    const char *name = def->row->name;
    bool blocks = !strcmp(name, "constexpr_blockwise_shift_scale");
    bool affine = !strcmp(name, "constexpr_affine_dequantize"), plain = !strcmp(name, "dequantize");
    if (!blocks && !affine && !plain) return false;
    q->w = ane_op_in(def, blocks ? "data" : affine ? "quantized_data" : "input");
    q->w_scale = ane_op_const(def, "scale");
    const ane_const *zero = ane_op_const(def, blocks ? "offset" : "zero_point");
    if (!q->w || !q->w->konst || !q->w->konst->data || !is_byte(q->w->type) || !q->w_scale ||
        !q->w_scale->data)
        return false;
    const ane_type *s = q->w_scale->type;
    if (ane_type_count(s) != 1) {
        if (blocks) {
            for (int d = 0; d < s->rank; d++)
                if (s->dims[d] != (d == out_axis ? w->type->dims[d] : 1)) return false;
        } else {
            int64_t axis = ane_op_i64(def, "axis", 0);
            if (axis < 0) axis += w->type->rank;
            if (axis != out_axis) return false;
        }
    }
    /* One zero point for all. */
    for (int64_t i = 0; zero && i < ane_type_count(zero->type); i++) {
        double z = ane_const_f64(zero, i);
        if (z != ane_const_f64(zero, 0) || z < -128 || z > 255 || z != (double)(int)z) return false;
        q->w_zero = (int)z;
    }
    return true;
}

/* One scale, one zero point. */
static bool image_of(const ane_value *x, ane_quantized *q) {
    const ane_op *def = x->def;
    if (x->konst || !def || strcmp(def->row->name, "dequantize")) return false;
    q->dequantize = def;
    q->x = ane_op_in(def, "input");
    const ane_const *scale = ane_op_const(def, "scale"), *zero = ane_op_const(def, "zero_point");
    if (!scale || !scale->data || ane_type_count(scale->type) != 1 || !is_byte(q->x->type) ||
        (ane_op_in(def, "zero_point") && !zero) || (zero && ane_type_count(zero->type) != 1))
        return false;
    q->x_scale = ane_const_f64(scale, 0);
    q->x_zero = zero ? (int)ane_const_i64(zero, 0) : 0;
    return true;
}

static bool is_depthwise(const ane_op *op) {
    const ane_value *x = ane_op_in(op, "x"), *w = ane_op_in(op, "weight");
    int64_t groups = ane_op_i64(op, "groups", 1);
    return !strcmp(op->row->name, "conv") && x->type->dims[1] == groups &&
           w->type->dims[0] == groups && w->type->dims[1] == 1;
}

bool ane_op_is_quantized(const ane_graph *g, const ane_op *op, ane_quantized *q) {
    *q = (ane_quantized){.x = NULL};
    bool conv = ane_op_is_conv(op);
    /* They run as convolutions, in groups of fuse_conv. */
    if (!ane_fusion_on(g, ANE_FUSE_quant) || !ane_fusion_on(g, ANE_FUSE_conv) || !ane_kernel_on(ANE_FAMILY_conv) ||
        !ane_kernel_on(ANE_FAMILY_int8) || (!conv && !ane_op_is_fixed_product(op)))
        return false;
    bool linear = !conv && is_linear(op), turned = !conv && !linear && !ane_op_bool(op, "transpose_y", false);
    const ane_value *w = ane_op_in(op, conv || linear ? "weight" : "y");
    const ane_value *bias = ane_op_in(op, conv || linear ? "bias" : "x");
    int out_axis = turned || !strcmp(op->row->name, "conv_transpose");
    if (conv && ane_op_i64(op, "groups", 1) != 1 && !is_depthwise(op)) return false;
    if ((conv || linear) && bias && !bias->konst) return false;
    int64_t terms = ane_type_count(w->type) / (w->type->dims[out_axis] ? w->type->dims[out_axis] : 1);
    return terms <= INT32_MAX / (255 * 255) && ane_type_count(op->results[0]->type) > 0 &&
           image_of(ane_op_in(op, "x"), q) && weights_of(w, out_axis, q);
}

bool ane_op_quantizes(const ane_op *op, double *scale, int *zero) {
    if (strcmp(op->row->name, "quantize") || !is_byte(op->results[0]->type)) return false;
    const ane_const *s = ane_op_const(op, "scale"), *z = ane_op_const(op, "zero_point");
    if (!s || !s->data || ane_type_count(s->type) != 1 || (ane_op_in(op, "zero_point") && !z) ||
        (z && ane_type_count(z->type) != 1))
        return false;
    *scale = ane_const_f64(s, 0);
    *zero = z ? (int)ane_const_i64(z, 0) : 0;
    return true;
}

/* A dequantisation is not needed where every user takes the integers. */
static bool taken_by_all(const ane_graph *g, const ane_value *v) {
    ane_quantized q;
    if (g->output[v->id] || !g->n_users[v->id]) return false;
    for (int i = 0; i < g->n_users[v->id]; i++) {
        const ane_op *u = g->ops[g->users[v->id][i]];
        if (!ane_op_is_quantized(g, u, &q) || ane_op_in(u, "x") != v) return false;
        for (int p = 0; p < u->row->n_params; p++)
            for (int k = 0; k < u->args[p].n; k++)
                if (u->args[p].v[k] == v && v != ane_op_in(u, "x")) return false;
    }
    return true;
}

void ane_fuse_quant(ane_graph *g) {
    for (int i = 0; i < g->n; i++)
        if (!strcmp(g->ops[i]->row->name, "dequantize") && taken_by_all(g, g->ops[i]->results[0]))
            g->folded[i] = true;
}
