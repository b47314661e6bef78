/* Which ops are element-wise with plain broadcasting, for every device that chains them. */
#include "group.h"

#include <string.h>

static bool chain_dtype(ane_dtype d) {
    return d == ANE_F16 || d == ANE_BF16 || d == ANE_F32 || d == ANE_I32 || d == ANE_BOOL;
}

bool ane_dtype_is_float(ane_dtype d) { return d == ANE_F16 || d == ANE_BF16 || d == ANE_F32; }

/* Sorted: looked up by bisection. A leading '*' marks those that int32 may use as well, '?'
 * those whose operands may be anything chainable. */
static const char *const names[] = {
    "abs*", "acos", "add*", "asin", "atan", "atanh", "batch_norm", "cast?", "ceil", "clamped_relu", "clip",
    "cos", "cosh", "elu", "equal*", "erf", "exp", "exp2", "floor", "floor_div*", "gelu",
    "greater*", "greater_equal*", "inverse", "leaky_relu", "less*", "less_equal*",
    "linear_activation", "log", "logical_and?", "logical_not?", "logical_or?", "logical_xor?",
    "maximum*", "minimum*", "mod*", "mul*", "not_equal*", "pow", "real_div", "relu", "relu6",
    "round", "rsqrt", "scaled_tanh", "select?", "sigmoid", "sigmoid_hard", "sign*", "silu",
    "sin", "sinh", "softplus", "softsign", "sqrt", "square*", "sub*", "tan", "tanh",
    "threshold*", "thresholded_relu",
};

bool ane_op_is_pointwise(const ane_op *op) {
    if (op->n_results != 1 || op->n_blocks) return false;
    const ane_type *r = op->results[0]->type;
    if (r->kind != ANE_T_TENSOR || !chain_dtype(r->dtype) || !ane_type_static(r)) return false;
    size_t lo = 0, hi = sizeof names / sizeof *names, n = strlen(op->row->name);
    char mark = 0;
    bool found = false;
    while (lo < hi && !found) {
        size_t mid = (lo + hi) / 2, m = strcspn(names[mid], "*?");
        int c = strncmp(op->row->name, names[mid], n < m ? n : m);
        if (!c) c = n == m ? 0 : n < m ? -1 : 1;
        if (!c) {
            found = true;
            mark = names[mid][m];
        } else if (c < 0) hi = mid;
        else lo = mid + 1;
    }
    if (!found) return false;
    for (int p = 0; p < op->row->n_params; p++) {
        if (op->row->params[p].is_const) continue;
        for (int i = 0; i < op->args[p].n; i++) {
            const ane_type *t = op->args[p].v[i]->type;
            if (t->kind != ANE_T_TENSOR || !ane_type_static(t) || !chain_dtype(t->dtype))
                return false;
            bool ok = mark == '?' || ane_dtype_is_float(t->dtype) || (mark == '*' && t->dtype == ANE_I32);
            if (!ok) return false;
        }
    }
    return true;
}
