/* Steps that run the reference evaluator: ops without an implementation of their own, and
 * islands, whose values have no fixed shape or are not tensors. They allocate. */
#include "cpu.h"

#include "../../base/f16.h"
#include "../../ir/target.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- doubles and back */

#define LOAD(T, expr)                                                                      \
    for (int64_t i = 0; i < n; i++, p += stride) {                                         \
        T x;                                                                               \
        memcpy(&x, p, sizeof x);                                                           \
        dst[i] = expr;                                                                     \
    }                                                                                      \
    break

static void load_row(ane_dtype dtype, const char *p, int64_t stride, int64_t n,
                     double *dst) {
    switch (dtype) {
    case ANE_F16: LOAD(uint16_t, (double)ane_f32_from_f16(x));
    case ANE_BF16: LOAD(uint16_t, (double)ane_f32_from_bf16(x));
    case ANE_F32: LOAD(float, (double)x);
    case ANE_F64: LOAD(double, x);
    case ANE_BOOL: LOAD(uint8_t, x ? 1.0 : 0.0);
    case ANE_I8: LOAD(int8_t, (double)x);
    case ANE_I16: LOAD(int16_t, (double)x);
    case ANE_I32: LOAD(int32_t, (double)x);
    case ANE_I64: LOAD(int64_t, (double)x);
    case ANE_U8: LOAD(uint8_t, (double)x);
    case ANE_U16: LOAD(uint16_t, (double)x);
    case ANE_U32: LOAD(uint32_t, (double)x);
    case ANE_U64: LOAD(uint64_t, (double)x);
    default: ANE_ASSERT(!"a dtype without a byte size has no view");
    }
}

static double clamp(double x, double lo, double hi) {
    if (x != x) return 0;
    x = trunc(x);
    return x < lo ? lo : x > hi ? hi : x;
}
/* 2^63 and 2^64 are not representable in their type: saturate before converting. */
static int64_t to_i64(double x) {
    if (x != x) return 0;
    if (x >= 0x1p63) return INT64_MAX;
    if (x <= -0x1p63) return INT64_MIN;
    return (int64_t)x;
}
static uint64_t to_u64(double x) {
    if (!(x > 0)) return 0;
    if (x >= 0x1p64) return UINT64_MAX;
    return (uint64_t)x;
}

#define STORE(T, expr)                                                                     \
    for (int64_t i = 0; i < n; i++, p += stride) {                                         \
        double x = src[i];                                                                 \
        T y = expr;                                                                        \
        memcpy(p, &y, sizeof y);                                                           \
    }                                                                                      \
    break

static void store_row(ane_dtype dtype, char *p, int64_t stride, int64_t n,
                      const double *src) {
    switch (dtype) {
    case ANE_F16: STORE(uint16_t, ane_f16_from_f64(x));
    case ANE_BF16: STORE(uint16_t, ane_bf16_from_f64(x));
    case ANE_F32: STORE(float, (float)x);
    case ANE_F64: STORE(double, x);
    case ANE_BOOL: STORE(uint8_t, x != 0);
    case ANE_I8: STORE(int8_t, (int8_t)clamp(x, -128, 127));
    case ANE_I16: STORE(int16_t, (int16_t)clamp(x, -32768, 32767));
    case ANE_I32: STORE(int32_t, (int32_t)clamp(x, -0x1p31, 0x1p31 - 1));
    case ANE_I64: STORE(int64_t, to_i64(x));
    case ANE_U8: STORE(uint8_t, (uint8_t)clamp(x, 0, 255));
    case ANE_U16: STORE(uint16_t, (uint16_t)clamp(x, 0, 65535));
    case ANE_U32: STORE(uint32_t, (uint32_t)clamp(x, 0, 0x1p32 - 1));
    case ANE_U64: STORE(uint64_t, to_u64(x));
    default: ANE_ASSERT(!"a dtype without a byte size has no view");
    }
}

/* Calls for every innermost row, in row-major order. */
static void each_row(const ane_view *v, char *data, double *dense, bool store) {
    int64_t count = ane_view_count(v);
    if (!count) return;
    int inner = v->rank - 1;
    int64_t n = inner < 0 ? 1 : v->shape[inner], stride = inner < 0 ? 0 : v->strides[inner];
    int64_t idx[ANE_MAX_RANK] = {0};
    for (int64_t done = 0; done < count; done += n) {
        char *p = data;
        for (int d = 0; d < inner; d++) p += idx[d] * v->strides[d];
        if (store) store_row(v->dtype, p, stride, n, dense + done);
        else load_row(v->dtype, p, stride, n, dense + done);
        for (int d = inner - 1; d >= 0 && ++idx[d] == v->shape[d]; d--) idx[d] = 0;
    }
}

