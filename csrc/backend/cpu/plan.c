/* IR to planned steps: specialise for the shapes, place every value, emit one step per op
 * (or group of ops), lay scratch out by lifetime. */
#include "ops.h"
#include "view.h"

#include "../../base/env.h"
#include "../../pass/memplan.h"
#include "../../pass/pass.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- buffers, steps */

int ane_plan_buf(ane_planner *pl, ane_buf_kind kind, size_t bytes) {
    ane_plan *p = pl->plan;
    if (p->n_bufs == p->cap_bufs) {
        int cap = p->cap_bufs ? p->cap_bufs * 2 : 64;
        ane_buf *grown = ane_realloc(p->bufs, (size_t)cap * sizeof *grown);
        if (!grown) {
            ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
            return -1;
        }
        p->bufs = grown;
        p->cap_bufs = cap;
    }
    p->bufs[p->n_bufs] = (ane_buf){.kind = kind, .bytes = bytes, .first = INT_MAX, .last = -1};
    return p->n_bufs++;
}

ane_step *ane_plan_step(ane_planner *pl, ane_step_fn *fn, const ane_op *op, int n_out,
                        int n_in) {
    ane_plan *p = pl->plan;
    if (p->n_steps == p->cap_steps) {
        int cap = p->cap_steps ? p->cap_steps * 2 : 64;
        ane_step *grown = ane_realloc(p->steps, (size_t)cap * sizeof *grown);
        if (!grown) return NULL;
        p->steps = grown;
        p->cap_steps = cap;
    }
    ane_view *views = ane_arena_alloc(p->arena, (size_t)(n_out + n_in) * sizeof *views);
    if (!views) return NULL;
    for (int i = 0; i < n_out + n_in; i++) views[i].buf = -1;
    ane_step *s = &p->steps[p->n_steps++];
    *s = (ane_step){.fn = fn, .op = op, .n_out = n_out, .n_in = n_in, .views = views,
                    .label = op ? op->row->name : "copy", .kernel = "plain"};
    return s;
}

bool ane_plan_is_tensor(const ane_type *t) {
    return t->kind == ANE_T_TENSOR && ane_dtype_size(t->dtype) && ane_type_static(t);
}

/* ---------------------------------------------------------------- specialisation */

ane_status ane_function_for(const ane_function *f, const ane_tensor *inputs,
                            ane_program **types, ane_program **out, ane_error *err) {
    bool fixed = true;
    ane_program *tp = NULL;
    const ane_type **list = NULL;
    ane_status st = ANE_OK;
    *types = NULL;
    for (int i = 0; i < f->n_params; i++) fixed = fixed && ane_type_static(f->params[i]->type);
    if (!fixed) {
        st = ane_program_create("1.3", &tp, err);
        if (st) return st;
        list = ane_calloc((size_t)f->n_params, sizeof *list);
        if (!list) goto nomem;
        for (int i = 0; i < f->n_params; i++) {
            const ane_tensor *t = &inputs[i];
            list[i] = ane_type_tensor(tp, t->dtype, t->rank, t->shape);
            if (list[i] && f->params[i]->type->kind == ANE_T_STATE)
                list[i] = ane_type_state(tp, list[i]);
            if (!list[i]) goto nomem;
        }
    }
    st = ane_function_specialize(f, list, out, err);
    if (!st) {
        *types = tp;
        tp = NULL;
    }
    goto done;
nomem:
    st = ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
done:
    ane_free(list);
    ane_program_release(tp);
    return st;
}

/* ---------------------------------------------------------------- plan */

static bool needs_walk(const ane_function *f) {
    for (int i = 0; i < f->n_params; i++)
        if (f->params[i]->type->kind != ANE_T_TENSOR) return true;
    for (const ane_op *op = f->body->first; op; op = op->next)
        if (op->n_blocks) return true;
    return false;
}

static bool all_known(const ane_op *op) {
    for (int i = 0; i < op->n_results; i++)
        if (!op->results[i]->konst) return false;
    return op->n_results > 0;
}

static ane_status plan_kind(ane_planner *pl, ane_group *grp) {
    switch (grp->kind) {
    case ANE_GROUP_CHAIN: return ane_plan_chain(pl, pl->graph, grp);
    case ANE_GROUP_PRODUCT: return ane_plan_product(pl, pl->graph, grp);
    case ANE_GROUP_REDUCE: return ane_plan_reduce(pl, pl->graph, grp);
    case ANE_GROUP_CONV: return ane_plan_conv(pl, pl->graph, grp);
    case ANE_GROUP_SOFTMAX: return ane_plan_softmax(pl, pl->graph, grp);
    case ANE_GROUP_ATTENTION: return ane_plan_attention(pl, pl->graph, grp);
    }
    return ANE_ERR_RUNTIME;
}

