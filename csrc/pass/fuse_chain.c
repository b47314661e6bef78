/* Element-wise ops of one iteration space into one pass over memory. */
#include "group.h"

#define CHAIN_MAX 48                    /* ops; keeps the tile registers in the caches */

static const ane_type *space(const ane_graph *g, int op) {
    return g->ops[op]->results[0]->type;
}

/* May `from`, which ends before op `at`, run at `at` together with `into`? Only if nobody
 * outside needs a value of it by then. */
static bool may_join(ane_graph *g, const ane_group *from, const ane_group *into, int at) {
    if (from->n + into->n > CHAIN_MAX) return false;
    for (int i = 0; i < from->n; i++) {
        const ane_value *v = g->ops[from->ops[i]]->results[0];
        for (int k = 0; k < g->n_users[v->id]; k++) {
            int u = g->users[v->id][k];
            if (g->group[u] == from || g->group[u] == into || u > at) continue;
            if (!g->squeeze[u]) return false;
            /* A squeeze stands for its own users. */
            const ane_value *w = g->ops[u]->results[0];
            for (int m = 0; m < g->n_users[w->id]; m++) {
                int q = g->users[w->id][m];
                if (g->group[q] != from && g->group[q] != into && q <= at) return false;
            }
        }
    }
    return true;
}

ane_status ane_fuse_chain(ane_graph *g, ane_error *err) {
    for (int i = 0; i < g->n; i++) {
        const ane_op *op = g->ops[i];
        if (g->group[i] || g->folded[i] || !ane_op_is_pointwise(op) || g->squeeze[i] ||
            op->results[0]->konst)
            continue;
        ane_group *grp = ane_group_new(g, ANE_GROUP_CHAIN);
        if (!grp || !ane_group_add(g, grp, i)) goto nomem;
        for (int p = 0; p < op->row->n_params; p++)
            for (int k = 0; k < op->args[p].n; k++) {
                const ane_value *w = ane_value_through(op->args[p].v[k]);
                if (w->konst || !w->def || w->def->block != g->fn->body) continue;
                int def = g->number[w->def->id];
                ane_group *from = g->group[def];
                if (!from || from == grp || from->kind != ANE_GROUP_CHAIN ||
                    !ane_shape_same_but_ones(space(g, i), space(g, def)) ||
                    !may_join(g, from, grp, i))
                    continue;
                for (int m = 0; m < from->n; m++)
                    if (!ane_group_add(g, grp, from->ops[m])) goto nomem;
                from->dead = true;
            }
    }
    return ANE_OK;
nomem:
    return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
}
