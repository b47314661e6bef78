/* The Neural Engine's table: bindings and runs. A binding stages each operand in a surface
 * of the engine's layout, unless the caller's own IOSurface already has it. One autorelease
 * pool around every entry. */
#include "apple.h"

#include "lowering.h"

#include "../../base/env.h"
#include "../../base/sync.h"
#include "../../pass/slot.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One of the model's ports. */
typedef struct operand {
    ane_tensor stage;                   /* in our surface, strides padded; no surface: the
                                           callers' memory is bound */
    const ane_slot *slots;              /* where the callers' views lie in it; NULL: the one is
                                           the whole */
    const ane_tensor *users;            /* the callers' views; their surfaces are theirs */
    size_t n_users;
    double seconds;                     /* of the copy, in the last profiled run */
} operand;

/* Operands in the form that one lowering needs. */
typedef struct bound {
    ane_lowered *lowered;
    ane_model *model;
    ane_tensor *users, *outputs;        /* all callers' views, inputs first */
    ane_id request;                     /* +1 */
    void *options;                      /* +1: the empty dictionary of every evaluation */
    size_t n_in, n;
    operand *ops;                       /* inputs, then outputs */
    double bind_seconds, evaluate_seconds;
    struct bound *before;               /* of the lowering that this one replaced */
} bound;

/* What was replaced lives as long: another thread may be reading a report of it. */
typedef struct binding {
    ane_lowered *kernel;
    _Atomic(bound *) now;
} binding;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool available(void) { return ane_objc_load(NULL) != NULL; }

static const char *detail(void) {
    const char *why = "";
    const ane_objc *rt = ane_objc_load(&why);
    return rt ? rt->detail : why;
}

static ane_status compile(const ane_function *f, const ane_backend_options *opts, void **exe,
                          ane_error *err) {
    /* The engine has one arithmetic of its own: of the options only the lowering counts. */
    const ane_objc *rt = ane_objc_load(NULL);
    void *pool = rt->objc_autoreleasePoolPush();
    ane_lowered *l = NULL;
    ane_status st = opts->donor ? ane_lower_exchange(rt, f, opts->donor, opts->reload, &l, err)
                                : ane_lower(rt, f, opts->lowering, &l, err);
    rt->objc_autoreleasePoolPop(pool);
    if (!st) *exe = l;
    return st;
}

static void destroy(void *exe) {
    const ane_objc *rt = ane_objc_load(NULL);
    void *pool = rt->objc_autoreleasePoolPush();
    ane_lowered_destroy(rt, exe);
    rt->objc_autoreleasePoolPop(pool);
}

static ane_status port(void *exe, bool output, size_t i, ane_port *out, ane_error *err) {
    const ane_lowered *l = ane_lowered_now(exe);
    (void)err;
    /* Inside a packed surface no layout is the port's own: any is staged. */
    if (l->layout && (output ? l->layout->output : l->layout->input)) return ANE_OK;
    const ane_engine_port *p = output ? &l->model->out[i] : &l->model->in[i];
    memcpy(out->strides, p->strides, sizeof out->strides);
    out->bytes = p->bytes;
    return ANE_OK;
}

static ane_lowering lowering(void *exe, const char **why) {
    const ane_lowered *l = ane_lowered_now(exe);
    *why = l->why;
    return l->layout ? ANE_LOWER_PACKED : ANE_LOWER_INPUTS;
}

/* ---------------------------------------------------------------- surfaces */

static bool put(const ane_dl *cf, void *dict, const void *key, int64_t value) {
    ane_cf n = cf->CFNumberCreate(NULL, ANE_CF_SINT64, &value);
    if (!n) return false;
    cf->CFDictionarySetValue(dict, key, n);
    cf->CFRelease(n);
    return true;
}

static const ane_engine_port *port_of(const bound *b, size_t i) {
    return i < b->n_in ? &b->model->in[i] : &b->model->out[i - b->n_in];
}

static ane_status smallest_surface(size_t *out, ane_error *err) {
    const char *text = ane_env(ANE_ENV_SURFACE_MIN);
    char *end;
    long n = *text ? strtol(text, &end, 10) : ANE_APPLE_SURFACE_MIN;
    if (*text && (*end || n < 0 || n > 1 << 30))
        return ane_fail(err, ANE_ERR_INVALID, "[bind] ANETORCH_SURFACE_MIN is '%.40s'; expected "
                        "a number of bytes", text);
    *out = (size_t)n;
    return ANE_OK;
}

