/* Requests and pipelines: everything about them that no device differs in. Checking operands,
 * aliases and validity is here; a backend sees only what is right. */
#include "kernel.h"

#include "base/sync.h"
#include "surface/tensor.h"

#include <string.h>

/* ---------------------------------------------------------------- requests */

/* Runs are serialised by a lock. The poll of a run may call anything, even a run of the same
 * request, which would then wait for itself: the holder is known, and such a run fails. */
typedef struct run_lock {
    ane_mutex mutex;
    _Atomic(const char *) holder;       /* `me` of the thread that holds it */
} run_lock;

static _Thread_local char me;

static ane_status lock_run(run_lock *l, const char *what, ane_error *err) {
    if (atomic_load_explicit(&l->holder, memory_order_relaxed) == &me)
        return ane_fail(err, ANE_ERR_BUSY, "[run] this %s is being run by this very thread",
                        what);
    ane_mutex_lock(&l->mutex);
    atomic_store_explicit(&l->holder, &me, memory_order_relaxed);
    return ANE_OK;
}

static void unlock_run(run_lock *l) {
    atomic_store_explicit(&l->holder, NULL, memory_order_relaxed);
    ane_mutex_unlock(&l->mutex);
}

struct ane_request {
    atomic_int refs;
    run_lock lock;
    ane_kernel *kernel;
    void *binding;
    ane_tensor *in, *out;
    size_t *extent;                     /* lo, hi per operand, inputs first */
    bool *made;                         /* per output: by each run */
};

/* By address: two surfaces may wrap the same array. */
static bool same_view(const ane_tensor *a, const ane_tensor *b) {
    if (ane_tensor_data(a) != ane_tensor_data(b) || a->dtype != b->dtype || a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (a->shape[i] != b->shape[i] ||
            (a->shape[i] > 1 && a->strides[i] != b->strides[i]))
            return false;
    return true;
}

static ane_status check_aliases(const ane_kernel *k, const ane_tensor *in,
                                const ane_tensor *out, ane_error *err) {
    for (size_t i = 0; i < k->n_out; i++) {
        if (!out[i].surface || !ane_tensor_count(&out[i])) continue;
        for (size_t j = 0; j < k->n_in; j++)
            if (ane_tensor_count(&in[j]) && !same_view(&out[i], &in[j]) &&
                ane__boxes_meet(&out[i], &in[j]))
                return ane_fail(err, ANE_ERR_INVALID,
                                "[bind] output %s overlaps input %s without being the same "
                                "view; bind the very same view or separate memory",
                                k->out[i].name, k->in[j].name);
        for (size_t j = 0; j < i; j++)
            if (out[j].surface && ane_tensor_count(&out[j]) &&
                ane__boxes_meet(&out[i], &out[j]))
                return ane_fail(err, ANE_ERR_INVALID,
                                "[bind] outputs %s and %s share memory", k->out[j].name,
                                k->out[i].name);
    }
    return ANE_OK;
}

static ane_status check_operands(ane_kernel *k, const ane_tensor *in, size_t n_in,
                                 const ane_tensor *out, size_t n_out, ane_error *err) {
    if (n_in != k->n_in || n_out != k->n_out)
        return ane_fail(err, ANE_ERR_INVALID,
                        "[bind] the kernel has %zu inputs and %zu outputs; got %zu and %zu",
                        k->n_in, k->n_out, n_in, n_out);
    ane_port *ports = ane_calloc(n_out, sizeof *ports);
    if (!ports) return ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    ane_status st = ane_kernel_infer(k, in, n_in, ports, n_out, err);
    for (size_t i = 0; i < n_in && !st; i++) {
        if (!in[i].surface)
            st = ane_fail(err, ANE_ERR_INVALID, "[bind] input %s has no memory",
                          k->in[i].name);
        else if (k->in[i].state && ane_surface_readonly(in[i].surface))
            st = ane_fail(err, ANE_ERR_INVALID, "[bind] state %s is read-only",
                          k->in[i].name);
    }
    for (size_t i = 0; i < n_out && !st; i++) {
        bool open = ports[i].dtype == ANE_STRING;
        for (int d = 0; d < ports[i].rank; d++) open = open || ports[i].dims[d] < 0;
        if (out[i].surface && !open) {
            st = ane__check_operand(&ports[i], &out[i], "output", err);
            if (!st && ane_surface_readonly(out[i].surface))
                st = ane_fail(err, ANE_ERR_INVALID, "[bind] output %s is read-only",
                              ports[i].name);
        } else if (out[i].surface) {
            st = ane_fail(err, ANE_ERR_INVALID,
                          "[bind] the shape of output %s depends on data: leave it out, the "
                          "run makes it", ports[i].name);
        } else if (!open) {
            st = ane_fail(err, ANE_ERR_INVALID, "[bind] output %s has no memory",
                          ports[i].name);
        }
    }
    ane_free(ports);
    return st ? st : check_aliases(k, in, out, err);
}

ane_status ane_request_create(ane_kernel *k, const ane_tensor *inputs, size_t n_in,
                              const ane_tensor *outputs, size_t n_out, ane_request **out,
                              ane_error *err) {
    ane_error local;
    if (!err) err = &local;
    ane_error_clear(err);
    ane_status st = check_operands(k, inputs, n_in, outputs, n_out, err);
    if (st) return st;
    ane_request *r = ane_calloc(1, sizeof *r);
    if (!r) return ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    atomic_init(&r->refs, 1);
    pthread_mutex_init(&r->lock.mutex, NULL);
    r->kernel = ane_kernel_retain(k);
    r->in = ane_calloc(n_in, sizeof *r->in);
    r->out = ane_calloc(n_out, sizeof *r->out);
    r->extent = ane_calloc(n_in + n_out, 2 * sizeof *r->extent);
    r->made = ane_calloc(n_out, sizeof *r->made);
    if (!r->in || !r->out || !r->extent || !r->made) {
        st = ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
        goto done;
    }
    for (size_t i = 0; i < n_in + n_out; i++) {
        const ane_tensor *t = i < n_in ? &inputs[i] : &outputs[i - n_in];
        (i < n_in ? r->in : r->out - n_in)[i] = *t;
        if (i >= n_in) r->made[i - n_in] = !t->surface;
        if (!t->surface) continue;
        ane_surface_retain(t->surface);
        ane_tensor_extent(t, &r->extent[2 * i], &r->extent[2 * i + 1]);
    }
    st = k->backend->bind(k->exe, r->in, r->out, &r->binding, err);
done:
    if (st) {
        ane_request_release(r);
        return st;
    }
    *out = r;
    return ANE_OK;
}

/* The very layout of before, so that the plan fits. */
static bool same_layout(const ane_tensor *a, const ane_tensor *b) {
    if (!a->surface || !b->surface) return !a->surface && !b->surface;
    return a->dtype == b->dtype && a->rank == b->rank &&
           !memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) &&
           !memcmp(a->strides, b->strides, (size_t)a->rank * sizeof *a->strides);
}

