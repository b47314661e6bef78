/* Element-wise ops of one and two operands, cast, clip and select. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- one operand */

#define UNARY(name, expr)                                                                \
    ane_status ane__eval_##name(ane_eval *ev) {                                          \
        const ane_rt *x = ane_eval_in(ev, "x");                                          \
        ane_rt *y = ANE__OUT(0, x->rank, x->shape);                                           \
        const double *s = x->data;                                                       \
        double *o = y->data;                                                             \
        for (int64_t i = 0; i < x->count; i++) {                                         \
            double v = s[i];                                                             \
            o[i] = expr;                                                                 \
        }                                                                                \
        return ANE_OK;                                                                   \
    }

/* The same for ops that take int32: exact in int64, wrapped like the machine's. */
#define UNARY_INT(name, expr, int_expr)                                                  \
    static ane_status name##_float(ane_eval *ev, const ane_rt *x);                       \
    ane_status ane__eval_##name(ane_eval *ev) {                                          \
        const ane_rt *x = ane_eval_in(ev, "x");                                          \
        if (ane__is_float(x->dtype)) return name##_float(ev, x);                         \
        ane_rt *y = ANE__OUT(0, x->rank, x->shape);                                           \
        for (int64_t i = 0; i < x->count; i++) {                                         \
            int64_t v = (int64_t)x->data[i];                                             \
            y->data[i] = ane__wrap(y->dtype, int_expr);                                  \
        }                                                                                \
        return ANE_OK;                                                                   \
    }                                                                                    \
    static ane_status name##_float(ane_eval *ev, const ane_rt *x) {                      \
        ane_rt *y = ANE__OUT(0, x->rank, x->shape);                                           \
        for (int64_t i = 0; i < x->count; i++) {                                         \
            double v = x->data[i];                                                       \
            y->data[i] = expr;                                                           \
        }                                                                                \
        return ANE_OK;                                                                   \
    }

UNARY_INT(abs, fabs(v), v < 0 ? -v : v)
UNARY_INT(sign, v > 0 ? 1 : v < 0 ? -1 : v, (v > 0) - (v < 0))
UNARY_INT(square, v * v, v * v)
UNARY_INT(exp2, exp2(v), v < 0 ? 0 : v > 31 ? 0 : (int64_t)1 << v)
UNARY(acos, acos(v))
UNARY(asin, asin(v))
UNARY(atan, atan(v))
UNARY(atanh, atanh(v))
UNARY(cos, cos(v))
UNARY(cosh, cosh(v))
UNARY(sin, sin(v))
UNARY(sinh, sinh(v))
UNARY(tan, tan(v))
UNARY(tanh, tanh(v))
UNARY(ceil, ceil(v))
UNARY(floor, floor(v))
UNARY(round, rint(v))
UNARY(erf, erf(v))
UNARY(exp, exp(v))
UNARY(sqrt, sqrt(v))
UNARY(logical_not, v == 0)

#define UNARY_EPS(name, expr)                                                            \
    ane_status ane__eval_##name(ane_eval *ev) {                                          \
        const ane_rt *x = ane_eval_in(ev, "x");                                          \
        double eps = ane_eval_f64(ev, "epsilon", 0);                                     \
        ane_rt *y = ANE__OUT(0, x->rank, x->shape);                                           \
        for (int64_t i = 0; i < x->count; i++) {                                         \
            double v = x->data[i] + eps;                                                 \
            y->data[i] = expr;                                                           \
        }                                                                                \
        return ANE_OK;                                                                   \
    }

UNARY_EPS(rsqrt, 1 / sqrt(v))
UNARY_EPS(inverse, 1 / v)
UNARY_EPS(log, log(v))

ane_status ane__eval_threshold(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    double alpha = ane_eval_f64(ev, "alpha", 0);
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    for (int64_t i = 0; i < x->count; i++)
        y->data[i] = x->data[i] < alpha ? alpha : x->data[i];
    return ANE_OK;
}

ane_status ane__eval_clip(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    double lo = ane_eval_f64(ev, "alpha", -INFINITY), hi = ane_eval_f64(ev, "beta", INFINITY);
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    for (int64_t i = 0; i < x->count; i++) {
        double v = x->data[i];
        v = v < lo ? lo : v;
        y->data[i] = v > hi ? hi : v;
    }
    return ANE_OK;
}

/* Rounding to the result's dtype is the cast; the walk does it for floats, but in a wide
 * run it leaves them alone, so integers and bool are rounded here. */
ane_status ane__eval_cast(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    memcpy(y->data, x->data, (size_t)x->count * sizeof *y->data);
    if (!ane__is_float(y->dtype)) ane_rt_round(y);
    return ANE_OK;
}

