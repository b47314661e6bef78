/* The CPU device's own structures: a plan is a list of steps over strided views of
 * buffers, made once per (input shapes, strides, alias set) and shared by requests.
 *
 * Buffers are inputs, outputs, constants (views of the program's surfaces) and scratch
 * slots of one block whose layout pass/memplan.c made from lifetimes. A binding holds one
 * base address per buffer; only the scratch ones change, when a run gets another block.
 */
#ifndef ANE_CPU_H
#define ANE_CPU_H

#include "../../base/mem.h"
#include "../../base/sync.h"
#include "../../ir/ops.h"
#include "../../surface/watch.h"
#include "../backend.h"

#include <stdatomic.h>

typedef enum ane_buf_kind {
    ANE_BUF_INPUT, ANE_BUF_OUTPUT, ANE_BUF_CONST, ANE_BUF_SCRATCH
} ane_buf_kind;

typedef struct ane_buf {
    ane_buf_kind kind;
    int index;                          /* INPUT, OUTPUT: number of the port */
    const void *data;                   /* CONST */
    const char *name;                   /* the value that is there; NULL: a temporary */
    size_t bytes;
    size_t offset;                      /* SCRATCH: in the block */
    int first, last;                    /* steps that touch it; first > last: none */
} ane_buf;

typedef struct ane_view {
    int buf;
    ane_dtype dtype;
    int rank;
    int64_t offset;                     /* bytes from the buffer's base to element 0 */
    int64_t shape[ANE_MAX_RANK];
    int64_t strides[ANE_MAX_RANK];      /* bytes */
} ane_view;

typedef struct ane_plan ane_plan;
typedef struct ane_step ane_step;

/* A constant operand of a product in the micro-kernel's own layout: made once per plan, at
 * the first run or (prepack) at the first binding. */
typedef struct ane_packed {
    struct ane_packed *next;
    atomic_int state;                   /* 0: none, 1: being made, 2: ready */
    const char *name;                   /* the constant's; NULL: unnamed */
    void *data;
    size_t bytes;
} ane_packed;

/* An operand that is bound, in the micro-kernel's own layout, kept by a binding while nobody
 * writes to it: packed once per write, where runs come more often than writes. */
typedef struct ane_keep {               /* of a plan */
    ane_view view;                      /* of an input; no dim is repeated */
    size_t bytes;
} ane_keep;
typedef struct ane_kept {               /* of a binding */
    ane__watch watch;
    void *data;                         /* ane_keep.bytes; NULL: none now */
    bool good;                          /* data is of what was last seen there */
    int changes;                        /* runs in a row that found it written */
} ane_kept;

/* One run in progress. */
typedef struct ane_exec {
    const ane_plan *plan;
    char **base;                        /* per buffer */
    ane_rt **rts;                       /* per island slot */
    ane_tensor *outputs;                /* the request's, for shapes found by running */
    ane_kept *kept;                     /* of the plan's keeps; NULL: nothing is kept */
    uint64_t rng;
    const ane_run_options *opts;        /* never NULL */
} ane_exec;

typedef ane_status ane_step_fn(ane_exec *ex, const ane_step *s, ane_error *err);
/* Work that a step would do at its first run; may look at constants only. */
typedef ane_status ane_prepare_fn(const ane_exec *ex, const ane_step *s, ane_error *err);

struct ane_step {
    ane_step_fn *fn;
    ane_prepare_fn *prepare;            /* NULL: nothing to prepare */
    void (*room)(const ane_exec *ex, const ane_step *s, ane_room *room);    /* states what fn
                                           takes of its threads' blocks; of addresses only
                                           which are the same counts. NULL: nothing */
    const ane_op *op;                   /* the (last) op it computes; NULL: a copy */
    const char *const *values;          /* results of all ops it computes, for reports */
    int n_values;
    int n_out, n_in;
    ane_view *views;                    /* outputs, then inputs */
    void *data;                         /* the family's own, in the plan's arena */
    const char *label;                  /* "matmul+add" */
    const char *kernel;                 /* what runs it, for reports */
    double flops;
    int keeps, first_keep;              /* bound operands that it packs once per write */
    bool packs;                         /* a constant operand, once */
    bool in_place;                      /* may write an output over an input of the same
                                           view: every element is read before written */
    int in_place_only;                  /* > 0: only over this view of the step */
};

