#include "group.h"

#include "../base/env.h"

#include <string.h>

bool ane_fusion_on(const ane_graph *g, ane_fusion which) {
#define X(name) #name,
    static const char *const names[] = {ANE_FUSION_MAP(X)};
#undef X
    return !g->single && ane_env_flag(ANE_ENV_FUSION) &&
           !ane_env_lists(ANE_ENV_NO_FUSE, names[which]);
}

bool ane_kernel_on(ane_family which) {
#define X(name) #name,
    static const char *const names[] = {ANE_FAMILY_MAP(X)};
#undef X
    return !ane_env_lists(ANE_ENV_NO_KERNELS, names[which]);
}

/* ---------------------------------------------------------------- index */

static ane_status nomem(ane_error *err) {
    return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
}

static void note_values(ane_value *const *v, int n, uint32_t *max) {
    for (int i = 0; i < n; i++)
        if (v[i]->id >= *max) *max = v[i]->id + 1;
}

/* Uses inside nested blocks count as uses by the op that owns the blocks. */
static void each_use(const ane_op *op, void (*fn)(void *arg, const ane_value *v), void *arg) {
    for (int p = 0; p < op->row->n_params; p++)
        for (int i = 0; i < op->args[p].n; i++) fn(arg, op->args[p].v[i]);
    for (int b = 0; b < op->n_blocks; b++) {
        for (const ane_op *o = op->blocks[b]->first; o; o = o->next) each_use(o, fn, arg);
        for (int i = 0; i < op->blocks[b]->n_outputs; i++) fn(arg, op->blocks[b]->outputs[i]);
    }
}

typedef struct use_count {
    ane_graph *g;
    int number;
    bool store;
} use_count;

static void count_use(void *arg, const ane_value *v) {
    use_count *u = arg;
    if (v->id >= u->g->n_values) return;                /* of a nested block */
    int *n = &u->g->n_users[v->id];
    if (u->store) u->g->users[v->id][*n] = u->number;
    (*n)++;
}

ane_status ane_graph_build(const ane_function *f, ane_arena *arena, ane_graph *g,
                           ane_error *err) {
    *g = (ane_graph){.fn = f, .arena = arena};
    uint32_t max_op = 0;
    note_values(f->params, f->n_params, &g->n_values);
    for (const ane_op *op = f->body->first; op; op = op->next) {
        note_values(op->results, op->n_results, &g->n_values);
        if (op->id >= max_op) max_op = op->id + 1;
        g->n++;
    }
    size_t n = (size_t)g->n, nv = g->n_values;
    g->ops = ane_arena_alloc(arena, n * sizeof *g->ops);
    g->number = ane_arena_alloc(arena, max_op * sizeof *g->number);
    g->group = ane_arena_alloc(arena, n * sizeof *g->group);
    g->folded = ane_arena_alloc(arena, n * sizeof *g->folded);
    g->squeeze = ane_arena_alloc(arena, n * sizeof *g->squeeze);
    g->users = ane_arena_alloc(arena, nv * sizeof *g->users);
    g->n_users = ane_arena_alloc(arena, nv * sizeof *g->n_users);
    g->output = ane_arena_alloc(arena, nv * sizeof *g->output);
    if (!g->ops || !g->number || !g->group || !g->folded || !g->squeeze || !g->users ||
        !g->n_users || !g->output)
        return nomem(err);
    int k = 0;
    for (const ane_op *op = f->body->first; op; op = op->next, k++) {
        g->ops[k] = op;
        g->number[op->id] = k;
        g->squeeze[k] = ane_op_is_squeeze(op);
    }
    for (int pass = 0; pass < 2; pass++) {
        for (k = 0; k < g->n; k++) {
            use_count u = {.g = g, .number = k, .store = pass == 1};
            each_use(g->ops[k], count_use, &u);
        }
        for (uint32_t v = 0; v < g->n_values && !pass; v++) {
            g->users[v] = ane_arena_alloc(arena, (size_t)g->n_users[v] * sizeof(int));
            if (!g->users[v]) return nomem(err);
            g->n_users[v] = 0;
        }
    }
    for (int i = 0; i < f->body->n_outputs; i++)
        if (f->body->outputs[i]->id < g->n_values) g->output[f->body->outputs[i]->id] = true;
    return ANE_OK;
}

ane_status ane_graph_fuse(ane_graph *g, ane_error *err) {
    ane_status st = ANE_OK;
    ane_fuse_quant(g);
    if (ane_fusion_on(g, ANE_FUSE_conv) && ane_kernel_on(ANE_FAMILY_conv)) st = ane_fuse_conv(g, err);
    if (!st && ane_fusion_on(g, ANE_FUSE_attention)) st = ane_fuse_attention(g, err);
    if (!st && ane_fusion_on(g, ANE_FUSE_product)) st = ane_fuse_product(g, err);
    if (!st) st = ane_fuse_rows(g, err);
    if (!st && ane_fusion_on(g, ANE_FUSE_chain)) st = ane_fuse_chain(g, err);
    return st;
}