void ane_view_load(const ane_view *v, const void *data, double *dst) {
    each_row(v, (char *)(uintptr_t)data, dst, false);
}
void ane_view_store(const ane_view *v, void *data, const double *src) {
    each_row(v, data, (double *)(uintptr_t)src, true);
}

static ane_rt *rt_of_view(const ane_exec *ex, const ane_view *v, ane_error *err) {
    ane_rt *r = ane_rt_tensor(v->dtype, v->rank, v->shape);
    if (!r) {
        ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory for %lld elements of reference "
                 "evaluation", (long long)ane_view_count(v));
        return NULL;
    }
    ane_view_load(v, ane_at(ex, v), r->data);
    return r;
}

static ane_status rt_to_view(const ane_exec *ex, const ane_view *v, const ane_rt *r,
                             const char *what, ane_error *err) {
    int64_t count = ane_view_count(v);
    if (!r || !r->data || r->count != count)
        return ane_fail(err, ANE_ERR_RUNTIME,
                        "[run] %s: the evaluation gave %lld elements where %lld were planned",
                        what, r ? (long long)r->count : -1LL, (long long)count);
    ane_view_store(v, ane_at(ex, v), r->data);
    return ANE_OK;
}

/* An output whose shape only the run knows: made here, kept by the request. */
static ane_status rt_to_output(ane_exec *ex, int i, const ane_rt *r, ane_error *err) {
    size_t bytes;
    if (r->kind != ANE_T_TENSOR || !ane_dtype_size(r->dtype) ||
        !ane_shape_bytes(r->rank, r->shape, ane_dtype_size(r->dtype), &bytes))
        return ane_fail(err, ANE_ERR_UNSUPPORTED,
                        "[run] output %d is not a tensor of numbers", i);
    ane_surface *s = NULL;
    ane_tensor t;
    /* The last run's makes room; whoever was given it has it still. */
    ane_surface_release(ex->outputs[i].surface);
    ex->outputs[i].surface = NULL;
    if (!ane_eval_budget_take(bytes))
        return ane_fail(err, ANE_ERR_NOMEM, "[run] output %d of %zu bytes", i, bytes);
    ane_status st = ane_surface_create(ane_memory_default(), bytes, NULL, &s, err);
    if (st) return st;
    st = ane_tensor_init(&t, s, 0, r->dtype, r->rank, r->shape, err);
    if (st) {
        ane_surface_release(s);
        return st;
    }
    ane_view v = {.dtype = t.dtype, .rank = t.rank};
    memcpy(v.shape, t.shape, sizeof v.shape);
    memcpy(v.strides, t.strides, sizeof v.strides);
    ane_view_store(&v, ane_tensor_data(&t), r->data);
    ex->outputs[i] = t;
    return ANE_OK;
}

/* ---------------------------------------------------------------- one op */

/* Where an argument or a result of a fallback step lives. */
typedef struct spot {
    enum { SPOT_VIEW, SPOT_RT, SPOT_CONST, SPOT_BIG } kind;
    int index;                          /* view number or island slot */
    ane_rt *held;                       /* CONST */
    const ane_const *konst;             /* BIG: converted at each run, never kept */
} spot;

typedef struct fallback {
    int n_params;
    int *arg_n;
    spot **args;
    spot *results;
    unsigned target;
} fallback;

#define HELD_MAX 65536                  /* elements of a constant kept as doubles */