/* Bytes of the surface that operand i needs: what the engine touches, not below the smallest
 * it takes; with ANETORCH_UNIFORM_PORTS the most that any operand needs. */
static size_t surface_need(const bound *b, size_t i, size_t smallest) {
    bool all = ane_env_flag(ANE_ENV_UNIFORM_PORTS);
    size_t need = smallest;
    for (size_t k = all ? 0 : i; k < (all ? b->n : i + 1); k++)
        if (port_of(b, k)->bytes > need) need = port_of(b, k)->bytes;
    return (need + 63) / 64 * 64;
}

/* One row of raw bytes, as every project that ran has it; private to this process. */
static ane_status make_surface(const ane_objc *rt, size_t bytes, ane_surface **out,
                               ane_error *err) {
    const ane_dl *cf = rt->cf;
    void *dict = ane_cf_dict_retained(rt);
    ane_iosurface ref = NULL;
    bool described = dict && put(cf, dict, cf->kIOSurfaceWidth, (int64_t)bytes) &&
                     put(cf, dict, cf->kIOSurfaceHeight, 1) &&
                     put(cf, dict, cf->kIOSurfaceBytesPerElement, 1) &&
                     put(cf, dict, cf->kIOSurfaceBytesPerRow, (int64_t)bytes) &&
                     put(cf, dict, cf->kIOSurfaceAllocSize, (int64_t)bytes) &&
                     put(cf, dict, cf->kIOSurfacePixelFormat, 0);
    if (described) ref = cf->IOSurfaceCreate(dict);
    ane_cf_release(rt, dict);
    if (!ref)
        return ane_fail(err, ANE_ERR_NOMEM, "[bind] IOSurfaceCreate returned null for %zu bytes",
                        bytes);
    ane_status st = ane_surface_from_iosurface(ref, bytes, out, err);
    cf->CFRelease(ref);
    return st;
}

/* The engine may read or write the caller's memory itself: an IOSurface, from its first
 * byte, laid out and large enough as the engine wants it. */
static bool fits(const ane_engine_port *p, const ane_tensor *t, size_t need) {
    size_t have = ane_surface_memory(t->surface) == ANE_MEM_IOSURFACE && !t->offset
                      ? ane_surface_capacity(t->surface) : 0;
    bool yes = have >= p->bytes &&
               (ane_env_flag(ANE_ENV_UNIFORM_PORTS) ? have == need : have >= need);
    for (int i = 0; yes && i < p->rank; i++)
        yes = p->dims[i] == 1 || t->strides[i] == p->strides[i];
    return yes;
}

/* Whether every view is its slot of one IOSurface that has the packed port's layout, as
 * columns beside columns of one Tensor are: then nothing is copied. All of them or none: what
 * lies between the caller's views is his. */
static bool fits_packed(const ane_engine_port *p, const operand *o, const ane_tensor *stage,
                        size_t need) {
    ane_tensor whole = *stage, inside, outside;
    whole.surface = o->users[0].surface;
    if (!fits(p, &whole, need)) return false;
    for (size_t k = 0; k < o->n_users; k++) {
        if (o->users[k].surface != whole.surface ||
            !ane_slot_views(&o->slots[k], &whole, &o->users[k], &inside, &outside) ||
            inside.offset != outside.offset)
            return false;
        for (int d = 0; d < inside.rank; d++)
            if (inside.shape[d] > 1 && inside.strides[d] != outside.strides[d]) return false;
    }
    return true;
}

/* Does a side before operand i's have a view of this surface? */
static bool used_before(const bound *b, const operand *o, const ane_surface *s) {
    for (const ane_tensor *t = b->users; t < o->users; t++)
        if (t->surface == s) return true;
    return false;
}

