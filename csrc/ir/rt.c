/* Run-time values of the reference evaluator and what evaluators reach them through. */
#include "ops_fn.h"

#include "../base/f16.h"
#include "../base/sync.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------- numbers */

/* Nearest value with `mant` mantissa bits, least exponent `emin`, largest value `top`;
 * what lies beyond becomes `over`. */
static double round_small(double v, int mant, int emin, double top, double over) {
    if (v != v || isinf(v)) return v != v ? v : copysign(over, v);
    int e;
    frexp(v, &e);
    e = e - 1 < emin ? emin : e - 1;
    double q = ldexp(nearbyint(ldexp(v, mant - e)), e - mant);
    return fabs(q) > top ? copysign(over, v) : q;
}

static void int_range(ane_dtype d, double *lo, double *hi) {
    int bits = ane_dtype_bits(d);
    bool is_signed = d == ANE_I8 || d == ANE_I16 || d == ANE_I32 || d == ANE_I64 ||
                     d == ANE_I4;
    *lo = is_signed ? -ldexp(1, bits - 1) : 0;
    *hi = ldexp(1, is_signed ? bits - 1 : bits) - 1;
}

double ane__round_to(ane_dtype d, double v) {
    double lo, hi;
    switch (d) {
    case ANE_F64: return v;
    case ANE_F32: return (double)(float)v;
    case ANE_F16: return (double)ane_f32_from_f16(ane_f16_from_f64(v));
    case ANE_BF16: return (double)ane_f32_from_bf16(ane_bf16_from_f64(v));
    case ANE_F8E4M3: return round_small(v, 3, -6, 448, NAN);
    case ANE_F8E5M2: return round_small(v, 2, -14, 57344, INFINITY);
    case ANE_BOOL: return v != 0;
    case ANE_STRING: return v;
    default:
        int_range(d, &lo, &hi);
        return v != v ? 0 : v <= lo ? lo : v >= hi ? hi : trunc(v);
    }
}

double ane__wrap(ane_dtype d, int64_t v) {
    uint64_t u = (uint64_t)v;
    switch (d) {
    case ANE_I8: return (int8_t)u;
    case ANE_U8: return (uint8_t)u;
    case ANE_I16: return (int16_t)u;
    case ANE_U16: return (uint16_t)u;
    case ANE_I32: return (int32_t)u;
    case ANE_U32: return (uint32_t)u;
    case ANE_BOOL: return u != 0;
    default: return (double)v;
    }
}

static double f8_value(uint8_t b, int mant, int bias, bool fn) {
    int e = (b & 127) >> mant, m = b & ((1 << mant) - 1), top = 127 >> mant;
    double sign = b & 128 ? -1 : 1;
    if (fn && (b & 127) == 127) return NAN;
    if (!fn && e == top) return m ? NAN : sign * INFINITY;
    return sign * (e ? ldexp(1 + ldexp(m, -mant), e - bias) : ldexp(m, 1 - bias - mant));
}

/* ---------------------------------------------------------------- values */

static _Thread_local ane_eval_budget *budget;

ane_eval_budget *ane_eval_budget_swap(ane_eval_budget *b) {
    ane_eval_budget *before = budget;
    budget = b;
    return before;
}

bool ane_eval_budget_take(size_t bytes) {
    size_t held;
    if (!budget) return true;
    if (!ane_add_size(budget->held, bytes, &held) || held > budget->limit) {
        budget->refused = bytes;
        return false;
    }
    budget->held = held;
    if (held > budget->most) budget->most = held;
    return true;
}

/* What stands in front of the memory: the bytes that a budget was charged. */
typedef struct charge {
    size_t bytes;
    char pad[16 - sizeof(size_t)];
} charge;

void *ane__eval_alloc(size_t n, size_t size) {
    size_t bytes, all;
    if (!ane_mul_size(n, size, &bytes) || !ane_add_size(bytes, sizeof(charge), &all) ||
        !ane_eval_budget_take(bytes))
        return NULL;
    charge *c = ane_calloc(1, all);
    if (!c) {
        if (budget) budget->held -= bytes;
        return NULL;
    }
    c->bytes = budget ? bytes : 0;
    return c + 1;
}

void ane__eval_free(void *p) {
    if (!p) return;
    charge *c = (charge *)p - 1;
    if (budget) budget->held -= c->bytes < budget->held ? c->bytes : budget->held;
    ane_free(c);
}

