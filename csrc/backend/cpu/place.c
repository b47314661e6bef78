/* Where every value lives: outputs, views of other values, scratch. */
#include "ops.h"
#include "view.h"

#include "../../base/env.h"

#include <string.h>

ane_status ane_plan_temp(ane_planner *pl, const ane_view *like, ane_view *out) {
    size_t bytes;
    if (!ane_shape_bytes(like->rank, like->shape, ane_dtype_size(like->dtype), &bytes))
        return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] a value is larger than memory");
    int buf = ane_plan_buf(pl, ANE_BUF_SCRATCH, bytes);
    if (buf < 0) return ANE_ERR_NOMEM;
    ane_type t = {.kind = ANE_T_TENSOR, .dtype = like->dtype, .rank = like->rank};
    memcpy(t.dims, like->shape, sizeof t.dims);
    ane_view_of_type(&t, buf, out);
    return ANE_OK;
}

static ane_status own_place(ane_planner *pl, const ane_value *v, ane_view *out) {
    const ane_type *t = v->type;
    ane_view like = {.dtype = t->dtype, .rank = t->rank};
    memcpy(like.shape, t->dims, sizeof like.shape);
    ane_status st = ane_plan_temp(pl, &like, out);
    if (!st && pl->places[v->id].last) ane_view_channels_last(out);
    return st;
}

ane_status ane_plan_dest(ane_planner *pl, const ane_value *v, ane_view *out) {
    ane_place *place = &pl->places[v->id];
    ANE_ASSERT(!place->placed);
    ane_status st = ANE_OK;
    if (place->wanted) place->at = place->dest;
    else st = own_place(pl, v, &place->at);
    place->placed = !st;
    if (!st && !pl->plan->bufs[place->at.buf].name) pl->plan->bufs[place->at.buf].name = v->name;
    *out = place->at;
    return st;
}

static ane_status constant(ane_planner *pl, const ane_value *v, ane_place *place) {
    ANE_ASSERT(ane_plan_is_tensor(v->konst->type));
    if (!v->konst->data)
        return ane_fail(pl->err, ANE_ERR_INVALID,
                        "[compile] constant %s has no data: weight file %s was not found",
                        v->name, v->konst->blob_path ? v->konst->blob_path : "?");
    int buf = ane_plan_buf(pl, ANE_BUF_CONST, v->konst->bytes);
    if (buf < 0) return ANE_ERR_NOMEM;
    pl->plan->bufs[buf].data = v->konst->data;
    pl->plan->bufs[buf].name = v->name;
    ane_status st = ane_plan_narrow_const(pl, v, &pl->plan->bufs[buf].data);
    if (st) return st;
    ane_view_of_type(v->konst->type, buf, &place->at);
    place->placed = true;
    return ANE_OK;
}

/* A value that shows what another holds, which is placed. */
static ane_status shown(ane_planner *pl, const ane_value *v, const ane_view *x) {
    ane_place *place = &pl->places[v->id];
    const ane_op *op = v->def;
    ane_status st = ANE_OK;
    if (pl->graph->folded[pl->graph->number[op->id]]) {
        place->at = *x;                 /* the user converts */
    } else {
        ANE_ASSERT(ane_op_is_move(op));
        bool view = !ane_env_flag(ANE_ENV_NO_VIEWS);
        if (view) view = ane_move_view(op, v->def_index, x, &place->at);
        if (!view) {                    /* rows that do not join: move them together */
            ane_view dense;
            st = ane_plan_temp(pl, x, &dense);
            if (!st) st = ane_plan_copy(pl, &dense, x);
            if (!st) ANE_ASSERT(ane_move_view(op, v->def_index, &dense, &place->at));
        }
    }
    place->placed = !st;
    return st;
}

/* Back to what has a place, then forward again: a program may have any number of shape ops in
 * a row, more than a stack has room for. */
ane_status ane_plan_operand(ane_planner *pl, const ane_value *v, ane_view *out) {
    const ane_value *few[8], **row = few, *u = v;
    size_t n = 0;
    ane_status st = ANE_OK;
    for (; !pl->places[u->id].placed && !u->konst; u = ane_op_in(u->def, "x"), n++)
        ANE_ASSERT(u->def);
    if (n > sizeof few / sizeof *few) row = ane_arena_alloc(pl->plan->arena, n * sizeof *row);
    if (!row) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    u = v;
    for (size_t i = n; i > 0; u = ane_op_in(u->def, "x")) row[--i] = u;
    if (!pl->places[u->id].placed) st = constant(pl, u, &pl->places[u->id]);
    for (size_t i = 0; i < n && !st; u = row[i++]) st = shown(pl, row[i], &pl->places[u->id].at);
    *out = pl->places[v->id].at;
    return st;
}

/* ---------------------------------------------------------------- destinations */

/* Can v be told where to go? It must be made by a step of this body. */
static bool free_to_place(const ane_planner *pl, const ane_value *v) {
    return !v->konst && v->def && v->def->block == pl->plan->fn->body &&
           !pl->places[v->id].wanted && ane_plan_is_tensor(v->type) &&
           !pl->graph->folded[pl->graph->number[v->def->id]];
}

static void want(ane_planner *pl, const ane_value *v, const ane_view *at) {
    ane_place *place = &pl->places[v->id];
    place->dest = *at;
    place->wanted = true;
}

