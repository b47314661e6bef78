/* Runs functions with the reference evaluators. Nested blocks live on a heap stack of
 * frames, so that a program nested a million deep costs memory, never the C stack. */
#include "ops_fn.h"
#include "target.h"

#include <string.h>
#include <time.h>

/* ---------------------------------------------------------------- one op */

static ane_status eval_op(const ane_op *op, ane_rt *const *const *in, ane_rt **out,
                          bool wide, uint64_t *rng, ane_error *err) {
    ane_eval ev = {.op = op, .in = in, .out = out, .wide = wide, .rng = rng, .err = err};
    if (!op->row->eval) return ane_eval_fail(&ev, ANE_ERR_UNSUPPORTED, "cannot be evaluated");
    ane_status st = op->row->eval(&ev);
    if (!st) st = ev.status;            /* a helper that fell back for want of memory */
    for (int i = 0; ev.defaults && i < op->row->n_params; i++)
        ane_rt_release(ev.defaults[i]);
    ane_free(ev.defaults);
    for (int i = 0; !st && i < op->n_results; i++) {
        ANE_ASSERT(out[i]);
        if (out[i]->kind == ANE_T_TENSOR && !(wide && ane__is_float(out[i]->dtype)))
            ane_rt_round(out[i]);
    }
    for (int i = 0; st && i < op->n_results; i++) {
        ane_rt_release(out[i]);
        out[i] = NULL;
    }
    return st;
}

ane_status ane_op_eval(const ane_op *op, ane_rt *const *const *in, ane_rt **out, bool wide,
                       uint64_t *rng, ane_error *err) {
    uint64_t own = 0;
    for (int i = 0; i < op->n_results; i++) out[i] = NULL;
    if (op->n_results == 1 && op->results[0]->konst) {
        out[0] = ane_rt_from_const(op->results[0]->konst, err);
        return out[0] ? ANE_OK : err ? err->status : ANE_ERR_NOMEM;
    }
    return eval_op(op, in, out, wide, rng ? rng : &own, err);
}

/* ---------------------------------------------------------------- values at hand */

typedef struct slot {
    const ane_value *v;
    ane_rt *r;
    int left;                           /* uses still to come in its own block */
} slot;

typedef struct frame {
    const ane_block *block;
    const ane_op *next;
    bool testing;                       /* while_loop: this is the condition block */
    ane_rt **vars;                      /* while_loop: the variables, one reference each */
    int n_vars;
} frame;

typedef struct walk {
    slot *slots;
    size_t n_slots, used;               /* a power of two; at most half are used */
    frame *frames;
    int n_frames, cap_frames;
    const ane_walk_options *opts;
    uint64_t rng;
    struct timespec polled;
    ane_error *err;
} walk;

static size_t slot_index(const walk *w, const ane_value *v) {
    size_t mask = w->n_slots - 1, i = ((size_t)(uintptr_t)v >> 4) * 0x9e3779b97f4a7c15u;
    for (i = (i >> 20) & mask; w->slots[i].v && w->slots[i].v != v;) i = (i + 1) & mask;
    return i;
}

static ane_status grow_slots(walk *w) {
    walk bigger = *w;
    bigger.n_slots = w->n_slots ? w->n_slots * 2 : 64;
    bigger.slots = ane_calloc(bigger.n_slots, sizeof *bigger.slots);
    if (!bigger.slots)
        return ane_fail(w->err, ANE_ERR_NOMEM, "evaluation: %zu values", bigger.n_slots);
    for (size_t i = 0; i < w->n_slots; i++)
        if (w->slots[i].v) bigger.slots[slot_index(&bigger, w->slots[i].v)] = w->slots[i];
    ane_free(w->slots);
    *w = bigger;
    return ANE_OK;
}

/* Takes over the reference to r, also on failure. */
static ane_status put(walk *w, const ane_value *v, ane_rt *r) {
    if (w->used * 2 >= w->n_slots && grow_slots(w)) {
        ane_rt_release(r);
        return ANE_ERR_NOMEM;
    }
    slot *s = &w->slots[slot_index(w, v)];
    if (!s->v) {
        s->v = v;
        w->used++;
    }
    ane_rt_release(s->r);
    s->r = r;
    s->left = v->uses;
    return ANE_OK;
}