static int64_t memory_limit;
static ane_once memory_once = ANE_ONCE_INIT;
static void read_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    memory_limit = pages > 0 && size > 0 ? (int64_t)pages * size : (int64_t)1 << 34;
}

int64_t ane__count(int rank, const int64_t *shape) {
    int64_t n = 1;
    for (int i = 0; i < rank; i++) n *= shape[i];
    return n;
}

ane_rt *ane_rt_tensor(ane_dtype dtype, int rank, const int64_t *shape) {
    size_t bytes;
    if (rank < 0 || rank > ANE_MAX_RANK || !ane_shape_bytes(rank, shape, 8, &bytes))
        return NULL;
    /* Systems that overcommit would grant what the machine does not have. */
    pthread_once(&memory_once, read_memory);
    if ((int64_t)bytes > memory_limit) return NULL;
    ane_rt *r = ane_calloc(1, sizeof *r);
    if (!r) return NULL;
    r->kind = ANE_T_TENSOR;
    r->dtype = dtype;
    r->rank = rank;
    if (rank) memcpy(r->shape, shape, sizeof *shape * (size_t)rank);
    r->count = (int64_t)(bytes / 8);
    r->refs = 1;
    if (dtype == ANE_STRING) r->strings = ane__eval_alloc(bytes / 8, sizeof *r->strings);
    else r->data = ane__eval_alloc(bytes / 8, 8);
    if (!r->data && !r->strings) {
        ane_free(r);
        return NULL;
    }
    for (int64_t i = 0; r->strings && i < r->count; i++) r->strings[i] = "";
    return r;
}

ane_rt *ane__rt_items(ane_type_kind kind, int64_t n) {
    /* A list is grown by one index that the program computes: pointers alone must not take
     * more than a 64th of the memory. */
    pthread_once(&memory_once, read_memory);
    if (n < 0 || n > memory_limit / 64 / (int64_t)sizeof(ane_rt *)) return NULL;
    ane_rt *r = ane_calloc(1, sizeof *r);
    if (!r) return NULL;
    r->kind = kind;
    r->refs = 1;
    r->n = r->cap = n;
    r->items = ane__eval_alloc((size_t)n, sizeof *r->items);
    if (!r->items) {
        ane_free(r);
        return NULL;
    }
    return r;
}

ane_rt *ane_rt_retain(ane_rt *r) {
    if (r) r->refs++;
    return r;
}

void ane_rt_release(ane_rt *r) {
    if (!r || --r->refs) return;
    for (int64_t i = 0; i < r->n; i++) ane_rt_release(r->items[i]);
    ane__eval_free(r->items);
    ane__eval_free(r->strings);
    ane__eval_free(r->data);
    ane_free(r);
}

static ane_status decode(ane_rt *r, const ane_const *c, ane_error *err) {
    const unsigned char *s = c->data;
    size_t need;
    if (!ane_type_bytes(c->type, &need) || c->bytes < need)
        return ane_fail(err, ANE_ERR_INVALID, "a constant holds %zu bytes, its type needs "
                        "more", c->bytes);
    double *o = r->data;
    int64_t n = r->count;
#define EACH(T, expr)                                                                    \
    for (int64_t i = 0; i < n; i++) {                                                    \
        T v;                                                                             \
        memcpy(&v, s + (size_t)i * sizeof v, sizeof v);                                  \
        o[i] = expr;                                                                     \
    }                                                                                    \
    break
    switch (r->dtype) {
    case ANE_F16: EACH(uint16_t, (double)ane_f32_from_f16(v));
    case ANE_BF16: EACH(uint16_t, (double)ane_f32_from_bf16(v));
    case ANE_F32: EACH(float, (double)v);
    case ANE_F64: EACH(double, v);
    case ANE_BOOL: EACH(uint8_t, v != 0);
    case ANE_I8: EACH(int8_t, v);
    case ANE_I16: EACH(int16_t, v);
    case ANE_I32: EACH(int32_t, v);
    case ANE_I64: EACH(int64_t, (double)v);
    case ANE_U8: EACH(uint8_t, v);
    case ANE_U16: EACH(uint16_t, v);
    case ANE_U32: EACH(uint32_t, v);
    case ANE_U64: EACH(uint64_t, (double)v);
    case ANE_F8E4M3: EACH(uint8_t, f8_value(v, 3, 7, true));
    case ANE_F8E5M2: EACH(uint8_t, f8_value(v, 2, 15, false));
    case ANE_STRING: break;
    default: {
        /* Sub-byte: element i is bits i*b ..., least significant first. */
        size_t bits = (size_t)ane_dtype_bits(r->dtype);
        for (int64_t i = 0; i < n; i++) {
            size_t at = (size_t)i * bits, byte = at >> 3;
            unsigned w = s[byte];
            if ((at & 7) + bits > 8) w |= (unsigned)s[byte + 1] << 8;
            w = (w >> (at & 7)) & ((1u << bits) - 1u);
            o[i] = r->dtype == ANE_I4 && w >= 8 ? (double)w - 16 : (double)w;
        }
    }
    }
#undef EACH
    return ANE_OK;
}