/* Another surface under a view; an output without one is the run's. */
static void move_view(ane_tensor *t, size_t *extent, const ane_tensor *to) {
    if (!to->surface) return;
    ane_surface *before = t->surface;
    t->surface = ane_surface_retain(to->surface);
    t->offset = to->offset;
    ane_surface_release(before);
    ane_tensor_extent(t, &extent[0], &extent[1]);
}

static ane_status check_rebind(const ane_request *r, const ane_tensor *in, size_t n_in,
                               const ane_tensor *out, size_t n_out, ane_error *err) {
    const ane_kernel *k = r->kernel;
    if (n_in != k->n_in || n_out != k->n_out)
        return ane_fail(err, ANE_ERR_INVALID,
                        "[rebind] the kernel has %zu inputs and %zu outputs; got %zu and %zu",
                        k->n_in, k->n_out, n_in, n_out);
    for (size_t i = 0; i < n_in + n_out; i++) {
        const ane_port *p = i < n_in ? &k->in[i] : &k->out[i - n_in];
        const ane_tensor *t = i < n_in ? &in[i] : &out[i - n_in];
        const ane_tensor *was = i < n_in ? &r->in[i] : &r->out[i - n_in];
        bool made = i >= n_in && r->made[i - n_in];
        if (made ? t->surface != NULL : !t->surface || !same_layout(t, was))
            return ane_fail(err, ANE_ERR_INVALID,
                            "[rebind] %s is not of the dtype, shape and strides that were "
                            "bound; make a new request", p->name);
        if (t->surface && (i >= n_in || p->state) && ane_surface_readonly(t->surface))
            return ane_fail(err, ANE_ERR_INVALID, "[rebind] %s is read-only", p->name);
    }
    for (size_t i = 0; i < n_out; i++)
        for (size_t j = 0; j < n_in && !r->made[i]; j++)
            if (same_view(&out[i], &in[j]) != same_view(&r->out[i], &r->in[j]))
                return ane_fail(err, ANE_ERR_INVALID,
                                "[rebind] output %s and input %s were%s one memory; make a new "
                                "request", k->out[i].name, k->in[j].name,
                                same_view(&out[i], &in[j]) ? " not" : "");
    return check_aliases(k, in, out, err);
}

