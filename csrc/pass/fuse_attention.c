/* The attention core where it is written out, softmax(scale Q K' + mask) V, and what its
 * derivative becomes: both as one group that needs no [queries, keys] matrix in memory.
 *
 *     scores = Q K'  (times constants, plus one mask or a select by one; either way round)
 *     P = softmax(scores)                                    out = P V
 *     dP = dout V'; dS = c P (dP - sum(P dP))                dV = P' dout, dQ = dS K, dK = dS' Q
 *
 * Everything found starts at a softmax. Any of the four results may be missing; no value
 * of the scores' size may be needed by anybody else. */
#include "group.h"

#include <math.h>
#include <string.h>

#define MAX_OPS 64

typedef struct build {
    ane_graph *g;
    ane_attention_core *a;
    const ane_type *scores;             /* of the product, as written */
    bool keys_first;                    /* the scores are [keys, queries] */
    int ops[MAX_OPS], n;                /* all but the shape ops behind the results */
    bool full;
    ane_side v[2], dout[2], k[2], q[2]; /* as each product names them; v NULL: not there */
} build;

static bool is(const ane_op *op, const char *name) { return !strcmp(op->row->name, name); }

static void add(build *b, const ane_op *op) {
    if (b->n == MAX_OPS) b->full = true;
    else b->ops[b->n++] = b->g->number[op->id];
}

/* What makes v in this body, and is not in a group yet; NULL: nothing. */
static const ane_op *maker(const build *b, const ane_value *v) {
    if (v->konst || !v->def || v->def->block != b->g->fn->body) return NULL;
    return b->g->group[b->g->number[v->def->id]] ? NULL : v->def;
}

static bool is_float_tensor(const ane_value *v) {
    return v && v->type->kind == ANE_T_TENSOR && ane_dtype_is_float(v->type->dtype) &&
           ane_type_static(v->type);
}

/* Of the scores' size, rows and columns where theirs are. */
static bool like_scores(const build *b, const ane_value *v) {
    const ane_type *t = v->type, *s = b->scores;
    return is_float_tensor(v) && t->rank >= 2 && ane_shape_same_but_ones(t, s) &&
           t->dims[t->rank - 1] == s->dims[s->rank - 1] &&
           t->dims[t->rank - 2] == s->dims[s->rank - 2];
}

static bool scalar(const ane_value *v, double *out) {
    if (!v || !v->konst || v->type->kind != ANE_T_TENSOR || ane_type_count(v->type) != 1 ||
        !v->konst->data || !ane_dtype_is_float(v->type->dtype))
        return false;
    *out = ane_const_f64(v->konst, 0);
    return true;
}

/* op multiplies one operand by a constant: which one, and by how much. */
static const ane_value *scaled(const ane_op *op, double *by) {
    bool mul = is(op, "mul");
    if (!mul && !is(op, "real_div")) return NULL;
    const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, "y");
    if (scalar(y, by)) {
        if (!mul) *by = 1 / *by;
        return x;
    }
    return mul && scalar(x, by) ? y : NULL;
}

/* ---------------------------------------------------------------- matrices */

static ane_side side(const ane_value *v, bool t) {
    /* A swap of the last two dims is a flag. */
    for (;;) {
        const ane_op *op = v->konst ? NULL : v->def;
        int64_t perm[ANE_MAX_RANK];
        if (!op || !is(op, "transpose")) break;
        int n = ane_op_ints(op, "perm", perm, ANE_MAX_RANK);
        bool swap = n >= 2;
        for (int i = 0; i < n && swap; i++) {
            int64_t want = i < n - 2 ? i : i == n - 2 ? n - 1 : n - 2;
            swap = (perm[i] < 0 ? perm[i] + n : perm[i]) == want;
        }
        if (!swap) break;
        v = ane_op_in(op, "x");
        t = !t;
    }
    return (ane_side){v, t};
}