ane_status ane__eval_identity(ane_eval *ev) {
    ane_eval_set(ev, 0, ane_eval_in(ev, "x"));
    return ANE_OK;
}

/* ---------------------------------------------------------------- two operands */

typedef void row_fn(double *o, const double *x, int64_t sx, const double *y, int64_t sy,
                    int64_t n);

/* Walks the broadcast shape row by row; neighbouring dims that are one run in both operands
 * are taken as one. */
static ane_status binary(ane_eval *ev, row_fn *fn) {
    const ane_rt *x = ane_eval_in(ev, "x"), *y = ane_eval_in(ev, "y");
    int rank = x->rank > y->rank ? x->rank : y->rank;
    int64_t shape[ANE_MAX_RANK], sx[ANE_MAX_RANK], sy[ANE_MAX_RANK], at[ANE_MAX_RANK] = {0};
    ane_status st = ane__broadcast_shape(ev, x, y, shape);
    if (st) return st;
    ane__broadcast_strides(x, rank, shape, sx);
    ane__broadcast_strides(y, rank, shape, sy);
    ane_rt *out = ANE__OUT(0, rank, shape);
    if (!out->count) return ANE_OK;
    int64_t n[ANE_MAX_RANK], a[ANE_MAX_RANK], b[ANE_MAX_RANK], rows = 1;
    int r = 0;
    for (int i = 0; i < rank; i++) {
        if (shape[i] == 1) continue;
        if (r && a[r - 1] == sx[i] * shape[i] && b[r - 1] == sy[i] * shape[i]) {
            n[r - 1] *= shape[i];
            a[r - 1] = sx[i];
            b[r - 1] = sy[i];
            continue;
        }
        n[r] = shape[i];
        a[r] = sx[i];
        b[r++] = sy[i];
    }
    const double *px = x->data, *py = y->data;
    double *o = out->data;
    if (!r) {
        fn(o, px, 0, py, 0, 1);
        return ANE_OK;
    }
    for (int i = 0; i < r - 1; i++) rows *= n[i];
    for (int64_t row = 0; row < rows; row++, o += n[r - 1]) {
        fn(o, px, a[r - 1], py, b[r - 1], n[r - 1]);
        for (int i = r - 2; i >= 0; i--) {
            px += a[i];
            py += b[i];
            if (++at[i] < n[i]) break;
            px -= a[i] * n[i];
            py -= b[i] * n[i];
            at[i] = 0;
        }
    }
    return ANE_OK;
}

#define ROW(name, T, expr)                                                               \
    static void row_##name(double *o, const double *x, int64_t sx, const double *y,      \
                           int64_t sy, int64_t n) {                                      \
        for (int64_t i = 0; i < n; i++) {                                                \
            T a = (T)x[i * sx], b = (T)y[i * sy];                                        \
            o[i] = expr;                                                                 \
        }                                                                                \
    }
/* int32 arithmetic, wrapped: through uint64 nothing overflows. */
#define WRAP(expr) (double)(int32_t)(uint32_t)(uint64_t)(expr)