ane_status ane_request_rebind(ane_request *r, const ane_tensor *inputs, size_t n_in,
                              const ane_tensor *outputs, size_t n_out, ane_error *err) {
    ane_error local;
    if (!err) err = &local;
    if (!r->kernel->backend->rebind)
        return ane_fail(err, ANE_ERR_UNSUPPORTED, "[rebind] requests of device '%s' keep their "
                        "memory; make a new one", r->kernel->backend->name);
    ane_status st = lock_run(&r->lock, "request", err);
    if (st) return st;
    st = check_rebind(r, inputs, n_in, outputs, n_out, err);
    for (size_t i = 0; i < n_in && !st; i++) move_view(&r->in[i], &r->extent[2 * i], &inputs[i]);
    for (size_t i = 0; i < n_out && !st; i++)
        move_view(&r->out[i], &r->extent[2 * (n_in + i)], &outputs[i]);
    if (!st) r->kernel->backend->rebind(r->binding, r->in, r->out);
    unlock_run(&r->lock);
    return st;
}

ane_request *ane_request_retain(ane_request *r) {
    atomic_fetch_add(&r->refs, 1);
    return r;
}

void ane_request_release(ane_request *r) {
    if (!r || atomic_fetch_sub(&r->refs, 1) > 1) return;
    if (r->binding) r->kernel->backend->unbind(r->binding);
    for (size_t i = 0; r->in && i < r->kernel->n_in; i++) ane_surface_release(r->in[i].surface);
    for (size_t i = 0; r->out && i < r->kernel->n_out; i++)
        ane_surface_release(r->out[i].surface);
    ane_free(r->in);
    ane_free(r->out);
    ane_free(r->extent);
    ane_free(r->made);
    ane_kernel_release(r->kernel);
    pthread_mutex_destroy(&r->lock.mutex);
    ane_free(r);
}

void ane_request_once(ane_request *r) {
    if (r->kernel->backend->once) r->kernel->backend->once(r->binding);
}

ane_kernel *ane_request_kernel(const ane_request *r) { return r->kernel; }
const ane_tensor *ane_request_input(const ane_request *r, size_t i) {
    return i < r->kernel->n_in ? &r->in[i] : NULL;
}
const ane_tensor *ane_request_output(const ane_request *r, size_t i) {
    return i < r->kernel->n_out ? &r->out[i] : NULL;
}

/* Marks what the run writes: outputs and states. why NULL: valid again. Outputs that each
 * run makes afresh have a zero extent, and are valid from birth. */
static void mark_outputs(ane_request *r, const char *why) {
    size_t n_in = r->kernel->n_in, n_out = r->kernel->n_out;
    for (size_t i = 0; i < n_in + n_out; i++) {
        if (i < n_in && !r->kernel->in[i].state) continue;
        ane_surface *s = i < n_in ? r->in[i].surface : r->out[i - n_in].surface;
        size_t lo = r->extent[2 * i], hi = r->extent[2 * i + 1];
        if (!s || lo == hi) continue;
        if (why) ane_surface_invalidate(s, lo, hi - lo, why);
        else ane_surface_validate(s, lo, hi - lo);
    }
}

static ane_status run_with(ane_request *r, const ane_run_options *opts, bool profile,
                           ane_error *err) {
    ane_kernel *k = r->kernel;
    ane_status st = lock_run(&r->lock, "request", err);
    if (st) return st;
    for (size_t i = 0; i < k->n_in && !st; i++) {
        st = ane_surface_check(r->in[i].surface, r->extent[2 * i],
                               r->extent[2 * i + 1] - r->extent[2 * i], err);
        if (st) ane_error_prefix(err, "[run] input %s: ", k->in[i].name);
    }
    if (!st && (st = ane_program_check_data(k->program, err)))
        ane_error_prefix(err, "[run] constants: ");
    if (!st) st = ane_run_check(err);
    if (!st) st = k->backend->run(r->binding, opts, profile, err);
    mark_outputs(r, st ? err->message : NULL);
    unlock_run(&r->lock);
    return st;
}

/* Validates the caller's options and installs his poll for this thread; pair with
 * ane_poll_swap(before). */
static ane_status begin_run(const ane_run_options **opts, ane_poll *poll, ane_poll **before,
                            ane_error *err) {
    static const ane_run_options none = {.size = sizeof none};
    if (!*opts) *opts = &none;
    if ((*opts)->size != sizeof none)
        return ane_fail(err, ANE_ERR_INVALID, "[run] options of size %zu; expected %zu",
                        (*opts)->size, sizeof none);
    *poll = (ane_poll){.cancel = (*opts)->cancel, .fn = (*opts)->poll,
                       .arg = (*opts)->poll_arg};
    *before = ane_poll_swap(poll);
    return ANE_OK;
}

