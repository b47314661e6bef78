/* Runs plans. A binding holds addresses; a run borrows one scratch block from the
 * process-wide pool, so kernels that run one after another share warm memory and the same
 * kernel can run in several threads at once. */
#include "cpu.h"

#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- scratch blocks */

typedef struct block {
    struct block *next;
    size_t bytes;
} block;

#define HEAD ANE_BLOCK_HEAD
_Static_assert(sizeof(block) <= HEAD, "a block begins with its head");

static ane_mutex pool_lock = ANE_MUTEX_INIT;
static block *pool;                     /* ascending by size */

/* A fork while another thread holds the lock would leave it held in the child. */
static void before_fork(void) { ane_mutex_lock(&pool_lock); }
static void after_fork(void) { ane_mutex_unlock(&pool_lock); }
static void watch_forks(void) { (void)pthread_atfork(before_fork, after_fork, after_fork); }

static block *take_block(size_t bytes) {
    static ane_once once = ANE_ONCE_INIT;
    (void)pthread_once(&once, watch_forks);
    ane_mutex_lock(&pool_lock);
    for (block **at = &pool; *at; at = &(*at)->next) {
        block *b = *at;
        if (b->bytes < bytes) continue;
        *at = b->next;
        ane_mutex_unlock(&pool_lock);
        return b;
    }
    /* All are too small. The largest idle one makes room, so that growing shapes do not
     * leave a trail of blocks. */
    block **last = &pool;
    while (*last && (*last)->next) last = &(*last)->next;
    block *old = *last;
    if (old) *last = NULL;
    ane_mutex_unlock(&pool_lock);
    ane_aligned_free(old);
    size_t want;
    if (!ane_add_size(bytes, HEAD, &want)) return NULL;
    block *b = ane_aligned_alloc(want);
    if (b) b->bytes = bytes;
    return b;
}

static void give_block(block *b) {
    ane_mutex_lock(&pool_lock);
    block **at = &pool;
    while (*at && (*at)->bytes < b->bytes) at = &(*at)->next;
    b->next = *at;
    *at = b;
    ane_mutex_unlock(&pool_lock);
}

/* ---------------------------------------------------------------- bindings */

struct ane_cpu_binding {
    ane_plan *plan;
    ane_exec ex;
    block *bound;                       /* whose addresses ex.base holds now */
    ane_room room;                      /* what a run takes of threads' blocks */
    size_t *sizes;                      /* the room's */
    ane_kept *kept;                     /* ex.kept where the limit has room for it */
    bool once;                          /* and more than one run is to come */
    uint64_t runs;
    double *begin, *seconds;            /* per step, of the last profiled run */
    int64_t began;                      /* when that run did */
    ane_work_log *log;                  /* what its threads did; NULL: never profiled */
};

#define LOG_MAX 16384                 /* thread intervals kept of a profiled run */

void ane_cpu_rebind(ane_cpu_binding *b, const ane_tensor *inputs, const ane_tensor *outputs) {
    for (int i = 0; i < b->plan->n_bufs; i++) {
        const ane_buf *f = &b->plan->bufs[i];
        if (f->kind == ANE_BUF_INPUT) b->ex.base[i] = ane_tensor_data(&inputs[f->index]);
        if (f->kind == ANE_BUF_OUTPUT && outputs[f->index].surface)
            b->ex.base[i] = ane_tensor_data(&outputs[f->index]);
    }
    ane_kept_bind(b->plan, b->ex.kept, inputs);
}

/* The room for that many threads, within the limit. */
static ane_status make_room(ane_cpu_binding *b, int threads, const char *where, ane_error *err) {
    ane_status st = ane_plan_room(b->plan, threads, &b->sizes, &b->room, err);
    if (!st) st = ane_plan_check_limit(b->plan, &b->room, where, err);
    ane_memory_info m;
    if (!st && b->plan->n_keeps) {
        ane_plan_memory(b->plan, &b->room, &m);
        b->ex.kept = m.kept && !b->once ? b->kept : NULL;
        if (!b->ex.kept) ane_kept_bind(b->plan, b->kept, NULL);
    }
    if (st) b->room.threads = 0;        /* and again at the next run */
    return st;
}

void ane_cpu_once(ane_cpu_binding *b) {
    b->once = true;
    b->ex.kept = NULL;
    ane_kept_bind(b->plan, b->kept, NULL);
}