struct ane_plan {
    atomic_int refs;
    ane_arena *arena;
    ane_program *program;               /* specialised; owns everything ops point at */
    ane_program *types;                 /* owns the parameter types it was made with */
    const ane_function *fn;
    int n_in, n_out;
    const ane_tensor *key;              /* inputs, then outputs, surfaces NULL */
    const bool *alias;                  /* [output][input]: the same view */
    int n_bufs, cap_bufs;
    ane_buf *bufs;
    int n_steps, cap_steps;
    ane_step *steps;
    size_t scratch, values;             /* block bytes; the same without reuse */
    bool prepack;
    size_t limit;                       /* of memory; 0: none */
    _Atomic size_t reference;           /* the most that evaluation held in a run so far */
    ane_packed *packed;
    int n_keeps, cap_keeps;
    ane_keep *keeps;
    int n_rts;                          /* island slots */
    int n_held, cap_held;               /* prebuilt constants of islands */
    ane_rt **held;
    bool evaluates;                     /* some step is the reference evaluator's */
    bool walk;                          /* blocks, states: the whole function at once */
    unsigned target;                    /* chips whose arithmetic it imitates; 0: none */
};

static inline ane_view *ane_step_out(const ane_step *s, int i) { return &s->views[i]; }
static inline ane_view *ane_step_in(const ane_step *s, int i) {
    return &s->views[s->n_out + i];
}
static inline void *ane_at(const ane_exec *ex, const ane_view *v) {
    return ex->base[v->buf] + v->offset;
}

/* ---------------------------------------------------------------- plan.c */

/* inputs and outputs as in ane_backend.bind; only shapes, strides and aliases matter. */
ane_status ane_plan_create(const ane_function *f, const ane_backend_options *opts,
                           const ane_tensor *inputs, const ane_tensor *outputs,
                           ane_plan **out, ane_error *err);
void ane_plan_release(ane_plan *p);
/* f for these input shapes: a program of its own; *types (may be NULL) must outlive it. */
ane_status ane_function_for(const ane_function *f, const ane_tensor *inputs,
                            ane_program **types, ane_program **out, ane_error *err);
bool ane_plan_fits(const ane_plan *p, const ane_tensor *inputs, const ane_tensor *outputs);

/* Where a value is while planning. */
typedef struct ane_place {
    bool placed;                        /* `at` is good */
    bool last;                          /* scratch of its own is channels last */
    bool wanted;                        /* `dest` is good: where to write it */
    ane_view at, dest;
    int rt;                             /* island slot, -1: none */
} ane_place;

typedef struct ane_planner {
    ane_plan *plan;
    const ane_backend_options *opts;
    struct ane_graph *graph;
    ane_place *places;                  /* by value id */
    uint32_t n_places;
    bool settled;                       /* the last op's results are the target's already */
    ane_error *err;
} ane_planner;

/* The view of a value: constants become buffers when first asked for. Fails on values
 * without one (lists, strings, sub-byte constants): see ane_plan_is_tensor. */
ane_status ane_plan_operand(ane_planner *pl, const ane_value *v, ane_view *out);
/* Where to write a value: its output buffer or a new scratch slot. */
ane_status ane_plan_dest(ane_planner *pl, const ane_value *v, ane_view *out);
/* A row-major scratch buffer of like's dtype and shape. */
ane_status ane_plan_temp(ane_planner *pl, const ane_view *like, ane_view *out);
/* Destinations: outputs first, then back through shape ops and concat, so that producers
 * write where their result is wanted. */
ane_status ane_plan_destinations(ane_planner *pl);
ane_status ane_plan_join(ane_planner *pl, const ane_op *op);
/* Copies at the end into outputs that alias an input go away where the producer may write
 * there itself. */
void ane_plan_elide(ane_planner *pl);
int ane_plan_buf(ane_planner *pl, ane_buf_kind kind, size_t bytes);     /* -1: no memory */
bool ane_plan_is_tensor(const ane_type *t);
ane_step *ane_plan_step(ane_planner *pl, ane_step_fn *fn, const ane_op *op, int n_out,
                        int n_in);      /* zeroed views; NULL: no memory */

/* Which values are channels last; before anything is placed. */
void ane_plan_layout(ane_planner *pl);
/* Strides of a dense view whose dim 1 is innermost. */
void ane_view_channels_last(ane_view *v);

/* ---------------------------------------------------------------- packed.c */

/* Whoever comes first packs, and others wait: to run from the operand itself would take more
 * memory than was stated. */