/* ---------------------------------------------------------------- groups */

ane_group *ane_group_new(ane_graph *g, ane_group_kind kind) {
    ane_group *grp = ane_arena_alloc(g->arena, sizeof *grp);
    if (grp) {
        grp->kind = kind;
        grp->core = -1;
    }
    return grp;
}

bool ane_group_add(ane_graph *g, ane_group *grp, int op) {
    if (grp->n == grp->cap) {
        int cap = grp->cap ? grp->cap * 2 : 8;
        int *ops = ane_arena_alloc(g->arena, (size_t)cap * sizeof *ops);
        if (!ops) return false;
        if (grp->n) memcpy(ops, grp->ops, (size_t)grp->n * sizeof *ops);
        grp->ops = ops;
        grp->cap = cap;
    }
    int at = grp->n++;
    for (; at > 0 && grp->ops[at - 1] > op; at--) grp->ops[at] = grp->ops[at - 1];
    grp->ops[at] = op;
    grp->at = grp->ops[grp->n - 1];
    g->group[op] = grp;
    return true;
}

/* ---------------------------------------------------------------- views, uses */

bool ane_shape_same_but_ones(const ane_type *a, const ane_type *b) {
    int i = 0, j = 0;
    for (;;) {
        while (i < a->rank && a->dims[i] == 1) i++;
        while (j < b->rank && b->dims[j] == 1) j++;
        if (i == a->rank || j == b->rank) return i == a->rank && j == b->rank;
        if (a->dims[i++] != b->dims[j++]) return false;
    }
}

bool ane_op_is_squeeze(const ane_op *op) {
    static const char *const names[] = {"reshape", "expand_dims", "squeeze", "identity",
                                        "flatten2d", "reshape_like"};
    if (op->n_results != 1) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (*op->row->name != *names[i] || strcmp(op->row->name, names[i])) continue;
        const ane_value *x = ane_op_in(op, "x");
        const ane_type *a = x ? x->type : NULL, *b = op->results[0]->type;
        return a && a->kind == ANE_T_TENSOR && b->kind == ANE_T_TENSOR && ane_type_static(a) &&
               ane_type_static(b) && ane_shape_same_but_ones(a, b);
    }
    return false;
}

const ane_value *ane_value_through(const ane_value *v) {
    for (int i = 0; i < ANE_SQUEEZES && !v->konst && v->def && ane_op_is_squeeze(v->def); i++)
        v = ane_op_in(v->def, "x");
    return v;
}

bool ane_op_is_repeat(const ane_op *op) {
    if (op->n_results != 1 || op->results[0]->konst ||
        op->results[0]->type->kind != ANE_T_TENSOR || !ane_type_static(op->results[0]->type))
        return false;
    if (!strcmp(op->row->name, "tile"))
        return ane_op_const(op, "reps") && ane_type_static(ane_op_in(op, "x")->type);
    if (strcmp(op->row->name, "concat") || ane_op_bool(op, "interleave", false)) return false;
    const ane_arg *a = ane_op_arg(op, "values");
    for (int i = 1; i < a->n; i++)
        if (a->v[i] != a->v[0]) return false;
    return a->n > 1 && a->v[0]->type->rank > 0;
}

static int only_user(const ane_graph *g, const ane_value *v, int depth) {
    if (g->output[v->id] || depth > ANE_SQUEEZES) return -1;
    int only = -1;
    for (int i = 0; i < g->n_users[v->id]; i++) {
        int u = g->users[v->id][i];
        if (g->squeeze[u]) u = only_user(g, g->ops[u]->results[0], depth + 1);
        if (u < 0 || (only >= 0 && u != only)) return -1;
        only = u;
    }
    return only;
}

int ane_value_only_user(const ane_graph *g, const ane_value *v) { return only_user(g, v, 0); }

static bool uses_after(const ane_graph *g, const ane_value *v, const ane_group *grp, int after,
                       int depth) {
    if (depth > ANE_SQUEEZES) return false;
    for (int i = 0; i < g->n_users[v->id]; i++) {
        int u = g->users[v->id][i];
        if (g->group[u] == grp) continue;
        if (g->squeeze[u]) {
            if (!uses_after(g, g->ops[u]->results[0], grp, after, depth + 1)) return false;
        } else if (u <= after) {
            return false;
        }
    }
    return true;
}

bool ane_uses_after(const ane_graph *g, const ane_value *v, const ane_group *grp, int after) {
    return uses_after(g, v, grp, after, 0);
}

bool ane_value_escapes(const ane_graph *g, const ane_value *v, const ane_group *grp) {
    if (g->output[v->id]) return true;
    for (int i = 0; i < g->n_users[v->id]; i++) {
        int u = g->users[v->id][i];
        if (grp && g->group[u] == grp) continue;
        if (!ane_op_is_squeeze(g->ops[u]) || g->group[u] ||
            ane_value_escapes(g, g->ops[u]->results[0], grp))
            return true;
    }
    return false;
}