/* One op by itself goes the way of a group of one. For reports its step knows all that it
 * makes; copies around it are their own steps. */
static ane_status plan_group(ane_planner *pl, ane_group *grp) {
    ane_plan *p = pl->plan;
    int first = p->n_steps, n = 0;
    ane_status st = plan_kind(pl, grp);
    int last = p->n_steps - 1;
    while (last >= first && !p->steps[last].op) last--;
    if (st || last < first) return st;
    for (int i = 0; i < grp->n; i++) n += pl->graph->ops[grp->ops[i]]->n_results;
    const char **names = ane_arena_alloc(p->arena, (size_t)n * sizeof *names);
    if (!names) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    p->steps[last].values = names;
    p->steps[last].n_values = n;
    for (int i = 0; i < grp->n; i++) {
        const ane_op *op = pl->graph->ops[grp->ops[i]];
        for (int k = 0; k < op->n_results; k++) *names++ = op->results[k]->name;
    }
    return ANE_OK;
}

static ane_status plan_alone(ane_planner *pl, int i) {
    ane_graph *g = pl->graph;
    const ane_op *op = g->ops[i];
    bool product = ane_op_is_product(op);
    if (pl->opts->target && !strcmp(op->row->name, "batch_norm"))
        return ane_plan_fallback(pl, op);       /* it may narrow the constants */
    if (product || ane_op_is_pointwise(op)) {
        ane_group *grp = ane_group_new(g, product ? ANE_GROUP_PRODUCT : ANE_GROUP_CHAIN);
        if (!grp || !ane_group_add(g, grp, i))
            return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
        grp->core = product ? i : -1;
        grp->product = (ane_product){.alpha = 1, .out = op->results[0]};
        if (product && !strcmp(op->row->name, "linear"))
            grp->product.bias = ane_op_in(op, "bias");
        return plan_group(pl, grp);
    }
    if (ane_op_is_conv(op) && ane_kernel_on(ANE_FAMILY_conv)) {
        ane_group *grp = ane_group_new(g, ANE_GROUP_CONV);
        if (!grp || !ane_group_add(g, grp, i))
            return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
        grp->core = i;
        grp->conv.out = op->results[0];
        return plan_group(pl, grp);
    }
    if (ane_op_is_join(op)) return ane_plan_join(pl, op);
    bool done = false;
    ane_status st = ane_plan_index(pl, op, &done);
    if (!st && !done) st = ane_plan_spread(pl, op, &done);
    if (!st && !done) st = ane_plan_pool(pl, op, &done);
    if (!st && !done) st = ane_plan_norm(pl, op, &done);
    if (!st && !done) st = ane_plan_quant(pl, op, &done);
    return st || done ? st : ane_plan_fallback(pl, op);
}

/* Outputs that are not where they belong yet. Memory that an output shares with an input is
 * written last: until then somebody may still read the input, and what an output takes from
 * such an input is put aside first. */
static ane_status finish_outputs(ane_planner *pl) {
    ane_plan *p = pl->plan;
    const ane_function *f = p->fn;
    ane_view *from = ane_arena_alloc(p->arena, (size_t)p->n_out * sizeof *from);
    if (!from) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    ane_status st = ANE_OK;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < p->n_out && !st; i++) {
            const ane_value *v = f->body->outputs[i];
            ane_view dst;
            if (p->key[p->n_in + i].rank < 0) {
                if (pass) continue;
                if (pl->places[v->id].rt < 0)
                    return ane_fail(pl->err, ANE_ERR_UNSUPPORTED,
                                    "[compile] output %s is not a tensor of numbers", v->name);
                st = ane_plan_export(pl, pl->places[v->id].rt, i);
                continue;
            }
            ane_view_of_tensor(&p->key[p->n_in + i], p->n_in + i, &dst);
            bool aliased = ane_plan_aliased(p, i);
            if (!pass) {
                st = ane_plan_operand(pl, v, &from[i]);
                if (st) break;
                bool input = from[i].buf < p->n_in;
                if (aliased && input && p->alias[i * p->n_in + from[i].buf]) {
                    ane_view same = dst;
                    same.buf = from[i].buf;
                    if (ane_view_same(&same, &from[i])) from[i] = dst;      /* is there */
                }
                if (aliased && input && from[i].buf < p->n_in) {
                    ane_view aside;
                    st = ane_plan_temp(pl, &from[i], &aside);
                    if (!st) st = ane_plan_copy(pl, &aside, &from[i]);
                    from[i] = aside;
                }
            }
            if (!st && aliased == (pass == 1) && !ane_view_same(&from[i], &dst))
                st = ane_plan_copy(pl, &dst, &from[i]);
        }
    return st;
}