static ane_status bind_operand(const ane_objc *rt, bound *b, size_t i,
                               size_t smallest, ane_error *err) {
    bool output = i >= b->n_in;
    const ane_engine_port *p = port_of(b, i);
    operand *o = &b->ops[i];
    const ane_tensor *t = o->users;
    size_t need = surface_need(b, i, smallest);
    /* An output that lies where another operand is would be read and written at once. */
    bool alone = !output || !used_before(b, o, t->surface);
    if (!o->slots && alone && fits(p, t, need)) return ANE_OK;
    o->stage = (ane_tensor){.dtype = p->dtype, .rank = p->rank};
    memcpy(o->stage.shape, p->dims, sizeof o->stage.shape);
    memcpy(o->stage.strides, p->strides, sizeof o->stage.strides);
    if (o->slots && alone && fits_packed(p, o, &o->stage, need)) {
        return ANE_OK;
    }
    ane_status st = make_surface(rt, need, &o->stage.surface, err);
    if (st) ane_error_prefix(err, "%s %s: ", output ? "output" : "input", p->name);
    return st;
}

/* Arrays of wrappers and of symbol indices for one side; the caller releases both. */
static ane_status list_operands(const ane_objc *rt, bound *b, bool output, ane_cf lists[2],
                                ane_error *err) {
    size_t first = output ? b->n_in : 0, n = output ? b->n - b->n_in : b->n_in, made = 0;
    const void *wrappers[ANE_APPLE_PORTS], *numbers[ANE_APPLE_PORTS];
    ane_status st = ANE_OK;
    for (; made < n; made++) {
        const operand *o = &b->ops[first + made];
        const ane_engine_port *p = port_of(b, first + made);
        ane_surface *s = o->stage.surface ? o->stage.surface : o->users->surface;
        wrappers[made] = ane_send_wrap(rt, ane_surface_iosurface_ref(s));
        if (!wrappers[made]) {
            st = ane_fail(err, ANE_ERR_RUNTIME, "[bind] %s %s: the framework gave no wrapper for "
                          "the surface", output ? "output" : "input", p->name);
            break;
        }
        numbers[made] = ane_cf_int_retained(rt, p->symbol);
        if (!numbers[made]) {
            st = ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
            break;
        }
    }
    if (!st) {
        lists[0] = rt->CFArrayCreate(NULL, wrappers, (int64_t)n, rt->kCFTypeArrayCallBacks);
        lists[1] = rt->CFArrayCreate(NULL, numbers, (int64_t)n, rt->kCFTypeArrayCallBacks);
        if (!lists[0] || !lists[1]) st = ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    }
    while (made--) ane_cf_release(rt, numbers[made]);
    return st;
}

static ane_status make_request(const ane_objc *rt, bound *b, ane_error *err) {
    ane_cf in[2] = {NULL, NULL}, out[2] = {NULL, NULL};
    ane_cf zero = ane_cf_int_retained(rt, 0);
    ane_status st = zero ? ANE_OK : ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    if (!st) st = list_operands(rt, b, false, in, err);
    if (!st) st = list_operands(rt, b, true, out, err);
    if (!st) {
        ane_id r = ane_send_request(rt, in[0], in[1], out[0], out[1], NULL, NULL, zero);
        if (!r) st = ane_fail(err, ANE_ERR_RUNTIME, "[bind] the framework gave no request");
        else if (!ane_send_validate(rt, r))
            st = ane_fail(err, ANE_ERR_RUNTIME, "[bind] the framework calls the request invalid");
        else b->request = rt->objc_retain(r);
    }
    for (int i = 0; i < 2; i++) {
        ane_cf_release(rt, in[i]);
        ane_cf_release(rt, out[i]);
    }
    ane_cf_release(rt, zero);
    return st;
}

static void drop(const ane_objc *rt, bound *b) {
    if (!b) return;
    if (b->request) rt->objc_release(b->request);
    ane_cf_release(rt, b->options);
    for (size_t i = 0; b->ops && i < b->n; i++) ane_surface_release(b->ops[i].stage.surface);
    ane_free(b->users);
    ane_free(b->ops);
    ane_free(b);
}

static void unbind(void *obj) {
    binding *n = obj;
    const ane_objc *rt = ane_objc_load(NULL);
    void *pool = rt->objc_autoreleasePoolPush();
    for (bound *b = atomic_load(&n->now), *before; b; b = before) {
        before = b->before;
        drop(rt, b);
    }
    rt->objc_autoreleasePoolPop(pool);
    ane_free(n);
}