ane_status ane_plan_destinations(ane_planner *pl) {
    ane_plan *p = pl->plan;
    ane_graph *g = pl->graph;
    bool views = !ane_env_flag(ANE_ENV_NO_VIEWS);
    for (int i = 0; i < p->n_out; i++) {
        const ane_value *v = p->fn->body->outputs[i];
        if (p->key[p->n_in + i].rank < 0 || ane_plan_aliased(p, i) || !free_to_place(pl, v))
            continue;
        ane_view at;
        ane_view_of_tensor(&p->key[p->n_in + i], p->n_in + i, &at);
        want(pl, v, &at);
    }
    for (int i = g->n - 1; i >= 0 && views; i--) {
        const ane_op *op = g->ops[i];
        if (!op->n_results || op->results[0]->konst) continue;
        ane_place *place = &pl->places[op->results[0]->id];
        if (ane_op_is_join(op)) {
            if (!place->wanted) {
                ane_view own;
                ane_status st = own_place(pl, op->results[0], &own);
                if (st) return st;
                p->bufs[own.buf].name = op->results[0]->name;
                want(pl, op->results[0], &own);
            }
            const ane_arg *a = ane_op_arg(op, "values");
            for (int k = 0; k < a->n; k++) {
                if (!free_to_place(pl, a->v[k])) continue;
                ane_view part;
                ane_join_part(op, k, &place->dest, &part);
                want(pl, a->v[k], &part);
            }
        } else if (ane_op_is_move(op) && place->wanted) {
            const ane_value *x = ane_op_in(op, "x");
            ane_view back;
            if (free_to_place(pl, x) && ane_move_back(op, &place->dest, &back))
                want(pl, x, &back);
        }
    }
    return ANE_OK;
}

ane_status ane_plan_join(ane_planner *pl, const ane_op *op) {
    ane_view whole;
    ane_status st = ane_plan_dest(pl, op->results[0], &whole);
    const ane_arg *a = ane_op_arg(op, "values");
    for (int k = 0; k < a->n && !st; k++) {
        ane_view part, src;
        ane_join_part(op, k, &whole, &part);
        st = ane_plan_operand(pl, a->v[k], &src);
        if (!st && !ane_view_same(&src, &part)) st = ane_plan_copy(pl, &part, &src);
    }
    return st;
}

/* ---------------------------------------------------------------- aliased outputs */

static bool same_place(const ane_view *a, const ane_view *b) {
    ane_view x = *a;
    x.buf = b->buf;
    return ane_view_same(&x, b);
}

/* May step s, the first to write buffer `temp`, write into the memory of output o instead,
 * although it still reads inputs that share it? */
static bool writes_in_place(const ane_plan *p, const ane_step *s, int o, int temp) {
    for (int j = 0; j < s->n_in; j++) {
        const ane_view *in = ane_step_in(s, j);
        if (in->buf < 0 || in->buf >= p->n_in || !p->alias[o * p->n_in + in->buf]) continue;
        if (!s->in_place || (s->in_place_only && s->n_out + j != s->in_place_only)) return false;
        for (int k = 0; k < s->n_out; k++) {
            const ane_view *out = ane_step_out(s, k);
            if (out->buf == temp && !same_place(in, out)) return false;
        }
    }
    return true;
}

static bool elidable(const ane_plan *p, int copy, int o) {
    const ane_view *dst = ane_step_out(&p->steps[copy], 0), *src = ane_step_in(&p->steps[copy], 0);
    const ane_buf *b = &p->bufs[src->buf];
    int64_t unit = (int64_t)ane_dtype_size(dst->dtype);
    if (b->kind != ANE_BUF_SCRATCH || !same_place(src, dst) || src->offset ||
        (int64_t)b->bytes != ane_view_count(dst) * unit || !ane_view_contiguous(src))
        return false;
    int first = -1;
    for (int i = 0; i < p->n_steps; i++) {
        const ane_step *s = &p->steps[i];
        if (i == copy) continue;
        for (int k = 0; k < s->n_out && first < 0; k++)
            if (s->views[k].buf == src->buf) first = i;
        if (first < 0) continue;
        if (i == first) {
            if (!writes_in_place(p, s, o, src->buf)) return false;
            continue;
        }
        for (int k = 0; k < s->n_in; k++) {
            int buf = ane_step_in(s, k)->buf;
            if (buf >= 0 && buf < p->n_in && p->alias[o * p->n_in + buf]) return false;
        }
    }
    return first >= 0;
}

void ane_plan_elide(ane_planner *pl) {
    ane_plan *p = pl->plan;
    int kept = 0;
    for (int i = 0; i < p->n_steps; i++) {
        ane_step *s = &p->steps[i];
        int o = s->op || s->n_out != 1 ? -1 : s->views[0].buf - p->n_in;
        if (o < 0 || o >= p->n_out || s->n_in != 1 || !ane_plan_aliased(p, o) ||
            !elidable(p, i, o))
            continue;
        /* The scratch buffer becomes a second handle of the output. */
        ane_buf *temp = &p->bufs[ane_step_in(s, 0)->buf];
        temp->kind = ANE_BUF_OUTPUT;
        temp->index = o;
        s->fn = NULL;
    }
    for (int i = 0; i < p->n_steps; i++)
        if (p->steps[i].fn) p->steps[kept++] = p->steps[i];
    p->n_steps = kept;
}
