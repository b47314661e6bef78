/* Shapes of matrix products and attention. */
#include "ops_fn.h"

#include <string.h>

static ane_status mismatch(ane_infer *in, const char *what) {
    const ane_arg *a = &in->op->args[0], *b = &in->op->args[1];
    char ta[ANE_TYPE_TEXT], tb[ANE_TYPE_TEXT];
    return ane_infer_fail(in, ANE_ERR_SHAPE, "%s: '%s' is %s, '%s' is %s", what,
                          in->op->row->params[0].name,
                          ane_type_text(a->v[0]->type, ta, sizeof ta),
                          in->op->row->params[1].name,
                          ane_type_text(b->v[0]->type, tb, sizeof tb));
}

ane_status ane__infer_matmul(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x"), *y = ane__in_type(in, "y");
    bool tx = ane_op_bool(in->op, "transpose_x", false),
         ty = ane_op_bool(in->op, "transpose_y", false);
    if (!x->rank || !y->rank) return mismatch(in, "a scalar operand; use mul");
    if ((tx && x->rank == 1) || (ty && y->rank == 1))
        return mismatch(in, "an operand of rank 1 cannot be transposed");
    ane_dtype dtype = x->dtype;
    if (x->dtype != y->dtype) {
        bool cx = ane_op_const(in->op, "x") != NULL, cy = ane_op_const(in->op, "y") != NULL;
        if (cx == cy) return mismatch(in, "operands of two dtypes need exactly one constant");
        dtype = cx ? y->dtype : x->dtype;
    }
    /* Everything as [batch.., M, K] by [batch.., K, N]. */
    int64_t m = x->rank == 1 ? 1 : x->dims[x->rank - (tx ? 1 : 2)];
    int64_t kx = x->rank == 1 ? x->dims[0] : x->dims[x->rank - (tx ? 2 : 1)];
    int64_t ky = y->rank == 1 ? y->dims[0] : y->dims[y->rank - (ty ? 1 : 2)];
    int64_t n = y->rank == 1 ? 1 : y->dims[y->rank - (ty ? 2 : 1)];
    if (!ane__dim_fits(kx, ky)) return mismatch(in, "the inner dimensions differ");
    ane_type bx = *x, by = *y;
    bx.rank = x->rank > 2 ? x->rank - 2 : 0;
    by.rank = y->rank > 2 ? y->rank - 2 : 0;
    int rank;
    int64_t dims[ANE_MAX_RANK];
    ane_status st = ane_infer_broadcast(in, &bx, &by, &rank, dims);
    if (st) return st;
    if (x->rank > 1) dims[rank++] = m;
    if (y->rank > 1) dims[rank++] = n;
    return ane_infer_set(in, 0, dtype, rank, dims);
}

ane_status ane__infer_linear(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x"), *w = ane__in_type(in, "weight");
    ane_status st = ane__want_rank(in, "x", 1, ANE_MAX_RANK);
    if (!st) st = ane__want_rank(in, "weight", 2, 2);
    if (st) return st;
    if (!ane__dim_fits(x->dims[x->rank - 1], w->dims[1]))
        return mismatch(in, "the last dimension of 'x' must be the second of 'weight'");
    st = ane__want_vector(in, "bias", w->dims[0]);
    if (st) return st;
    int64_t dims[ANE_MAX_RANK];
    memcpy(dims, x->dims, sizeof dims);
    dims[x->rank - 1] = w->dims[0];
    return ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

/* Letters of "ab,cd->ef" as numbers in order of first appearance. */
static int pattern(const char *eq, char *out, size_t n) {
    char seen[64];
    size_t known = 0, at = 0;
    for (; *eq; eq++) {
        if (*eq == ' ') continue;
        char c = *eq;
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
            size_t k = 0;
            while (k < known && seen[k] != c) k++;
            if (k == known) {
                if (known == sizeof seen) return -1;
                seen[known++] = c;
            }
            c = (char)('0' + k);
        }
        if (at + 1 >= n) return -1;
        out[at++] = c;
    }
    out[at] = 0;
    return 0;
}