static ane_status plan_ops(ane_planner *pl) {
    ane_plan *p = pl->plan;
    const ane_function *f = p->fn;
    ane_graph *g = pl->graph;
    for (int i = 0; i < f->n_params; i++) {
        ane_place *place = &pl->places[f->params[i]->id];
        ane_view_of_tensor(&p->key[i], i, &place->at);
        place->placed = true;
        ane_status narrow = ane_plan_narrow(pl, f->params[i]);
        if (narrow) return narrow;
    }
    g->single = pl->opts->target != 0;
    ane_status st = ane_graph_fuse(g, pl->err);
    ane_plan_layout(pl);
    if (!st) st = ane_plan_destinations(pl);
    for (int i = 0; i < g->n && !st; i++) {
        const ane_op *op = g->ops[i];
        ane_group *grp = g->group[i];
        /* Shape ops and folded casts are looked at when somebody needs them. */
        if (all_known(op) || (!grp && g->folded[i])) continue;
        bool settled = false;
        if (!grp && ane_op_is_move(op)) {
            st = ane_plan_move_edges(pl, op, &settled);
        } else {
            pl->settled = false;
            if (!grp) st = plan_alone(pl, i);
            else if (grp->at == i) st = plan_group(pl, grp);
            if (!st && !pl->settled) st = ane_plan_edges(pl, op);
        }
        if (st) ane_error_prefix(pl->err, "%s: ", op->n_results ? op->results[0]->name
                                                                : op->row->name);
    }
    if (!st) st = finish_outputs(pl);
    if (!st) ane_plan_elide(pl);
    return st;
}

/* Bytes of the scratch buffer that `view` covers whole and in row-major order, or -1. */
static int whole_scratch(const ane_plan *p, const ane_view *view) {
    if (view->buf < 0 || p->bufs[view->buf].kind != ANE_BUF_SCRATCH || view->offset) return -1;
    size_t bytes = (size_t)ane_view_count(view) * ane_dtype_size(view->dtype);
    return bytes == p->bufs[view->buf].bytes && ane_view_contiguous(view) ? view->buf : -1;
}

/* A step that may run in place writes its result over an operand that dies with it: the two
 * buffers become one. `into` maps every buffer to the one that stands for it. */
static void share(ane_plan *p, int i, int *into) {
    const ane_step *s = &p->steps[i];
    if (!s->in_place || !s->op) return;
    for (int o = 0; o < s->n_out; o++) {
        int out = whole_scratch(p, ane_step_out(s, o));
        if (out < 0 || into[out] != out || p->bufs[out].first != i) continue;
        for (int k = 0; k < s->n_in; k++) {
            const ane_view *v = ane_step_in(s, k);
            int in = whole_scratch(p, v);
            if (in < 0 || (s->in_place_only && s->n_out + k != s->in_place_only)) continue;
            int root = into[in];
            if (root == out || p->bufs[root].last != i ||
                p->bufs[root].bytes != p->bufs[out].bytes)
                continue;
            /* Every look at that memory in this step must be at the very same elements. */
            bool same = true;
            for (int q = 0; q < s->n_in + s->n_out && same; q++) {
                const ane_view *w = &s->views[q];
                if (w->buf < 0 || into[w->buf] != root) continue;
                ane_view x = *w;
                x.buf = out;
                same = q >= s->n_out && ane_view_same(&x, ane_step_out(s, o));
                if (s->in_place_only && q != s->in_place_only) same = false;
            }
            if (!same) continue;
            into[out] = root;
            p->bufs[root].last = p->bufs[out].last;
            break;
        }
    }
}