ane_status ane_cpu_bind(ane_plan *plan, const ane_tensor *inputs, ane_tensor *outputs,
                        ane_cpu_binding **out, ane_error *err) {
    ane_cpu_binding *b = ane_calloc(1, sizeof *b);
    if (b) {
        b->ex.base = ane_calloc((size_t)plan->n_bufs + 1, sizeof *b->ex.base);
        b->ex.rts = ane_calloc((size_t)plan->n_rts + 1, sizeof *b->ex.rts);
        b->kept = ane_calloc((size_t)plan->n_keeps + 1, sizeof *b->kept);
        b->begin = ane_calloc((size_t)plan->n_steps + 1, sizeof *b->begin);
        b->seconds = ane_calloc((size_t)plan->n_steps + 1, sizeof *b->seconds);
    }
    if (!b || !b->ex.base || !b->ex.rts || !b->kept || !b->begin || !b->seconds) {
        if (b) {
            ane_free(b->kept);
            ane_free(b->ex.base);
            ane_free(b->ex.rts);
            ane_free(b->begin);
            ane_free(b->seconds);
        }
        ane_free(b);
        return ane_fail(err, ANE_ERR_NOMEM, "[bind] out of memory");
    }
    atomic_fetch_add(&plan->refs, 1);
    b->plan = plan;
    b->ex.plan = plan;
    b->ex.outputs = outputs;
    for (int i = 0; i < plan->n_bufs; i++)
        if (plan->bufs[i].kind == ANE_BUF_CONST)
            b->ex.base[i] = (char *)(uintptr_t)plan->bufs[i].data;
    ane_status st = make_room(b, ane_num_threads(), "bind", err);
    if (!st) ane_cpu_rebind(b, inputs, outputs);
    for (int i = 0; i < plan->n_steps && plan->prepack && !st; i++)
        if (plan->steps[i].prepare) st = plan->steps[i].prepare(&b->ex, &plan->steps[i], err);
    if (st) {
        ane_cpu_unbind(b);
        return st;
    }
    *out = b;
    return ANE_OK;
}

void ane_cpu_unbind(ane_cpu_binding *b) {
    if (!b) return;
    ane_kept_bind(b->plan, b->kept, NULL);
    ane_free(b->kept);
    ane_plan_release(b->plan);
    ane_free(b->ex.base);
    ane_free(b->ex.rts);
    ane_free(b->begin);
    ane_free(b->seconds);
    ane_free(b->log);
    ane_free(b->sizes);
    ane_free(b);
}

/* Every step with its time, and what the threads did meanwhile. */
static ane_status run_profiled(ane_cpu_binding *b, ane_error *err) {
    const ane_plan *p = b->plan;
    if (!b->log) {
        b->log = ane_malloc(sizeof *b->log + LOG_MAX * sizeof *b->log->list);
        if (!b->log) return ane_fail(err, ANE_ERR_NOMEM, "[profile] out of memory");
        b->log->cap = LOG_MAX;
    }
    b->log->n = 0;
    memset(b->begin, 0, (size_t)p->n_steps * sizeof *b->begin);
    memset(b->seconds, 0, (size_t)p->n_steps * sizeof *b->seconds);
    ane_work_log *before = ane_work_log_swap(b->log);
    ane_status st = ANE_OK;
    b->began = ane_now_ns();
    for (int i = 0; i < p->n_steps; i++) {
        const ane_step *s = &p->steps[i];
        if (i && (st = ane_run_check(err))) break;
        b->log->step = i;
        int64_t t = ane_now_ns();
        if ((st = s->fn(&b->ex, s, err))) break;
        b->begin[i] = 1e-9 * (double)(t - b->began);
        b->seconds[i] = 1e-9 * (double)(ane_now_ns() - t);
    }
    (void)ane_work_log_swap(before);
    return st;
}

/* Bytes of results that the run made. */
static size_t made_bytes(const ane_cpu_binding *b) {
    size_t n = 0;
    for (int i = 0; i < b->plan->n_out; i++) {
        const ane_tensor *t = &b->ex.outputs[i];
        if (b->plan->key[b->plan->n_in + i].rank < 0 && t->surface)
            n += (size_t)ane_tensor_count(t) * ane_dtype_size(t->dtype);
    }
    return n;
}

/* What evaluation may hold: what the limit leaves of everything else. */
static ane_eval_budget budget_of(const ane_cpu_binding *b) {
    ane_eval_budget budget = {.limit = SIZE_MAX};
    ane_memory_info m;
    if (!b->plan->limit) return budget;
    ane_plan_memory(b->plan, &b->room, &m);
    budget.limit = b->plan->limit - (m.total - m.reference);
    return budget;
}

/* Ends a run of evaluation; an allocation that the limit refused says so. */
static ane_status close_budget(ane_cpu_binding *b, const ane_eval_budget *budget, ane_status st,
                               ane_error *err) {
    ane_plan *p = b->plan;
    size_t most = atomic_load(&p->reference), made = made_bytes(b);
    size_t held = budget->most > made ? budget->most - made : 0;
    while (held > most && !atomic_compare_exchange_weak(&p->reference, &most, held)) {}
    if (st != ANE_ERR_NOMEM || !budget->refused) return st;
    char before[sizeof err->message / 2];
    (void)snprintf(before, sizeof before, "%.*s", (int)sizeof before - 1, err->message);
    return ane_fail(err, st, "%s: %zu bytes of values whose size only the run knows, with %zu that "
                    "evaluation of %s holds and %zu of everything else, pass the memory limit of "
                    "%zu: use smaller shapes, or raise memory_limit or ANETORCH_MEMORY_LIMIT",
                    before, budget->refused, budget->held, p->fn->name, p->limit - budget->limit,
                    p->limit);
}