ane_status ane__infer_einsum(ane_infer *in) {
    const ane_arg *v = ane_op_arg(in->op, "values");
    const char *eq = ane_op_str(in->op, "equation", "");
    if (!v || v->n != 2)
        return ane_infer_fail(in, ANE_ERR_INVALID, "'values' must hold 2 tensors, got %d",
                              v ? v->n : 0);
    const ane_type *x = v->v[0]->type, *y = v->v[1]->type;
    char p[32], tx[ANE_TYPE_TEXT], ty[ANE_TYPE_TEXT];
    int r = pattern(eq, p, sizeof p) ? 0 : !strcmp(p, "0123,0324->0124") ? 4
            : !strcmp(p, "012,213->013") ? 3 : 0;
    if (!r)
        return ane_infer_fail(in, ANE_ERR_UNSUPPORTED, "equation \"%.60s\": only \"nchw,nwhu->"
                              "nchu\" and \"chw,whr->chr\" (with any letters) exist", eq);
    if (x->rank != r || y->rank != r)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "equation \"%.60s\" wants two tensors of "
                              "rank %d, got %s and %s", eq, r,
                              ane_type_text(x, tx, sizeof tx), ane_type_text(y, ty, sizeof ty));
    const int64_t *a = x->dims + r - 3, *b = y->dims + r - 3;
    bool ok = ane__dim_fits(a[2], b[0]) && (a[1] == 1 || b[1] == 1 || ane__dim_fits(a[1], b[1]));
    if (r == 4) ok = ok && (a[-1] == 1 || b[-1] == 1 || ane__dim_fits(a[-1], b[-1]));
    if (!ok)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "equation \"%.60s\" does not fit %s and %s",
                              eq, ane_type_text(x, tx, sizeof tx),
                              ane_type_text(y, ty, sizeof ty));
    int64_t dims[4];
    int64_t *d = dims + r - 3;
    d[0] = a[0];
    d[1] = a[1] == 1 ? b[1] : b[1] == 1 ? a[1] : ane__dim_merge(a[1], b[1]);
    d[2] = b[2];
    if (r == 4) d[-1] = a[-1] == 1 ? b[-1] : b[-1] == 1 ? a[-1] : ane__dim_merge(a[-1], b[-1]);
    return ane_infer_set(in, 0, x->dtype, r, dims);
}

ane_status ane__infer_scaled_dot_product_attention(ane_infer *in) {
    const ane_type *q = ane__in_type(in, "query"), *k = ane__in_type(in, "key"),
                   *v = ane__in_type(in, "value"), *m = ane__in_type(in, "attn_mask");
    int r = q->rank;
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT], c[ANE_TYPE_TEXT];
    bool ok = r >= 3 && k->rank == r && v->rank == r;
    for (int i = 0; ok && i < r - 2; i++)
        ok = ane__dim_fits(q->dims[i], k->dims[i]) && ane__dim_fits(k->dims[i], v->dims[i]);
    ok = ok && ane__dim_fits(q->dims[r - 1], k->dims[r - 1]) &&
         ane__dim_fits(k->dims[r - 2], v->dims[r - 2]);
    if (!ok)
        return ane_infer_fail(
            in, ANE_ERR_SHAPE, "wants query [B.., L, E], key [B.., S, E], value [B.., S, EV] "
            "of one rank from 3 with equal leading dimensions, got %s, %s, %s",
            ane_type_text(q, a, sizeof a), ane_type_text(k, b, sizeof b),
            ane_type_text(v, c, sizeof c));
    int64_t dims[ANE_MAX_RANK];
    memcpy(dims, q->dims, sizeof dims);
    if (m) {
        ok = m->rank <= r && m->rank >= 1;
        for (int i = 0; ok && i < m->rank; i++) {
            int d = r - m->rank + i;
            int64_t want = d == r - 1 ? k->dims[r - 2] : q->dims[d];
            ok = ane__dim_fits(m->dims[i], want) || (m->dims[i] == 1 && d != r - 1);
        }
        if (!ok)
            return ane_infer_fail(in, ANE_ERR_SHAPE, "'attn_mask' must broadcast to [B.., L, "
                                  "S] and end in S = %lld, got %s for query %s",
                                  (long long)k->dims[r - 2], ane_type_text(m, a, sizeof a),
                                  ane_type_text(q, b, sizeof b));
    }
    dims[r - 1] = v->dims[r - 1];
    return ane_infer_set(in, 0, q->dtype, r, dims);
}