/* First and last step that touch each buffer. */
static void lifetimes(ane_plan *p) {
    for (int i = 0; i < p->n_bufs; i++) {
        p->bufs[i].first = INT_MAX;
        p->bufs[i].last = -1;
    }
    for (int i = 0; i < p->n_steps; i++) {
        const ane_step *s = &p->steps[i];
        for (int j = 0; j < s->n_out + s->n_in; j++) {
            if (s->views[j].buf < 0) continue;
            ane_buf *b = &p->bufs[s->views[j].buf];
            if (i < b->first) b->first = i;
            if (i > b->last) b->last = i;
        }
    }
}

static ane_status lay_out(ane_planner *pl) {
    ane_plan *p = pl->plan;
    int n = 0;
    lifetimes(p);
    ane_lifetime *items = ane_calloc((size_t)p->n_bufs + 1, sizeof *items);
    int *into = ane_calloc((size_t)p->n_bufs + 1, sizeof *into);
    ane_status st = ANE_OK;
    if (!items || !into) {
        st = ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
        goto done;
    }
    for (int i = 0; i < p->n_bufs; i++) into[i] = i;
    for (int i = 0; i < p->n_steps; i++) share(p, i, into);
    for (int i = 0; i < p->n_bufs; i++) {
        const ane_buf *b = &p->bufs[i];
        if (b->kind == ANE_BUF_SCRATCH && into[i] == i)
            items[n++] = (ane_lifetime){.bytes = b->bytes, .first = b->first, .last = b->last};
        if (b->kind == ANE_BUF_SCRATCH && b->first <= b->last)
            p->values += (b->bytes + ANE_ALIGN - 1) & ~(size_t)(ANE_ALIGN - 1);
    }
    st = ane_memplan(items, n, &p->scratch, pl->err);
    n = 0;
    for (int i = 0; i < p->n_bufs; i++)
        if (p->bufs[i].kind == ANE_BUF_SCRATCH && into[i] == i)
            p->bufs[i].offset = items[n++].offset;
    for (int i = 0; i < p->n_bufs; i++)
        if (p->bufs[i].kind == ANE_BUF_SCRATCH) p->bufs[i].offset = p->bufs[into[i]].offset;
    lifetimes(p);                       /* each its own again: sharing had joined them */
done:
    ane_free(items);
    ane_free(into);
    return st;
}

/* ANETORCH_DUMP=plan */
static void dump(const ane_plan *p) {
    static const char *const kinds[] = {"in", "out", "const", "scratch"};
    ane__log("plan of %s: %d steps, %zu bytes of scratch (%zu without reuse)", p->fn->name,
             p->n_steps, p->scratch, p->values);
    for (int i = 0; i < p->n_steps; i++) {
        const ane_step *s = &p->steps[i];
        char line[1024];
        size_t n = 0;
        for (int j = 0; j < s->n_out + s->n_in && n + 160 < sizeof line; j++) {
            const ane_view *v = &s->views[j];
            if (v->buf < 0) continue;
            n += (size_t)snprintf(line + n, sizeof line - n, "%s%s%d+%lld %s[",
                                  j == s->n_out ? " <- " : j ? ", " : "",
                                  kinds[p->bufs[v->buf].kind], v->buf, (long long)v->offset, ane_dtype_mil_name(v->dtype));
            for (int d = 0; d < v->rank && n + 60 < sizeof line; d++)
                n += (size_t)snprintf(line + n, sizeof line - n, "%s%lld:%lld", d ? "," : "",
                                      (long long)v->shape[d], (long long)v->strides[d]);
            n += (size_t)snprintf(line + n, sizeof line - n, "]");
        }
        if (s->keeps) n += (size_t)snprintf(line + n, sizeof line - n, "; packed once per write: %d", s->keeps);
        ane__log("%4d %s (%s) %s: %s", i, s->label, s->kernel,
                 s->op && s->op->n_results ? s->op->results[0]->name : "", line);
    }
}

static void key_of(ane_tensor *key, const ane_tensor *t) {
    *key = *t;
    key->surface = NULL;
    key->offset = 0;
    if (!t->surface) {
        key->rank = -1;
        return;
    }
    for (int i = 0; i < t->rank; i++)
        if (t->shape[i] == 1) key->strides[i] = 0;      /* never used to step */
}

static bool alias_of(const ane_tensor *in, const ane_tensor *out) {
    return out->surface && ane_tensor_data(in) == ane_tensor_data(out) &&
           ane_tensor_count(out) > 0;
}

