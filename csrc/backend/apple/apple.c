/* The Neural Engine's table: bindings and runs. A binding stages each operand in a surface
 * of the engine's layout, unless the caller's own IOSurface already has it. One autorelease
 * pool around every entry. */
#include "apple.h"

#include "model.h"

#include "../../base/sync.h"

#include <string.h>
#include <time.h>

typedef struct operand {
    ane_tensor user;                    /* the caller's view; its surface is his */
    ane_tensor stage;                   /* in our surface, strides padded; no surface: direct */
} operand;

typedef struct apple_binding {
    ane_model *model;
    ane_id request;                     /* +1 */
    size_t n_in, n;
    operand *ops;                       /* inputs, then outputs */
} apple_binding;

static bool available(void) { return ane_objc_load(NULL) != NULL; }

static const char *detail(void) {
    const char *why = "";
    const ane_objc *rt = ane_objc_load(&why);
    return rt ? rt->detail : why;
}

static ane_status compile(const ane_function *f, const ane_backend_options *opts, void **exe,
                          ane_error *err) {
    (void)opts;                         /* the engine has one arithmetic of its own */
    const ane_objc *rt = ane_objc_load(NULL);
    void *pool = rt->objc_autoreleasePoolPush();
    ane_model *m = NULL;
    ane_status st = ane_model_acquire(rt, f, &m, err);
    rt->objc_autoreleasePoolPop(pool);
    if (!st) *exe = m;
    return st;
}

static void destroy(void *exe) {
    const ane_objc *rt = ane_objc_load(NULL);
    void *pool = rt->objc_autoreleasePoolPush();
    ane_model_release(rt, exe);
    rt->objc_autoreleasePoolPop(pool);
}

static ane_status port(void *exe, bool output, size_t i, ane_port *out, ane_error *err) {
    const ane_model *m = exe;
    const ane_engine_port *p = output ? &m->out[i] : &m->in[i];
    (void)err;
    memcpy(out->strides, p->strides, sizeof out->strides);
    out->bytes = p->bytes;
    return ANE_OK;
}

/* ---------------------------------------------------------------- surfaces */

static bool put(const ane_dl *cf, void *dict, const void *key, int64_t value) {
    ane_cf n = cf->CFNumberCreate(NULL, ANE_CF_SINT64, &value);
    if (!n) return false;
    cf->CFDictionarySetValue(dict, key, n);
    cf->CFRelease(n);
    return true;
}

