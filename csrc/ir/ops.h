/* The op table: what ops.def's rows become, and the interfaces that inference and
 * reference evaluation are written against.
 *
 * A row of ops.def:
 *
 *     OP(name, opset, "parameters", "results", infer, eval, "one-line documentation")
 *
 * opset is 15..18; the row that applies is the newest one not newer than the function's.
 * A second row of a name repeats the whole row with what changed and stands right after the
 * first. `infer` and `eval` name ane__infer_<infer> and ane__eval_<eval>; eval `none`: NULL.
 *
 * parameters: comma list of   name ":" ["c "] type [suffix]
 *     c          must be a constant
 *     type       a dtype set or dtype:  F FI FIB A AN IX  i32 bool str u8 ... or several
 *                joined by '|' (F|u8), or a type variable with its set at first use:
 *                T<FI>, later T. `any`, `list` and `state` name the other kinds.
 *     suffix     "[]" rank 1 (a scalar is accepted as one element); "..." tuple of any
 *                number; "?" optional, absent by default; "=literal" optional with this
 *                default (int, float, true/false, "string").
 *     e.g. "x:T<FI>, y:T, transpose_x:c bool=false"     "values:T<FIB>..., axis:c i32"
 * results: comma list of a dtype, a type variable, "list", "any", or "-" for none.
 * A name with a leading "@" in a row's parameters is given as an attribute in the text
 * (ios16 constexpr_*).
 *
 * What the generic checker does from the row alone, before `infer` runs: names known and
 * given once, required ones present, constness, dtype sets, equality of type variables,
 * rank 1 for "[]", tuple or not. infer functions do shapes and whatever a row cannot say.
 */
#ifndef ANE_OPS_H
#define ANE_OPS_H

#include "ir.h"

typedef struct ane_infer ane_infer;
typedef struct ane_eval ane_eval;
typedef ane_status ane_infer_fn(ane_infer *in);
typedef ane_status ane_eval_fn(ane_eval *ev);

typedef enum ane_param_kind {
    ANE_P_TENSOR, ANE_P_LIST, ANE_P_STATE, ANE_P_ANY
} ane_param_kind;

typedef struct ane_op_param {
    const char *name;
    ane_param_kind kind;
    uint32_t dtypes;                    /* bit set of ane_dtype */
    int var;                            /* type variable index, -1: none */
    bool is_const, rank1, tuple, optional, attribute;
    const char *default_text;           /* as in the row; NULL: none */
    const ane_const *default_value;     /* built once, shared by all programs; NULL: none */
} ane_op_param;

struct ane_op_row {
    const char *name;
    int opset;
    const char *params_text, *results_text, *doc;
    ane_infer_fn *infer;
    ane_eval_fn *eval;
    int n_params;
    const ane_op_param *params;
    int n_results;                      /* -1: as many as infer says */
    int index;                          /* row number in ops.def */
};

/* The table, parsed once. */
size_t ane_op_row_count(void);
const ane_op_row *ane_op_row_at(size_t i);
/* Newest row of `name` with opset <= `opset`; NULL: none. *later is the first newer one. */
const ane_op_row *ane_op_row_find(const char *name, int opset, const ane_op_row **later);
int ane_op_param_index(const ane_op_row *row, const char *name);        /* -1: none */

/* ---------------------------------------------------------------- inference */

struct ane_infer {
    ane_program *program;               /* types are allocated here */
    const ane_op *op;                   /* row, args and blocks are set, results not yet */
    int opset;
    int n_results;                      /* preset from the row; infer may change it */
    const ane_type **results;           /* to fill; room for ANE_MAX_RESULTS */
    ane_error *err;
};
#define ANE_MAX_RESULTS 1024

/* Arguments by name. The op_* family serves passes and backends as well. */
const ane_arg *ane_op_arg(const ane_op *op, const char *name);          /* NULL: absent */
ane_value *ane_op_in(const ane_op *op, const char *name);       /* first value, or NULL */
/* What a parameter marked constant takes: a known value, or a constexpr_* result. */
bool ane_value_is_constant(const ane_value *v);
/* Known constant of an argument or its default; NULL when absent or not constant. */
const ane_const *ane_op_const(const ane_op *op, const char *name);
/* Constant scalars; `fallback` when absent or unknown. */
int64_t ane_op_i64(const ane_op *op, const char *name, int64_t fallback);
double ane_op_f64(const ane_op *op, const char *name, double fallback);
bool ane_op_bool(const ane_op *op, const char *name, bool fallback);
const char *ane_op_str(const ane_op *op, const char *name, const char *fallback);
/* Constant int vector (a scalar counts as one); -1 when absent or not constant; at most
 * max entries are stored, the true count is returned. */
int ane_op_ints(const ane_op *op, const char *name, int64_t *out, int max);

/* Fails with the op, its name and position in front of the message. */
ane_status ane_infer_fail(ane_infer *in, ane_status st, const char *fmt, ...)
    ANE_PRINTF(3, 4);
/* results[i] = tensor type. */
ane_status ane_infer_set(ane_infer *in, int i, ane_dtype dtype, int rank,
                         const int64_t *dims);
ane_status ane_infer_same(ane_infer *in, int i, const ane_type *type);
/* Wraps a negative axis and checks it against rank (rank+1 for insertions: pass it). */
ane_status ane_infer_axis(ane_infer *in, const char *param, int64_t axis, int rank,
                          int *out);