/* The same elements: one value, or the same shape ops over one. */
static bool same_value(const ane_value *a, const ane_value *b, int depth) {
    if (a == b || (a->konst && b->konst && ane_const_equal(a->konst, b->konst))) return true;
    const ane_op *x = a->konst ? NULL : a->def, *y = b->konst ? NULL : b->def;
    if (!x || !y || x->row != y->row || depth > 16) return false;
    if (!is(x, "reshape") && !is(x, "transpose") && !is(x, "expand_dims") && !is(x, "squeeze") &&
        !is(x, "cast"))
        return false;
    int64_t p[ANE_MAX_RANK], q[ANE_MAX_RANK];
    if (!ane_type_equal(a->type, b->type)) return false;
    if (is(x, "transpose")) {
        int n = ane_op_ints(x, "perm", p, ANE_MAX_RANK);
        if (n != ane_op_ints(y, "perm", q, ANE_MAX_RANK) || n < 0) return false;
        for (int i = 0; i < n; i++)
            if ((p[i] < 0 ? p[i] + n : p[i]) != (q[i] < 0 ? q[i] + n : q[i])) return false;
    }
    return same_value(ane_op_in(x, "x"), ane_op_in(y, "x"), depth + 1);
}

/* The two mentions of one operand; *out is it. */
static bool agree(const ane_side s[2], ane_side *out) {
    *out = s[0].v ? s[0] : s[1];
    return !s[0].v || !s[1].v || (s[0].t == s[1].t && same_value(s[0].v, s[1].v, 0));
}

static bool is_matmul(const ane_op *op) {
    return op && is(op, "matmul") && ane_op_is_product(op) && !op->results[0]->konst &&
           ane_op_in(op, "x")->type->rank >= 2 && ane_op_in(op, "y")->type->rank >= 2;
}

/* A product's operands as [rows, sum] and [columns, sum]. */
static void factors(const ane_op *op, ane_side *rows, ane_side *cols) {
    *rows = side(ane_op_in(op, "x"), ane_op_bool(op, "transpose_x", false));
    *cols = side(ane_op_in(op, "y"), !ane_op_bool(op, "transpose_y", false));
}

/* The product of something of the scores' size with another matrix: the sum runs over keys
 * (else over queries); *other is [summed, channels], *result [kept, channels]. */
static bool contraction(const build *b, const ane_op *op, const ane_value *p, bool *over_keys,
                        ane_side *other, ane_side *result) {
    const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, "y");
    bool tx = ane_op_bool(op, "transpose_x", false), ty = ane_op_bool(op, "transpose_y", false);
    if (x == y) return false;
    bool left = x == p, last;           /* the sum runs over p's last dim */
    if (left) {
        last = !tx;
        *other = side(y, ty);
    } else {
        last = ty;
        *other = side(x, !tx);
    }
    *over_keys = last != b->keys_first;
    *result = (ane_side){op->results[0], !left};
    const ane_type *r = result->v->type;
    int64_t batch = 1, want = 1;
    for (int i = 0; i < r->rank - 2; i++) batch *= r->dims[i];
    for (int i = 0; i < b->scores->rank - 2; i++) want *= b->scores->dims[i];
    return batch == want;
}

/* ---------------------------------------------------------------- scores */

/* op puts a mask on its other operand, which is returned; `after` is what multiplies op's
 * result. */
static const ane_value *masked(build *b, const ane_op *op, double after) {
    ane_attention_core *a = b->a;
    const ane_value *s = NULL, *m = NULL;
    double fill;
    if (a->mask.v) return NULL;
    if (is(op, "add") || is(op, "sub")) {
        const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, "y");
        /* The scores are the side that a product makes; sub: only the left one. */
        for (int i = 0; i < (is(op, "add") ? 2 : 1) && !s; i++) {
            const ane_value *v = i ? y : x;
            const ane_op *def = maker(b, ane_value_through(v));
            double by;
            while (def && (scaled(def, &by) || is(def, "cast"))) {
                const ane_value *in = is(def, "cast") ? ane_op_in(def, "x") : scaled(def, &by);
                def = maker(b, ane_value_through(in));
            }
            if (is_matmul(def)) s = v, m = i ? x : y;
        }
        if (!s || !is_float_tensor(m)) return NULL;
        a->mask_scale = is(op, "sub") ? -after : after;
    } else if (is(op, "select")) {
        const ane_value *x = ane_op_in(op, "a"), *y = ane_op_in(op, "b");
        m = ane_op_in(op, "cond");
        if (!m || m->type->kind != ANE_T_TENSOR || m->type->dtype != ANE_BOOL ||
            !ane_type_static(m->type))
            return NULL;
        bool keep = scalar(y, &fill);
        if (!keep && !scalar(x, &fill)) return NULL;
        s = keep ? x : y;
        a->keep = keep;
        a->fill = fill * after;
    } else {
        return NULL;
    }
    a->mask = (ane_side){m, b->keys_first};
    a->mask_over = op->results[0]->type;
    return s;
}