ane_rt *ane_rt_from_const(const ane_const *c, ane_error *err) {
    const ane_type *t = c->type;
    ane_rt *r;
    if (t->kind != ANE_T_TENSOR) {
        int64_t n = t->kind == ANE_T_DICT ? 2 * (int64_t)c->n : c->n;
        r = ane__rt_items(t->kind, n);
        if (!r) {
            ane_fail(err, ANE_ERR_NOMEM, "a constant of %d items", c->n);
            return NULL;
        }
        for (int64_t i = 0; i < n; i++)
            if (!(r->items[i] = ane_rt_from_const(c->items[i], err))) {
                ane_rt_release(r);
                return NULL;
            }
        return r;
    }
    char text[ANE_TYPE_TEXT];
    if (!c->data && ane_type_count(t)) {
        ane_fail(err, ANE_ERR_NOT_FOUND, "the data of a constant %s is not loaded%s%s",
                 ane_type_text(t, text, sizeof text), c->blob_path ? ": " : "",
                 c->blob_path ? c->blob_path : "");
        return NULL;
    }
    r = ane_rt_tensor(t->dtype, t->rank, t->dims);
    if (!r) {
        ane_fail(err, ANE_ERR_NOMEM, "a constant %s", ane_type_text(t, text, sizeof text));
        return NULL;
    }
    if (r->strings) {
        if (r->count) memcpy(r->strings, c->data, (size_t)r->count * sizeof *r->strings);
    } else if (r->count && decode(r, c, err)) {
        ane_rt_release(r);
        return NULL;
    }
    return r;
}

void ane_rt_round(ane_rt *r) {
    if (!r->data || r->dtype == ANE_F64) return;
    double *d = r->data;
    int64_t n = r->count;
    if (r->dtype == ANE_F32)
        for (int64_t i = 0; i < n; i++) d[i] = (double)(float)d[i];
    else if (r->dtype == ANE_F16)
        for (int64_t i = 0; i < n; i++)
            d[i] = (double)ane_f32_from_f16(ane_f16_from_f64(d[i]));
    else
        for (int64_t i = 0; i < n; i++) d[i] = ane__round_to(r->dtype, d[i]);
}

/* ---------------------------------------------------------------- arguments */

static int param(ane_eval *ev, const char *name) {
    int i = ane_op_param_index(ev->op->row, name);
    ANE_ASSERT(i >= 0);         /* an evaluator names only its own row's parameters */
    return i;
}

static ane_rt *default_of(ane_eval *ev, int i) {
    const ane_op_param *p = &ev->op->row->params[i];
    if (!p->default_value) return NULL;
    if (!ev->defaults) {
        ev->defaults = ane_calloc((size_t)ev->op->row->n_params, sizeof *ev->defaults);
        if (!ev->defaults) goto nomem;
    }
    if (ev->defaults[i]) return ev->defaults[i];
    ane_rt *r = ane_rt_from_const(p->default_value, NULL);
    if (!r) goto nomem;
    if (ane__is_float(r->dtype) && !ev->wide)
        for (int k = 0; k < ev->op->row->n_params; k++) {
            const ane_rt *x = ev->op->args[k].n ? ev->in[k][0] : NULL;
            if (!x || x->kind != ANE_T_TENSOR || !ane__is_float(x->dtype)) continue;
            r->dtype = x->dtype;
            ane_rt_round(r);
            break;
        }
    return ev->defaults[i] = r;
nomem:
    ane_eval_fail(ev, ANE_ERR_NOMEM, "default of '%s'", p->name);
    return NULL;
}

int ane_eval_in_n(ane_eval *ev, const char *name) { return ev->op->args[param(ev, name)].n; }