static void forget(walk *w, const ane_value *v) {
    if (!w->n_slots) return;
    slot *s = &w->slots[slot_index(w, v)];
    ane_rt_release(s->r);
    s->r = NULL;
}

/* Borrowed. Constants are made when they are first asked for. */
static ane_status get(walk *w, const ane_value *v, ane_rt **out) {
    slot *s = w->n_slots ? &w->slots[slot_index(w, v)] : NULL;
    if (s && s->r) {
        *out = s->r;
        return ANE_OK;
    }
    if (!v->konst)
        return ane_fail(w->err, ANE_ERR_RUNTIME, "evaluation: '%s' has no value here",
                        v->name);
    ane_error local;
    ane_error *err = w->err ? w->err : &local;
    ane_rt *r = ane_rt_from_const(v->konst, err);
    if (!r) {
        ane_error_prefix(err, "'%s': ", v->name);
        return err->status;
    }
    *out = r;
    return put(w, v, r);
}

/* One use of v by an op of block b is over. */
static void used(walk *w, const ane_block *b, const ane_value *v) {
    if (v->block != b) return;          /* a loop may come back for it */
    slot *s = &w->slots[slot_index(w, v)];
    if (s->r && --s->left <= 0) {
        ane_rt_release(s->r);
        s->r = NULL;
    }
}

/* The value as the target's arithmetic takes it in. One more reference, or a copy. */
static ane_status narrowed(const walk *w, ane_rt *r, ane_rt **out) {
    if (r->kind != ANE_T_TENSOR || !r->data || !ane_target_narrows(w->opts->target, r->dtype)) {
        *out = ane_rt_retain(r);
        return ANE_OK;
    }
    ane_rt *own = ane_rt_tensor(r->dtype, r->rank, r->shape);
    if (!own) return ane_fail(w->err, ANE_ERR_NOMEM, "evaluation: %lld elements",
                              (long long)r->count);
    memcpy(own->data, r->data, (size_t)r->count * sizeof *r->data);
    ane_target_narrow(own);
    *out = own;
    return ANE_OK;
}

/* ---------------------------------------------------------------- frames */

static ane_status push(walk *w, const ane_block *b) {
    if (w->n_frames == w->cap_frames) {
        int cap = w->cap_frames ? w->cap_frames * 2 : 8;
        frame *f = ane_realloc(w->frames, (size_t)cap * sizeof *f);
        if (!f) return ane_fail(w->err, ANE_ERR_NOMEM, "evaluation: %d nested blocks", cap);
        w->frames = f;
        w->cap_frames = cap;
    }
    w->frames[w->n_frames++] = (frame){.block = b, .next = b->first};
    return ANE_OK;
}

static void release_all(ane_rt **r, int n) {
    for (int i = 0; r && i < n; i++) ane_rt_release(r[i]);
    ane_free(r);
}

/* Forgets what the block defined and pops it; loop variables stay with the caller. */
static void pop(walk *w) {
    frame *f = &w->frames[--w->n_frames];
    for (int i = 0; i < f->block->n_params; i++) forget(w, f->block->params[i]);
    for (const ane_op *op = f->block->first; op; op = op->next)
        for (int i = 0; i < op->n_results; i++) forget(w, op->results[i]);
}

static ane_status outputs(walk *w, const ane_block *b, ane_rt ***out) {
    ane_rt **r = ane_calloc((size_t)b->n_outputs, sizeof *r);
    if (!r) return ane_fail(w->err, ANE_ERR_NOMEM, "evaluation: block outputs");
    for (int i = 0; i < b->n_outputs; i++) {
        ane_rt *v = NULL;
        ane_status st = get(w, b->outputs[i], &v);
        if (st) {
            release_all(r, i);
            return st;
        }
        r[i] = ane_rt_retain(v);
    }
    *out = r;
    return ANE_OK;
}

static ane_status set_results(walk *w, const ane_op *op, ane_rt *const *r, int n) {
    if (n != op->n_results)
        return ane_fail_at(w->err, ANE_ERR_INVALID, NULL, op->line, op->column,
                           "%s: a block gives %d values, the op has %d results",
                           op->row->name, n, op->n_results);
    for (int i = 0; i < n; i++) {
        ane_status st = put(w, op->results[i], ane_rt_retain(r[i]));
        if (st) return st;
        if (w->opts->trace) w->opts->trace(w->opts->trace_arg, op->results[i], r[i]);
    }
    return ANE_OK;
}