/* From softmax's operand back to Q K'. */
static bool match_scores(build *b, const ane_value *x) {
    double after = 1, by;
    for (int depth = 0; depth < 16; depth++) {
        x = ane_value_through(x);
        const ane_op *op = maker(b, x);
        if (!op || !is_float_tensor(x)) return false;
        add(b, op);
        if (is_matmul(op)) {
            b->scores = x->type;
            ane_side rows, cols;
            factors(op, &rows, &cols);
            b->q[0] = b->keys_first ? cols : rows;
            b->k[0] = b->keys_first ? rows : cols;
            b->a->scale = after;
            return true;
        }
        const ane_value *in;
        if ((in = scaled(op, &by)) != NULL) after *= by;
        else if (is(op, "cast")) in = ane_op_in(op, "x");
        else in = masked(b, op, after);
        if (!in || !is_float_tensor(in)) return false;
        x = in;
    }
    return false;
}

/* ---------------------------------------------------------------- uses */

typedef struct use {
    const ane_op *op;
    const ane_value *v;                 /* as the op names it */
} use;

/* Ops that use v, past casts and views of equal rows and columns. */
static bool uses_of(build *b, const ane_value *v, use *list, int *n) {
    if (b->g->output[v->id] || !like_scores(b, v)) return false;
    for (int i = 0; i < b->g->n_users[v->id]; i++) {
        const ane_op *op = b->g->ops[b->g->users[v->id][i]];
        if (b->g->group[b->g->number[op->id]] || !op->n_results) return false;
        if (ane_op_is_squeeze(op) || (is(op, "cast") && is_float_tensor(op->results[0]))) {
            add(b, op);
            if (!uses_of(b, op->results[0], list, n)) return false;
            continue;
        }
        bool seen = false;
        for (int k = 0; k < *n; k++) seen = seen || list[k].op == op;
        if (seen) continue;
        if (*n == 8) return false;
        list[(*n)++] = (use){op, v};
    }
    return true;
}

static const ane_value *other_of(const ane_op *op, const ane_value *v) {
    const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, "y");
    return x == v ? (y == v ? NULL : y) : y == v ? x : NULL;
}

/* dS, perhaps still to be scaled or masked once more, to its products. */
static bool match_dscores(build *b, const ane_value *ds) {
    for (;;) {
        use list[8];
        int n = 0;
        if (!uses_of(b, ds, list, &n) || !n) return false;
        const ane_op *op = list[0].op;
        double by, zero;
        if (n == 1 && scaled(op, &by)) {
            b->a->dscale *= by;
        } else if (n == 1 && is(op, "select")) {
            const ane_value *rest = ane_op_in(op, b->a->keep ? "b" : "a");
            if (!b->a->mask.v || !same_value(ane_op_in(op, "cond"), b->a->mask.v, 0) || !scalar(rest, &zero) || zero != 0 ||
                ane_op_in(op, b->a->keep ? "a" : "b") != list[0].v)
                return false;
            b->a->masked = true;
        } else {
            for (int i = 0; i < n; i++) {
                bool over_keys;
                ane_side other, result;
                if (!is_matmul(list[i].op) ||
                    !contraction(b, list[i].op, list[i].v, &over_keys, &other, &result))
                    return false;
                ane_side *seen = over_keys ? &b->k[1] : &b->q[1];
                if (seen->v) return false;
                *seen = other;
                *(over_keys ? &b->a->dq : &b->a->dk) = result;
                add(b, list[i].op);
            }
            return true;
        }
        add(b, op);
        ds = op->results[0];
    }
}

