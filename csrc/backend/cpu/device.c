/* The CPU device's table: executables keep the plans made so far. */
#include "cpu.h"

#include <string.h>

#define PLANS_MAX 64                    /* shapes kept; requests keep theirs anyway */

typedef struct cpu_exe {
    const ane_function *fn;
    ane_backend_options opts;
    ane_mutex lock;
    int n_plans;
    ane_plan *plans[PLANS_MAX];         /* most recent first */
} cpu_exe;

static bool available(void) { return true; }

static const char *detail(void) { return "CPU"; }

static void destroy(void *exe) {
    cpu_exe *e = exe;
    if (!e) return;
    for (int i = 0; i < e->n_plans; i++) ane_plan_release(e->plans[i]);
    pthread_mutex_destroy(&e->lock);
    ane_free(e);
}

/* Ops that nothing here can run are refused now, not at the first run. */
static ane_status check_ops(const ane_block *b, ane_error *err) {
    for (const ane_op *op = b->first; op; op = op->next) {
        bool known = op->n_results > 0;
        for (int i = 0; i < op->n_results && known; i++) known = op->results[i]->konst != NULL;
        if (!known && !op->row->eval && !op->n_blocks)
            return ane_fail_at(err, ANE_ERR_UNSUPPORTED, NULL, op->line, op->column,
                               "[compile] op %s (line %d) has no implementation on the CPU "
                               "device", op->row->name, op->line);
        for (int i = 0; i < op->n_blocks; i++) {
            ane_status st = check_ops(op->blocks[i], err);
            if (st) return st;
        }
    }
    return ANE_OK;
}

static ane_status compile(const ane_function *f, const ane_backend_options *opts, void **exe,
                          ane_error *err) {
    ane_status st = check_ops(f->body, err);
    if (st) return st;
    cpu_exe *e = ane_calloc(1, sizeof *e);
    if (!e) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    e->fn = f;
    e->opts = *opts;
    pthread_mutex_init(&e->lock, NULL);
    *exe = e;
    return ANE_OK;
}

/* A retained plan for these operands. Planning happens under the lock: a second thread
 * that wants the same shape waits instead of planning it twice. */
static ane_status plan_for(cpu_exe *e, const ane_tensor *inputs, const ane_tensor *outputs,
                           ane_plan **out, ane_error *err) {
    ane_status st = ANE_OK;
    ane_plan *p = NULL;
    ane_mutex_lock(&e->lock);
    int i = 0;
    while (i < e->n_plans && !ane_plan_fits(e->plans[i], inputs, outputs)) i++;
    if (i < e->n_plans) {
        p = e->plans[i];
    } else {
        st = ane_plan_create(e->fn, &e->opts, inputs, outputs, &p, err);
        if (!st) {
            if (e->n_plans == PLANS_MAX) ane_plan_release(e->plans[--e->n_plans]);
            i = e->n_plans++;
        }
    }
    if (!st) {
        memmove(e->plans + 1, e->plans, (size_t)i * sizeof *e->plans);
        e->plans[0] = p;
        atomic_fetch_add(&p->refs, 1);
        *out = p;
    }
    ane_mutex_unlock(&e->lock);
    return st;
}

static ane_status bind(void *exe, const ane_tensor *inputs, ane_tensor *outputs,
                       void **binding, ane_error *err) {
    ane_plan *p = NULL;
    ane_cpu_binding *b = NULL;
    ane_status st = plan_for(exe, inputs, outputs, &p, err);
    if (!st) st = ane_cpu_bind(p, inputs, outputs, &b, err);
    ane_plan_release(p);
    if (!st) *binding = b;
    return st;
}

static void unbind(void *binding) { ane_cpu_unbind(binding); }

static void rebind(void *binding, const ane_tensor *inputs, const ane_tensor *outputs) {
    ane_cpu_rebind(binding, inputs, outputs);
}

static ane_status run(void *binding, const ane_run_options *opts, bool profile, ane_error *err) {
    return ane_cpu_run(binding, opts, profile, err);
}

static ane_status infer(void *exe, const ane_tensor *inputs, ane_port *outputs,
                        ane_error *err) {
    cpu_exe *e = exe;
    ane_program *types = NULL, *p = NULL;
    ane_status st = ane_function_for(e->fn, inputs, &types, &p, err);
    if (st) return st;
    const ane_block *body = p->functions->body;
    for (int i = 0; i < body->n_outputs; i++) {
        const ane_type *t = body->outputs[i]->type;
        for (int d = 0; t->kind == ANE_T_TENSOR && d < t->rank; d++)
            outputs[i].dims[d] = t->dims[d] < 0 ? -1 : t->dims[d];
    }
    ane_program_release(p);
    ane_program_release(types);
    return ANE_OK;
}

static void once(void *binding) { ane_cpu_once(binding); }

static size_t step_count(void *binding) { return ane_cpu_step_count(binding); }
static void step(void *binding, size_t i, ane_step_info *info) {
    ane_cpu_step(binding, i, info);
}
static void memory(void *binding, ane_memory_info *info) { ane_cpu_memory(binding, info); }
static size_t thread_count(void *binding) { return ane_cpu_thread_count(binding); }
static void thread(void *binding, size_t i, ane_thread_info *info) {
    ane_cpu_thread(binding, i, info);
}

static ane_status plan_memory(void *exe, const ane_tensor *inputs, const ane_tensor *outputs,
                              bool limited, ane_memory_info *info,
                              void (*each)(void *arg, const ane_buffer_info *buffer),
                              void *arg, ane_error *err) {
    ane_plan *p = NULL;
    ane_room room;
    size_t *sizes = NULL;
    ane_status st = plan_for(exe, inputs, outputs, &p, err);
    if (!st) st = ane_plan_room(p, ane_num_threads(), &sizes, &room, err);
    if (!st && limited) st = ane_plan_check_limit(p, &room, "bind", err);
    if (!st) {
        ane_plan_memory(p, &room, info);
        if (each) ane_plan_buffers(p, &room, each, arg);
    }
    ane_free(sizes);
    ane_plan_release(p);
    return st;
}

const ane_backend ane_backend_cpu = {
    .name = "cpu",
    .available = available,
    .detail = detail,
    .compile = compile,
    .destroy = destroy,
    .bind = bind,
    .unbind = unbind,
    .rebind = rebind,
    .run = run,
    .once = once,
    .infer = infer,
    .step_count = step_count,
    .step = step,
    .memory = memory,
    .thread_count = thread_count,
    .thread = thread,
    .plan_memory = plan_memory,
};