/* Starts block k of a loop with these variables (taken over, also on failure). */
static ane_status enter_loop(walk *w, const ane_op *op, int k, ane_rt **vars, int n) {
    const ane_block *b = op->blocks[k];
    ane_status st = ANE_OK;
    if (b->n_params != n)
        st = ane_fail_at(w->err, ANE_ERR_INVALID, NULL, op->line, op->column,
                         "while_loop: %d loop_vars, a block with %d parameters", n,
                         b->n_params);
    for (int i = 0; !st && i < n; i++) st = put(w, b->params[i], ane_rt_retain(vars[i]));
    if (!st) st = push(w, b);
    if (st) {
        release_all(vars, n);
        return st;
    }
    frame *f = &w->frames[w->n_frames - 1];
    f->testing = k == 0;
    f->vars = vars;
    f->n_vars = n;
    return ANE_OK;
}

static ane_status truth(walk *w, const ane_op *op, const ane_rt *r, bool *out) {
    if (!r || !r->data || r->count != 1)
        return ane_fail_at(w->err, ANE_ERR_SHAPE, NULL, op->line, op->column,
                           "%s: the condition is not one bool", op->row->name);
    *out = r->data[0] != 0;
    return ANE_OK;
}

static ane_status begin_blocks(walk *w, const ane_op *op) {
    bool loop = !strcmp(op->row->name, "while_loop");
    const ane_arg *arg = ane_op_arg(op, loop ? "loop_vars" : "pred");
    ANE_ASSERT(arg && op->n_blocks == 2);
    ane_rt *v = NULL;
    ane_status st;
    if (!loop) {
        bool yes;
        st = get(w, arg->v[0], &v);
        if (!st) st = truth(w, op, v, &yes);
        return st ? st : push(w, op->blocks[yes ? 0 : 1]);
    }
    ane_rt **vars = ane_calloc((size_t)arg->n, sizeof *vars);
    if (!vars) return ane_fail(w->err, ANE_ERR_NOMEM, "while_loop: loop_vars");
    for (int i = 0; i < arg->n; i++) {
        st = get(w, arg->v[i], &v);
        if (st) {
            release_all(vars, i);
            return st;
        }
        vars[i] = ane_rt_retain(v);
    }
    return enter_loop(w, op, 0, vars, arg->n);
}

/* The innermost block has come to its end. */
static ane_status end_block(walk *w) {
    frame f = w->frames[w->n_frames - 1];
    const ane_op *op = f.block->owner;
    ane_rt **out = NULL;
    ane_status st = outputs(w, f.block, &out);
    int n = f.block->n_outputs;
    pop(w);
    if (!st && !f.vars) st = set_results(w, op, out, n);
    else if (!st && f.testing) {
        bool more = false;
        st = n ? truth(w, op, out[0], &more) : truth(w, op, NULL, &more);
        if (!st && more) {
            st = enter_loop(w, op, 1, f.vars, f.n_vars);
            f.vars = NULL;
        } else if (!st) st = set_results(w, op, f.vars, f.n_vars);
    } else if (!st) {
        st = enter_loop(w, op, 0, out, n);
        out = NULL;
    }
    release_all(f.vars, f.n_vars);
    release_all(out, n);
    return st;
}

/* ---------------------------------------------------------------- the walk */