/* Gives the ports of one side their callers' views: one each, or all of them to the packed
 * one. */
static void give_users(const ane_lowered *l, bool output, operand *ops, const ane_tensor *users) {
    const ane_packing *p = l->layout;
    if (p && (output ? p->output : p->input)) {
        ops->slots = output ? p->out : p->in;
        ops->users = users;
        ops->n_users = output ? p->n_out : p->n_in;
        return;
    }
    size_t n = output ? l->model->n_out : l->model->n_in;
    for (size_t i = 0; i < n; i++) {
        ops[i].users = &users[i];
        ops[i].n_users = 1;
    }
}

/* The callers' views, as l needs them. The caller has a pool. */
static ane_status bind_to(const ane_objc *rt, ane_lowered *l, const ane_tensor *inputs,
                          const ane_tensor *outputs, bound **out, ane_error *err) {
    bound *b = ane_calloc(1, sizeof *b);
    if (!b) return ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    b->lowered = l;
    b->model = l->model;
    b->n_in = b->model->n_in;
    b->n = b->n_in + b->model->n_out;
    b->ops = ane_calloc(b->n, sizeof *b->ops);
    size_t n_in = l->layout ? l->layout->n_in : b->n_in;
    size_t n_out = l->layout ? l->layout->n_out : b->n - b->n_in;
    b->users = ane_calloc(n_in + n_out, sizeof *b->users);
    double start = now();
    size_t smallest = 0;
    b->options = ane_cf_dict_retained(rt);
    bool memory = b->ops && b->users && b->options;
    ane_status st = memory ? ANE_OK : ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    if (!st) {
        memcpy(b->users, inputs, n_in * sizeof *inputs);
        memcpy(b->users + n_in, outputs, n_out * sizeof *outputs);
        give_users(l, false, b->ops, b->users);
        give_users(l, true, b->ops + b->n_in, b->users + n_in);
        b->outputs = b->users + n_in;
        st = smallest_surface(&smallest, err);
    }
    for (size_t i = 0; i < b->n && !st; i++) st = bind_operand(rt, b, i, smallest, err);
    if (!st) st = make_request(rt, b, err);
    b->bind_seconds = now() - start;
    if (st) drop(rt, b);
    else *out = b;
    return st;
}

static ane_status bind(void *exe, const ane_tensor *inputs, ane_tensor *outputs, void **out,
                       ane_error *err) {
    const ane_objc *rt = ane_objc_load(NULL);
    bound *b = NULL;
    binding *n = ane_calloc(1, sizeof *n);
    if (!n) return ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    void *pool = rt->objc_autoreleasePoolPush();
    ane_status st = bind_to(rt, ane_lowered_now(exe), inputs, outputs, &b, err);
    rt->objc_autoreleasePoolPop(pool);
    if (st) {
        ane_free(n);
        return st;
    }
    n->kernel = exe;
    atomic_init(&n->now, b);
    *out = n;
    return ANE_OK;
}

/* ---------------------------------------------------------------- run */

/* Heap and shared memory need no lock; the platform's surfaces do. */
static ane_status lock(ane_surface *s, ane_access access, ane_error *err) {
    return ane_surface_memory(s) == ANE_MEM_IOSURFACE ? ane_surface_lock(s, access, err) : ANE_OK;
}
static ane_status unlock(ane_surface *s, ane_access access, ane_error *err) {
    return ane_surface_memory(s) == ANE_MEM_IOSURFACE ? ane_surface_unlock(s, access, err)
                                                      : ANE_OK;
}

/* Keeps the first of two results and its message. */
static ane_status then_unlock(ane_status st, ane_surface *s, ane_access access, ane_error *err) {
    ane_error other;
    ane_status u = unlock(s, access, st ? &other : err);
    return st ? st : u;
}

/* One caller's view to or from its place in the stage. */
static ane_status copy_user(const operand *o, size_t k, bool in, ane_error *err) {
    if (o->slots) return ane_slot_copy(&o->slots[k], &o->stage, &o->users[k], in, err);
    return in ? ane_tensor_copy(&o->stage, o->users, err)
              : ane_tensor_copy(o->users, &o->stage, err);
}