/* dP (dP - sum(P dP)): `last` is the product of P with the difference. */
static bool match_softmax_grad(build *b, const ane_value *p, use first, use last) {
    const ane_value *dp = other_of(first.op, first.v), *diff = other_of(last.op, last.v);
    const ane_op *sub = diff ? maker(b, ane_value_through(diff)) : NULL;
    (void)p;
    if (!dp || !sub || !is(sub, "sub")) return false;
    const ane_value *x = ane_op_in(sub, "x"), *sum = ane_op_in(sub, "y");
    const ane_op *make = maker(b, ane_value_through(dp));
    const ane_op *reduce = maker(b, ane_value_through(sum));
    int64_t axis;
    if (ane_value_through(x) != ane_value_through(dp) || !is_matmul(make) || !reduce ||
        !is(reduce, "reduce_sum") || ane_op_ints(reduce, "axes", &axis, 1) != 1 ||
        ane_value_through(ane_op_in(reduce, "x")) != first.op->results[0] ||
        !like_scores(b, make->results[0]) || !like_scores(b, sub->results[0]))
        return false;
    int rank = ane_op_in(reduce, "x")->type->rank;
    if ((axis < 0 ? axis + rank : axis) != (b->keys_first ? rank - 2 : rank - 1)) return false;
    /* Kept or not, the sums stand where one per query belongs. */
    const ane_type *t = sum->type, *s = sub->results[0]->type;
    if (t->rank != s->rank || t->dims[t->rank - (b->keys_first ? 2 : 1)] != 1) return false;
    ane_side rows, cols;
    factors(make, &rows, &cols);
    b->dout[0] = b->keys_first ? cols : rows;
    b->v[1] = b->keys_first ? rows : cols;
    b->a->dscale = 1;
    add(b, make);
    add(b, first.op);
    add(b, reduce);
    add(b, sub);
    add(b, last.op);
    return match_dscores(b, last.op->results[0]);
}

static bool match_uses(build *b, const ane_value *p) {
    use list[8], muls[2];
    int n = 0, m = 0;
    if (!uses_of(b, p, list, &n) || !n) return false;
    for (int i = 0; i < n; i++) {
        const ane_op *op = list[i].op;
        if (is(op, "mul") && m < 2) {
            muls[m++] = list[i];
            continue;
        }
        bool over_keys;
        ane_side other, result;
        if (!is_matmul(op) || !contraction(b, op, list[i].v, &over_keys, &other, &result))
            return false;
        ane_side *to = over_keys ? &b->a->out : &b->a->dv, *from = over_keys ? &b->v[0] : &b->dout[1];
        if (to->v) return false;
        *to = result;
        *from = other;
        add(b, op);
    }
    if (m == 1) return false;
    if (m == 2) {
        const ane_op *user = b->g->n_users[muls[0].op->results[0]->id] == 1
            ? b->g->ops[b->g->users[muls[0].op->results[0]->id][0]] : NULL;
        int first = user && is(user, "reduce_sum") ? 0 : 1;
        if (!match_softmax_grad(b, p, muls[first], muls[1 - first])) return false;
    } else if (b->a->dv.v && !b->a->out.v) {
        return false;                   /* dV alone: nothing to be saved but P */
    }
    return agree(b->v, &b->a->v) && agree(b->dout, &b->a->dout) && agree(b->k, &b->a->k) &&
           agree(b->q, &b->a->q) && (b->a->v.v || b->a->dout.v);
}

/* ---------------------------------------------------------------- the group */

static bool is_lazy(const ane_op *op) {
    return op->n_results == 1 && ane_type_static(op->results[0]->type) &&
           (is(op, "reshape") || is(op, "transpose") || is(op, "expand_dims") ||
            is(op, "squeeze"));
}

/* Everybody who uses v, shape ops looked through, stands after op number `at`. */
static bool used_after(const ane_graph *g, const ane_value *v, const ane_group *grp, int at) {
    for (int i = 0; i < g->n_users[v->id]; i++) {
        int u = g->users[v->id][i];
        if (g->group[u] == grp) continue;
        if (is_lazy(g->ops[u]) ? !used_after(g, g->ops[u]->results[0], grp, at) : u <= at)
            return false;
    }
    return true;
}

