/* What a device offers: one static table of functions each, listed in registry.c.
 *
 * compile gets one function of a program that the kernel owns, so everything in it lives
 * until destroy. bind resolves concrete views (already checked against the ports: dtype,
 * rank, known dims, aliases) to something that run can repeat without allocating. One
 * executable may have many bindings, and different bindings may run at once; one binding
 * is never run by two threads.
 */
#ifndef ANE_BACKEND_H
#define ANE_BACKEND_H

#include "../ir/ir.h"
#include "../kernels/gemm.h"

/* How a function's ports reach a device whose compiler may refuse many. */
typedef enum ane_lowering { ANE_LOWER_AUTO, ANE_LOWER_INPUTS, ANE_LOWER_PACKED } ane_lowering;

typedef struct ane_backend_options {
    unsigned target;                    /* numerics="ane": chips to imitate; 0: "ieee" */
    ane_precision precision;
    bool prepack;
    ane_lowering lowering;
    size_t memory_limit;                /* 0: none */
    void *donor;                        /* an executable of the same text, whose weights are to */
    bool reload;                        /* be exchanged, in place or not; NULL: compile */
} ane_backend_options;

typedef struct ane_backend {
    const char *name;
    bool (*available)(void);
    const char *(*detail)(void);        /* what it is, or why it is absent */
    ane_status (*compile)(const ane_function *f, const ane_backend_options *opts,
                          void **exe, ane_error *err);
    void (*destroy)(void *exe);

    /* outputs[i].surface == NULL: the run makes it (data-dependent shape); it is then
     * written into `outputs` as given here, which outlives the binding. */
    ane_status (*bind)(void *exe, const ane_tensor *inputs, ane_tensor *outputs,
                       void **binding, ane_error *err);
    void (*unbind)(void *binding);
    /* The caller has installed the thread's ane_poll. opts is never NULL. */
    ane_status (*run)(void *binding, const ane_run_options *opts, bool profile,
                      ane_error *err);

    /* Optional members; NULL means what the comment says. */
    bool (*supports_op)(const ane_op *op, const char **why);    /* NULL: all */
    /* Strides and bytes that the device wants for a port. NULL: row-major, any strides. */
    ane_status (*port)(void *exe, bool output, size_t i, ane_port *port, ane_error *err);
    /* Result dims for these input shapes (-1: known only by running). */
    ane_status (*infer)(void *exe, const ane_tensor *inputs, ane_port *outputs,
                        ane_error *err);            /* NULL: the ports are static */
    /* ANE_LOWER_INPUTS or _PACKED; *why: of a second choice, what became of the first, or
     * "". NULL: the device takes ports as they are. */
    ane_lowering (*lowering)(void *exe, const char **why);
    /* Operands of the same layouts and aliases at other addresses; never during a run.
     * NULL: a request keeps its memory. */
    void (*rebind)(void *binding, const ane_tensor *inputs, const ane_tensor *outputs);
    /* It will be run once: nothing is to be kept for a second time. NULL: nothing is. */
    void (*once)(void *binding);
    size_t (*step_count)(void *binding);            /* NULL: 0 */
    void (*step)(void *binding, size_t i, ane_step_info *info);
    void (*memory)(void *binding, ane_memory_info *info);       /* NULL: zeros */
    size_t (*thread_count)(void *binding);          /* NULL: 0 */
    void (*thread)(void *binding, size_t i, ane_thread_info *info);
    /* As ane_kernel_memory; a surface tells only "given" or not and has an address of its
     * own with no memory behind it. `limited`: fail beyond the limit. NULL: zeros. */
    ane_status (*plan_memory)(void *exe, const ane_tensor *inputs, const ane_tensor *outputs,
                              bool limited, ane_memory_info *info,
                              void (*each)(void *arg, const ane_buffer_info *buffer),
                              void *arg, ane_error *err);
} ane_backend;

size_t ane_backend_count(void);
const ane_backend *ane_backend_at(size_t i);
/* NULL name: "cpu". Fails with the device's own reason when it is absent. */
ane_status ane_backend_find(const char *name, const ane_backend **out, ane_error *err);

/* ANE_ERR_CANCELLED when this thread's poll (base/sync.h) says stop. */
ane_status ane_run_check(ane_error *err);

extern const ane_backend ane_backend_cpu;

static inline size_t ane_memory_total(const ane_memory_info *m) {
    return m->inputs + m->outputs + m->constants + m->packed + m->kept + m->scratch + m->threads +
           m->reference + m->rounding;
}

#endif