#define BINARY(name, expr, int_expr)                                                     \
    ROW(name, double, expr)                                                              \
    ROW(name##_int, int64_t, int_expr)                                                   \
    ane_status ane__eval_##name(ane_eval *ev) {                                          \
        bool f = ane__is_float(ane_eval_in(ev, "x")->dtype);                             \
        return binary(ev, f ? row_##name : row_##name##_int);                            \
    }

/* Floor division and remainder as NumPy has them: the remainder is exact, has y's sign, and
 * the quotient is the integer that goes with it. */
static double float_mod(double a, double b) {
    double m = fmod(a, b);
    if (m != 0) return (b < 0) != (m < 0) ? m + b : m;
    return copysign(m, b);
}
static double float_floor_div(double a, double b) {
    if (b == 0) return a / b;
    double m = fmod(a, b), q = (a - m) / b;
    if (m != 0 && (b < 0) != (m < 0)) q -= 1;
    if (q == 0) return copysign(0, a / b);
    double f = floor(q);
    return q - f > 0.5 ? f + 1 : f;
}
static int64_t int_floor_div(int64_t a, int64_t b) {
    if (!b) return 0;
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
static int64_t int_mod(int64_t a, int64_t b) { return b ? a - int_floor_div(a, b) * b : 0; }
static double int_pow(int64_t a, int64_t b) {
    uint64_t base = (uint64_t)a, r = 1;
    for (uint64_t e = (uint64_t)b; e; e >>= 1, base *= base)
        if (e & 1) r *= base;
    return WRAP(r);
}

BINARY(add, a + b, WRAP(a + b))
BINARY(sub, a - b, WRAP(a - b))
BINARY(mul, a *b, WRAP(a *b))
BINARY(real_div, a / b, b ? WRAP(a / b) : 0)
BINARY(floor_div, float_floor_div(a, b), WRAP(int_floor_div(a, b)))
BINARY(mod, float_mod(a, b), WRAP(int_mod(a, b)))
BINARY(maximum, a >= b || a != a ? a : b, (double)(a > b ? a : b))
BINARY(minimum, a <= b || a != a ? a : b, (double)(a < b ? a : b))
ROW(pow, double, pow(a, b))
ROW(pow_int, int64_t, int_pow(a, b))

#define COMPARE(name, op)                                                                \
    ROW(name, double, a op b)                                                            \
    ane_status ane__eval_##name(ane_eval *ev) { return binary(ev, row_##name); }
COMPARE(equal, ==)
COMPARE(not_equal, !=)
COMPARE(less, <)
COMPARE(less_equal, <=)
COMPARE(greater, >)
COMPARE(greater_equal, >=)
COMPARE(logical_and, &&)
COMPARE(logical_or, ||)
COMPARE(logical_xor, !=)

ane_status ane__eval_pow(ane_eval *ev) {
    const ane_rt *y = ane_eval_in(ev, "y");
    for (int64_t i = 0; !ane__is_float(y->dtype) && i < y->count; i++)
        if (y->data[i] < 0)
            return ane_eval_fail(ev, ANE_ERR_INVALID,
                                 "an int32 power cannot have the exponent %g", y->data[i]);
    return binary(ev, ane__is_float(y->dtype) ? row_pow : row_pow_int);
}

ane_status ane__broadcast_shape(ane_eval *ev, const ane_rt *x, const ane_rt *y,
                                int64_t *shape) {
    int rank = x->rank > y->rank ? x->rank : y->rank;
    char a[ANE_DIMS_TEXT], b[ANE_DIMS_TEXT];
    for (int i = 0; i < rank; i++) {
        int kx = i - rank + x->rank, ky = i - rank + y->rank;
        int64_t dx = kx < 0 ? 1 : x->shape[kx], dy = ky < 0 ? 1 : y->shape[ky];
        if (dx != dy && dx != 1 && dy != 1)
            return ane_eval_fail(ev, ANE_ERR_SHAPE, "shapes %s and %s do not broadcast",
                                 ane__dims_text(x->rank, x->shape, a, sizeof a),
                                 ane__dims_text(y->rank, y->shape, b, sizeof b));
        shape[i] = dx == 1 ? dy : dx;
    }
    return ANE_OK;
}

/* Three operands: each is expanded to the result's shape only when it is smaller. */
static const double *expanded(ane_eval *ev, const ane_rt *r, const ane_rt *out,
                              double **scratch) {
    if (r->count == out->count) return r->data;
    int64_t from[ANE_MAX_RANK], to[ANE_MAX_RANK];
    *scratch = ane__scratch(ev, out->count);
    if (!*scratch) return NULL;
    ane__broadcast_strides(r, out->rank, out->shape, from);
    ane__strides(out->rank, out->shape, to);
    ane__copy(*scratch, to, r->data, from, out->rank, out->shape);
    return *scratch;
}

ane_status ane__eval_select(ane_eval *ev) {
    const ane_rt *c = ane_eval_in(ev, "cond"), *a = ane_eval_in(ev, "a"),
                 *b = ane_eval_in(ev, "b");
    ane_rt both = {.rank = a->rank > b->rank ? a->rank : b->rank};
    int64_t shape[ANE_MAX_RANK];
    ane_status st = ane__broadcast_shape(ev, a, b, both.shape);
    if (!st) st = ane__broadcast_shape(ev, c, &both, shape);
    if (st) return st;
    ane_rt *out = ANE__OUT(0, c->rank > both.rank ? c->rank : both.rank, shape);
    double *s[3] = {NULL, NULL, NULL};
    const double *pc = expanded(ev, c, out, &s[0]), *pa = pc ? expanded(ev, a, out, &s[1]) : NULL,
                 *pb = pa ? expanded(ev, b, out, &s[2]) : NULL;
    if (pb)
        for (int64_t i = 0; i < out->count; i++) out->data[i] = pc[i] != 0 ? pa[i] : pb[i];
    for (int i = 0; i < 3; i++) ane__eval_free(s[i]);
    return pb ? ANE_OK : ev->status;
}