ane_rt *ane_eval_in_at(ane_eval *ev, const char *name, int k) {
    int i = param(ev, name);
    return k < ev->op->args[i].n ? ev->in[i][k] : NULL;
}

ane_rt *ane_eval_in(ane_eval *ev, const char *name) {
    int i = param(ev, name);
    return ev->op->args[i].n ? ev->in[i][0] : default_of(ev, i);
}

double ane_eval_f64(ane_eval *ev, const char *name, double fallback) {
    const ane_rt *r = ane_eval_in(ev, name);
    return r && r->data && r->count ? r->data[0] : fallback;
}

int64_t ane_eval_i64(ane_eval *ev, const char *name, int64_t fallback) {
    const ane_rt *r = ane_eval_in(ev, name);
    return r && r->data && r->count ? (int64_t)ane__round_to(ANE_I64, r->data[0])
                                    : fallback;
}

bool ane_eval_bool(ane_eval *ev, const char *name, bool fallback) {
    return ane_eval_f64(ev, name, fallback) != 0;
}

const char *ane_eval_str(ane_eval *ev, const char *name, const char *fallback) {
    const ane_rt *r = ane_eval_in(ev, name);
    return r && r->strings && r->count ? r->strings[0] : fallback;
}

int ane_eval_ints(ane_eval *ev, const char *name, int64_t *out, int max) {
    const ane_rt *r = ane_eval_in(ev, name);
    if (!r || !r->data) return -1;
    for (int i = 0; i < max && i < r->count; i++)
        out[i] = (int64_t)ane__round_to(ANE_I64, r->data[i]);
    return r->count > INT32_MAX ? INT32_MAX : (int)r->count;
}

/* ---------------------------------------------------------------- results */

ane_status ane_eval_fail(ane_eval *ev, ane_status st, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    const char *name = ev->op->name ? ev->op->name
                       : ev->op->n_results ? ev->op->results[0]->name : NULL;
    ev->status = st;
    return ane_fail_at(ev->err, st, NULL, ev->op->line, ev->op->column, "%s%s%s%s: %s",
                       ev->op->row->name, name ? " '" : "", name ? name : "",
                       name ? "'" : "", text);
}

ane_rt *ane_eval_out(ane_eval *ev, int i, int rank, const int64_t *shape) {
    const ane_type *t = ev->op->results[i]->type;
    char a[ANE_TYPE_TEXT], b[ANE_DIMS_TEXT];
    ANE_ASSERT(t->kind == ANE_T_TENSOR);
    bool fits = rank == t->rank;
    for (int k = 0; fits && k < rank; k++) fits = ane__dim_fits(t->dims[k], shape[k]);
    if (!fits) {
        ane_eval_fail(ev, ANE_ERR_SHAPE, "result %d is declared %s, its value has shape %s",
                      i, ane_type_text(t, a, sizeof a),
                      ane__dims_text(rank, shape, b, sizeof b));
        return NULL;
    }
    ane_rt *r = ane_rt_tensor(t->dtype, rank, shape);
    if (!r) {
        ane_eval_fail(ev, ANE_ERR_NOMEM, "a result of shape %s does not fit the memory",
                      ane__dims_text(rank, shape, b, sizeof b));
        return NULL;
    }
    ane_rt_release(ev->out[i]);
    return ev->out[i] = r;
}

ane_rt *ane_eval_out_declared(ane_eval *ev, int i) {
    const ane_type *t = ev->op->results[i]->type;
    return ane_eval_out(ev, i, t->rank, t->dims);
}

void ane_eval_set(ane_eval *ev, int i, ane_rt *value) {
    ane_rt_retain(value);
    ane_rt_release(ev->out[i]);
    ev->out[i] = value;
}

double *ane__scratch(ane_eval *ev, int64_t n) {
    size_t bytes;
    pthread_once(&memory_once, read_memory);
    double *p = NULL;
    if (n >= 0 && ane_mul_size((size_t)n, 8, &bytes) && (int64_t)bytes <= memory_limit)
        p = ane__eval_alloc((size_t)n, 8);
    if (!p) ane_eval_fail(ev, ANE_ERR_NOMEM, "%lld numbers of scratch", (long long)n);
    return p;
}

/* ---------------------------------------------------------------- index arithmetic */

void ane__strides(int rank, const int64_t *shape, int64_t *strides) {
    int64_t n = 1;
    for (int i = rank - 1; i >= 0; i--) {
        strides[i] = n;
        n *= shape[i];
    }
}