static ane_status stage_in(const operand *o, ane_error *err) {
    ane_status st = lock(o->stage.surface, ANE_READWRITE, err);
    if (st) return st;
    for (size_t k = 0; k < o->n_users && !st; k++) {
        st = lock(o->users[k].surface, ANE_READ, err);
        if (st) break;
        st = copy_user(o, k, true, err);
        st = then_unlock(st, o->users[k].surface, ANE_READ, err);
    }
    return then_unlock(st, o->stage.surface, ANE_READWRITE, err);
}

/* Locks an output's stage and every view that it goes to, or nothing. */
static ane_status lock_output(const operand *o, ane_error *err) {
    size_t k = 0;
    ane_status st = lock(o->stage.surface, ANE_READ, err);
    if (st) return st;
    for (; k < o->n_users && !st; k++) st = lock(o->users[k].surface, ANE_READWRITE, err);
    if (!st) return ANE_OK;
    for (k--; k-- > 0;) st = then_unlock(st, o->users[k].surface, ANE_READWRITE, err);
    return then_unlock(st, o->stage.surface, ANE_READ, err);
}

static ane_status unlock_output(ane_status st, const operand *o, ane_error *err) {
    for (size_t k = o->n_users; k-- > 0;)
        st = then_unlock(st, o->users[k].surface, ANE_READWRITE, err);
    return then_unlock(st, o->stage.surface, ANE_READ, err);
}

/* Everything is locked before the first byte is copied, so a failing lock leaves all outputs
 * as they were. */
static ane_status stage_out(bound *b, bool profile, ane_error *err) {
    ane_status st = ANE_OK;
    size_t i = b->n_in;
    for (; i < b->n; i++)
        if (b->ops[i].stage.surface && (st = lock_output(&b->ops[i], err))) break;
    size_t locked = i;
    for (i = b->n_in; i < locked && !st; i++) {
        operand *o = &b->ops[i];
        if (!o->stage.surface) continue;
        double start = profile ? now() : 0;
        for (size_t k = 0; k < o->n_users && !st; k++) st = copy_user(o, k, false, err);
        if (profile) o->seconds = now() - start;
    }
    for (i = locked; i-- > b->n_in;)
        if (b->ops[i].stage.surface) st = unlock_output(st, &b->ops[i], err);
    return st;
}

static ane_status evaluate(const ane_objc *rt, const bound *b, unsigned long *status,
                           ane_error *err) {
    for (int attempt = 0;; attempt++) {
        ane_id error = NULL;
        *status = 0;
        if (ane_send_evaluate(rt, b->model->object, ANE_APPLE_QOS, b->options, b->request, &error)) {
            atomic_store_explicit(&b->lowered->ran, true, memory_order_relaxed);
            return ANE_OK;
        }
        ane_status st = ane_objc_fail(rt, err, "run", error, status);
        if (*status != ANE_APPLE_TRANSIENT || attempt == ANE_APPLE_TRANSIENT_TRIES) return st;
        struct timespec pause = {0, ANE_APPLE_TRANSIENT_MS * 1000000L};
        nanosleep(&pause, NULL);
    }
}

static ane_status run_bound(const ane_objc *rt, bound *b, bool profile, unsigned long *status,
                            ane_error *err) {
    ane_status st = ANE_OK;
    *status = 0;
    for (size_t i = 0; i < b->n_in && !st; i++) {
        double start = profile ? now() : 0;
        if (!b->ops[i].stage.surface) continue;
        st = stage_in(&b->ops[i], err);
        if (profile) b->ops[i].seconds = now() - start;
    }
    if (!st) st = ane_run_check(err);
    double start = profile ? now() : 0;
    if (!st) st = evaluate(rt, b, status, err);
    if (profile) b->evaluate_seconds = now() - start;
    return st ? st : stage_out(b, profile, err);
}