typedef ane_status ane_pack_once_fn(const void *args, void *dst, ane_error *err);
ane_status ane_packed_make(ane_packed *k, ane_pack_once_fn *pack, const void *args,
                           ane_error *err);
const void *ane_packed_data(const ane_packed *k);       /* NULL: not ready, or k is NULL */
ane_packed *ane_plan_packed(ane_planner *pl, size_t bytes);     /* NULL: no memory, 0 bytes */

/* ---------------------------------------------------------------- kept.c */

/* The number of a new keep, or -1: not an input's, or no memory (nothing is kept then). */
int ane_plan_keep(ane_planner *pl, const ane_view *v, size_t bytes);
/* The operand as `pack` makes it of args; NULL: not now, take it as it is. */
const void *ane_kept_use(const ane_exec *ex, int keep, ane_pack_once_fn *pack, const void *args);
/* After the addresses of a binding's inputs changed, and before it goes (inputs NULL). */
void ane_kept_bind(const ane_plan *p, ane_kept *kept, const ane_tensor *inputs);
/* How often an operand was packed to be kept, in this process (tests). */
size_t ane_kept_packs(void);

/* ---------------------------------------------------------------- fallback.c */

/* Reference evaluation of one op, of any kind. */
ane_status ane_plan_fallback(ane_planner *pl, const ane_op *op);
/* Output `output` is what island slot `rt` holds at the end. */
ane_status ane_plan_export(ane_planner *pl, int rt, int output);
/* The whole function by the reference walker. */
ane_status ane_plan_walk(ane_planner *pl);
/* Dense doubles of a view, and back with rounding (saturating for integers). */
void ane_view_load(const ane_view *v, const void *data, double *dst);
void ane_view_store(const ane_view *v, void *data, const double *src);

/* ---------------------------------------------------------------- ops_copy.c */

ane_status ane_plan_copy(ane_planner *pl, const ane_view *dst, const ane_view *src);

/* ---------------------------------------------------------------- exec.c */

typedef struct ane_cpu_binding ane_cpu_binding;
ane_status ane_cpu_bind(ane_plan *plan, const ane_tensor *inputs, ane_tensor *outputs,
                        ane_cpu_binding **out, ane_error *err);     /* retains plan */
void ane_cpu_unbind(ane_cpu_binding *b);
void ane_cpu_rebind(ane_cpu_binding *b, const ane_tensor *inputs, const ane_tensor *outputs);
void ane_cpu_once(ane_cpu_binding *b);
ane_status ane_cpu_run(ane_cpu_binding *b, const ane_run_options *opts, bool profile,
                       ane_error *err);
size_t ane_cpu_step_count(const ane_cpu_binding *b);
void ane_cpu_step(const ane_cpu_binding *b, size_t i, ane_step_info *info);
size_t ane_cpu_thread_count(const ane_cpu_binding *b);
void ane_cpu_thread(const ane_cpu_binding *b, size_t i, ane_thread_info *info);
void ane_cpu_memory(const ane_cpu_binding *b, ane_memory_info *info);

/* ---------------------------------------------------------------- memory.c */

/* What a run of the plan takes of threads' blocks on that many threads; *sizes is the room's
 * memory: made here, or made larger. */
ane_status ane_plan_room(const ane_plan *p, int threads, size_t **sizes, ane_room *room,
                         ane_error *err);
/* What such a run needs, packed weights included whether they exist yet or not; what may be
 * kept only where the limit has room for it. */
void ane_plan_memory(const ane_plan *p, const ane_room *room, ane_memory_info *info);
void ane_plan_buffers(const ane_plan *p, const ane_room *room,
                      void (*each)(void *arg, const ane_buffer_info *buffer), void *arg);
/* NOMEM when that is more than the plan's limit. */
ane_status ane_plan_check_limit(const ane_plan *p, const ane_room *room, const char *where,
                                ane_error *err);
/* Bytes in front of a scratch block's first value. */
#define ANE_BLOCK_HEAD ((size_t)ANE_ALIGN)

/* ---------------------------------------------------------------- shared small things */

/* Does any input share output o's memory? */
static inline bool ane_plan_aliased(const ane_plan *p, int o) {
    for (int i = 0; i < p->n_in; i++)
        if (p->alias[o * p->n_in + i]) return true;
    return false;
}

static inline int64_t ane_view_count(const ane_view *v) {
    int64_t n = 1;
    for (int i = 0; i < v->rank; i++) n *= v->shape[i];
    return n;
}

#endif