/* One row of raw bytes, as every project that ran has it; private to this process. */
static ane_status make_surface(const ane_objc *rt, size_t bytes, ane_surface **out,
                               ane_error *err) {
    const ane_dl *cf = rt->cf;
    if (bytes < ANE_APPLE_SURFACE_MIN) bytes = ANE_APPLE_SURFACE_MIN;
    bytes = (bytes + 63) / 64 * 64;
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
static bool fits(const ane_engine_port *p, const ane_tensor *t) {
    bool yes = ane_surface_memory(t->surface) == ANE_MEM_IOSURFACE && !t->offset &&
               ane_surface_capacity(t->surface) >= p->bytes &&
               ane_surface_capacity(t->surface) >= ANE_APPLE_SURFACE_MIN;
    for (int i = 0; yes && i < p->rank; i++)
        yes = p->dims[i] == 1 || t->strides[i] == p->strides[i];
    return yes;
}

static ane_status bind_operand(const ane_objc *rt, apple_binding *b, size_t i,
                               const ane_tensor *t, ane_error *err) {
    bool output = i >= b->n_in;
    const ane_engine_port *p = output ? &b->model->out[i - b->n_in] : &b->model->in[i];
    operand *o = &b->ops[i];
    o->user = *t;
    bool direct = fits(p, t);
    /* An output that lies where another operand is would be read and written at once. */
    for (size_t k = 0; direct && output && k < i; k++)
        direct = b->ops[k].user.surface != t->surface;
    if (direct) return ANE_OK;
    o->stage = (ane_tensor){.dtype = p->dtype, .rank = p->rank};
    memcpy(o->stage.shape, p->dims, sizeof o->stage.shape);
    memcpy(o->stage.strides, p->strides, sizeof o->stage.strides);
    ane_status st = make_surface(rt, p->bytes, &o->stage.surface, err);
    if (st) ane_error_prefix(err, "%s %s: ", output ? "output" : "input", p->name);
    return st;
}

/* Arrays of wrappers and of symbol indices for one side; the caller releases both. */
static ane_status list_operands(const ane_objc *rt, apple_binding *b, bool output, ane_cf lists[2],
                                ane_error *err) {
    size_t first = output ? b->n_in : 0, n = output ? b->n - b->n_in : b->n_in, made = 0;
    const void *wrappers[ANE_APPLE_PORTS], *numbers[ANE_APPLE_PORTS];
    ane_status st = ANE_OK;
    for (; made < n; made++) {
        const operand *o = &b->ops[first + made];
        const ane_engine_port *p = output ? &b->model->out[made] : &b->model->in[made];
        ane_surface *s = o->stage.surface ? o->stage.surface : o->user.surface;
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

static ane_status make_request(const ane_objc *rt, apple_binding *b, ane_error *err) {
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

static void unbind(void *binding) {
    apple_binding *b = binding;
    const ane_objc *rt = ane_objc_load(NULL);
    void *pool = rt->objc_autoreleasePoolPush();
    if (b->request) rt->objc_release(b->request);
    for (size_t i = 0; b->ops && i < b->n; i++) ane_surface_release(b->ops[i].stage.surface);
    rt->objc_autoreleasePoolPop(pool);
    ane_free(b->ops);
    ane_free(b);
}

static ane_status bind(void *exe, const ane_tensor *inputs, ane_tensor *outputs, void **binding,
                       ane_error *err) {
    const ane_objc *rt = ane_objc_load(NULL);
    apple_binding *b = ane_calloc(1, sizeof *b);
    if (!b) return ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    b->model = exe;
    b->n_in = b->model->n_in;
    b->n = b->n_in + b->model->n_out;
    b->ops = ane_calloc(b->n, sizeof *b->ops);
    void *pool = rt->objc_autoreleasePoolPush();
    ane_status st = b->ops ? ANE_OK : ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    for (size_t i = 0; i < b->n && !st; i++)
        st = bind_operand(rt, b, i, i < b->n_in ? &inputs[i] : &outputs[i - b->n_in], err);
    if (!st) st = make_request(rt, b, err);
    rt->objc_autoreleasePoolPop(pool);
    if (st) unbind(b);
    else *binding = b;
    return st;
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

static ane_status stage_in(const operand *o, ane_error *err) {
    ane_status st = lock(o->user.surface, ANE_READ, err);
    if (st) return st;
    st = lock(o->stage.surface, ANE_READWRITE, err);
    if (!st) {
        st = ane_tensor_copy(&o->stage, &o->user, err);
        st = then_unlock(st, o->stage.surface, ANE_READWRITE, err);
    }
    return then_unlock(st, o->user.surface, ANE_READ, err);
}

/* Everything is locked before the first byte is copied, so a failing lock leaves all outputs
 * as they were. */
static ane_status stage_out(const apple_binding *b, ane_error *err) {
    ane_status st = ANE_OK;
    size_t i = b->n_in;
    for (; i < b->n; i++) {
        const operand *o = &b->ops[i];
        if (!o->stage.surface) continue;
        if ((st = lock(o->stage.surface, ANE_READ, err))) break;
        if ((st = lock(o->user.surface, ANE_READWRITE, err))) {
            st = then_unlock(st, o->stage.surface, ANE_READ, err);
            break;
        }
    }
    size_t locked = i;
    for (i = b->n_in; i < locked && !st; i++)
        if (b->ops[i].stage.surface) st = ane_tensor_copy(&b->ops[i].user, &b->ops[i].stage, err);
    for (i = locked; i-- > b->n_in;) {
        const operand *o = &b->ops[i];
        if (!o->stage.surface) continue;
        st = then_unlock(st, o->user.surface, ANE_READWRITE, err);
        st = then_unlock(st, o->stage.surface, ANE_READ, err);
    }
    return st;
}

static ane_status evaluate(const ane_objc *rt, const apple_binding *b, ane_cf options,
                           ane_error *err) {
    for (int attempt = 0;; attempt++) {
        unsigned long status = 0;
        ane_id error = NULL;
        if (ane_send_evaluate(rt, b->model->object, ANE_APPLE_QOS, options, b->request, &error))
            return ANE_OK;
        ane_status st = ane_objc_fail(rt, err, "run", error, &status);
        if (status != ANE_APPLE_TRANSIENT || attempt == ANE_APPLE_TRANSIENT_TRIES) return st;
        struct timespec pause = {0, ANE_APPLE_TRANSIENT_MS * 1000000L};
        nanosleep(&pause, NULL);
    }
}

static ane_status run(void *binding, const ane_run_options *opts, bool profile, ane_error *err) {
    const apple_binding *b = binding;
    const ane_objc *rt = ane_objc_load(NULL);
    (void)opts, (void)profile;
    void *pool = rt->objc_autoreleasePoolPush();
    void *options = ane_cf_dict_retained(rt);
    ane_status st = options ? ANE_OK : ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory");
    for (size_t i = 0; i < b->n_in && !st; i++)
        if (b->ops[i].stage.surface) st = stage_in(&b->ops[i], err);
    if (!st) st = ane_run_check(err);
    if (!st) st = evaluate(rt, b, options, err);
    if (!st) st = stage_out(b, err);
    ane_cf_release(rt, options);
    rt->objc_autoreleasePoolPop(pool);
    return st;
}

static void memory(void *binding, ane_memory_info *info) {
    const apple_binding *b = binding;
    for (size_t i = 0; i < b->n; i++) {
        const ane_engine_port *p = i < b->n_in ? &b->model->in[i] : &b->model->out[i - b->n_in];
        *(i < b->n_in ? &info->inputs : &info->outputs) += p->bytes;
        if (b->ops[i].stage.surface) info->scratch += ane_surface_capacity(b->ops[i].stage.surface);
    }
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
    .memory = memory,
};