static ane_status plain_op(walk *w, const ane_block *b, const ane_op *op) {
    int total = 0, n_params = op->row->n_params;
    for (int i = 0; i < n_params; i++) total += op->args[i].n;
    ane_rt ***in = ane_calloc((size_t)n_params, sizeof *in);
    ane_rt **flat = ane_calloc((size_t)total, sizeof *flat);
    ane_rt **out = ane_calloc((size_t)op->n_results, sizeof *out);
    ane_status st = in && flat && out ? ANE_OK
                                      : ane_fail(w->err, ANE_ERR_NOMEM, "evaluation");
    int k = 0;
    for (int i = 0; !st && i < n_params; i++) {
        in[i] = flat + k;
        for (int j = 0; !st && j < op->args[i].n; j++) {
            const ane_value *v = op->args[i].v[j];
            ane_rt *r = NULL;
            st = get(w, v, &r);
            /* What ops and parameters give is narrow already; parameters of the op itself
             * (an epsilon) are not its operands. */
            if (!st && v->konst && !op->row->params[i].is_const) st = narrowed(w, r, &flat[k]);
            else if (!st) flat[k] = ane_rt_retain(r);
            k++;
        }
    }
    if (!st)
        st = eval_op(op, (ane_rt *const *const *)in, out, w->opts->wide, &w->rng, w->err);
    if (!st && w->opts->target)
        st = ane_target_results(w->opts->target, op, (ane_rt *const *const *)in, out, w->err);
    for (int i = 0; !st && i < op->n_results; i++) {
        if (w->opts->trace) w->opts->trace(w->opts->trace_arg, op->results[i], out[i]);
        st = put(w, op->results[i], out[i]);
        out[i] = NULL;
        if (!st && !op->results[i]->uses) forget(w, op->results[i]);
    }
    for (int i = 0; !st && i < n_params; i++)
        for (int j = 0; j < op->args[i].n; j++) used(w, b, op->args[i].v[j]);
    for (int i = 0; flat && i < total; i++) ane_rt_release(flat[i]);
    for (int i = 0; out && i < op->n_results; i++) ane_rt_release(out[i]);
    ane_free(out);
    ane_free(flat);
    ane_free(in);
    return st;
}

static ane_status poll_run(walk *w) {
    const ane_run_options *run = w->opts->run;
    if (!run) return ANE_OK;
    if (run->cancel && *run->cancel)
        return ane_fail(w->err, ANE_ERR_CANCELLED, "evaluation cancelled");
    if (!run->poll) return ANE_OK;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if ((now.tv_sec - w->polled.tv_sec) * 1000 +
            (now.tv_nsec - w->polled.tv_nsec) / 1000000 < 50)
        return ANE_OK;
    w->polled = now;
    if (run->poll(run->poll_arg))
        return ane_fail(w->err, ANE_ERR_CANCELLED, "evaluation cancelled");
    return ANE_OK;
}

ane_status ane_function_eval(const ane_function *f, ane_rt *const *args, ane_rt **results,
                             const ane_walk_options *opts, ane_error *err) {
    static const ane_walk_options plain;
    walk w = {.opts = opts ? opts : &plain, .err = err};
    w.rng = w.opts->seed;
    ane_status st = ANE_OK;
    int n = f->body->n_outputs;
    for (int i = 0; i < n; i++) results[i] = NULL;
    for (int i = 0; !st && i < f->n_params; i++) {
        ane_rt *r = NULL;
        st = narrowed(&w, args[i], &r);
        if (!st) st = put(&w, f->params[i], r);
        if (!st && w.opts->trace) w.opts->trace(w.opts->trace_arg, f->params[i], r);
    }
    if (!st) st = push(&w, f->body);
    while (!st && (w.n_frames > 1 || w.frames[0].next)) {
        frame *top = &w.frames[w.n_frames - 1];
        const ane_op *op = top->next;
        if ((st = poll_run(&w))) break;
        if (!op) {
            st = end_block(&w);
            continue;
        }
        top->next = op->next;
        if (op->n_blocks) st = begin_blocks(&w, op);
        else if (op->n_results != 1 || !op->results[0]->konst)
            st = plain_op(&w, top->block, op);
    }
    for (int i = 0; !st && i < n; i++) {
        ane_rt *r = NULL;
        st = get(&w, f->body->outputs[i], &r);
        if (!st) results[i] = ane_rt_retain(r);
    }
    for (int i = 0; st && i < n; i++) {
        ane_rt_release(results[i]);
        results[i] = NULL;
    }
    for (int i = 0; i < w.n_frames; i++) release_all(w.frames[i].vars, w.frames[i].n_vars);
    for (size_t i = 0; i < w.n_slots; i++) ane_rt_release(w.slots[i].r);
    ane_free(w.slots);
    ane_free(w.frames);
    return st;
}