/* NumPy broadcasting of dims with symbols: 1 yields, equal symbols stay, else unknown. */
ane_status ane_infer_broadcast(ane_infer *in, const ane_type *a, const ane_type *b,
                               int *rank, int64_t *dims);

/* ---------------------------------------------------------------- reference evaluation */

/* A run-time value of the reference evaluator. Numbers of every dtype are doubles, dense
 * row-major (int64 beyond 2^53 is not needed by any op). */
typedef struct ane_rt {
    ane_type_kind kind;
    ane_dtype dtype;
    int rank;
    int64_t shape[ANE_MAX_RANK];
    int64_t count;
    double *data;                       /* TENSOR of numbers, STATE */
    const char **strings;               /* TENSOR of ANE_STRING; borrowed */
    int64_t n, cap;                     /* LIST, DICT (2n, key then value) */
    bool grows;                         /* LIST: writing behind its end makes it longer */
    struct ane_rt **items;
    int refs;
} ane_rt;

struct ane_eval {
    const ane_op *op;
    ane_rt *const *const *in;           /* in[param][k]: parallel to op->args */
    ane_rt **out;                       /* out[result]: filled through ane_eval_out */
    bool wide;                          /* floats are not rounded (double evaluation) */
    uint64_t *rng;                      /* state of the run's generator */
    ane_error *err;
    ane_status status;                  /* of the last failed helper */
    ane_rt **defaults;                  /* per parameter: its default, made on demand */
};

/* What the values and scratch of evaluation on one thread hold. While one is installed, an
 * allocation that would pass its limit fails before it is made. */
typedef struct ane_eval_budget {
    size_t limit;                       /* SIZE_MAX: none */
    size_t held, most;                  /* now; at once so far */
    size_t refused;                     /* what the last one that failed asked for; 0: none did */
} ane_eval_budget;
/* Of this thread, NULL: none; returns the one before. */
ane_eval_budget *ane_eval_budget_swap(ane_eval_budget *b);
/* Whether `bytes` more are within it; then they are held until the budget goes. */
bool ane_eval_budget_take(size_t bytes);

ane_rt *ane_rt_tensor(ane_dtype dtype, int rank, const int64_t *shape); /* zeros; NULL */
ane_rt *ane_rt_retain(ane_rt *r);
void ane_rt_release(ane_rt *r);
ane_rt *ane_rt_from_const(const ane_const *c, ane_error *err);
/* Rounds every element to the dtype's values (fp16, fp32, ints saturate, bool). */
void ane_rt_round(ane_rt *r);

/* First value of an argument, defaults included; NULL: absent. A float default takes the
 * dtype of the op's first float operand: log's 1e-45 is 0 beside an fp16 x. */
ane_rt *ane_eval_in(ane_eval *ev, const char *name);
int ane_eval_in_n(ane_eval *ev, const char *name);
ane_rt *ane_eval_in_at(ane_eval *ev, const char *name, int k);
/* Scalars and int vectors at run time (also of non-constant arguments). */
double ane_eval_f64(ane_eval *ev, const char *name, double fallback);
int64_t ane_eval_i64(ane_eval *ev, const char *name, int64_t fallback);
bool ane_eval_bool(ane_eval *ev, const char *name, bool fallback);
const char *ane_eval_str(ane_eval *ev, const char *name, const char *fallback);
int ane_eval_ints(ane_eval *ev, const char *name, int64_t *out, int max);
/* Makes result i: dtype of the op's declared result, this shape; zeros. NULL: *err set and
 * the status in ev->status. The shape must fit the declared type. */
ane_rt *ane_eval_out(ane_eval *ev, int i, int rank, const int64_t *shape);
/* With the declared (static) type's own shape. */
ane_rt *ane_eval_out_declared(ane_eval *ev, int i);
/* Result i is this very value (retained). */
void ane_eval_set(ane_eval *ev, int i, ane_rt *value);
ane_status ane_eval_fail(ane_eval *ev, ane_status st, const char *fmt, ...)
    ANE_PRINTF(3, 4);

/* Runs a function: args parallel to params; results parallel to body outputs, one
 * reference each (NULL all round on failure). Nested blocks cost heap, not stack. Rounds each
 * op's float results to their dtype unless wide. States are passed as args and updated in place. trace, when not NULL, sees every value. */
typedef struct ane_walk_options {
    bool wide;
    uint64_t seed;
    void (*trace)(void *arg, const ane_value *v, const ane_rt *r);
    void *trace_arg;
    const ane_run_options *run;
    unsigned target;                    /* chips whose arithmetic to imitate (target.h); 0 */
} ane_walk_options;
ane_status ane_function_eval(const ane_function *f, ane_rt *const *args, ane_rt **results,
                             const ane_walk_options *opts, ane_error *err);
/* One op on its own: folding, the CPU device's fallback. in[param][k] parallel to op->args;
 * out[result] one reference each. Results are rounded to their dtype unless wide; rng may
 * be NULL. Ops with blocks are refused: ane_function_eval runs them. A state argument is
 * updated in place. */
ane_status ane_op_eval(const ane_op *op, ane_rt *const *const *in, ane_rt **out, bool wide,
                       uint64_t *rng, ane_error *err);

#endif