/* Shape ops behind a result that nobody else sees decide where it is written. */
static const ane_value *follow(ane_graph *g, ane_group *grp, const ane_value *v, bool *nomem) {
    for (int depth = 0; depth < 16; depth++) {
        if (g->output[v->id] || g->n_users[v->id] != 1) break;
        int u = g->users[v->id][0];
        if (!is_lazy(g->ops[u]) || g->group[u]) break;
        if (!ane_group_add(g, grp, u)) {
            *nomem = true;
            break;
        }
        v = g->ops[u]->results[0];
    }
    return v;
}

/* Heads that are copied for their group of queries (tile, or a concat of one value) need
 * no copy where only the group looks at them. */
static bool take_copies(ane_graph *g, ane_group *grp, const ane_value *v) {
    int path[16], n = 0;
    for (; n < 16; v = ane_op_in(g->ops[path[n - 1]], "x")) {
        const ane_op *op = v->konst ? NULL : v->def;
        if (!op || op->block != g->fn->body || g->output[v->id]) return true;
        int number = g->number[op->id];
        if (g->group[number] && g->group[number] != grp) return true;
        for (int i = 0; i < g->n_users[v->id]; i++) {
            int u = g->users[v->id][i];
            bool mine = g->group[u] == grp;
            for (int k = 0; k < n; k++) mine = mine || path[k] == u;
            if (!mine) return true;
        }
        path[n++] = number;
        if (ane_op_is_repeat(op)) {
            for (int k = 0; k < n; k++)
                if (g->group[path[k]] != grp && !ane_group_add(g, grp, path[k])) return false;
            return true;
        }
        if (!is_lazy(op)) return true;
    }
    return true;
}

/* One group of these ops, or with `split` two: the forward result apart, as what the
 * derivative starts from is made of it. *fits is false when some value is needed elsewhere. */
static ane_status make_group(build *b, int core, bool split, bool *fits, ane_error *err) {
    ane_graph *g = b->g;
    ane_attention_core *kept = ane_arena_alloc(g->arena, 2 * sizeof *kept);
    ane_group *grp = ane_group_new(g, ANE_GROUP_ATTENTION), *fwd = NULL;
    bool nomem = !kept || !grp;
    int out = b->a->out.v ? g->number[b->a->out.v->def->id] : -1;
    for (int i = 0; i < b->n && !nomem; i++)
        if (g->group[b->ops[i]] != grp && !(split && b->ops[i] == out))
            nomem = !ane_group_add(g, grp, b->ops[i]);
    if (nomem) goto nomem;
    if (split) g->group[out] = grp;     /* for what follows it is inside */
    ane_side *results[] = {&b->a->out, &b->a->dq, &b->a->dk, &b->a->dv};
    *fits = true;
    for (int i = 0; i < b->n && *fits; i++) {
        const ane_value *v = g->ops[b->ops[i]]->results[0];
        bool result = false;
        for (int k = 0; k < 4; k++) result = result || results[k]->v == v;
        if (split && b->ops[i] == out) continue;
        *fits = result ? used_after(g, v, grp, grp->at) : !ane_value_escapes(g, v, grp);
    }
    if (split) g->group[out] = NULL;
    if (!*fits) {
        for (int i = 0; i < grp->n; i++) g->group[grp->ops[i]] = NULL;
        return ANE_OK;
    }
    if (split) {
        static const ane_side none = {NULL, false};
        fwd = ane_group_new(g, ANE_GROUP_ATTENTION);
        if (!fwd || !ane_group_add(g, fwd, out)) goto nomem;
        kept[1] = *b->a;
        kept[1].dq = kept[1].dk = kept[1].dv = kept[1].dout = none;
        kept[1].last[0] = follow(g, fwd, b->a->out.v, &nomem);
        fwd->attention = &kept[1];
        fwd->core = fwd->at = out;
        b->a->out = none;
    }
    int at = grp->at;
    for (int k = 0; k < 4; k++)
        if (results[k]->v) b->a->last[k] = follow(g, grp, results[k]->v, &nomem);
    const ane_side *from[] = {&b->a->q, &b->a->k, &b->a->v};
    for (int k = 0; k < 3 && !nomem; k++)
        if (from[k]->v) nomem = !take_copies(g, grp, from[k]->v);
    if (nomem) goto nomem;
    kept[0] = *b->a;
    grp->attention = kept;
    grp->core = core;
    grp->at = at;
    return ANE_OK;
nomem:
    return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
}