ane_status ane_plan_create(const ane_function *f, const ane_backend_options *opts,
                           const ane_tensor *inputs, const ane_tensor *outputs,
                           ane_plan **out, ane_error *err) {
    ane_plan *p = ane_calloc(1, sizeof *p);
    ane_graph graph;
    ane_planner pl = {.plan = p, .opts = opts, .err = err};
    ane_status st = ANE_ERR_NOMEM;
    if (!p || !(p->arena = ane_arena_create())) {
        ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
        goto done;
    }
    atomic_init(&p->refs, 1);
    atomic_init(&p->reference, 0);
    p->prepack = opts->prepack;
    p->limit = opts->memory_limit;
    p->target = opts->target;
    p->n_in = f->n_params;
    p->n_out = f->body->n_outputs;
    st = ane_function_for(f, inputs, &p->types, &p->program, err);
    if (st) goto done;
    ane_function *fn = p->program->functions;
    p->fn = fn;
    st = ane_passes_run(fn, opts->target, err);
    if (st) goto done;

    ane_tensor *key = ane_arena_alloc(p->arena, (size_t)(p->n_in + p->n_out) * sizeof *key);
    bool *alias = ane_arena_alloc(p->arena, (size_t)(p->n_out * p->n_in) * sizeof *alias);
    st = ane_graph_build(fn, p->arena, &graph, err);
    if (st) goto done;
    pl.graph = &graph;
    pl.n_places = graph.n_values;
    pl.places = ane_calloc(pl.n_places + 1, sizeof *pl.places);
    if (!key || !alias || !pl.places) {
        st = ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
        goto done;
    }
    for (uint32_t i = 0; i < pl.n_places; i++) pl.places[i].rt = -1;
    for (int i = 0; i < p->n_in; i++) key_of(&key[i], &inputs[i]);
    for (int i = 0; i < p->n_out; i++) {
        key_of(&key[p->n_in + i], &outputs[i]);
        for (int j = 0; j < p->n_in; j++)
            alias[i * p->n_in + j] = alias_of(&inputs[j], &outputs[i]);
    }
    p->key = key;
    p->alias = alias;
    for (int i = 0; i < p->n_in + p->n_out; i++) {
        int b = ane_plan_buf(&pl, i < p->n_in ? ANE_BUF_INPUT : ANE_BUF_OUTPUT, 0);
        if (b < 0) {
            st = ANE_ERR_NOMEM;
            goto done;
        }
        p->bufs[b].index = i < p->n_in ? i : i - p->n_in;
    }
    p->walk = needs_walk(fn);
    st = p->walk ? ane_plan_walk(&pl) : plan_ops(&pl);
    if (!st) st = lay_out(&pl);
    for (int i = 0; i < p->n_steps; i++)
        p->evaluates |= !strcmp(p->steps[i].kernel, "reference");
    if (!st && ane_env_lists(ANE_ENV_DUMP, "plan")) dump(p);
done:
    ane_free(pl.places);
    if (st) {
        ane_plan_release(p);
        return st;
    }
    *out = p;
    return ANE_OK;
}

void ane_plan_release(ane_plan *p) {
    if (!p || atomic_fetch_sub(&p->refs, 1) > 1) return;
    for (int i = 0; i < p->n_held; i++) ane_rt_release(p->held[i]);
    for (ane_packed *k = p->packed; k; k = k->next) ane_aligned_free(k->data);
    ane_free(p->held);
    ane_free(p->keeps);
    ane_free(p->bufs);
    ane_free(p->steps);
    ane_program_release(p->program);
    ane_program_release(p->types);
    ane_arena_destroy(p->arena);
    ane_free(p);
}

static bool same_key(const ane_tensor *a, const ane_tensor *t) {
    if (!t->surface || a->rank < 0) return !t->surface && a->rank < 0;
    if (a->dtype != t->dtype || a->rank != t->rank) return false;
    for (int i = 0; i < t->rank; i++)
        if (a->shape[i] != t->shape[i] || (t->shape[i] != 1 && a->strides[i] != t->strides[i]))
            return false;
    return true;
}

bool ane_plan_fits(const ane_plan *p, const ane_tensor *inputs, const ane_tensor *outputs) {
    for (int i = 0; i < p->n_in; i++)
        if (!same_key(&p->key[i], &inputs[i])) return false;
    for (int i = 0; i < p->n_out; i++) {
        if (!same_key(&p->key[p->n_in + i], &outputs[i])) return false;
        for (int j = 0; j < p->n_in; j++)
            if (p->alias[i * p->n_in + j] != alias_of(&inputs[j], &outputs[i])) return false;
    }
    return true;
}