static ane_status run(void *obj, const ane_run_options *opts, bool profile, ane_error *err) {
    binding *n = obj;
    const ane_objc *rt = ane_objc_load(NULL);
    unsigned long status;
    (void)opts;
    void *pool = rt->objc_autoreleasePoolPush();
    bound *b = atomic_load_explicit(&n->now, memory_order_relaxed), *again = NULL;
    ane_status st = run_bound(rt, b, profile, &status, err);
    /* The engine refused how the operands lie, and wrote nothing: once, in the other form. */
    ane_lowered *other = status == ANE_APPLE_PORTS_REFUSED && b->lowered == n->kernel
                             ? ane_lower_again(rt, n->kernel, err) : NULL;
    if (other) {
        st = bind_to(rt, other, b->users, b->outputs, &again, err);
        if (!st) {
            again->before = b;
            atomic_store(&n->now, again);
            st = run_bound(rt, again, profile, &status, err);
        }
    }
    rt->objc_autoreleasePoolPop(pool);
    return st;
}

/* ---------------------------------------------------------------- report */

/* The phases: the model's, bind, a row for each operand, evaluate, unload. */
static const bound *bound_now(void *obj) {
    return atomic_load_explicit(&((binding *)obj)->now, memory_order_acquire);
}

static size_t step_count(void *obj) { return ANE_PHASE_COUNT + bound_now(obj)->n + 3; }

static void step(void *obj, size_t i, ane_step_info *info) {
    static const char *const names[] = {
#define X(id, name) name,
        ANE_PHASE_MAP(X)
#undef X
    };
    const bound *b = bound_now(obj);
    const ane_model *m = b->model;
    const char *engine = ane_objc_load(NULL)->stand_in ? "stand-in" : "ane";
    info->kernel = engine;
    if (i < ANE_PHASE_COUNT) {
        bool skipped = m->cached && (i == ANE_PHASE_WRITE || i == ANE_PHASE_COMPILE);
        info->op = names[i];
        info->kernel = skipped ? "cached" : i == ANE_PHASE_WRITE ? "cpu" : engine;
        info->seconds = m->seconds[i];
        return;
    }
    i -= ANE_PHASE_COUNT;
    if (i == 0) {
        info->op = "bind";
        info->seconds = b->bind_seconds;
        return;
    }
    i -= 1;
    if (i == b->n_in) {
        info->op = "evaluate";
        info->seconds = b->evaluate_seconds;
    } else if (i <= b->n) {
        size_t k = i < b->n_in ? i : i - 1;
        bool staged = b->ops[k].stage.surface != NULL;
        info->op = !staged ? "in place" : k < b->n_in ? "copy in" : "copy out";
        info->name = port_of(b, k)->name;
        info->kernel = staged ? "cpu" : engine;
        info->bytes = staged ? 2.0 * (double)port_of(b, k)->bytes : 0;
        info->seconds = staged ? b->ops[k].seconds : 0;
    } else {
        info->op = "unload";            /* the last one of this process: ours is to come */
        info->seconds = ane_model_unload_seconds();
    }
}

static void memory(void *obj, ane_memory_info *info) {
    const bound *b = bound_now(obj);
    for (size_t i = 0; i < b->n; i++) {
        *(i < b->n_in ? &info->inputs : &info->outputs) += port_of(b, i)->bytes;
        if (b->ops[i].stage.surface) info->scratch += ane_surface_capacity(b->ops[i].stage.surface);
    }
}

/* ---------------------------------------------------------------- real time */

static ane_status realtime(bool begin, bool *granted, ane_error *err) {
    const char *why = "";
    const ane_objc *rt = ane_objc_load(&why);
    *granted = false;
    if (!rt) return ane_fail(err, ANE_ERR_UNSUPPORTED, "[realtime] device \"ane\": %s", why);
    void *pool = rt->objc_autoreleasePoolPush();
    ane_id client = ane_send_connection(rt);
    if (client)
        *granted = begin ? ane_send_begin_realtime(rt, client) : ane_send_end_realtime(rt, client);
    rt->objc_autoreleasePoolPop(pool);
    return ANE_OK;
}

ane_status ane_realtime_begin(bool *granted, ane_error *err) {
    return realtime(true, granted, err);
}
ane_status ane_realtime_end(bool *granted, ane_error *err) {
    return realtime(false, granted, err);
}

const ane_backend ane_backend_apple = {
    .name = "ane",
    .available = available,
    .detail = detail,
    .compile = compile,
    .destroy = destroy,
    .bind = bind,
    .unbind = unbind,
    .run = run,
    .port = port,
    .lowering = lowering,
    .step_count = step_count,
    .step = step,
    .memory = memory,
};