static ane_status run_fallback(ane_exec *ex, const ane_step *s, ane_error *err) {
    const fallback *f = s->data;
    const ane_op *op = s->op;
    ane_status st = ANE_ERR_NOMEM;
    int total = 0;
    for (int p = 0; p < f->n_params; p++) total += f->arg_n[p];
    size_t n_params = (size_t)(f->n_params ? f->n_params : 1);
    ane_rt **flat = ane_calloc((size_t)total + 1, sizeof *flat);
    ane_rt ***in = ane_calloc(n_params, sizeof *in);
    ane_rt **out = ane_calloc((size_t)op->n_results + 1, sizeof *out);
    if (!flat || !in || !out) {
        ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory");
        goto done;
    }
    int k = 0;
    for (int p = 0; p < f->n_params; p++) {
        in[p] = flat + k;
        for (int i = 0; i < f->arg_n[p]; i++, k++) {
            const spot *a = &f->args[p][i];
            switch (a->kind) {
            case SPOT_VIEW: flat[k] = rt_of_view(ex, &s->views[a->index], err); break;
            case SPOT_RT: flat[k] = ane_rt_retain(ex->rts[a->index]); break;
            case SPOT_CONST: flat[k] = ane_rt_retain(a->held); break;
            case SPOT_BIG:
                flat[k] = ane_rt_from_const(a->konst, err);
                if (flat[k] && f->target && !op->row->params[p].is_const)
                    ane_target_narrow(flat[k]);
                break;
            }
            if (!flat[k]) {
                st = err->status;
                goto done;
            }
        }
    }
    st = ane_op_eval(op, (ane_rt *const *const *)in, out, false, &ex->rng, err);
    if (!st && f->target)
        st = ane_target_results(f->target, op, (ane_rt *const *const *)in, out, err);
    for (int i = 0; !st && i < op->n_results; i++) {
        const spot *r = &f->results[i];
        if (r->kind == SPOT_VIEW) {
            st = rt_to_view(ex, &s->views[r->index], out[i], op->row->name, err);
        } else {
            ane_rt_release(ex->rts[r->index]);
            ex->rts[r->index] = ane_rt_retain(out[i]);
        }
    }
done:
    for (int i = 0; flat && i < total; i++) ane_rt_release(flat[i]);
    for (int i = 0; out && i < op->n_results; i++) ane_rt_release(out[i]);
    ane_free(flat);
    ane_free(in);
    ane_free(out);
    return st;
}

static ane_status hold(ane_planner *pl, ane_rt *r) {
    ane_plan *p = pl->plan;
    if (p->n_held == p->cap_held) {
        int cap = p->cap_held ? p->cap_held * 2 : 16;
        ane_rt **grown = ane_realloc(p->held, (size_t)cap * sizeof *grown);
        if (!grown) {
            ane_rt_release(r);
            return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
        }
        p->held = grown;
        p->cap_held = cap;
    }
    p->held[p->n_held++] = r;
    return ANE_OK;
}

ane_status ane_plan_fallback(ane_planner *pl, const ane_op *op) {
    ane_plan *plan = pl->plan;
    int n_params = op->row->n_params, n_views = 0;
    if (!op->row->eval)
        return ane_fail(pl->err, ANE_ERR_UNSUPPORTED,
                        "[compile] op %s has no evaluation on the CPU device", op->row->name);
    for (int p = 0; p < n_params; p++) n_views += op->args[p].n;
    n_views += op->n_results;
    fallback *f = ane_arena_alloc(plan->arena, sizeof *f);
    ane_view *views = ane_arena_alloc(plan->arena, (size_t)n_views * sizeof *views);
    if (!f || !views) goto nomem;
    for (int i = 0; i < n_views; i++) views[i].buf = -1;
    f->n_params = n_params;
    f->target = pl->opts->target;
    pl->settled = true;
    f->arg_n = ane_arena_alloc(plan->arena, (size_t)n_params * sizeof *f->arg_n);
    f->args = ane_arena_alloc(plan->arena, (size_t)n_params * sizeof *f->args);
    f->results = ane_arena_alloc(plan->arena, (size_t)op->n_results * sizeof *f->results);
    if (!f->arg_n || !f->args || !f->results) goto nomem;
    int view = op->n_results;
    for (int p = 0; p < n_params; p++) {
        const ane_arg *a = &op->args[p];
        f->arg_n[p] = a->n;
        f->args[p] = ane_arena_alloc(plan->arena, (size_t)a->n * sizeof **f->args);
        if (!f->args[p]) goto nomem;
        for (int i = 0; i < a->n; i++, view++) {
            spot *where = &f->args[p][i];
            const ane_value *v = a->v[i];
            ane_place *place = &pl->places[v->id];
            if (v->konst) {
                if (v->konst->type->kind == ANE_T_TENSOR &&
                    ane_type_count(v->konst->type) > HELD_MAX) {
                    where->kind = SPOT_BIG;
                    where->konst = v->konst;
                    continue;
                }
                where->kind = SPOT_CONST;
                where->held = ane_rt_from_const(v->konst, pl->err);
                if (!where->held) return pl->err->status;
                if (f->target && !op->row->params[p].is_const) ane_target_narrow(where->held);
                ane_status st = hold(pl, where->held);
                if (st) return st;
            } else if (place->rt >= 0) {
                where->kind = SPOT_RT;
                where->index = place->rt;
            } else {
                where->kind = SPOT_VIEW;
                where->index = view;
                ane_status st = ane_plan_operand(pl, v, &views[view]);
                if (st) return st;
            }
        }
    }
    for (int i = 0; i < op->n_results; i++) {
        const ane_value *v = op->results[i];
        spot *where = &f->results[i];
        if (ane_plan_is_tensor(v->type)) {
            where->kind = SPOT_VIEW;
            where->index = i;
            ane_status st = ane_plan_dest(pl, v, &views[i]);
            if (st) return st;
        } else {
            where->kind = SPOT_RT;
            where->index = pl->places[v->id].rt = plan->n_rts++;
        }
    }
    /* Last: an operand may have needed a copy, which is a step in front of this one. */
    ane_step *s = ane_plan_step(pl, run_fallback, op, op->n_results, n_views - op->n_results);
    if (!s) goto nomem;
    memcpy(s->views, views, (size_t)n_views * sizeof *views);
    s->data = f;
    s->kernel = "reference";
    s->in_place = true;                 /* inputs are converted before outputs are written */
    return ANE_OK;
nomem:
    return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
}