ane_status ane_cpu_run(ane_cpu_binding *b, const ane_run_options *opts, bool profile,
                       ane_error *err) {
    const ane_plan *p = b->plan;
    ane_exec *ex = &b->ex;
    block *scratch = NULL;
    int threads = ane_num_threads();
    ane_status st = threads == b->room.threads ? ANE_OK : make_room(b, threads, "run", err);
    if (st) return st;
    if (!ane_room_enter(&b->room))
        return ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory for %zu bytes of this thread's "
                        "blocks", b->room.stack[0] + b->room.kept[0]);
    if (p->scratch) {
        scratch = take_block(p->scratch);
        if (!scratch) {
            ane_room_leave();
            return ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory for %zu bytes of scratch",
                            p->scratch);
        }
        if (scratch != b->bound) {
            char *base = (char *)scratch + HEAD;
            for (int i = 0; i < p->n_bufs; i++)
                if (p->bufs[i].kind == ANE_BUF_SCRATCH) ex->base[i] = base + p->bufs[i].offset;
            b->bound = scratch;
        }
    }
    ex->opts = opts;
    /* Ops without a seed differ from run to run, and repeat from process to process. */
    ex->rng = ++b->runs * 0x9e3779b97f4a7c15u;
    ane_eval_budget budget, *before = NULL;
    if (p->evaluates) {
        budget = budget_of(b);
        before = ane_eval_budget_swap(&budget);
    }
    if (profile) st = run_profiled(b, err);
    for (int i = 0; i < p->n_steps && !profile; i++) {
        const ane_step *s = &p->steps[i];
        if (i && (st = ane_run_check(err))) break;
        if ((st = s->fn(ex, s, err))) break;
    }
    for (int i = 0; i < p->n_rts; i++) {
        ane_rt_release(ex->rts[i]);
        ex->rts[i] = NULL;
    }
    if (p->evaluates) {
        (void)ane_eval_budget_swap(before);
        st = close_budget(b, &budget, st, err);
    }
    if (scratch) give_block(scratch);
    ane_room_leave();
    return st;
}

/* ---------------------------------------------------------------- reports */

size_t ane_cpu_step_count(const ane_cpu_binding *b) { return (size_t)b->plan->n_steps; }

/* "f32_6x16__avx2" and "avx2" are of avx2; other names say how, in plain C. */
static const char *isa_of(const char *kernel) {
    const char *name, *state, *tail = strstr(kernel, "__");
    tail = tail ? tail + 2 : kernel;
    for (size_t i = 0; (name = ane_isa_name(i, &state)); i++)
        if (!strcmp(name, tail)) return name;
    return "";
}

void ane_cpu_step(const ane_cpu_binding *b, size_t i, ane_step_info *info) {
    const ane_step *s = &b->plan->steps[i];
    *info = (ane_step_info){.op = s->label, .kernel = s->kernel, .flops = s->flops,
                            .begin = b->begin[i], .seconds = b->seconds[i],
                            .isa = isa_of(s->kernel), .packed = s->packs ? "constant" : ""};
    for (int k = 0; k < s->keeps; k++)
        if (b->kept[s->first_keep + k].good) info->packed = "kept";
    info->name = s->op && s->op->n_results ? s->op->results[0]->name : "";
    info->values = s->values;
    info->n_values = (size_t)s->n_values;
    if (!s->values && s->op && s->op->n_results) {
        info->values = &s->op->results[0]->name;
        info->n_values = 1;
    }
    for (int j = 0; j < s->n_out + s->n_in; j++)
        if (s->views[j].buf >= 0)
            info->bytes += (double)ane_view_count(&s->views[j]) *
                           (double)ane_dtype_size(s->views[j].dtype);
}

size_t ane_cpu_thread_count(const ane_cpu_binding *b) {
    if (!b->log) return 0;
    return b->log->n < b->log->cap ? b->log->n : b->log->cap;
}

void ane_cpu_thread(const ane_cpu_binding *b, size_t i, ane_thread_info *info) {
    const ane_work *s = &b->log->list[i];
    *info = (ane_thread_info){.thread = s->worker, .step = (size_t)s->step,
                              .begin = 1e-9 * (double)(s->begin - b->began),
                              .seconds = 1e-9 * (double)(s->end - s->begin)};
}

void ane_cpu_memory(const ane_cpu_binding *b, ane_memory_info *info) {
    ane_plan_memory(b->plan, &b->room, info);
    info->outputs += made_bytes(b);
    /* What is there by now. */
    for (ane_packed *k = b->plan->packed; k; k = k->next)
        if (atomic_load(&k->state) != 2) {
            info->packed -= k->bytes;
            info->rounding -= ane_aligned_size(k->bytes) - k->bytes;
        }
    for (int i = 0; i < b->plan->n_keeps && info->kept; i++)
        if (!b->kept[i].data) {
            size_t bytes = b->plan->keeps[i].bytes;
            info->kept -= bytes;
            info->rounding -= ane_aligned_size(bytes) - bytes;
        }
}