static ane_status from_softmax(ane_graph *g, int i, ane_error *err) {
    const ane_op *op = g->ops[i];
    const ane_value *x = ane_op_in(op, "x"), *p = op->results[0];
    if (!is_float_tensor(x) || x->type->rank < 2 || p->konst || !ane_type_count(x->type))
        return ANE_OK;
    int64_t rank = x->type->rank, axis = ane_op_i64(op, "axis", -1);
    if (axis < 0) axis += rank;
    if (axis < rank - 2) return ANE_OK;
    ane_attention_core a = {.mask_scale = 1, .fill = -INFINITY, .keep = true};
    build b = {.g = g, .a = &a, .keys_first = axis == rank - 2, .scores = x->type};
    add(&b, op);
    if (!match_scores(&b, x) || !like_scores(&b, p) || !like_scores(&b, x)) return ANE_OK;
    for (int k = 0; k < b.n; k++)       /* every step between, too */
        if (!like_scores(&b, g->ops[b.ops[k]]->results[0])) return ANE_OK;
    if (!match_uses(&b, p) || b.full) return ANE_OK;
    const ane_type *s = b.scores, *q = a.q.v->type;
    a.scores = s;
    a.queries = s->dims[s->rank - (b.keys_first ? 1 : 2)];
    a.keys = s->dims[s->rank - (b.keys_first ? 2 : 1)];
    a.qk_dim = q->dims[q->rank - (a.q.t ? 2 : 1)];
    const ane_side *v = a.v.v ? &a.v : &a.dout;
    a.v_dim = v->v->type->dims[v->v->type->rank - (v->t ? 2 : 1)];
    if (!a.qk_dim || !a.v_dim) return ANE_OK;
    bool both = a.out.v && (a.dq.v || a.dk.v || a.dv.v), fits = false;
    ane_status st = make_group(&b, i, false, &fits, err);
    return st || fits || !both ? st : make_group(&b, i, true, &fits, err);
}

/* The op that means the same. */
static ane_status from_op(ane_graph *g, int i, ane_error *err) {
    const ane_op *op = g->ops[i];
    const ane_value *q = ane_op_in(op, "query"), *k = ane_op_in(op, "key"),
                    *v = ane_op_in(op, "value"), *m = ane_op_in(op, "attn_mask");
    const ane_value *out = op->results[0];
    if (!is_float_tensor(q) || !is_float_tensor(k) || !is_float_tensor(v) || out->konst ||
        !ane_type_static(out->type) || (m && !ane_type_static(m->type)) ||
        !ane_type_count(q->type) || !ane_type_count(v->type))
        return ANE_OK;
    int rank = q->type->rank;
    ane_type *scores = ane_arena_alloc(g->arena, sizeof *scores);
    if (!scores) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    *scores = *q->type;
    scores->dims[rank - 1] = k->type->dims[rank - 2];
    ane_attention_core a = {
        .mask_scale = 1, .fill = -INFINITY, .keep = true, .scores = scores,
        .q = side(q, false), .k = side(k, false), .v = side(v, false), .out = {out, false},
        .queries = q->type->dims[rank - 2], .keys = k->type->dims[rank - 2],
        .qk_dim = q->type->dims[rank - 1], .v_dim = v->type->dims[rank - 1],
        .scale = 1 / sqrt((double)q->type->dims[rank - 1]),
    };
    if (m) {
        a.mask = (ane_side){m, false};
        a.mask_over = scores;
    }
    build b = {.g = g, .a = &a, .scores = scores};
    bool fits;
    add(&b, op);
    return make_group(&b, i, false, &fits, err);
}

ane_status ane_fuse_attention(ane_graph *g, ane_error *err) {
    ane_status st = ANE_OK;
    for (int i = 0; i < g->n && !st; i++) {
        if (g->group[i]) continue;
        if (is(g->ops[i], "softmax")) st = from_softmax(g, i, err);
        else if (is(g->ops[i], "scaled_dot_product_attention")) st = from_op(g, i, err);
    }
    return st;
}