static ane_status run_checked(ane_request *r, const ane_run_options *opts, bool profile,
                              ane_error *err) {
    ane_error local;
    ane_poll poll, *before = NULL;
    if (!err) err = &local;
    ane_status st = begin_run(&opts, &poll, &before, err);
    if (st) return st;
    st = run_with(r, opts, profile, err);
    (void)ane_poll_swap(before);
    return st;
}

ane_status ane_request_run(ane_request *r, const ane_run_options *opts, ane_error *err) {
    return run_checked(r, opts, false, err);
}

ane_status ane_request_profile(ane_request *r, const ane_run_options *opts,
                               ane_error *err) {
    return run_checked(r, opts, true, err);
}

size_t ane_request_step_count(const ane_request *r) {
    const ane_backend *b = r->kernel->backend;
    return b->step_count ? b->step_count(r->binding) : 0;
}

void ane_request_step(ane_request *r, size_t i, ane_step_info *info) {
    *info = (ane_step_info){.op = "", .name = "", .kernel = "", .isa = "", .packed = ""};
    if (i >= ane_request_step_count(r) || !r->kernel->backend->step) return;
    r->kernel->backend->step(r->binding, i, info);
    if (!info->isa) info->isa = "";      /* devices without kernel tables */
    if (!info->packed) info->packed = "";
}

size_t ane_request_thread_count(ane_request *r) {
    const ane_backend *b = r->kernel->backend;
    return b->thread_count ? b->thread_count(r->binding) : 0;
}

void ane_request_thread(ane_request *r, size_t i, ane_thread_info *info) {
    *info = (ane_thread_info){0};
    if (i < ane_request_thread_count(r)) r->kernel->backend->thread(r->binding, i, info);
}

void ane_request_memory(ane_request *r, ane_memory_info *info) {
    *info = (ane_memory_info){0};
    if (r->kernel->backend->memory) r->kernel->backend->memory(r->binding, info);
    info->total = ane_memory_total(info);
}

/* ---------------------------------------------------------------- pipelines */

struct ane_pipeline {
    atomic_int refs;
    run_lock lock;
    size_t n;
    ane_request *requests[];
};

ane_status ane_pipeline_create(ane_request *const *requests, size_t n, ane_pipeline **out,
                               ane_error *err) {
    ane_pipeline *p = NULL;
    size_t bytes;
    if (ane_mul_size(n, sizeof *p->requests, &bytes) &&
        ane_add_size(bytes, sizeof *p, &bytes))
        p = ane_calloc(1, bytes);
    if (!p) return ane_fail(err, ANE_ERR_NOMEM, "[pipeline] out of memory");
    atomic_init(&p->refs, 1);
    pthread_mutex_init(&p->lock.mutex, NULL);
    p->n = n;
    for (size_t i = 0; i < n; i++) p->requests[i] = ane_request_retain(requests[i]);
    *out = p;
    return ANE_OK;
}

ane_pipeline *ane_pipeline_retain(ane_pipeline *p) {
    atomic_fetch_add(&p->refs, 1);
    return p;
}

void ane_pipeline_release(ane_pipeline *p) {
    if (!p || atomic_fetch_sub(&p->refs, 1) > 1) return;
    for (size_t i = 0; i < p->n; i++) ane_request_release(p->requests[i]);
    pthread_mutex_destroy(&p->lock.mutex);
    ane_free(p);
}

size_t ane_pipeline_count(const ane_pipeline *p) { return p->n; }
ane_request *ane_pipeline_request(const ane_pipeline *p, size_t i) {
    return i < p->n ? p->requests[i] : NULL;
}

ane_status ane_pipeline_run(ane_pipeline *p, const ane_run_options *opts, ane_error *err) {
    ane_error local;
    ane_poll poll, *before = NULL;
    if (!err) err = &local;
    ane_status st = lock_run(&p->lock, "pipeline", err);
    if (st) return st;
    st = begin_run(&opts, &poll, &before, err);
    if (st) {
        unlock_run(&p->lock);
        return st;
    }
    size_t i = 0;
    while (i < p->n && !(st = run_with(p->requests[i], opts, false, err))) i++;
    if (st) {
        ane_error_prefix(err, "[pipeline] request %zu of %zu: ", i, p->n);
        /* What the rest would have written is from an earlier run: nothing old may look
         * new. */
        for (size_t j = i + 1; j < p->n; j++) {
            ane_request *r = p->requests[j];
            if (lock_run(&r->lock, "request", NULL)) continue;
            mark_outputs(r, err->message);
            unlock_run(&r->lock);
        }
    }
    unlock_run(&p->lock);
    (void)ane_poll_swap(before);
    return st;
}