void ane__broadcast_strides(const ane_rt *r, int rank, const int64_t *shape,
                            int64_t *strides) {
    int64_t own[ANE_MAX_RANK];
    ane__strides(r->rank, r->shape, own);
    for (int i = 0; i < rank; i++) {
        int k = i - (rank - r->rank);
        strides[i] = k < 0 || (r->shape[k] == 1 && shape[i] != 1) ? 0 : own[k];
    }
}

void ane__copy(double *dst, const int64_t *ds, const double *src, const int64_t *ss,
               int rank, const int64_t *shape) {
    int64_t n[ANE_MAX_RANK], d[ANE_MAX_RANK], s[ANE_MAX_RANK], at[ANE_MAX_RANK] = {0};
    int r = 0;
    /* Dims of size 1 go, and neighbours that are one run in both become one. */
    for (int i = 0; i < rank; i++) {
        if (shape[i] == 0) return;
        if (shape[i] == 1) continue;
        if (r && d[r - 1] == ds[i] * shape[i] && s[r - 1] == ss[i] * shape[i]) {
            n[r - 1] *= shape[i];
            d[r - 1] = ds[i];
            s[r - 1] = ss[i];
            continue;
        }
        n[r] = shape[i];
        d[r] = ds[i];
        s[r] = ss[i];
        r++;
    }
    if (!r) {
        *dst = *src;
        return;
    }
    int64_t rows = 1, len = n[r - 1], di = d[r - 1], si = s[r - 1];
    for (int i = 0; i < r - 1; i++) rows *= n[i];
    for (int64_t row = 0; row < rows; row++) {
        if (di == 1 && si == 1) memcpy(dst, src, (size_t)len * sizeof *dst);
        else
            for (int64_t k = 0; k < len; k++) dst[k * di] = src[k * si];
        for (int i = r - 2; i >= 0; i--) {
            dst += d[i];
            src += s[i];
            if (++at[i] < n[i]) break;
            dst -= d[i] * n[i];
            src -= s[i] * n[i];
            at[i] = 0;
        }
    }
}

void ane__permute(double *dst, const double *src, int rank, const int64_t *shape,
                  const int *perm) {
    int64_t own[ANE_MAX_RANK], ss[ANE_MAX_RANK], ds[ANE_MAX_RANK], to[ANE_MAX_RANK];
    ane__strides(rank, shape, own);
    for (int i = 0; i < rank; i++) {
        to[i] = shape[perm[i]];
        ss[i] = own[perm[i]];
    }
    ane__strides(rank, to, ds);
    ane__copy(dst, ds, src, ss, rank, to);
}

void ane__around(int rank, const int64_t *shape, int axis, int64_t *outer, int64_t *n,
                 int64_t *inner) {
    *outer = ane__count(axis, shape);
    *n = shape[axis];
    *inner = ane__count(rank - axis - 1, shape + axis + 1);
}

ane_status ane__eval_axis(ane_eval *ev, const char *name, int64_t fallback, int rank,
                          int *out) {
    int64_t axis = ane_eval_i64(ev, name, fallback);
    if (axis < -rank || axis >= rank)
        return ane_eval_fail(ev, ANE_ERR_INDEX, "'%s' is %lld; the rank is %d", name,
                             (long long)axis, rank);
    *out = (int)(axis < 0 ? axis + rank : axis);
    return ANE_OK;
}

ane_status ane__eval_axes(ane_eval *ev, const char *name, int rank, bool all, bool *set) {
    int64_t axes[ANE_MAX_RANK];
    int n = ane_eval_ints(ev, name, axes, ANE_MAX_RANK);
    for (int i = 0; i < rank; i++) set[i] = n < 0 && all;
    for (int i = 0; i < n; i++) {
        int64_t a = i < ANE_MAX_RANK ? axes[i] : rank;
        if (a < -rank || a >= rank)
            return ane_eval_fail(ev, ANE_ERR_INDEX, "'%s' has %lld; the rank is %d", name,
                                 (long long)a, rank);
        set[a < 0 ? a + rank : a] = true;
    }
    return ANE_OK;
}

/* ---------------------------------------------------------------- random numbers */

uint64_t ane__next(uint64_t *state) {           /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double ane__uniform(uint64_t *state) { return (double)(ane__next(state) >> 11) * 0x1p-53; }