/* ---------------------------------------------------------------- islands' results */

static ane_status run_export(ane_exec *ex, const ane_step *s, ane_error *err) {
    const int *which = s->data;         /* island slot, output */
    return rt_to_output(ex, which[1], ex->rts[which[0]], err);
}

ane_status ane_plan_export(ane_planner *pl, int rt, int output) {
    ane_step *s = ane_plan_step(pl, run_export, NULL, 0, 0);
    int *which = ane_arena_alloc(pl->plan->arena, 2 * sizeof *which);
    if (!s || !which) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    which[0] = rt;
    which[1] = output;
    s->data = which;
    s->label = "output";
    s->kernel = "reference";
    return ANE_OK;
}

/* ---------------------------------------------------------------- whole function */

static ane_status run_walk(ane_exec *ex, const ane_step *s, ane_error *err) {
    const ane_function *f = ex->plan->fn;
    int n_in = f->n_params, n_out = f->body->n_outputs;
    ane_rt **in = ane_calloc((size_t)n_in + 1, sizeof *in);
    ane_rt **out = ane_calloc((size_t)n_out + 1, sizeof *out);
    ane_status st = ANE_ERR_NOMEM;
    if (!in || !out) {
        ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory");
        goto done;
    }
    for (int i = 0; i < n_in; i++) {
        in[i] = rt_of_view(ex, ane_step_in(s, i), err);
        if (!in[i]) goto done;
        in[i]->kind = f->params[i]->type->kind;
    }
    ane_walk_options opts = {.seed = ex->rng, .run = ex->opts, .target = ex->plan->target};
    st = ane_function_eval(f, in, out, &opts, err);
    for (int i = 0; !st && i < n_in; i++)
        if (f->params[i]->type->kind == ANE_T_STATE)
            st = rt_to_view(ex, ane_step_in(s, i), in[i], f->params[i]->name, err);
    for (int i = 0; !st && i < n_out; i++) {
        if (ane_step_out(s, i)->buf < 0) st = rt_to_output(ex, i, out[i], err);
        else st = rt_to_view(ex, ane_step_out(s, i), out[i], f->body->outputs[i]->name, err);
    }
done:
    for (int i = 0; in && i < n_in; i++) ane_rt_release(in[i]);
    for (int i = 0; out && i < n_out; i++) ane_rt_release(out[i]);
    ane_free(in);
    ane_free(out);
    return st;
}

ane_status ane_plan_walk(ane_planner *pl) {
    ane_plan *plan = pl->plan;
    const ane_function *f = plan->fn;
    ane_step *s = ane_plan_step(pl, run_walk, NULL, f->body->n_outputs, f->n_params);
    if (!s) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    s->label = "function";
    s->kernel = "reference";
    s->in_place = true;
    /* Buffers of inputs come first, then those of outputs: see plan.c. */
    for (int i = 0; i < f->n_params; i++) {
        const ane_tensor *t = &plan->key[i];
        ane_view *v = ane_step_in(s, i);
        *v = (ane_view){.buf = i, .dtype = t->dtype, .rank = t->rank};
        memcpy(v->shape, t->shape, sizeof v->shape);
        memcpy(v->strides, t->strides, sizeof v->strides);
    }
    for (int i = 0; i < f->body->n_outputs; i++) {
        const ane_tensor *t = &plan->key[plan->n_in + i];
        ane_view *v = ane_step_out(s, i);
        *v = (ane_view){.buf = t->rank < 0 ? -1 : f->n_params + i, .dtype = t->dtype,
                        .rank = t->rank < 0 ? 0 : t->rank};
        memcpy(v->shape, t->shape, sizeof v->shape);
        memcpy(v->strides, t->strides, sizeof v->strides);
    }
    return ANE_OK;
}
