/* What infer_*.c and eval_*.c share: the prototypes that ops.def names, and small helpers.
 * Private to the op families, table.c and walk.c. */
#ifndef ANE_OPS_FN_H
#define ANE_OPS_FN_H

#include "ops.h"

#define OP(name, opset, params, results, infer, eval, doc)                               \
    ane_infer_fn ane__infer_##infer;                                                     \
    ane_eval_fn ane__eval_##eval;
#include "ops.def"
#undef OP

/* ---------------------------------------------------------------- inference */

/* Type of a parameter's first argument; NULL when absent. */
const ane_type *ane__in_type(const ane_infer *in, const char *name);
/* Type of the k-th argument of a tuple. */
const ane_type *ane__in_type_at(const ane_infer *in, const char *name, int k);
/* dtype of an argument, or of its default when it is absent. */
ane_dtype ane__in_dtype(const ane_infer *in, const char *name);
/* Fails when a given argument's rank is outside [lo, hi]. */
ane_status ane__want_rank(ane_infer *in, const char *name, int lo, int hi);
/* A given argument must have exactly one element. */
ane_status ane__want_scalar(ane_infer *in, const char *name);
/* A given rank-1 argument must have n elements (n symbolic or -1: anything). */
ane_status ane__want_vector(ane_infer *in, const char *name, int64_t n);
/* *out = a*b, -1 when either is unknown; SHAPE when the product leaves int64. */
ane_status ane__dim_mul(ane_infer *in, int64_t a, int64_t b, int64_t *out);
ane_status ane__dim_add(ane_infer *in, int64_t a, int64_t b, int64_t *out);
/* True unless both are known and differ. */
static inline bool ane__dim_fits(int64_t a, int64_t b) { return a < 0 || b < 0 || a == b; }
/* The more exact of two dims that fit. */
static inline int64_t ane__dim_merge(int64_t a, int64_t b) {
    return a >= 0 ? a : b >= 0 ? b : a == b ? a : ANE_DIM_ANY;
}
/* "[2, ?, 3]" for messages. */
#define ANE_DIMS_TEXT 160
char *ane__dims_text(int rank, const int64_t *dims, char *buf, size_t n);
/* Reads a constant int vector of exactly n entries into out; *known false when its values
 * are not known before the run. Fails when its length is known and is not n. */
ane_status ane__want_ints(ane_infer *in, const char *name, int n, int64_t *out,
                          bool *known);
/* How many elements a rank-1 int parameter has, at most ANE_MAX_RANK; the rank of what it
 * shapes. Fails when that is unknown. */
ane_status ane__want_vector_length(ane_infer *in, const char *name, int *n);
/* Elements of dim[begin:end:stride], and the first one's index. Negative begin and end
 * count from the end and are clamped at 0, as Core ML does. */
int64_t ane__slice_dim(int64_t dim, int64_t begin, int64_t end, int64_t stride,
                       bool begin_mask, bool end_mask, int64_t *first);
/* True when the parameter was given. */
bool ane__given(const ane_op *op, const char *name);
/* A dtype named by a constant string parameter; `allowed` is a dtype bit set. */
ane_status ane__want_dtype(ane_infer *in, const char *name, uint32_t allowed,
                           ane_dtype *out);
/* A constant string parameter must be one of these; NULL ends the list. */
ane_status ane__want_one_of(ane_infer *in, const char *name, const char *const *names);
#define ANE__DT(d) (1u << (unsigned)(d))
#define ANE__SET_F (ANE__DT(ANE_F16) | ANE__DT(ANE_F32))
#define ANE__SET_FI (ANE__SET_F | ANE__DT(ANE_I32))
#define ANE__SET_FIB (ANE__SET_FI | ANE__DT(ANE_BOOL))
#define ANE__SET_AN                                                                      \
    (ANE__SET_FI | ANE__DT(ANE_I8) | ANE__DT(ANE_I16) | ANE__DT(ANE_U8) | ANE__DT(ANE_U16))
#define ANE__SET_A (ANE__SET_AN | ANE__DT(ANE_BOOL))
#define ANE__SET_IX                                                                      \
    (ANE__DT(ANE_I32) | ANE__DT(ANE_I16) | ANE__DT(ANE_U16) | ANE__DT(ANE_I8) |          \
     ANE__DT(ANE_U8))

/* ---------------------------------------------------------------- evaluation */

static inline bool ane__is_float(ane_dtype d) {
    return d == ANE_F16 || d == ANE_F32 || d == ANE_F64 || d == ANE_BF16 ||
           d == ANE_F8E4M3 || d == ANE_F8E5M2;
}
/* An integer result of an exact computation, wrapped as the machine would. */
double ane__wrap(ane_dtype d, int64_t v);
/* Nearest value of the dtype: floats to nearest even, integers truncate and saturate (NaN
 * is 0), bool is "not 0". */
double ane__round_to(ane_dtype d, double v);

/* LIST, TUPLE or DICT with n empty items; NULL: no memory. */
ane_rt *ane__rt_items(ane_type_kind kind, int64_t n);

/* Element strides of a dense row-major array. */
void ane__strides(int rank, const int64_t *shape, int64_t *strides);
/* Strides that make a tensor of this shape look like `rank` broadcast dims. */
void ane__broadcast_strides(const ane_rt *r, int rank, const int64_t *shape,
                            int64_t *strides);
/* NumPy broadcasting of two run-time shapes; shape has the larger rank. */
ane_status ane__broadcast_shape(ane_eval *ev, const ane_rt *x, const ane_rt *y,
                                int64_t *shape);
int64_t ane__count(int rank, const int64_t *shape);
/* dst[i . ds] = src[i . ss] for every index i of shape; strides in elements. */
void ane__copy(double *dst, const int64_t *ds, const double *src, const int64_t *ss,
               int rank, const int64_t *shape);
/* dst dense = src with dims permuted: dst dim i = src dim perm[i]. */
void ane__permute(double *dst, const double *src, int rank, const int64_t *shape,
                  const int *perm);
/* Splits a shape round an axis: outer * n * inner. */
void ane__around(int rank, const int64_t *shape, int axis, int64_t *outer, int64_t *n,
                 int64_t *inner);
/* Wraps a run-time axis; the checker has seen constants, so this only fails for others. */
ane_status ane__eval_axis(ane_eval *ev, const char *name, int64_t fallback, int rank,
                          int *out);
/* Axes as a bool per dim; absent: all when `all`. */
ane_status ane__eval_axes(ane_eval *ev, const char *name, int rank, bool all, bool *set);
/* n * size bytes, zeroed, of this thread's budget; NULL: none left, or no memory. Given back by
 * ane__eval_free, which takes NULL. */
void *ane__eval_alloc(size_t n, size_t size);
void ane__eval_free(void *p);
/* Scratch of n doubles, zeroed; NULL with the error set. Freed by ane__eval_free. */
double *ane__scratch(ane_eval *ev, int64_t n);

/* c[m, n] += a[m, k] * b[k, n], dense, summed over k in order. */
void ane__matmul_f64(double *c, const double *a, const double *b, int64_t m, int64_t k,
                     int64_t n);
/* Softmax of n elements `step` apart; y may be x. */
void ane__softmax_row(double *y, const double *x, int64_t n, int64_t step);
/* A result of this shape, or out of the function. */
#define ANE__OUT(i, rank, shape)                                                         \
    ane_eval_out(ev, i, rank, shape);                                                    \
    if (!ev->out[i]) return ev->status

/* Next of the run's generator: uniform in [0, 1) with 53 bits. */
double ane__uniform(uint64_t *state);
uint64_t ane__next(uint64_t *state);

#endif
